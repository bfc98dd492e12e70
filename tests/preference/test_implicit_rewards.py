from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlax_llm.core.exponentials import straight_from
from rlax_llm.preference.implicit_rewards import (
    alpha_slope,
    divergence_reward,
    forward_kl_slope,
    jensen_shannon_slope,
    log_odds,
    log_prob,
    log_ratio,
    mean_log_prob,
    mean_log_ratio,
    normalize_length,
    regularize_length,
)

pytestmark = pytest.mark.usefixtures("float64")
few = settings(max_examples=30, deadline=None)
BETA = 0.3
MASK = np.array([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)  # the last row is empty

# Each reward with its formula in the sums of log π and log π_ref and the length, of a response that is not empty.
LITERAL = {
    "log_prob": (log_prob(BETA), lambda p, q, n: BETA * p),
    "log_ratio": (log_ratio(BETA), lambda p, q, n: BETA * (p - q)),
    "mean_log_prob": (mean_log_prob(BETA), lambda p, q, n: BETA * p / n),
    "mean_log_ratio": (mean_log_ratio(BETA), lambda p, q, n: BETA * (p - q) / n),
    "regularize_length": (regularize_length(log_ratio(BETA), 0.1), lambda p, q, n: BETA * (p - q) + 0.1 * n),
    "forward_kl": (
        divergence_reward(log_ratio(), forward_kl_slope, BETA),
        lambda p, q, n: BETA * (1 - math.exp(q - p)),
    ),
    "jensen_shannon": (
        divergence_reward(log_ratio(), jensen_shannon_slope, BETA),
        lambda p, q, n: BETA * math.log(2 * math.exp(p - q) / (1 + math.exp(p - q))),
    ),
    "alpha 0.5": (
        divergence_reward(log_ratio(), alpha_slope(0.5), BETA),
        lambda p, q, n: BETA * (math.exp(p - q) ** -0.5 - 1) / -0.5,
    ),
    "alpha_po": (
        divergence_reward(mean_log_prob(), alpha_slope(1 - 0.25), BETA),
        lambda p, q, n: BETA * (1 - math.exp(p / n) ** -0.25) / 0.25,
    ),
    "normalized forward_kl": (
        normalize_length(divergence_reward(log_ratio(), forward_kl_slope, BETA)),
        lambda p, q, n: BETA * (1 - math.exp(q - p)) / n,
    ),
    "log_odds": (log_odds, lambda p, q, n: math.log(math.exp(p / n) / (1 - math.exp(p / n)))),
}
each = pytest.mark.parametrize("name", LITERAL)
JITTED = {name: jax.jit(reward) for name, (reward, _) in LITERAL.items()}
GRADIENTS = {
    name: jax.jit(jax.grad(lambda x, y, m, reward=reward: reward(x, y, m).sum()))
    for name, (reward, _) in LITERAL.items()
}


def numbers(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return -np.random.default_rng(seed).exponential(0.5, size=(2, *MASK.shape))


def literal(name: str, log_probs: np.ndarray, ref_log_probs: np.ndarray) -> np.ndarray:
    rewards = []
    for row, ref_row, mask in zip(log_probs, ref_log_probs, MASK):
        p = sum(x for x, keep in zip(row, mask) if keep)
        q = sum(x for x, keep in zip(ref_row, mask) if keep)
        rewards.append(LITERAL[name][1](p, q, mask.sum()) if mask.any() else 0.0)
    return np.array(rewards)


@each
def test_equals_the_formula_with_its_gradient(name):
    log_probs, ref_log_probs = numbers()
    np.testing.assert_allclose(
        JITTED[name](log_probs, ref_log_probs, MASK), literal(name, log_probs, ref_log_probs), rtol=1e-12
    )
    numeric, step = np.zeros_like(log_probs), 1e-6
    for b, t in np.ndindex(*MASK.shape):
        up, down = log_probs.copy(), log_probs.copy()
        up[b, t] += step
        down[b, t] -= step
        change = literal(name, up, ref_log_probs) - literal(name, down, ref_log_probs)
        numeric[b, t] = change.sum() / (2 * step)
    gradient = np.asarray(GRADIENTS[name](log_probs, ref_log_probs, MASK))
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
    assert not gradient[~MASK].any()


@each
def test_layouts(name):
    log_probs, ref_log_probs = numbers(1)
    expected = JITTED[name](log_probs, ref_log_probs, MASK)
    reward = LITERAL[name][0]
    np.testing.assert_allclose(jax.vmap(reward)(log_probs, ref_log_probs, MASK), expected, rtol=1e-12)
    wide = [np.pad(x, ((0, 0), (2, 1))) for x in (log_probs, ref_log_probs, MASK)]
    np.testing.assert_allclose(reward(*wide), expected, rtol=1e-12)


@each
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 80.0])
def test_what_is_masked_is_never_read(name, garbage):
    log_probs, ref_log_probs = numbers(2)
    dirty, dirty_ref = np.where(MASK, log_probs, garbage), np.where(MASK, ref_log_probs, garbage)
    np.testing.assert_array_equal(JITTED[name](dirty, dirty_ref, MASK), JITTED[name](log_probs, ref_log_probs, MASK))
    gradient = GRADIENTS[name](dirty, dirty_ref, MASK)
    np.testing.assert_array_equal(gradient, GRADIENTS[name](log_probs, ref_log_probs, MASK))


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_sums_are_taken_in_float32(name, dtype):
    log_probs, ref_log_probs = (jnp.asarray(x, dtype) for x in numbers(3))
    rewards = JITTED[name](log_probs, ref_log_probs, MASK)
    assert rewards.dtype == jnp.float32
    exact = literal(name, *(np.asarray(x, np.float64) for x in (log_probs, ref_log_probs)))
    np.testing.assert_allclose(rewards, exact, rtol=2e-6, atol=1e-6)
    assert GRADIENTS[name](log_probs, ref_log_probs, MASK).dtype == dtype


@each
@pytest.mark.parametrize("value", [-80.0, 80.0, 0.0])
def test_extreme_log_ratios_are_finite(name, value):
    ref_log_probs = np.where(MASK, -80.0, 0.0)
    for dtype in (jnp.float32, jnp.float64):
        log_probs = jnp.asarray(np.where(MASK, ref_log_probs + value, 0), dtype)
        arrays = log_probs, jnp.asarray(ref_log_probs, dtype), MASK
        assert np.isfinite(JITTED[name](*arrays)).all()
        assert np.isfinite(GRADIENTS[name](*arrays)).all()


# A product of the smallest normal numbers is subnormal, which XLA flushes to 0.
NORMAL = st.floats(-80, 80).filter(lambda x: x == 0 or abs(x) > 1e-290)


@few
@given(x=NORMAL)
@example(x=1e-289)
def test_slopes_are_one_family(x):
    np.testing.assert_allclose(SLOPES["alpha 1"](x), x, rtol=1e-12)
    np.testing.assert_allclose(SLOPES["alpha 0"](x), SLOPES["forward_kl"](x), rtol=1e-12)
    np.testing.assert_allclose(SLOPES["near alpha 1"](x), x, rtol=3e-3)
    np.testing.assert_allclose(SLOPES["alpha 2"](x), math.expm1(x), rtol=1e-12)
    np.testing.assert_allclose(SLOPES["jensen_shannon"](x) - SLOPES["jensen_shannon"](-x), x, rtol=1e-9, atol=1e-12)


SLOPES = {f"alpha {alpha}": jax.jit(alpha_slope(alpha)) for alpha in (0, 1, 2)}
SLOPES |= {"near alpha 1": jax.jit(alpha_slope(1 + 5e-5))}
SLOPES |= {"forward_kl": jax.jit(forward_kl_slope), "jensen_shannon": jax.jit(jensen_shannon_slope)}


@pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
def test_every_slope_is_the_identity_near_zero(slope):
    assert float(slope(0.0)) == 0
    steepness = float(jax.grad(slope)(0.0))
    np.testing.assert_allclose(steepness, 0.5 if slope is SLOPES["jensen_shannon"] else 1.0, rtol=1e-12)


def test_the_exponential_goes_on_as_its_tangent_where_squares_leave_float32():
    slope, end = alpha_slope(2.0), straight_from(jnp.float32(0))
    np.testing.assert_allclose(slope(jnp.float32(200)), np.exp(end) * (1 + 200 - end), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(slope)(jnp.float32(200)), np.exp(end), rtol=1e-5)


def test_alpha_may_be_traced():
    many = jax.vmap(lambda alpha: alpha_slope(alpha)(0.7))(jnp.array([0.0, 0.5, 1.0, 2.0]))
    expected = [1 - math.exp(-0.7), 2 * (1 - math.exp(-0.35)), 0.7, math.exp(0.7) - 1]
    np.testing.assert_allclose(many, expected, rtol=1e-12)


def test_log_odds_of_a_certain_and_of_an_unlikely_response():
    one = np.ones((1, 1), bool)
    certain = float(log_odds(np.zeros((1, 1)), None, one)[0])
    np.testing.assert_allclose(certain, -math.log(math.expm1(1e-7)), rtol=1e-12)
    assert float(jax.grad(lambda x: log_odds(x, None, one)[0])(jnp.zeros((1, 1)))[0, 0]) == 0
    np.testing.assert_allclose(log_odds(np.full((1, 1), -50.0), None, one), [-50], rtol=1e-12)


def test_one_token_needs_no_normalization():
    log_probs, ref_log_probs = numbers(4)
    one = np.eye(5, dtype=bool)[:4]
    for plain, mean in ((log_prob, mean_log_prob), (log_ratio, mean_log_ratio)):
        expected = plain(BETA)(log_probs, ref_log_probs, one)
        np.testing.assert_array_equal(mean(BETA)(log_probs, ref_log_probs, one), expected)


@pytest.mark.parametrize("factory", [log_prob, log_ratio, mean_log_prob, mean_log_ratio])
def test_beta_must_be_positive_and_may_be_traced(factory):
    with pytest.raises(ValueError, match=r"log_(prob|ratio): beta is 0, wanted a number greater than 0\."):
        factory(0)
    log_probs, ref_log_probs = numbers(5)
    many = jax.vmap(lambda beta: factory(beta)(log_probs, ref_log_probs, MASK))(jnp.array([0.1, 2.0]))
    np.testing.assert_allclose(many[1], factory(2.0)(log_probs, ref_log_probs, MASK), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_prob()(MASK * 1.0, None, MASK[:2]), "log_prob: mask has shape (2, 5), log_probs has (4, 5)"),
        (lambda: log_ratio()(MASK * 1.0, None, MASK), "log_ratio: ref_log_probs is None; give the reference's"),
        (
            lambda: mean_log_ratio()(MASK * 1.0, MASK[:2] * 1.0, MASK),
            "log_ratio: ref_log_probs has shape (2, 5), log_probs has (4, 5)",
        ),
        (lambda: log_odds(MASK * 1.0, None, MASK[:2]), "log_prob: mask has shape (2, 5)"),
        (
            lambda: divergence_reward(log_ratio(), forward_kl_slope, -1.0),
            "divergence_reward: beta is -1.0, wanted a number greater than 0.",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)
