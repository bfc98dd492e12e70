"""A model without a decoder for tests of preference loops, its batches, and what the papers read of them by loops."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preference_batches import numeric_gradient
from scipy.special import log_softmax

from rlax_llm.core.types import Completions

PAIRS, TOKENS, VOCABULARY, BETA = 4, 3, 5, 0.4
QUICKLY = {"xla_backend_optimization_level": 0}


def table(params, completions: Completions):
    """A model without a decoder: a softmax of its own at each position. Outside the mask it says something else."""
    log_p = jax.nn.log_softmax(jnp.asarray(params["logits"]))
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    scores = jnp.take_along_axis(log_p[None], completions.tokens[..., None], -1)[..., 0]
    return jnp.where(completions.mask, scores, -7.0), jnp.broadcast_to(entropy, completions.tokens.shape)


def spoilt(params, completions: Completions):
    """The same, NaN outside the mask, which gradients pass through."""
    garbage = jnp.where(completions.mask, 0.0, jnp.nan)
    return tuple(x + garbage for x in table(params, completions))


def scalar(params, completions: Completions):
    """A reward model: the sum of its tokens' values, bent."""
    values = jnp.tanh(params["logits"])[jnp.arange(TOKENS), completions.tokens]
    return jnp.where(completions.mask, values, 0.0).sum(-1)


def params_of(seed: int):
    """In numpy: made at import, before float64 is on."""
    return {"logits": np.random.default_rng(seed).normal(size=(TOKENS, VOCABULARY))}


def completions_of(seed: int, rows: int = 2 * PAIRS) -> Completions:
    """Rows of one to three tokens."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCABULARY, (rows, TOKENS)).astype(np.int32)
    mask = jnp.asarray(np.arange(TOKENS) < random.integers(1, TOKENS + 1, (rows, 1)))
    zeros = jnp.zeros(tokens.shape)
    return Completions(jnp.asarray(tokens), mask, mask, zeros, jnp.zeros(rows, bool))


def padded(completions: Completions, after: int, kept: int) -> Completions:
    """With two more rows behind each ``after``, of which the first ``kept`` have tokens."""
    rows = completions.tokens.shape[0]
    order = np.concatenate([np.append(part, [-1, -1]) for part in np.arange(rows).reshape(-1, after)])
    more = jax.tree.map(lambda x: x[order], completions)
    place = np.cumsum(order < 0) % 2
    empty = jnp.asarray((order < 0) & ((place == 0) | (kept == 0)))[:, None]
    return more._replace(mask=more.mask & ~empty, valid=more.valid & ~empty)


PARAMS, REFERENCE = params_of(0), params_of(1)


def totals(params, completions: Completions) -> np.ndarray:
    """log π(y) of every row, by loops."""
    log_p = log_softmax(np.asarray(params["logits"]), -1)
    tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
    return np.array([sum(log_p[t, tokens[b, t]] for t in range(TOKENS) if mask[b, t]) for b in range(len(tokens))])


def mean_entropy(params, mask) -> float:
    log_p = log_softmax(np.asarray(params["logits"]), -1)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    return (np.asarray(mask) * entropy).sum() / np.asarray(mask).sum()


def one_step(loop, params, batch, **more):
    """Gradient (of an SGD step of rate 1) and metrics."""
    init, step = loop
    params, batch, more = jax.tree.map(jnp.asarray, (params, batch, more))
    # Each is run once or twice: what is spent on a fast program is never won back.
    state, metrics = jax.jit(step, compiler_options=QUICKLY)(init(params), batch, **more)
    assert state.step == 1
    return jax.tree.map(lambda x, y: np.asarray(x - y), params, state.params), metrics


def assert_same(ours, theirs, rtol=1e-10, atol=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), ours, theirs)


def assert_gradient(gradient, function) -> None:
    """Against central differences of the literal loss."""
    logits = np.array(PARAMS["logits"])
    expected = numeric_gradient(lambda: function({"logits": logits}), logits)
    np.testing.assert_allclose(gradient["logits"], expected, rtol=0, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


def refused(match: str, loop, batch, **more) -> None:
    init, step = loop
    with pytest.raises(ValueError, match=match):
        step(init(PARAMS), batch, **more)
