"""Rows leave and enter a generation, and no completion changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation import ladders
from rlax_llm.generation.engine import decode, prefill
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Generation, generate, stream
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.generation.slots import let_in, move_and_decode, opened
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs

CONFIG = DecoderConfig(29, 16, 24, 2, 4, 2, 4, max_positions=512)
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(0)))
PROMPTS = pad_prompts(
    [np.random.default_rng(i).integers(2, 29, 1 + i % 8).tolist() for i in range(10)], pad_id=0, vocab_size=29
)
KEY = jax.random.key(1)
SAMPLERS = {"plain": Categorical(), "cut": Categorical(0.9, top_k=15, top_p=0.95)}


@pytest.fixture(scope="module", autouse=True)
def every_step_counts():
    """These models' steps are so little work that their rows would stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladders, "LEAST", 0.0)
        yield


def static(request: Request, prompts=PROMPTS, key=KEY):
    """All rows together to the end of the longest."""
    *_, state = stream(CONFIG, PARAMS, prompts, key, request)
    return jax.device_get(state)


def assert_same(found, state) -> None:
    width = PROMPTS[0].shape[1]
    chosen = np.arange(state.tokens.shape[1]) < state.lengths[:, None]
    np.testing.assert_array_equal(np.asarray(found.mask)[:, width:], chosen)
    np.testing.assert_array_equal(found.tokens[:, width:][chosen], state.tokens[chosen])
    np.testing.assert_allclose(found.log_probs[:, width:][chosen], state.log_probs[chosen], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.truncated, state.alive)
    assert (found.kept is None) == (state.kept is None)
    if found.kept is not None:
        np.testing.assert_array_equal(found.kept[:, width:][chosen], state.kept[chosen])


@pytest.fixture(scope="module", params=SAMPLERS)
def stopping(request):
    """A request of completions of very different lengths, and its rows all together."""
    asked = Request(SAMPLERS[request.param], (3, 7), 80, 2, 2)
    return asked, static(asked)


def test_lengths_differ(stopping):
    lengths = stopping[1].lengths
    assert lengths.min() < 8 < 40 < lengths.max(), lengths


@pytest.mark.parametrize("slots", [None, 20, 12, 5, 2])
def test_who_runs_beside_a_row_changes_nothing(stopping, slots):
    asked, state = stopping
    assert_same(jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, asked, slots)), state)


def test_a_row_alone_is_the_row_among_others(stopping):
    asked, state = stopping
    keys = row_keys(KEY, 20)
    for group in (0, 7):
        own = tuple(x[group : group + 1] for x in PROMPTS)
        alone = jax.device_get(generate(CONFIG, PARAMS, own, keys[2 * group : 2 * group + 2], asked))
        chosen = np.arange(80) < state.lengths[2 * group : 2 * group + 2, None]
        np.testing.assert_array_equal(alone.tokens[:, 8:][chosen], state.tokens[2 * group : 2 * group + 2][chosen])


def test_what_rows_drew_in_slots_has_ratio_one(stopping):
    """The learner recomputes the log-probabilities of rows that entered late and left early."""
    asked, _ = stopping
    found = generate(CONFIG, PARAMS, PROMPTS, KEY, asked, 6)
    recomputed = group_log_probs(CONFIG, (2, 8), asked.sampler.temperature)(PARAMS, found)[0]
    np.testing.assert_allclose(recomputed, found.log_probs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("slots", [None, 6])
def test_each_row_ends_at_its_own_limit(slots):
    asked = Request(Categorical(), (), 80, 2)
    limits = np.random.default_rng(0).integers(1, 81, 20)
    limits[3] = 80
    found = generate(CONFIG, PARAMS, PROMPTS, KEY, asked, slots, limits)
    np.testing.assert_array_equal(np.asarray(found.mask).sum(1), limits)
    assert np.all(found.truncated)
    whole = static(asked)
    chosen = np.arange(80) < limits[:, None]
    np.testing.assert_array_equal(found.tokens[:, 8:][chosen], whole.tokens[chosen])


@pytest.mark.parametrize(("slots", "least"), [(None, 0.75), (32, 0.75)])
def test_no_row_waits_for_the_longest(slots, least):
    """Of log-normal lengths at least three quarters of what is computed is drawn (together: less than a third)."""
    rows, limit = 128, 256
    tiny = DecoderConfig(13, 4, 4, 1, 1, 1, 4, max_positions=512)
    lengths = np.clip(np.random.default_rng(1).lognormal(np.log(75) - 0.5, 1.0, rows).astype(int), 1, limit)
    prompts = jnp.ones((rows, 8), jnp.int32), jnp.ones((rows, 8), bool)
    request = Request(Categorical(), (), limit)
    params = init_decoder(tiny, jax.random.key(0))
    going = Generation(tiny, params, prompts, (row_keys(KEY, rows), jnp.asarray(lengths)), request, slots)
    computed, step = 0, int(going.state.step)
    while going.advance():
        computed += (int(going.state.step) - step) * going.state.going.shape[0]
        step = int(going.state.step)
    np.testing.assert_array_equal(np.asarray(going.completions().mask).sum(1), lengths)
    assert lengths.sum() / (rows * lengths.max()) < 1 / 3
    assert lengths.sum() / computed > least


def test_few_programs_whatever_the_lengths_in_slots():
    request = Request(Categorical(), (), 40)
    tiny = DecoderConfig(13, 4, 4, 1, 1, 1, 4, max_positions=512)
    params = init_decoder(tiny, jax.random.key(0))
    prompts = jnp.ones((24, 8), jnp.int32), jnp.ones((24, 8), bool)
    programs = prefill, decode, opened, let_in, move_and_decode
    before = sum(program._cache_size() for program in programs)
    for seed in range(4):
        limits = np.random.default_rng(seed).integers(1, 41, 24)
        generate(tiny, params, prompts, KEY, request, 8, limits)
    # Eight slots, which rows enter, and five and four at the end.
    assert sum(program._cache_size() for program in programs) - before <= 8


def test_rows_have_a_key_and_a_limit_each():
    asked = Request(Categorical(), (), 5, 2)
    with pytest.raises(ValueError, match=r"key: got keys of shape \(3,\), wanted one key, or one for each of 20"):
        generate(CONFIG, PARAMS, PROMPTS, jax.random.split(KEY, 3), asked)
    for limits in (np.ones(3, int), np.full(20, 6), np.zeros(20, int), np.ones(0, int), np.full(20, np.nan)):
        with pytest.raises(ValueError, match="wanted one for each of 20 completions, from 1 to max_new_tokens, 5"):
            generate(CONFIG, PARAMS, PROMPTS, KEY, asked, limits=limits)


TOKENS, VALID = (x[:2] for x in PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "changed", "slots", "message"),
    [
        ((TOKENS, VALID), {"max_new_tokens": 0}, None, "generate: max_new_tokens is 0, wanted a whole number of at"),
        ((TOKENS, VALID), {"group_size": 0}, None, "generate: group_size is 0, wanted a whole number of at least 1"),
        ((TOKENS, VALID), {}, 0, "generate: slots is 0, wanted a whole number of at least 1"),
        ((TOKENS[:0], VALID[:0]), {}, None, r"generate: tokens has shape \(0, 8\), wanted \[prompts, columns\]"),
        ((TOKENS[:, :0], VALID[:, :0]), {}, None, r"generate: tokens has shape \(2, 0\), wanted"),
        ((TOKENS, VALID[:1]), {}, None, r"generate: tokens has shape \(2, 8\), valid has \(1, 8\)"),
        ((TOKENS, VALID.astype(int)), {}, None, "generate: valid is int64, wanted bool"),
        ((TOKENS, np.tile(np.arange(8) != 3, (2, 1))), {}, None, "generate: prompt 0 has padding between its tokens"),
        ((TOKENS, VALID[:, ::-1]), {}, None, "generate: prompt 0 has no token in the last column; pad prompts on"),
    ],
)
def test_what_cannot_be_completed_is_told(prompts, changed, slots, message):
    request = Request(Categorical(), (), 5)._replace(**changed)
    with pytest.raises(ValueError, match=message):
        generate(CONFIG, PARAMS, prompts, KEY, request, slots)


def test_a_stride_goes_forward():
    with pytest.raises(ValueError, match="stream: stride is -1, wanted a whole number of at least 1"):
        next(stream(CONFIG, PARAMS, PROMPTS, KEY, Request(Categorical(), (), 5), -1))
