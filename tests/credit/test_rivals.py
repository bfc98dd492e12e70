"""Comparisons with rivals and the best of a group: literal formulas, and where they are other functions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import best_of_group, centered, fixed_baseline, per_group
from rlax_llm.credit.rivals import above_value, as_scored, soft_value, win_rate

pytestmark = pytest.mark.usefixtures("float64")

NAN = math.nan
OWN, OTHERS = np.array([0.3, NAN, -1.2, 2.0]), np.array([0.1, 0.9, NAN])


def test_win_rates_are_their_formula():
    known = OTHERS[~np.isnan(OTHERS)]
    wanted = [np.mean([1 / (1 + math.exp(s2 - s1)) for s2 in known]) for s1 in OWN]
    np.testing.assert_allclose(win_rate(jnp.asarray(OWN), jnp.asarray(OTHERS)), wanted, rtol=1e-12)
    assert np.isnan(win_rate(jnp.asarray(OWN), jnp.array([NAN]))).all()


def test_scores_far_apart_win_or_lose():
    others = jnp.array([0.0, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(win_rate(1e3 * jnp.array([1.5]), 1e3 * others), [0.5], atol=1e-12)


def test_values_are_their_formula_and_its_limits():
    for beta in (0.05, 0.7, 3.0):
        wanted = beta * math.log((math.exp(0.1 / beta) + math.exp(0.9 / beta)) / 2)
        np.testing.assert_allclose(soft_value(jnp.asarray(OTHERS), beta), wanted, rtol=1e-12)
        np.testing.assert_allclose(above_value(beta)(jnp.asarray(OWN), jnp.asarray(OTHERS)), OWN - wanted, rtol=1e-12)
    np.testing.assert_allclose(soft_value(jnp.asarray(OTHERS), 1e7), 0.5, atol=1e-7)
    np.testing.assert_allclose(soft_value(jnp.asarray(OTHERS), 1e-7), 0.9, atol=1e-6)
    assert np.isnan(soft_value(jnp.array([NAN]), 1.0))


def test_against_its_own_mean_it_is_a_centered_score():
    scores = jnp.array([0.5, 2.0, -1.0])
    np.testing.assert_allclose(above_value(1e6)(scores, scores), centered(scores), atol=1e-5)


def test_the_best_of_a_group_by_loops():
    random = np.random.default_rng(0)
    for _ in range(50):
        scores = random.integers(0, 3, 4).astype(float)
        scores[random.random(4) < 0.3] = NAN
        known = [s for s in scores if not math.isnan(s)]
        wanted = np.zeros(4)
        if len(set(known)) > 1:
            wanted[list(scores).index(max(known))] = len(known)
        np.testing.assert_array_equal(best_of_group(jnp.asarray(scores)), wanted)


def test_a_fixed_baseline_takes_groups_of_one():
    scored = Scored(jnp.array([[0.75], [NAN]]), jnp.zeros(0), jnp.zeros(0))
    np.testing.assert_array_equal(per_group(fixed_baseline(0.5))(scored), [[0.25], [0.0]])
    np.testing.assert_array_equal(as_scored(jnp.asarray(OWN), jnp.asarray(OTHERS)), OWN)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: win_rate(jnp.zeros((2, 2)), jnp.zeros(2)), "win_rate: scores has shape"),
        (lambda: soft_value(jnp.zeros(2), 0.0), "soft_value: beta is 0.0"),
        (lambda: above_value(-1.0), "above_value: beta is -1.0"),
        (lambda: jax.vmap(best_of_group)(jnp.zeros((1, 2, 2))), "best_of_group: scores has shape"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
