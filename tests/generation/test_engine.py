from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation import engine, ladders
from rlax_llm.generation.engine import decode, generate_at_once, prefill
from rlax_llm.generation.prompts import Widths, pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate, stream
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.generation.slots import move_and_decode, prefill_and_decode
from rlax_llm.generation.state import completions as completions_of
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.padding import bucket
from rlax_llm.models.ropes import Rope
from rlax_llm.models.scoring import group_log_probs, row_log_probs

V, GROUP = 13, 3
SMALL = DecoderConfig(V, 16, 24, 1, 4, 2, 4, max_positions=64)
CONFIGS = {
    "llama": DecoderConfig(V, 16, 24, 2, 4, 1, 4),
    "qwen2": DecoderConfig(V, 16, 24, 2, 2, 2, 8, biases=("q", "k", "v")),
    "qwen3": DecoderConfig(V, 16, 24, 2, 4, 2, 6, qk_norm="head", tie_embeddings=False),
    "windows and caps": DecoderConfig(
        V,
        16,
        24,
        3,
        4,
        2,
        4,
        window=3,
        sliding=(True, False, True),
        local_rope=Rope(100.0),
        rotated=(True, True, False),
        attention_cap=2.0,
        sinks=True,
        logit_divisor=0.5,
        logit_cap=5.0,
        norms="both",
        norm_offset=1.0,
    ),
}
BOTH = Categorical(0.8, top_k=9, top_p=0.9)
PROMPTS = [[5, 1, 7], [2, 3, 4, 5, 6, 7, 8, 9], [11]]


def random_params(config: DecoderConfig, dtype=jnp.float32):
    """Parameters with noise on all of them, so that biases and norms count too."""
    random = np.random.default_rng(0)

    def draw(path, shape):
        return jnp.asarray(random.normal(size=shape) * 0.3 + (path[-1].key.endswith("norm")), dtype)

    return jax.tree_util.tree_map_with_path(draw, config.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.fixture
def small_rooms(monkeypatch):
    """The cache of the completions is widened within four tokens."""
    monkeypatch.setattr(ladders, "FIRST_ROOM", 2)


@partial(jax.jit, static_argnums=0)
def recomputed(config, params, completions, temperature):
    """Log-probabilities of the completions through all logits of a plain forward pass."""
    logits = decoder.logits(config, params, completions.tokens, completions.valid)[:, :-1] / temperature
    targets = completions.tokens[:, 1:, None]
    if completions.kept is not None:
        kept = (completions.kept[:, 1:, :1] >> np.arange(V)) & 1  # all of this vocabulary is in the first word
        logits = jnp.where(kept == 1, logits, -jnp.inf)
    log_p = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, targets, -1)[..., 0]
    return jnp.pad(jnp.where(completions.mask[:, 1:], chosen, 0.0), ((0, 0), (1, 0)))


@partial(jax.jit, static_argnums=0)
def learners(config, params, completions, temperature):
    """Log-probabilities of the completions as the learner computes them, each prompt of 8 tokens once."""
    return group_log_probs(config, (GROUP, 8), temperature)(params, completions)[0]


def check(config, params, sampler, completions):
    temperature = getattr(sampler, "temperature", 1.0)
    for again in (recomputed, learners):
        log_probs = again(config, params, completions, temperature)
        np.testing.assert_allclose(log_probs, completions.log_probs, rtol=0, atol=1e-4)
    assert np.any(completions.log_probs < -0.1)


@pytest.mark.usefixtures("small_rooms")
@pytest.mark.parametrize("name", CONFIGS)
def test_cached_decoding_is_the_full_forward(name):
    config, params = CONFIGS[name], random_params(CONFIGS[name])
    completions = generate(config, params, pad_prompts(PROMPTS, 0, V), jax.random.key(2), Request(BOTH, (), 4, GROUP))
    assert np.all(completions.mask[:, 8:])
    check(config, params, BOTH, completions)


@pytest.mark.usefixtures("small_rooms")
@pytest.mark.parametrize(
    "sampler",
    [greedy, Categorical(), Categorical(0.5), Categorical(top_k=4), Categorical(1.5, top_p=0.7)],
    ids=["greedy", "plain", "cold", "top_k", "hot_top_p"],
)
def test_ratios_are_one_on_the_first_update_at_every_setting(sampler):
    params = random_params(SMALL)
    request = Request(sampler, (3, 12), 4, GROUP)
    completions = generate(SMALL, params, pad_prompts(PROMPTS, 0, V), jax.random.key(2), request)
    check(SMALL, params, sampler, completions)


def test_bfloat16_log_probs_are_near_the_recomputed_ones():
    params = random_params(SMALL, jnp.bfloat16)
    sampler = Categorical(0.7)
    completions = generate(SMALL, params, pad_prompts(PROMPTS, 0, V), jax.random.key(2), Request(sampler, (), 4, GROUP))
    difference = np.asarray(learners(SMALL, params, completions, 0.7) - completions.log_probs)[:, 8:]
    assert np.abs(difference).max() < 0.2
    assert np.abs(difference).mean() < 0.03


@pytest.fixture(scope="module")
def stopped():
    """Completions of rows that stop at tokens 6, 9 or 2, with their last state; the prompts hold those tokens too."""
    request = Request(Categorical(), (6, 9, 2), 8, 8)
    prompts = pad_prompts(PROMPTS, 6, V)
    params = random_params(SMALL)
    *_, state = stream(SMALL, params, prompts, jax.random.key(5), request)
    return request, params, prompts, completions_of(*prompts, state, request), state


def test_what_the_policy_chose_is_all_up_to_the_first_stop_token(stopped):
    request, _, prompts, completions, state = stopped
    tokens, mask, valid = (np.asarray(x) for x in (completions.tokens, completions.mask, completions.valid))
    assert tokens.shape == (24, 16)
    np.testing.assert_array_equal(tokens[:, :8], np.repeat(prompts[0], 8, 0))
    np.testing.assert_array_equal(valid[:, :8], np.repeat(prompts[1], 8, 0))
    assert not mask[:, :8].any()
    seen = set()
    for row in range(24):
        own = tokens[row, 8:].tolist()
        stops = [t for t, token in enumerate(own) if token in request.stop_ids]
        length = stops[0] + 1 if stops else 8
        seen.add(own[length - 1])
        assert mask[row, 8:].tolist() == valid[row, 8:].tolist() == [t < length for t in range(8)]
        assert completions.truncated[row] == (not stops)
        assert set(own[length:]) <= {request.stop_ids[0]}
        assert state.lengths[row] == length
        assert np.all(completions.log_probs[row, 8 : 8 + length] < 0)
    assert not np.any(np.asarray(completions.log_probs)[~mask])
    assert completions.kept is None
    assert seen >= {6, 9, 2}
    assert completions.truncated.any()


def test_a_stop_token_as_padding_disturbs_nobody(stopped):
    """Padding and end-of-sequence share an id here; log-probabilities are still the recomputed ones."""
    _, params, _, completions, _ = stopped
    np.testing.assert_allclose(recomputed(SMALL, params, completions, 1.0), completions.log_probs, rtol=0, atol=1e-4)
    log_probs, entropy = jax.jit(row_log_probs(SMALL))(params, completions)
    np.testing.assert_allclose(log_probs, completions.log_probs, rtol=0, atol=1e-4)
    assert not np.any(np.asarray(entropy)[~np.asarray(completions.mask)])


@pytest.mark.parametrize("limit", [1, 5])
def test_the_loop_ends_when_every_row_has_stopped(limit):
    """Every token is a stop token: one is drawn, and nothing is decoded."""
    request = Request(Categorical(), tuple(range(V)), limit, GROUP)
    *_, state = stream(SMALL, random_params(SMALL), pad_prompts(PROMPTS, 0, V), jax.random.key(0), request)
    assert state.step == 1
    assert state.lengths.tolist() == [1] * 9
    assert not state.alive.any()


def test_the_loop_ends_at_the_longest_row():
    request = Request(Categorical(), tuple(range(6)), 40, GROUP)
    *_, state = stream(SMALL, random_params(SMALL), pad_prompts(PROMPTS, 0, V), jax.random.key(0), request)
    assert 1 < state.lengths.max() == state.step < 40


def test_one_new_token():
    request = Request(Categorical(), (4,), 1, GROUP)
    params = random_params(SMALL)
    completions = generate(SMALL, params, pad_prompts(PROMPTS, 0, V), jax.random.key(2), request)
    assert completions.tokens.shape == (9, 9)
    np.testing.assert_array_equal(completions.mask[:, 8], np.ones(9, bool))
    np.testing.assert_array_equal(completions.truncated, completions.tokens[:, 8] != 4)
    check(SMALL, params, Categorical(), completions)


def test_a_key_gives_the_same_and_rows_and_keys_differ():
    params, prompts = random_params(SMALL), pad_prompts([[5, 1], [5, 1]], 0, V)
    request = Request(Categorical(), (), 7, GROUP)
    first, second, third = (generate(SMALL, params, prompts, jax.random.key(k), request) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert len({tuple(row) for x in (first, third) for row in x.tokens[:, 8:].tolist()}) == 12


@pytest.mark.usefixtures("small_rooms")
def test_steps_of_a_stream_do_not_change_its_tokens():
    params, prompts = random_params(SMALL), pad_prompts(PROMPTS, 0, V)
    request = Request(BOTH, (), 4, GROUP)
    whole = generate(SMALL, params, prompts, jax.random.key(2), request)
    steps = []
    for state in stream(SMALL, params, prompts, jax.random.key(2), request, stride=1):
        steps.append(int(state.step))
        tokens = np.asarray(state.tokens)[:, : steps[-1]].copy()
        np.testing.assert_array_equal(tokens, whole.tokens[:, 8 : 8 + steps[-1]])
    assert steps == [1, 2, 3, 4]


def test_one_program_draws_what_the_stream_draws_for_every_seed(small_rooms):
    """Jitted, and vmapped over keys: rows that stop early wait for the seed that goes on longest."""
    params, request = random_params(SMALL), Request(BOTH, (3, 4), 12, GROUP)
    prompts, keys = pad_prompts(PROMPTS, 0, V), jax.random.split(jax.random.key(5), 4)
    at_once = partial(generate_at_once, SMALL, params, prompts, request=request)
    together = jax.jit(jax.vmap(lambda key: at_once(key=key)))(keys)
    for seed, key in enumerate(keys):
        assert together.versions is None
        for one, many in zip(generate(SMALL, params, prompts, key, request)[:6], together[:6], strict=True):
            if one.dtype == jnp.float32:
                np.testing.assert_allclose(many[seed], one, atol=1e-5)
            else:
                np.testing.assert_array_equal(many[seed], one)


def test_greedy_completions_do_not_depend_on_the_rest_of_the_batch():
    params, request = random_params(SMALL), Request(greedy, (), 4)
    together = generate(SMALL, params, pad_prompts(PROMPTS, 0, V), jax.random.key(0), request)
    tokens, valid = pad_prompts(PROMPTS, 0, V)
    wider = np.pad(tokens, ((0, 0), (4, 0)), constant_values=3), np.pad(valid, ((0, 0), (4, 0)))
    padded = generate(SMALL, params, wider, jax.random.key(1), request)
    np.testing.assert_array_equal(padded.tokens[:, 12:], together.tokens[:, 8:])
    np.testing.assert_allclose(padded.log_probs[:, 12:], together.log_probs[:, 8:], atol=1e-5)
    for row in range(3):
        alone = generate(SMALL, params, (tokens[row : row + 1], valid[row : row + 1]), jax.random.key(2), request)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.log_probs[0], together.log_probs[row], atol=1e-5)


@pytest.mark.usefixtures("small_rooms")
def test_few_programs_whatever_the_lengths():
    config = DecoderConfig(V, 8, 8, 1, 1, 1, 4)
    params, request = decoder.init_decoder(config, jax.random.key(0)), Request(Categorical(), (3,), 3)
    programs = prefill_and_decode, prefill, decode, move_and_decode
    before = [program._cache_size() for program in programs]
    for seed, length in enumerate([1, 2, 5, 8, 9, 11, 12, 7, 3, 10]):
        generate(config, params, pad_prompts([[1] * length], 0, V), jax.random.key(seed), request)
    # Two widths, 8 and 12. Nobody reads the keys of the third token, so the cache never grows from 2 columns to 3.
    assert [program._cache_size() - count for program, count in zip(programs, before, strict=True)] == [2, 0, 0, 0]


def test_the_cache_is_donated_and_never_copied():
    config = DecoderConfig(64, 32, 32, 1, 4, 2, 8)
    request, room = Request(Categorical(0.7, top_k=9), (3,), 600, 8), 512
    params = jax.eval_shape(lambda: decoder.init_decoder(config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32), jax.ShapeDtypeStruct((4, 64), jnp.bool_)
    key = jax.eval_shape(lambda: jax.random.key(0))
    prompt, state = jax.eval_shape(lambda p, *x: prefill(config, p, *x, request, room), params, *tokens, key)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    program = decode.lower(config, jax.eval_shape(engine.unstack, params), prompt, state, until, request).compile()
    cache_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache))
    memory = program.memory_analysis()
    assert cache_bytes == 2 * 4 * 8 * 2 * 8 * 512 * 4
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes


def test_too_long_for_the_model():
    config = DecoderConfig(V, 8, 8, 1, 1, 1, 4, max_positions=16)
    params, prompts = decoder.init_decoder(config, jax.random.key(0)), pad_prompts([[1, 2]], 0, V)
    with pytest.raises(ValueError) as caught:
        generate(config, params, prompts, jax.random.key(0), Request(greedy, (), 9))
    assert str(caught.value) == (
        "generate: a prompt of 8 tokens and max_new_tokens 9 make 17, the model was trained for max_positions 16; "
        "shorten the prompts or lower max_new_tokens."
    )
    generate(config, params, prompts, jax.random.key(0), Request(greedy, (), 8))


@pytest.mark.parametrize(
    ("prompts", "limit", "message"),
    [
        ([[1], []], None, "pad_prompts: prompt 1 is empty; a completion needs at least one token before it."),
        (
            [[1, 2, 3]],
            2,
            "pad_prompts: prompt 0 has 3 tokens, max_prompt_tokens is 2; raise the limit or leave the row",
        ),
        ([[1], [2, 13]], None, "pad_prompts: prompt 1 holds token 13, the vocabulary has 13; use the model's own"),
        ([[12, -1]], None, "pad_prompts: prompt 0 holds token -1, the vocabulary has 13; use the model's own"),
    ],
)
def test_errors_of_prompts(prompts, limit, message):
    with pytest.raises(ValueError) as caught:
        pad_prompts(prompts, 0, V, limit)
    assert message in str(caught.value)


def test_prompts_are_padded_on_the_left_to_few_widths():
    tokens, valid = pad_prompts(PROMPTS, 9, V)
    assert tokens.shape == valid.shape == (3, 8)
    for row, prompt in enumerate(PROMPTS):
        assert tokens[row].tolist() == [9] * (8 - len(prompt)) + prompt
        assert valid[row].tolist() == [False] * (8 - len(prompt)) + [True] * len(prompt)
    widths = [bucket(n) for n in range(1, 5000)]
    assert len(set(widths)) == 20
    assert all(n <= width <= max(8, 1.5 * n) for n, width in enumerate(widths, 1))


@pytest.mark.parametrize("most", [96, 200, 512])
def test_a_run_has_few_widths_of_prompts(most):
    """Of batches of any lengths: four at most, wide enough, none twice too wide; those before decide on nothing."""
    for seed in range(20):
        widths = Widths(most)
        batches = np.random.default_rng(seed).lognormal(np.log(most) - 2, 0.7, (200, 16)).astype(int).clip(1, most)
        taken = [(longest, widths(longest)) for longest in batches.max(1)]
        assert all(longest <= width < 2 * max(longest, 8) for longest, width in taken)
        assert taken == [(longest, Widths(most)(longest)) for longest, _ in taken]
        assert len({width for _, width in taken}) <= 4
