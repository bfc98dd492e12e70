"""Prompts read in parts, and what all of them begin with read once: the same states, keys and completions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.platform import targeting
from rlax_llm.generation import ladders, reading, rollout
from rlax_llm.generation.engine import prefill, prefill_behind
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.reading import common_tokens, extend, parts_of, read, read_common
from rlax_llm.generation.request import Request, Speculation
from rlax_llm.generation.rollout import Generation, generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models import forms
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import hidden_states, init_decoder

CONFIG = DecoderConfig(29, 16, 24, 2, 4, 2, 4, max_positions=512, window=21, sliding=(True, False), sinks=True)
PARAMS = jax.tree.map(lambda x: 1.5 * x, init_decoder(CONFIG, jax.random.key(0)))
RANDOM = np.random.default_rng(0)
SYSTEM = RANDOM.integers(2, 29, 40).tolist()
PROMPTS = pad_prompts([SYSTEM + [i] + RANDOM.integers(2, 29, 1 + i).tolist() for i in range(6)], 0, 29)
KEY = jax.random.key(1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("at_once", [2**16, 96])
@pytest.mark.parametrize("common", [0, 32])
def test_states_and_keys_are_those_of_the_whole(float64, monkeypatch, at_once, common):
    """Prompts of several lengths in one part or many, behind a common beginning or whole."""
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
    tokens, valid = PROMPTS
    wanted = hidden_states(CONFIG, params, tokens, valid)[:, -1]
    whole = read(CONFIG, params, tokens, valid)[1]
    monkeypatch.setattr(reading, "AT_ONCE", at_once)
    held = None
    if common:
        first = np.asarray(tokens[0])[np.asarray(valid[0])][:common]
        held = read_common(CONFIG, params, jnp.asarray(first))
        valid = valid & (jnp.cumsum(valid, -1) > common)
        tokens, valid = tokens[:, -16:], valid[:, -16:]
    found, (keys, values) = read(CONFIG, params, tokens, valid, held)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    for x, y, axis in ((keys, whole[0], -1), (values, whole[1], -2)):
        there = np.moveaxis(np.asarray(x), axis, 2)[:, np.asarray(valid).nonzero()[0], np.asarray(valid).nonzero()[1]]
        last = np.moveaxis(np.asarray(y), axis, 2)[:, :, -valid.shape[1] :]
        np.testing.assert_allclose(there, last[:, np.asarray(valid).nonzero()[0], np.asarray(valid).nonzero()[1]])


@pytest.mark.parametrize("further", [[48, 3, 9, 1, 17, 40], [5, 3, 1, 1, 5, 2], [1] * 6])
@pytest.mark.parametrize("common", [0, 32])
def test_further_tokens_are_read_behind_what_is_held(float64, further, common):
    """So many at the end of each prompt; what is held of the columns of others beside them stays."""
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
    tokens, valid = PROMPTS
    wanted = hidden_states(CONFIG, params, tokens, valid)[:, -1]
    before = None
    if common:
        first = np.asarray(tokens[0])[np.asarray(valid[0])][:common]
        before = read_common(CONFIG, params, jnp.asarray(first))
        valid = valid & (jnp.cumsum(valid, -1) > common)
        further = np.minimum(further, valid.sum(-1))
    whole = read(CONFIG, params, tokens, valid, before)[1]
    known = valid & (jnp.arange(valid.shape[1]) < valid.shape[1] - jnp.asarray(further)[:, None])
    of_keys, of_values = sides(known)
    only_known = jnp.where(of_keys, whole[0], 9.0), jnp.where(of_values, whole[1], 9.0)
    found, held = extend(CONFIG, params, (tokens, valid), only_known, known, int(max(further)), before)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    for x, y, there in zip(held, whole, sides(valid), strict=True):
        np.testing.assert_allclose(jnp.where(there, x, 0), jnp.where(there, y, 0), atol=1e-10)


def sides(valid):
    """Of keys and of values, which are of tokens."""
    return valid[:, None, None, :], valid[:, None, :, None]


REQUESTS = {
    "plain": Request(Categorical(), (3, 7), 60, 2),
    "cut and penalized": Request(Categorical(0.9, top_k=15, top_p=0.95), (3, 7), 60, 2, penalties=Penalties(1.3, 0.2)),
}
REQUESTS["guessed"] = REQUESTS["plain"]._replace(speculation=Speculation(3, always=True))


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("slots", [None, 4])
def test_completions_are_those_of_prompts_that_are_read_whole(monkeypatch, name, slots):
    wanted = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, REQUESTS[name]._replace(speculation=None)))
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    found = jax.device_get(generate(CONFIG, PARAMS, PROMPTS, KEY, REQUESTS[name], slots))
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_array_equal(found.valid, wanted.valid)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=1e-4)


def test_a_common_beginning_is_held_once(monkeypatch):
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    going = Generation(CONFIG, PARAMS, PROMPTS, (jax.random.split(KEY, 12), np.full(12, 60)), REQUESTS["plain"])
    assert [x.shape for x in going.prompt.common[0]] == [(1, 2, 4, 32), (1, 2, 32, 4)]
    assert going.prompt.cache[0][0].shape == (6, 1, 2, 4, 16)  # of 48 columns
    assert going.read == 32 + (np.asarray(PROMPTS[1]).sum(1) - 32).sum()


def test_narrow_keys_of_a_common_beginning(monkeypatch):
    """Kept as the others are."""
    config = replace(CONFIG, cache_dtype="int8")
    monkeypatch.setattr(rollout, "LEAST_READ", 0.0)
    going = Generation(config, PARAMS, PROMPTS, (jax.random.split(KEY, 12), np.full(12, 60)), REQUESTS["plain"])
    assert going.prompt.common[0][0].values.dtype == jnp.int8
    while going.advance():
        pass
    assert np.isfinite(going.completions().log_probs).all()


def test_the_first_draw_behind_a_common_beginning():
    request = REQUESTS["plain"]
    first = np.asarray(PROMPTS[0][0])[np.asarray(PROMPTS[1][0])][:32]
    common = read_common(CONFIG, PARAMS, jnp.asarray(first))
    _, found = prefill_behind(CONFIG, PARAMS, common, PROMPTS, (KEY, None), request, (60, 16))
    _, wanted = prefill(CONFIG, PARAMS, *PROMPTS, KEY, request, 60)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)


def test_a_window_behind_held_keys_is_counted_in_places_and_not_in_columns(monkeypatch):
    """Between held keys are columns that hold nothing, which a kernel of whole rows would count."""

    def refused(*_):
        raise AssertionError("a kernel is asked")

    monkeypatch.setattr(forms, "KERNEL_LENGTH", 1)
    monkeypatch.setitem(forms.COMPUTE, "splash", refused)
    monkeypatch.setattr(reading, "AT_ONCE", 96)
    with targeting("tpu"):
        jax.eval_shape(partial(read, CONFIG), PARAMS, *PROMPTS)
        with pytest.raises(AssertionError, match="a kernel is asked"):
            jax.eval_shape(partial(read, replace(CONFIG, window=None, sliding=())), PARAMS, *PROMPTS)


def test_what_prompts_have_in_common():
    tokens, valid = (np.asarray(x) for x in PROMPTS)
    assert common_tokens(tokens, valid) == 32
    assert common_tokens(tokens[:1], valid[:1]) == 0
    other = np.where(np.arange(48) == 46, 5, tokens)  # nothing of the beginning
    assert common_tokens(other, valid) == 32
    early = tokens.copy()
    early[2, valid[2].argmax() + 10] += 1
    assert common_tokens(early, valid) == 0
    same = np.arange(200)[None].repeat(3, 0)
    assert common_tokens(same, np.ones_like(same, bool)) == 192
    assert common_tokens(same[:, :49], np.ones((3, 49), bool)) == 48


def test_parts_hold_few_tokens():
    assert parts_of(512, 96) == 1
    assert parts_of(512, 1024) == 8
    assert parts_of(1, 1_000_003) == 1  # a prime number
