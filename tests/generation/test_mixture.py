"""Completions of a geometric mixture of two policies: by enumeration, and where it is one policy's."""

from __future__ import annotations

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import logits as all_logits

CONFIG = DecoderConfig(5, 16, 32, 2, 2, 1, 8)
PROMPTS = jnp.array([[0, 3], [1, 2]]), jnp.array([[False, True], [True, True]])
KEY = jax.random.key(7)


@cache
def models() -> Two:
    """Far apart, so that their mixture is neither."""
    both = Two(*(decoder.init_decoder(CONFIG, jax.random.key(seed)) for seed in (0, 1)))
    return jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, both)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_0_or_1_is_one_of_the_two(share):
    request = Request(Categorical(top_k=3), (4,), 6, 4)
    found = generate_mixed(CONFIG, models(), PROMPTS, KEY, request, share)
    wanted = generate_at_once(CONFIG, models()[int(share)], PROMPTS, KEY, request)
    chex.assert_trees_all_close(found, wanted, atol=1e-5)


def test_two_equal_models_draw_their_own():
    request = Request(Categorical(0.7), (4,), 6, 4)
    found = generate_mixed(CONFIG, Two(models()[0], models()[0]), PROMPTS, KEY, request, 0.3)
    chex.assert_trees_all_close(found, generate_at_once(CONFIG, models()[0], PROMPTS, KEY, request), atol=1e-5)


def test_log_probabilities_are_of_the_mixture_token_by_token():
    """By NumPy: the geometric mean of both predictions of each prefix, normalized."""
    temperature, share = 0.8, 0.35
    found = generate_mixed(CONFIG, models(), PROMPTS, KEY, Request(Categorical(temperature), (4,), 5, 3), share)
    logits = [np.asarray(all_logits(CONFIG, params, found.tokens, found.valid), np.float64) for params in models()]
    mask, tokens = np.asarray(found.mask), np.asarray(found.tokens)
    assert mask.any(-1).all()
    for b, t in zip(*np.nonzero(mask), strict=True):
        likely = [np.exp(x[b, t - 1] / temperature) / np.exp(x[b, t - 1] / temperature).sum() for x in logits]
        mixed = likely[0] ** (1 - share) * likely[1] ** share
        np.testing.assert_allclose(found.log_probs[b, t], np.log(mixed[tokens[b, t]] / mixed.sum()), atol=2e-4)


def test_a_share_may_be_traced_and_has_its_range():
    request = Request(Categorical(), (4,), 2, 1)
    made = jax.jit(partial(generate_mixed, CONFIG, models(), PROMPTS, KEY, request))(0.5)
    assert made.tokens.shape == (2, 4)
    with pytest.raises(ValueError, match=r"generate_mixed: 1 − share is -0\.5"):
        generate_mixed(CONFIG, models(), PROMPTS, KEY, request, 1.5)
