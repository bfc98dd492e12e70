from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from rlax_llm.kl import k1, k2, k3, kl_penalty

pytestmark = pytest.mark.usefixtures("float64")

LITERAL = {
    k1: (lambda p, q: p - q, lambda p, q: np.ones_like(p)),
    k2: (lambda p, q: (p - q) ** 2 / 2, lambda p, q: p - q),
    k3: (lambda p, q: np.exp(q - p) - 1 - (q - p), lambda p, q: 1 - np.exp(q - p)),
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


@pytest.mark.parametrize("estimator", [k2, k3], ids=["k2", "k3"])
def test_penalty_is_the_scaled_estimator_and_takes_a_traced_weight(estimator):
    p, q = np.random.default_rng(3).normal(size=(2, 4))
    np.testing.assert_allclose(kl_penalty(estimator, 0.3)(p, q), 0.3 * estimator(p, q), rtol=1e-12)
    many = jax.vmap(lambda coef: kl_penalty(estimator, coef)(p, q))(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(many, [np.zeros(4), 0.3 * estimator(p, q)], rtol=1e-12)
