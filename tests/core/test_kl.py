from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from rlax_llm.core.kl import (
    absolute,
    doubling_coef,
    fixed_coef,
    k1,
    k2,
    k3,
    kl_penalty,
    proportional_coef,
    straight_through,
    top_k_kl,
)

pytestmark = pytest.mark.usefixtures("float64")

LITERAL = {
    k1: (lambda p, q: p - q, lambda p, q: np.ones_like(p)),
    k2: (lambda p, q: (p - q) ** 2 / 2, lambda p, q: p - q),
    k3: (lambda p, q: np.exp(q - p) - 1 - (q - p), lambda p, q: 1 - np.exp(q - p)),
    absolute: (lambda p, q: np.abs(p - q), lambda p, q: np.sign(p - q)),
}
each = pytest.mark.parametrize("estimator", LITERAL, ids=lambda f: f.__name__)


def policies(seed: int, actions: int = 7) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).normal(size=(2, actions)))


def probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p)))


@each
def test_equals_the_formula_with_its_gradient(estimator):
    log_probs, ref_log_probs = -np.random.default_rng(0).exponential(size=(2, 4, 5))
    value, slope = LITERAL[estimator]
    np.testing.assert_allclose(estimator(log_probs, ref_log_probs), value(log_probs, ref_log_probs), rtol=1e-12)
    gradient = jax.grad(lambda x: estimator(x, jnp.asarray(ref_log_probs)).sum())(jnp.asarray(log_probs))
    np.testing.assert_allclose(gradient, slope(log_probs, ref_log_probs), rtol=1e-12)


@pytest.mark.parametrize("estimator", [k1, k3], ids=["k1", "k3"])
@pytest.mark.parametrize("seed", range(3))
def test_expected_value_is_the_divergence(estimator, seed):
    p, q = (probabilities(x) for x in policies(seed))
    expected = (p * np.asarray(estimator(np.log(p), np.log(q)))).sum()
    np.testing.assert_allclose(expected, divergence(p, q), rtol=1e-12)


def expected_gradient(estimator, logits: np.ndarray, ref_logits: np.ndarray) -> jax.Array:
    """Of the estimator as a loss, over every action weighed by the (fixed) policy that draws it."""
    p, log_q = probabilities(logits), np.log(probabilities(ref_logits))
    return jax.grad(lambda x: (p * estimator(jax.nn.log_softmax(x), jnp.asarray(log_q))).sum())(jnp.asarray(logits))


@pytest.mark.parametrize("seed", range(3))
def test_expected_gradient_of_each_as_a_loss(seed):
    logits, ref_logits = policies(seed)
    p, q = probabilities(logits), probabilities(ref_logits)
    # By hand: the gradient of KL(p‖q) is p_i (log p_i/q_i − KL), that of KL(q‖p) is p_i − q_i.
    reverse, forward = p * (np.log(p / q) - divergence(p, q)), p - q
    np.testing.assert_allclose(expected_gradient(k1, logits, ref_logits), np.zeros(7), atol=1e-14)
    np.testing.assert_allclose(expected_gradient(k2, logits, ref_logits), reverse, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(expected_gradient(k3, logits, ref_logits), forward, rtol=1e-10, atol=1e-14)
    # and the hand-derived ones are the finite differences of the divergences themselves
    numeric = approx_fprime(logits, lambda x: divergence(probabilities(x), q), 1e-7)
    np.testing.assert_allclose(reverse, numeric, atol=1e-6)
    numeric = approx_fprime(logits, lambda x: divergence(q, probabilities(x)), 1e-7)
    np.testing.assert_allclose(forward, numeric, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_expected_gradient_of_absolute_is_that_of_the_variation(seed):
    logits, ref_logits = policies(seed)
    q = probabilities(ref_logits)
    numeric = approx_fprime(logits, lambda x: np.abs(probabilities(x) - q).sum(), 1e-7)
    np.testing.assert_allclose(expected_gradient(absolute, logits, ref_logits), numeric, atol=1e-6)


@pytest.mark.parametrize("value", [k1, k2, k3, absolute], ids=lambda f: f.__name__)
@pytest.mark.parametrize("gradient", [k2, k3, absolute], ids=lambda f: f.__name__)
def test_straight_through_has_the_value_of_one_and_the_expected_gradient_of_the_other(value, gradient):
    logits, ref_logits = policies(4)
    log_p, log_q = (jax.nn.log_softmax(jnp.asarray(x)) for x in (logits, ref_logits))
    both = straight_through(value, gradient)
    np.testing.assert_array_equal(both(log_p, log_q), value(log_p, log_q))
    np.testing.assert_allclose(
        expected_gradient(both, logits, ref_logits), expected_gradient(gradient, logits, ref_logits), atol=1e-15
    )


def test_straight_through_of_one_function_is_that_function():
    p, q = jnp.asarray(np.random.default_rng(5).normal(size=(2, 9)))
    np.testing.assert_array_equal(straight_through(k3, k3)(p, q), k3(p, q))
    slope = jax.grad(lambda x: straight_through(k3, k3)(x, q).sum())(p)
    np.testing.assert_array_equal(slope, jax.grad(lambda x: k3(x, q).sum())(p))


def test_identities():
    p, q = np.random.default_rng(1).normal(size=(2, 50))
    np.testing.assert_allclose(k2(p, q), 0.5 * k1(p, q) ** 2, rtol=1e-12)
    np.testing.assert_allclose(k3(p, q), k1(p, q) + np.expm1(-k1(p, q)), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(k1(p, q), -k1(q, p), rtol=1e-12)
    np.testing.assert_allclose(k2(p, q), k2(q, p), rtol=1e-12)
    assert np.all(k3(p, q) >= 0)
    assert np.all(k2(p, q) >= 0)


@each
def test_agreement_gives_exactly_zero(estimator):
    p = np.random.default_rng(2).normal(size=9)
    np.testing.assert_array_equal(estimator(p, p), np.zeros(9))


@pytest.mark.parametrize("distance", [1e-3, 1e-5, 1e-7])
def test_k3_equals_k2_to_second_order_without_cancellation(distance):
    np.testing.assert_allclose(k3(distance, 0.0) / k2(distance, 0.0), 1, atol=distance / 3 + 1e-8)


@pytest.mark.parametrize("estimator", [k2, k3, absolute, straight_through(k3, k2)], ids=["k2", "k3", "abs", "k3_k2"])
def test_penalty_is_the_scaled_estimator_and_takes_a_traced_weight(estimator):
    p, q = np.random.default_rng(3).normal(size=(2, 4))
    np.testing.assert_allclose(kl_penalty(estimator, 0.3)(p, q), 0.3 * estimator(p, q), rtol=1e-12)
    many = jax.vmap(lambda coef: kl_penalty(estimator, coef)(p, q))(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(many, [np.zeros(4), 0.3 * estimator(p, q)], rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_far_apart_is_finite_in_any_format(estimator, dtype):
    far = jnp.array([-80.0, 0.0, -80.0], dtype), jnp.array([0.0, -80.0, -80.0], dtype)
    value, slope = estimator(*far), jax.grad(lambda x: estimator(x, far[1]).sum())(far[0])
    assert value.dtype == slope.dtype == dtype
    assert np.isfinite(np.asarray(value, np.float64)).all()
    assert np.isfinite(np.asarray(slope, np.float64)).all()


def bucketed(p: np.ndarray, q: np.ndarray, k: int) -> float:
    """Divergence of two distributions over the first k tokens and all others together."""
    p, q = ([*x[:k], sum(x[k:])] for x in (p, q))
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("k", [1, 4, 6])
def test_top_k_is_the_divergence_of_buckets_with_its_gradient(k):
    logits, ref_logits = policies(6)

    def exact(x: np.ndarray) -> float:
        return bucketed(probabilities(x[:7]), probabilities(x[7:]), k)

    def ours(x: jax.Array) -> jax.Array:
        return top_k_kl(jax.nn.log_softmax(x[:7])[:k], jax.nn.log_softmax(x[7:])[:k])

    both = np.concatenate([logits, ref_logits])
    np.testing.assert_allclose(ours(jnp.asarray(both)), exact(both), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(both)), approx_fprime(both, exact, 1e-7), atol=1e-6)


def test_top_k_of_the_whole_vocabulary_is_the_divergence_with_its_gradient():
    logits, ref_logits = policies(7)
    p, q = probabilities(logits), probabilities(ref_logits)
    log_q = jnp.log(q)
    np.testing.assert_allclose(top_k_kl(jnp.log(p), log_q), divergence(p, q), rtol=1e-12)
    gradient = jax.grad(lambda x: top_k_kl(jax.nn.log_softmax(x), log_q))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, p * (np.log(p / q) - divergence(p, q)), rtol=1e-9, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_top_k_grows_with_k_to_the_divergence(seed):
    p, q = (np.sort(probabilities(x)) for x in policies(seed))
    rising = [float(top_k_kl(np.log(p[-k:]), np.log(q[-k:]))) for k in (1, 3, 5, 7)]
    assert rising[0] >= 0
    assert np.all(np.diff(rising) >= -1e-12)
    np.testing.assert_allclose(rising[-1], divergence(p, q), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_top_k_of_impossible_and_of_certain_tokens(dtype):
    # certain under both, an impossible one beside it, and far apart
    p = jnp.array([[0.0, -jnp.inf], [0.0, -80.0], [-80.0, 0.0]], dtype)
    q = jnp.array([[0.0, -jnp.inf], [-80.0, 0.0], [0.0, -80.0]], dtype)
    value = top_k_kl(p, q)
    assert value.dtype == jnp.promote_types(dtype, jnp.float32)
    np.testing.assert_allclose(value, [0, 80, 80], rtol=1e-6)
    for slope in jax.grad(lambda p, q: top_k_kl(p, q).sum(), argnums=(0, 1))(p, q):
        assert np.isfinite(np.asarray(slope, np.float64)).all()
    np.testing.assert_array_equal(jax.grad(lambda p: top_k_kl(p, q).sum())(p)[0, 1], 0)


def test_top_k_is_the_same_under_vmap():
    p, q = jnp.log(jnp.asarray(np.random.default_rng(8).dirichlet(np.ones(6), (2, 5))))[..., :3]
    np.testing.assert_allclose(jax.vmap(top_k_kl)(p, q), top_k_kl(p, q), rtol=1e-14)


@pytest.mark.parametrize("kl", [0.0, 0.05, 0.099, 0.1, 0.101, 0.5, 9.0])
def test_coefficients_are_the_papers_rules(kl):
    error = min(max((kl - 0.1) / 0.1, -0.2), 0.2)
    np.testing.assert_allclose(proportional_coef(0.1)(3.0, kl), 3.0 * (1 + 0.1 * error), rtol=1e-12)
    np.testing.assert_allclose(proportional_coef(0.1, gain=256 / 10_000)(3.0, kl), 3.0 * (1 + error * 256 / 10_000))
    doubled = 6.0 if kl > 0.15 else 1.5 if kl < 0.1 / 1.5 else 3.0
    np.testing.assert_allclose(doubling_coef(0.1)(3.0, kl), doubled, rtol=1e-14)
    np.testing.assert_array_equal(fixed_coef(3.0, kl), 3.0)
    np.testing.assert_array_equal(proportional_coef(0.1, gain=0.0)(3.0, kl), 3.0)


@pytest.mark.parametrize("control", [fixed_coef, proportional_coef(0.1), doubling_coef(0.1)])
def test_coefficients_are_carried_through_a_compiled_loop(control):
    kls = jnp.array([0.0, 0.5, 0.1, 0.02])
    last, coefs = jax.lax.scan(lambda coef, kl: (control(coef, kl),) * 2, jnp.array(0.3), kls)
    expected = 0.3
    for kl, coef in zip(kls, coefs, strict=True):
        expected = float(control(expected, float(kl)))
        np.testing.assert_allclose(coef, expected, rtol=1e-12)
    assert last == coefs[-1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_penalty(k1, 0.1), "kl_penalty: k1 as a loss has an expected gradient of zero.*use k2"),
        (lambda: straight_through(k3, k1), "straight_through: k1 as a loss has an expected gradient of zero.*use k2"),
        (lambda: top_k_kl(jnp.zeros((2, 3)), jnp.zeros((2, 4))), r"top_k_kl: ref_log_probs has shape \(2, 4\)"),
        (lambda: absolute(jnp.zeros(2), jnp.zeros(3)), r"k1: ref_log_probs has shape \(3,\)"),
        (lambda: proportional_coef(0.0), "proportional_coef: target is 0.0, wanted a number greater than 0"),
        (lambda: proportional_coef(1.0, limit=-1), "proportional_coef: limit is -1, wanted a number greater than 0"),
        (lambda: doubling_coef(-1.0), "doubling_coef: target is -1.0, wanted a number greater than 0"),
        (lambda: doubling_coef(1.0, tolerance=0.5), "doubling_coef: tolerance − 1 is -0.5, wanted a number greater"),
        (lambda: doubling_coef(1.0, factor=1), "doubling_coef: factor − 1 is 0, wanted a number greater than 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
