"""Completions that take several generations are those of one."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.speculation import Speculation
from rlax_llm.generation import ladders, rollout
from rlax_llm.generation.automata import stop_automaton
from rlax_llm.generation.partial import generate_partly, not_begun, unfinished
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs

CONFIG = DecoderConfig(29, 16, 24, 2, 4, 2, 4, max_positions=512)
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(0)))
OTHERS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(5)))
GROUPS, SIZE, LIMIT, WIDTH = 9, 2, 80, 8
PROMPTS = pad_prompts(
    [np.random.default_rng(i).integers(2, 29, 1 + i % 8).tolist() for i in range(GROUPS)], pad_id=0, vocab_size=29
)
KEY = jax.random.key(1)
ENDS = (stop_automaton(["abc"], [b"abcdefghij"[token % 10 :][:1] for token in range(29)]),)
REQUESTS = {
    "plain": Request(Categorical(), (3, 7), LIMIT, SIZE, 2),
    "cut": Request(Categorical(0.9, top_k=15, top_p=0.95), (3, 7), LIMIT, SIZE),
    "remembering": Request(Categorical(), (3,), LIMIT, SIZE, 2, Penalties(1.2, 0.3, 0.4), ENDS),
}


@pytest.fixture(scope="module", autouse=True)
def every_step_counts():
    """These models' steps are so little work that their rows would stay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladders, "LEAST", 0.0)
        yield


@pytest.fixture(scope="module", params=REQUESTS)
def asked(request):
    """A request, and its completions in one generation."""
    wanted = REQUESTS[request.param]
    whole = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, wanted))
    lengths = whole.mask.sum(1)
    assert lengths.min() < 4 < 24 < lengths.max(), lengths
    return wanted, whole


def steps(request, slots=None, params=PARAMS):
    """What is there after each generation, of 1, 4, 6 and all groups."""
    begun = not_begun(PROMPTS, request)
    for enough in (1, 4, 6, GROUPS):
        begun = jax.device_get(generate_partly(CONFIG, params, begun, KEY, request, enough, slots))
        yield begun


def assert_same(found, whole) -> None:
    for name in ("tokens", "mask", "valid", "truncated"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(found.log_probs, whole.log_probs, rtol=0, atol=1e-4)
    assert (found.kept is None) == (whole.kept is None)
    if found.kept is not None:
        np.testing.assert_array_equal(found.kept[found.mask], whole.kept[whole.mask])


@pytest.mark.parametrize("slots", [None, 7, 2])
def test_interrupted_or_not_the_completions_are_the_same(asked, slots):
    *_, found = steps(asked[0], slots)
    assert_same(found, asked[1])


def test_what_goes_on_is_read_again_with_its_tokens(asked):
    request = asked[0]
    first, told = next(steps(request)), []
    generate_partly(CONFIG, PARAMS, first, KEY, request._replace(speculation=Speculation()), GROUPS, None, told.append)
    going = unfinished(first, LIMIT)
    assert told[0].read == first.valid[going].sum()
    assert told[0].drawn == asked[1].mask.sum() - first.mask.sum()


def test_the_groups_that_end_first_are_whole(asked):
    """Literally: each generation goes on, token by token, until enough groups have no row that goes on."""
    request, whole = asked
    lengths, has = whole.mask.sum(1), np.zeros(GROUPS * SIZE, int)
    for enough, found in zip((1, 4, 6, GROUPS), steps(request), strict=True):
        has = np.maximum(has, 1)  # a prefill draws the first
        while (has >= lengths).reshape(GROUPS, SIZE).all(1).sum() < enough:
            has = np.minimum(has + 1, lengths)
        np.testing.assert_array_equal(found.mask.sum(1), has)
        np.testing.assert_array_equal(unfinished(found, LIMIT), has < lengths)


def test_each_part_has_the_log_probabilities_of_its_policy(asked):
    request = asked[0]
    first = next(steps(request))
    found = jax.device_get(generate_partly(CONFIG, OTHERS, first, KEY, request, GROUPS))
    learner = group_log_probs(CONFIG, (SIZE, WIDTH), request.sampler.temperature, penalties=request.penalties)
    policies = [np.asarray(learner(params, found)[0]) for params in (PARAMS, OTHERS)]
    wanted = np.where(first.mask, *policies)
    np.testing.assert_allclose(found.log_probs[found.mask], wanted[found.mask], rtol=0, atol=1e-4)
    assert (first.mask.sum(1) < found.mask.sum(1)).any()


def test_a_group_with_a_row_without_a_token_begins_anew(asked):
    request, whole = asked
    first = next(steps(request))
    first = first._replace(mask=first.mask & (np.arange(GROUPS * SIZE) != 3)[:, None])
    found = jax.device_get(generate_partly(CONFIG, PARAMS, first, KEY, request, GROUPS))
    assert_same(found, whole)


def test_rows_keep_their_keys_in_other_company():
    """Groups that go on beside others, elsewhere, under prompts of another width."""
    request = REQUESTS["plain"]
    whole = generate(CONFIG, PARAMS, PROMPTS, KEY, request)
    left = next(steps(request))
    groups = np.array([8, 2, 5])
    rows = (groups[:, None] * SIZE + np.arange(SIZE)).ravel()
    some = jax.tree.map(lambda x: np.pad(x[rows], [(0, 0), (5, 0), (0, 0)][: x.ndim]), left)
    found = generate_partly(CONFIG, PARAMS, some, row_keys(KEY, GROUPS * SIZE)[rows], request, 3)
    np.testing.assert_array_equal(np.asarray(found.mask)[:, 5:], np.asarray(whole.mask)[rows])
    chosen = np.asarray(found.mask)[:, 5:]
    np.testing.assert_array_equal(np.asarray(found.tokens)[:, 5:][chosen], np.asarray(whole.tokens)[rows][chosen])


def test_what_is_enough_is_not_drawn_again():
    *_, found = steps(REQUESTS["plain"])
    assert generate_partly(CONFIG, PARAMS, found, KEY, REQUESTS["plain"], 4) is found


def test_wrong_input_is_told():
    request = REQUESTS["plain"]
    begun = not_begun(PROMPTS, request)
    for enough in (-1, GROUPS + 1):
        with pytest.raises(ValueError, match="wanted a number of groups from 0 to 9"):
            generate_partly(CONFIG, PARAMS, begun, KEY, request, enough)
    with pytest.raises(ValueError, match="wanted groups of 2 rows, with max_new_tokens, 80, columns behind"):
        generate_partly(CONFIG, PARAMS, jax.tree.map(lambda x: x[:3], begun), KEY, request, 1)


def test_prompts_that_begin_alike_go_on_as_others_do(monkeypatch):
    """What a whole generation reads once, rows that go on read each."""
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    alike = np.random.default_rng(9).integers(2, 29, 40).tolist()
    prompts = pad_prompts([[*alike, i, i + 1] for i in range(2, 2 + GROUPS)], pad_id=0, vocab_size=29)
    request = REQUESTS["plain"]
    whole = jax.device_get(generate(CONFIG, PARAMS, prompts, KEY, request))
    begun = not_begun(prompts, request)
    for enough in (2, GROUPS):
        begun = jax.device_get(generate_partly(CONFIG, PARAMS, begun, KEY, request, enough, 4))
    assert_same(begun, whole)
