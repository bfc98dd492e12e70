"""Samplers with narrow weights, keys and values: what they draw, and with which log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation import ladders
from rlax_llm.generation.cache import KEYS, VALUES, empty_cache, kept, written
from rlax_llm.generation.engine import for_sampling, generate_at_once
from rlax_llm.generation.partial import generate_partly, not_begun, unfinished
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.narrow import Narrow, narrow_matrices, widened
from rlax_llm.models.scoring import group_log_probs

CONFIG = DecoderConfig(29, 16, 24, 2, 4, 2, 4, max_positions=512)
PARAMS = init_decoder(CONFIG, jax.random.key(0))
PROMPTS = pad_prompts(
    [np.random.default_rng(i).integers(2, 29, 1 + i % 8).tolist() for i in range(10)], pad_id=0, vocab_size=29
)
KEY = jax.random.key(1)
REQUEST = Request(Categorical(0.9), (3, 7), 80, 2)
BOTH = {"sampler_dtype": "int8", "cache_dtype": "int8"}


def drawn(settings, form=generate, **given):
    config = replace(CONFIG, **settings)
    return jax.device_get(form(config, for_sampling(config, PARAMS), PROMPTS, KEY, REQUEST, **given))


@pytest.mark.parametrize("settings", [BOTH, {"sampler_dtype": "bfloat16", "cache_dtype": "bfloat16"}])
def test_who_runs_beside_a_row_changes_nothing(settings, monkeypatch):
    """In slots, compacted, and as one program."""
    monkeypatch.setattr(ladders, "LEAST", 0.0)
    whole = drawn(settings, generate_at_once)
    for found in (drawn(settings), drawn(settings, slots=6)):
        np.testing.assert_array_equal(found.tokens, whole.tokens)
        np.testing.assert_allclose(found.log_probs, whole.log_probs, rtol=0, atol=1e-4)


def test_a_completion_goes_on_in_a_next_generation():
    """Its keys are read anew, so that its further numbers are near and not the same."""
    config = replace(CONFIG, **BOTH)
    weights, whole = for_sampling(config, PARAMS), drawn(BOTH)
    begun = not_begun(PROMPTS, REQUEST)
    for enough in (2, 10):
        begun = jax.device_get(generate_partly(config, weights, begun, KEY, REQUEST, enough))
    width, behind = PROMPTS[0].shape[1], begun.mask
    np.testing.assert_array_equal(begun.tokens[:, width], whole.tokens[:, width])
    assert not unfinished(begun, REQUEST.max_new_tokens).any() and behind[:, width].all()
    assert np.isfinite(begun.log_probs).all() and (begun.log_probs[behind] < 0).all()


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_captured_log_probs_are_those_of_the_narrow_model(dtype):
    """The learner's of the very numbers that were read; of its own it has others."""
    found = drawn({"sampler_dtype": dtype})
    small = narrow_matrices(replace(CONFIG, sampler_dtype=dtype), PARAMS)
    wide = jax.tree.map(widened, small, is_leaf=lambda x: isinstance(x, Narrow))
    width = PROMPTS[0].shape[1]
    score = jax.jit(partial(group_log_probs(CONFIG, (2, width), temperature=0.9)))
    own, learned = score(wide, found)[0], score(PARAMS, found)[0]
    np.testing.assert_allclose(np.where(found.mask, own, 0), found.log_probs, rtol=0, atol=1e-4)
    assert 1e-3 < np.abs(np.where(found.mask, learned, 0) - found.log_probs).max() < 0.5


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.1), ("bfloat16", 0.1)])
def test_narrow_keys_change_log_probs_by_little(dtype, error):
    found = drawn({"cache_dtype": dtype})
    learned = jax.jit(group_log_probs(CONFIG, (2, PROMPTS[0].shape[1]), temperature=0.9))(PARAMS, found)[0]
    assert 1e-5 < np.abs(np.where(found.mask, learned, 0) - found.log_probs).max() < error


def test_a_cache_is_written_as_it_is_kept():
    config = replace(CONFIG, cache_dtype="int8")
    (keys, values), _ = empty_cache(config, (1, 2, 2), (5, 5), jnp.float32)
    assert keys.shape == (1, 2, 2, 4, 5) and values.shape == (1, 2, 2, 5, 4)
    new = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4, 1)).astype(np.float32))
    keys = written(config, keys, new, jnp.int32(3), KEYS)
    np.testing.assert_array_equal(widened(keys)[..., 3:4], widened(kept(config, new, KEYS[0])))
    assert not widened(keys)[..., :3].any() and not widened(keys)[..., 4:].any()
    values = written(config, values, new.swapaxes(-1, -2), jnp.int32(3), VALUES)
    np.testing.assert_array_equal(widened(values)[..., 3, :], widened(keys)[..., 3])


def test_what_is_kept_is_a_quarter():
    config = replace(CONFIG, head_dim=64, **BOTH)
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves(empty_cache(c, (4, 8, 2), (64, 64), jnp.float32)))
        for c in (replace(config, cache_dtype=None), config)
    ]
    assert sizes[1] == sizes[0] * (64 + 4) / (4 * 64)
