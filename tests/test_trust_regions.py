from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.ratios import token_ratio
from rlax_llm.trust_regions import clip, score_function, unclipped

pytestmark = pytest.mark.usefixtures("float64")


def clipped(low: float, high: float):
    """Loss and slope of PPO's clip, case by case (slope with respect to the log-ratio)."""

    def value(log_ratio: float, advantage: float) -> float:
        ratio = np.exp(log_ratio)
        return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)

    def slope(log_ratio: float, advantage: float) -> float:
        ratio = np.exp(log_ratio)
        if (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low):
            return 0.0
        return -advantage * ratio

    return value, slope


CASES = {
    "score_function": (score_function, lambda x, a: -a * x, lambda x, a: -a),
    "unclipped": (unclipped, lambda x, a: -a * np.exp(x), lambda x, a: -a * np.exp(x)),
    "clip": (clip(), *clipped(0.2, 0.2)),
    "clip_narrow": (clip(3e-4), *clipped(3e-4, 3e-4)),
    "clip_higher": (clip(0.2, 0.28), *clipped(0.2, 0.28)),
    "clip_whole": (clip(1.0, 2.0), *clipped(1.0, 2.0)),
}
each = pytest.mark.parametrize("name", CASES)
LOG_RATIOS, ADVANTAGES = (x.ravel() for x in np.meshgrid(np.linspace(-3, 3, 41), [-2.0, -0.5, 0.0, 1.0, 1.7]))


def slopes(region, log_ratios, advantages):
    return jax.grad(lambda x: region(x, jnp.asarray(advantages)).sum())(jnp.asarray(log_ratios))


@each
def test_equals_the_formula_with_its_gradient(name):
    region, value, slope = CASES[name]
    pairs = list(zip(LOG_RATIOS, ADVANTAGES, strict=True))
    np.testing.assert_allclose(region(LOG_RATIOS, ADVANTAGES), [value(*pair) for pair in pairs], rtol=1e-12)
    expected = [slope(*pair) for pair in pairs]
    np.testing.assert_allclose(slopes(region, LOG_RATIOS, ADVANTAGES), expected, rtol=1e-12, atol=1e-300)


@each
def test_gradient_at_ratio_one_is_the_score_function(name):
    advantages = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(slopes(CASES[name][0], np.zeros(9), advantages), -advantages, rtol=1e-12)


@each
def test_elementwise_over_any_layout(name):
    region = CASES[name][0]
    shaped = region(LOG_RATIOS.reshape(5, 41), ADVANTAGES.reshape(5, 41))
    np.testing.assert_array_equal(shaped.ravel(), region(LOG_RATIOS, ADVANTAGES))
    np.testing.assert_allclose(jax.vmap(region)(LOG_RATIOS, ADVANTAGES), shaped.ravel(), rtol=1e-14)


def test_identities():
    wide = clip(1e6)
    np.testing.assert_array_equal(wide(LOG_RATIOS, ADVANTAGES), unclipped(LOG_RATIOS, ADVANTAGES))
    np.testing.assert_allclose(
        slopes(wide, LOG_RATIOS, ADVANTAGES), slopes(unclipped, LOG_RATIOS, ADVANTAGES), rtol=1e-14
    )
    np.testing.assert_array_equal(clip(0.2, 0.2)(LOG_RATIOS, ADVANTAGES), clip(0.2)(LOG_RATIOS, ADVANTAGES))
    # pessimistic: never below the unclipped loss
    assert np.all(clip(0.2)(LOG_RATIOS, ADVANTAGES) >= unclipped(LOG_RATIOS, ADVANTAGES))


@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_a_ratio_beyond_float32_is_clipped_and_not_nan(advantage):
    far, advantages = jnp.array([1e2, 1e3], jnp.float32), jnp.full(2, advantage, jnp.float32)
    np.testing.assert_allclose(clip(0.2)(far, advantages), -1.2 * np.asarray(advantages), rtol=1e-6)
    np.testing.assert_array_equal(slopes(clip(0.2), far, advantages), np.zeros(2))


def test_token_ratio_is_a_difference_and_zero_on_the_first_update():
    current, old = -np.random.default_rng(0).exponential(size=(2, 3, 4))
    mask = np.ones((3, 4), bool)
    np.testing.assert_allclose(token_ratio(current, old, mask), current - old, rtol=1e-14)
    np.testing.assert_array_equal(token_ratio(old, old, mask), np.zeros((3, 4)))
    gradient = jax.grad(lambda x: token_ratio(x, jnp.asarray(old), mask).sum())(jnp.asarray(current))
    np.testing.assert_array_equal(gradient, np.ones((3, 4)))
