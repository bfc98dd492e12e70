"""References that move: the paper's rule by loops, and a loop around a loop."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions, PairedCompletions
from rlax_llm.loops.preference import preference_loop
from rlax_llm.loops.references import following_reference, moved
from rlax_llm.recipes.preference import dpo


def table(params, rows: Completions):
    log_p = params - jnp.log(jnp.exp(params).sum())
    return log_p[rows.tokens], jnp.zeros(rows.tokens.shape)


def pairs() -> PairedCompletions:
    tokens = jnp.array([[0, 2], [1, 1]])
    mask = jnp.ones((2, 2), bool)
    return PairedCompletions(Completions(tokens, mask, mask, jnp.zeros((2, 2)), jnp.zeros(2, bool)))


START, INNER = jnp.array([0.1, -0.2, 0.3]), preference_loop(table, dpo(), optax.sgd(1.0))


def test_each_move_is_the_papers():
    """arXiv 2404.09656, eq. 6 and 7, by loops."""
    random = np.random.default_rng(0)
    reference, share, every = random.normal(size=3), 0.3, 2
    ours, theirs = jnp.asarray(reference), reference.copy()
    for step in range(1, 8):
        params = random.normal(size=3)
        ours = moved(ours, jnp.asarray(params), step, every, share)
        if step % every == 0:
            theirs = share * params + (1 - share) * theirs
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(("every", "share"), [(1, 0.25), (2, 1.0)])
def test_a_loop_sees_the_reference_that_it_would_be_given(every, share):
    inner = preference_loop(table, dpo(0.5), optax.adam(0.1))
    init, step = following_reference(inner, every, share)
    state, own, reference = init(START), inner[0](START), START
    for number in range(1, 6):
        state, metrics = step(state, pairs())
        own, told = inner[1](own, pairs(), reference=reference)
        if number % every == 0:
            reference = (1 - share) * reference + share * own.params
        chex.assert_trees_all_close((state.learner, metrics), (own, told), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.reference, reference, rtol=1e-5, atol=1e-6)


def test_until_it_moves_it_is_the_loop_with_its_start():
    inner = preference_loop(table, dpo(0.5), optax.sgd(0.1))
    init, step = following_reference(inner, 9)
    state, own = init(START), inner[0](START)
    for _ in range(3):
        state, _ = step(state, pairs())
        own, _ = inner[1](own, pairs(), reference=START)
    chex.assert_trees_all_equal(state.params, own.params)
    with pytest.raises(ValueError, match="the reference follows the policy, got one too"):
        step(state, pairs(), reference=START)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moved(START, START, 1, every=0), "moved: every is 0"),
        (lambda: moved(START, START, 1, share=1.5), "moved: 1 − share is"),
        (
            lambda: following_reference(preference_loop(table, dpo(), optax.sgd(1.0)), 1, 0.0),
            "following_reference: share is 0.0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
