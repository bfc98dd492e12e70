"""A process reward model's steps against the papers' cross-entropy, and against a reward model of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions, PairedCompletions, SteppedCompletions
from rlax_llm.loops.preference import reward_loop
from rlax_llm.loops.process import process_loop
from rlax_llm.preference.links import compare_with_zero, logistic

pytestmark = pytest.mark.usefixtures("float64")

V, B, T = 5, 4, 6


def table(params, completions: Completions):
    """A model that is a table of scores by the token."""
    return params[completions.tokens]


def batch(seed: int = 0) -> SteppedCompletions:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, V, (B, T))
    mask = np.arange(T) < random.integers(2, T + 1, (B, 1))
    ends = mask & (random.random((B, T)) < 0.6)
    rows = Completions(*map(jnp.asarray, (tokens, mask, mask, np.zeros((B, T)), np.zeros(B, bool))))
    return SteppedCompletions(rows, jnp.asarray(ends), jnp.asarray(random.random((B, T)) < 0.5))


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_is_that_of_the_cross_entropy(micro_batches):
    steps, params = batch(), np.random.default_rng(1).normal(size=V)
    tokens, ends, right = (np.asarray(x) for x in (steps.completions.tokens, steps.ends, steps.right))
    init, step = process_loop(table, optax.sgd(0.5), micro_batches)
    state, metrics = jax.jit(step)(init(jnp.asarray(params)), steps)
    loss, hits, gradient, count = 0.0, 0, np.zeros(V), ends.sum()
    for b, t in np.argwhere(ends):
        z, y = params[tokens[b, t]], float(right[b, t])
        p = 1 / (1 + np.exp(-z))
        loss -= (y * np.log(p) + (1 - y) * np.log(1 - p)) / count
        hits += (p > 0.5) == right[b, t]
        gradient[tokens[b, t]] += (p - y) / count
    assert 0 < hits < count
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], hits / count, rtol=1e-6)
    np.testing.assert_allclose(state.params, params - 0.5 * gradient, rtol=1e-6)


def test_of_a_right_and_a_wrong_step_it_is_a_reward_model_against_zero():
    rows = batch(2).completions
    last = rows.mask & (jnp.cumsum(rows.mask[:, ::-1], -1)[:, ::-1] == 1)
    chosen = jnp.arange(B)[:, None] % 2 == 0
    params = jnp.asarray(np.random.default_rng(3).normal(size=V))

    def of_rows(params, rows):
        return jnp.where(last, table(params, rows), 0.0).sum(-1)

    init, step = process_loop(table, optax.sgd(2.0))
    found, metrics = jax.jit(step)(init(params), SteppedCompletions(rows, last, last & chosen))
    init, step = reward_loop(of_rows, compare_with_zero(logistic), optax.sgd(1.0))
    expected, known = jax.jit(step)(init(params), PairedCompletions(rows))
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-6)
    np.testing.assert_allclose(2 * metrics["loss"], known["loss"], rtol=1e-6)


def test_what_does_not_fit_is_told():
    steps = batch()
    init, step = process_loop(table, optax.sgd(1.0), 3)
    with pytest.raises(ValueError, match="process_loop: ends has shape"):
        step(init(jnp.zeros(V)), steps._replace(ends=steps.ends[:, :2]))
    with pytest.raises(ValueError, match="micro_batches is 3, wanted a divisor of the batch's 4 rows"):
        step(init(jnp.zeros(V)), steps)
    with pytest.raises(ValueError, match="process_loop: batch"):
        step(init(jnp.zeros(V)), steps.completions)
