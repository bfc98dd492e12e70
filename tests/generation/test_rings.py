"""Layers with a window keep the columns of their window, in a ring, and draw what they draw with all columns."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.speculation import Speculation
from rlax_llm.generation import ladders, rollout
from rlax_llm.generation.cache import columns_of, whole, windowed
from rlax_llm.generation.engine import decode, generate_at_once, prefill, unstack
from rlax_llm.generation.further import begun_anew, generate_further
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.generation.partial import generate_partly, not_begun
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import Generation, generate
from rlax_llm.generation.sampling import Categorical, row_keys
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs

V, GROUP, LIMIT, WIDTH = 29, 2, 24, 24
SOME = DecoderConfig(V, 16, 24, 2, 4, 2, 4, max_positions=512, window=6, sliding=(True, False))
MODELS = {"some": SOME, "all": replace(SOME, window=8, sliding=())}
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(SOME, jax.random.key(0)))
with jax.enable_x64(True):
    DOUBLE = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), PARAMS)
COMMON = np.random.default_rng(7).integers(2, V, 3).tolist()
PROMPTS = pad_prompts(
    [COMMON + np.random.default_rng(i).integers(2, V, 1 + 4 * i).tolist() for i in range(5)], 0, V, WIDTH
)
KEY = jax.random.key(1)
REQUEST = Request(Categorical(), (24,), LIMIT, GROUP, 2)
RING = 8


@pytest.fixture(autouse=True)
def rows_leave_and_the_cache_grows(monkeypatch):
    monkeypatch.setattr(ladders, "FIRST_ROOM", 6)
    monkeypatch.setattr(ladders, "LEAST", 0.0)


@cache
def with_all_columns(name: str):
    """In one program."""
    found = jax.jit(partial(generate_at_once, MODELS[name], request=REQUEST._replace(keeps=whole)))
    drawn = jax.device_get(found(DOUBLE, PROMPTS, key=KEY))
    lengths = drawn.mask.sum(1)
    assert lengths.min() <= RING and (lengths > 2 * RING).sum() > 2, lengths
    return drawn


def in_one_program(config: DecoderConfig):
    return jax.jit(partial(generate_at_once, config, request=REQUEST))(DOUBLE, PROMPTS, key=KEY)


def rows_that_leave(config: DecoderConfig):
    return generate(config, DOUBLE, PROMPTS, KEY, REQUEST)


def rows_that_enter(config: DecoderConfig):
    return generate(config, DOUBLE, PROMPTS, KEY, REQUEST, slots=4)


def guesses(config: DecoderConfig):
    return generate(config, DOUBLE, PROMPTS, KEY, REQUEST._replace(speculation=Speculation(3, always=True)))


def several_generations(config: DecoderConfig):
    begun = not_begun(PROMPTS, REQUEST)
    for enough in (2, 5):
        begun = generate_partly(config, DOUBLE, begun, KEY, REQUEST, enough, slots=6)
    return begun


def further_and_further(config: DecoderConfig):
    like = not_begun(PROMPTS, REQUEST)
    begun = begun_anew(PROMPTS, REQUEST, jax.tree.map(jnp.asarray, like))
    further = jax.jit(partial(generate_further, config, request=REQUEST))
    for most in (3, 12, LIMIT):
        begun = further(DOUBLE, begun, row_keys(KEY, 5 * GROUP), most=most)
    return begun


def a_mixture(config: DecoderConfig):
    return generate_mixed(config, Two(DOUBLE, DOUBLE), PROMPTS, KEY, REQUEST, 0.5)


SIZES = (rows_that_leave, rows_that_enter, guesses)
FORMS = (in_one_program, several_generations, further_and_further, a_mixture, *SIZES)


@pytest.mark.parametrize(("name", "form"), [*(("some", form) for form in FORMS), *(("all", form) for form in SIZES)])
def test_a_ring_draws_what_all_columns_draw(name, form):
    """To the last digits of float32, in which log-probabilities are kept of what is computed in float64."""
    with jax.enable_x64(True):
        wanted, found = with_all_columns(name), jax.device_get(form(MODELS[name]))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.mask, wanted.mask)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=0, atol=1e-6)


def test_the_learner_recomputes_what_was_drawn():
    """By full forward passes, which have no cache."""
    drawn = jax.jit(partial(generate_at_once, SOME, request=REQUEST))(PARAMS, PROMPTS, key=KEY)
    log_probs = group_log_probs(SOME, (GROUP, WIDTH))(PARAMS, drawn)[0]
    np.testing.assert_allclose(log_probs, drawn.log_probs, rtol=0, atol=2e-5)


def test_a_common_beginning_stands_in_front_of_a_ring(monkeypatch):
    """Read once, by itself; of prompts that are shorter than the window with it, and longer."""
    start = np.random.default_rng(3).integers(2, V, 33).tolist()
    prompts = pad_prompts([start + [5] * own for own in (1, 2, 5, 11)], 0, V, 48)
    wanted = generate(SOME, PARAMS, prompts, KEY, REQUEST._replace(keeps=whole))
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    rows = row_keys(KEY, 8), np.full(8, LIMIT, np.int32)
    going = Generation(SOME, PARAMS, prompts, rows, REQUEST)
    assert columns_of(going.prompt.cache) == (RING, 12) and columns_of(going.prompt.common) == (32, 32)
    read = [[part.keys.shape[-1] for part in going.prompt.segments(i, window)] for i, window in enumerate((6, None))]
    assert read == [[6, RING], [32, 12]]  # of what is common, a layer with a window reads its last tokens alone
    found = going.finished()
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=0, atol=1e-4)


def kept_bytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_the_memory_of_the_caches():
    """Keys and values of 2 heads of 4 numbers of 4 bytes; of prompts and of rows."""
    token, rows = 2 * 2 * 4 * 4, 5 * GROUP
    for name, layers in (("some", RING + LIMIT), ("all", 2 * RING)):
        shapes = jax.eval_shape(lambda: prefill(MODELS[name], PARAMS, *PROMPTS, KEY, REQUEST, LIMIT))  # noqa: B023
        assert kept_bytes(shapes[1].cache) == token * rows * layers
        of_prompts = RING + WIDTH if name == "some" else 2 * RING
        assert kept_bytes(shapes[0].cache) == token * 5 * of_prompts
    state = Generation(MODELS["all"], PARAMS, PROMPTS, (row_keys(KEY, rows), np.full(rows, LIMIT)), REQUEST)
    assert columns_of(state.state.cache) == (6, 6) and state.room == 6
    state.advance()
    state.advance()
    assert columns_of(state.state.cache) == (RING, RING) and state.room == LIMIT


def test_nothing_is_another_program_without_windows():
    config = replace(SOME, window=None, sliding=())
    assert windowed(config, 40) == whole(config, 40)
    params = jax.eval_shape(lambda: unstack(PARAMS))

    def lowered(request: Request) -> str:
        prompt, state = jax.eval_shape(lambda: prefill(config, PARAMS, *PROMPTS, KEY, request, LIMIT))
        return decode.lower(config, params, prompt, state, jax.ShapeDtypeStruct((), jnp.int32), request).as_text()

    assert lowered(REQUEST) == lowered(REQUEST._replace(keeps=whole))
