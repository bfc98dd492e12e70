from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.core import kl
from rlax_llm.core.distributions import (
    Distribution,
    categorical,
    categorical_entropy,
    categorical_fisher,
    categorical_kl,
    categorical_log_prob,
    gaussian,
    independent,
    normal,
    normal_fisher,
    normal_kl,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
ACTIONS = 4
logit = st.floats(-80, 80, allow_subnormal=False)
rows = st.lists(st.one_of(logit, st.just(-math.inf)), min_size=ACTIONS, max_size=ACTIONS)
some = rows.filter(lambda row: max(row) > -math.inf).map(np.array)
IMPOSSIBLE = np.array([0.3, -math.inf, -1.2, -math.inf])

log_prob, entropy, divergence = jax.jit(categorical_log_prob), jax.jit(categorical_entropy), jax.jit(categorical_kl)
slopes = {
    "log_prob": jax.jit(jax.grad(lambda logits, ref: categorical_log_prob(logits, jnp.argmax(ref)))),
    "entropy": jax.jit(jax.grad(lambda logits, ref: categorical_entropy(logits))),
    "kl": jax.jit(jax.grad(categorical_kl)),
    "kl_of_reference": jax.jit(jax.grad(lambda logits, ref: categorical_kl(ref, logits))),
    "fisher": jax.jit(jax.grad(lambda logits, ref: categorical_fisher(logits, jnp.arange(4.0))[0])),
}


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = [math.exp(x - max(logits)) for x in logits]
    return np.array([power / sum(powers) for power in powers])


def log_probabilities(logits: np.ndarray) -> list[float]:
    total = max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits))
    return [x - total for x in logits]


def literal_entropy(logits: np.ndarray) -> float:
    return -sum(math.exp(x) * x for x in log_probabilities(logits) if x > -math.inf)


def literal_kl(logits: np.ndarray, ref_logits: np.ndarray) -> float:
    pairs = zip(log_probabilities(logits), log_probabilities(ref_logits), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in pairs if math.exp(p) > 0)


def literal_normal(parameters, action: float) -> float:
    mean, std = parameters[0], math.exp(parameters[1])
    return math.log(math.exp(-((action - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi)))


def random_pair(seed: int, *shape: int) -> tuple[jax.Array, jax.Array]:
    mean, log_std = np.random.default_rng(seed).normal(size=(2, *shape))
    return jnp.asarray(mean), jnp.asarray(0.5 * log_std)


# Categorical


@few
@given(logits=some, ref_logits=some)
def test_categorical_equals_the_formulas(logits, ref_logits):
    expected = log_probabilities(logits)
    for action in range(ACTIONS):
        np.testing.assert_allclose(log_prob(logits, action), expected[action], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(entropy(logits), literal_entropy(logits), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(divergence(logits, ref_logits), literal_kl(logits, ref_logits), rtol=1e-9, atol=1e-12)
    assert divergence(logits, ref_logits) >= 0
    assert divergence(logits, logits) == 0


@few
@given(logits=some, ref_logits=some)
def test_categorical_gradients_are_finite_and_zero_where_impossible(logits, ref_logits):
    for name, slope in slopes.items():
        gradient = np.asarray(slope(logits, ref_logits))
        assert np.all(np.isfinite(gradient)), name
        assert np.all(gradient[logits == -np.inf] == 0), name


def test_categorical_gradients_equal_the_formulas():
    logits, ref = np.random.default_rng(0).normal(size=(2, ACTIONS))
    p, q = probabilities(logits), probabilities(ref)
    chosen = np.arange(ACTIONS) == np.argmax(ref)
    expected = {
        "log_prob": chosen - p,
        "entropy": -p * (np.log(p) + literal_entropy(logits)),
        "kl": p * (np.log(p / q) - literal_kl(logits, ref)),
        "kl_of_reference": p - q,
    }
    for name, gradient in expected.items():
        np.testing.assert_allclose(slopes[name](logits, ref), gradient, rtol=1e-10, atol=1e-14, err_msg=name)


def test_categorical_gradients_equal_finite_differences():
    logits, ref = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, ACTIONS)) * 2)
    actions = jnp.array([0, 3, 1])
    check_grads(jax.jit(lambda x: categorical_log_prob(x, actions)), (logits,), order=1, rtol=1e-6, atol=1e-6)
    check_grads(entropy, (logits,), order=1, rtol=1e-6, atol=1e-6)
    check_grads(divergence, (logits, ref), order=1, rtol=1e-6, atol=1e-6)


def test_impossible_actions_are_as_if_they_were_not_there():
    here, ref = IMPOSSIBLE[[0, 2]], np.array([1.0, 0.5])
    ref_logits = np.array([1.0, -math.inf, 0.5, -math.inf])
    np.testing.assert_allclose(entropy(IMPOSSIBLE), literal_entropy(here), rtol=1e-12)
    np.testing.assert_allclose(divergence(IMPOSSIBLE, ref_logits), literal_kl(here, ref), rtol=1e-12)
    for wide, narrow in ((0, 0), (2, 1)):
        np.testing.assert_allclose(log_prob(IMPOSSIBLE, wide), log_probabilities(here)[narrow], rtol=1e-12)
    assert log_prob(IMPOSSIBLE, 1) == -np.inf
    assert divergence(np.zeros(ACTIONS), IMPOSSIBLE) == np.inf
    np.testing.assert_allclose(divergence(IMPOSSIBLE, np.zeros(ACTIONS)), literal_kl(IMPOSSIBLE, np.zeros(ACTIONS)))
    for garbage in (np.nan, np.inf, -np.inf, 80.0):
        product = categorical_fisher(IMPOSSIBLE, np.where(np.isinf(IMPOSSIBLE), garbage, [1.0, 0, 3.0, 0]))
        np.testing.assert_allclose(product[jnp.array([0, 2])], categorical_fisher(here, np.array([1.0, 3.0])))
        np.testing.assert_array_equal(product[jnp.array([1, 3])], np.zeros(2))


def test_no_possible_action_at_all_is_zero_and_finite():
    nothing = jnp.full(ACTIONS, -jnp.inf)
    assert entropy(nothing) == 0
    assert divergence(nothing, nothing) == 0
    assert log_prob(nothing, 2) == -np.inf
    for slope in slopes.values():
        np.testing.assert_array_equal(slope(nothing, jnp.zeros(ACTIONS)), np.zeros(ACTIONS))


def test_nan_logits_are_not_hidden():
    logits = jnp.array([0.0, jnp.nan])
    assert np.isnan(entropy(logits))
    assert np.isnan(log_prob(logits, 0))
    assert np.isnan(divergence(logits, jnp.zeros(2)))


def test_the_divergence_is_the_expectation_of_its_estimators():
    logits, ref = np.random.default_rng(2).normal(size=(2, 5, ACTIONS))
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
    for estimator in (kl.k1, kl.k3):
        expected = (np.exp(log_p) * estimator(log_p, log_q)).sum(-1)
        np.testing.assert_allclose(divergence(logits, ref), expected, rtol=1e-11)


def test_a_small_divergence_keeps_its_digits_in_float32():
    logits, change = np.random.default_rng(3).normal(size=(2, 64))
    for size in (1e-2, 1e-3):
        near = (logits + size * change).astype(np.float32)
        exact = literal_kl(near.astype(float), logits.astype(np.float32).astype(float))
        np.testing.assert_allclose(categorical_kl(near, logits.astype(np.float32)), exact, rtol=1e-3)


def test_categorical_fisher_is_the_sum_over_actions_and_the_hessian():
    logits, tangent = jnp.asarray(np.random.default_rng(4).normal(size=(2, ACTIONS)))
    p = probabilities(np.asarray(logits))
    matrix = np.zeros((ACTIONS, ACTIONS))
    for action in range(ACTIONS):
        score = (np.arange(ACTIONS) == action) - p
        matrix += p[action] * np.outer(score, score)
    product = categorical_fisher(logits, tangent)
    np.testing.assert_allclose(product, matrix @ tangent, rtol=1e-12, atol=1e-15)
    for argument in (0, 1):
        hessian = jax.jit(jax.hessian(categorical_kl, argument))(logits, logits)
        np.testing.assert_allclose(hessian, matrix, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(categorical_fisher(logits, jnp.ones(ACTIONS)), np.zeros(ACTIONS), atol=1e-15)


def test_categorical_frequencies_and_mode():
    logits = jnp.array([1.0, -jnp.inf, 0.0, 2.0])
    drawn = np.asarray(categorical.sample(jax.random.key(0), jnp.broadcast_to(logits, (40_000, 4))))
    frequencies = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(frequencies, probabilities(np.asarray(logits)), atol=0.01)
    assert frequencies[1] == 0
    assert categorical.mode(logits) == 3


# Gaussian


def test_normal_equals_the_formulas():
    parameters, ref, actions = random_pair(0, 3, 2), random_pair(1, 3, 2), np.random.default_rng(2).normal(size=(3, 2))
    for i in np.ndindex(3, 2):
        mean, std = float(parameters[0][i]), math.exp(parameters[1][i])
        ref_mean, ref_std = float(ref[0][i]), math.exp(ref[1][i])
        one = tuple(x[i] for x in parameters)
        np.testing.assert_allclose(normal.log_prob(one, actions[i]), literal_normal(one, actions[i]), rtol=1e-12)
        expected = 0.5 * math.log(2 * math.pi * math.e * std**2)
        np.testing.assert_allclose(normal.entropy(one), expected, rtol=1e-12)
        expected = math.log(ref_std / std) + (std**2 + (mean - ref_mean) ** 2) / (2 * ref_std**2) - 0.5
        np.testing.assert_allclose(normal_kl(one, tuple(x[i] for x in ref)), expected, rtol=1e-10)
    for name, args in {"log_prob": (actions,), "entropy": (), "kl": (ref,)}.items():
        whole, parts = (getattr(d, name)(parameters, *args) for d in (gaussian, normal))
        assert whole.shape == (3,)
        np.testing.assert_allclose(whole, np.asarray(parts).sum(-1), rtol=1e-14)


def test_normal_gradients_equal_finite_differences():
    parameters, ref, actions = random_pair(3, 2), random_pair(4, 2), jnp.array([0.3, -1.0])
    check_grads(jax.jit(lambda *p: gaussian.log_prob(p, actions)), parameters, order=1, rtol=1e-6, atol=1e-6)
    check_grads(jax.jit(lambda *p: gaussian.kl(p[:2], p[2:])), (*parameters, *ref), order=1, rtol=1e-6, atol=1e-6)
    check_grads(jax.jit(lambda *p: gaussian.entropy(p)), parameters, order=1, rtol=1e-6, atol=1e-6)


def test_normal_integrals_by_quadrature():
    # Gauss-Hermite with 20 nodes is exact for the polynomials of degree ≤ 39 that stand under these expectations.
    parameters, ref = random_pair(5), random_pair(6)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    actions = parameters[0] + jnp.exp(parameters[1]) * nodes
    scores = jax.vmap(jax.grad(lambda p, a: normal.log_prob(p, a)), (None, 0))(parameters, actions)
    matrix = np.einsum("n,in,jn->ij", weights, scores, scores)
    for column, tangent in enumerate(np.eye(2)):
        product = normal_fisher(parameters, tuple(jnp.asarray(tangent)))
        np.testing.assert_allclose(product, matrix[:, column], rtol=1e-12, atol=1e-13)
    many = tuple(jnp.full(20, x) for x in parameters)
    log_p, log_q = normal.log_prob(many, actions), normal.log_prob(tuple(jnp.full(20, x) for x in ref), actions)
    np.testing.assert_allclose(normal.entropy(parameters), -(weights * log_p).sum(), rtol=1e-12)
    np.testing.assert_allclose(normal_kl(parameters, ref), (weights * (log_p - log_q)).sum(), rtol=1e-10)


def test_normal_fisher_is_the_hessian_of_the_divergence():
    parameters = random_pair(7)
    for argument in (0, 1):
        hessian = jax.jit(jax.hessian(normal_kl, argument))(parameters, parameters)
        for column, tangent in enumerate(((1.0, 0.0), (0.0, 1.0))):
            product = normal_fisher(parameters, tuple(jnp.asarray(x) for x in tangent))
            np.testing.assert_allclose(product, [hessian[0][column], hessian[1][column]], rtol=1e-12, atol=1e-14)


def test_normal_limits_and_extremes():
    parameters, zero = random_pair(8, 4), jnp.zeros(4)
    np.testing.assert_array_equal(normal_kl(parameters, parameters), zero)
    same = (parameters[0] + 0.3, parameters[1])
    np.testing.assert_allclose(normal_kl(parameters, same), 0.045 * np.exp(-2 * parameters[1]), rtol=1e-12)
    for log_std in (-80.0, 80.0):
        extreme = jnp.ones(4, jnp.float32), jnp.full(4, log_std, jnp.float32)
        np.testing.assert_array_equal(normal_kl(extreme, extreme), zero)
        np.testing.assert_array_equal(normal_fisher(extreme, (zero, zero)), np.zeros((2, 4)))
        assert np.all(np.isfinite(normal.log_prob(extreme, extreme[0])))
        gradient = jax.grad(lambda p: normal.log_prob(p, jnp.ones(4, jnp.float32)).sum())(extreme)
        np.testing.assert_array_equal(gradient, [np.zeros(4), -np.ones(4)])


def test_a_small_divergence_of_normals_keeps_its_digits_in_float32():
    near = tuple(jnp.asarray(x, jnp.float32) for x in (0.0, 1e-3))
    there = tuple(jnp.asarray(x, jnp.float32) for x in (0.0, 0.0))
    # k3 of a gap of 2e-3 loses a rounding of the gap, eps / 2e-3; the plain form would lose eps / 1e-6, a tenth.
    rounding = 2 * np.finfo(np.float32).eps / 2e-3
    np.testing.assert_allclose(normal_kl(near, there), (math.expm1(2e-3) - 2e-3) / 2, rtol=rounding)


def test_normal_moments_and_mode():
    parameters = jnp.full(40_000, 3.0), jnp.full(40_000, math.log(0.5))
    drawn = np.asarray(gaussian.sample(jax.random.key(0), parameters))
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [3.0, 0.5], atol=0.02)
    np.testing.assert_array_equal(gaussian.mode(parameters), parameters[0])


# Both


def test_independent_choices_are_one_joint_choice():
    logits, ref = np.random.default_rng(9).normal(size=(2, 2, 3))
    both = independent(categorical)
    joint, ref_joint = ((x[0][:, None] + x[1][None]).ravel() for x in (logits, ref))
    for first, second in np.ndindex(3, 3):
        expected = log_probabilities(joint)[3 * first + second]
        np.testing.assert_allclose(both.log_prob(logits, np.array([first, second])), expected, rtol=1e-12)
    np.testing.assert_allclose(both.entropy(logits), literal_entropy(joint), rtol=1e-12)
    np.testing.assert_allclose(both.kl(logits, ref), literal_kl(joint, ref_joint), rtol=1e-12)
    np.testing.assert_array_equal(both.mode(logits), logits.argmax(-1))
    assert both.sample(jax.random.key(0), jnp.asarray(logits)).shape == (2,)


CASES: dict[str, tuple[Distribution, object, object]] = {
    "categorical": (
        categorical,
        jnp.asarray(np.random.default_rng(10).normal(size=(2, 3, 4)), jnp.float32),
        jnp.asarray(np.random.default_rng(11).normal(size=(2, 3, 4)), jnp.float32),
    ),
    "gaussian": (
        gaussian,
        tuple(x.astype(jnp.float32) for x in random_pair(12, 2, 3, 4)),
        tuple(x.astype(jnp.float32) for x in random_pair(13, 2, 3, 4)),
    ),
}
each = pytest.mark.parametrize("name", CASES)


def everything(distribution: Distribution, parameters, ref):
    actions = distribution.mode(ref)
    return (
        distribution.log_prob(parameters, actions),
        distribution.entropy(parameters),
        distribution.kl(parameters, ref),
        distribution.fisher(parameters, ref),
    )


@each
def test_any_leading_shape_jit_and_vmap_agree(name):
    distribution, parameters, ref = CASES[name]
    plain = everything(distribution, parameters, ref)
    assert [x.shape for x in plain[:3]] == [(2, 3)] * 3
    mapped = jax.vmap(jax.vmap(lambda p, q: everything(distribution, p, q)))(parameters, ref)
    compiled = jax.jit(lambda p, q: everything(distribution, p, q))(parameters, ref)
    for other in (mapped, compiled):
        for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@each
def test_bfloat16_is_computed_in_float32(name):
    distribution, parameters, ref = jax.tree.map(lambda x: x, CASES[name])
    small, small_ref = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), x) for x in (parameters, ref))
    wide, wide_ref = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (small, small_ref))
    *numbers, fisher = everything(distribution, small, small_ref)
    *expected, wide_fisher = everything(distribution, wide, wide_ref)
    for got, wanted in zip(numbers, expected, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(jax.tree.leaves(fisher), jax.tree.leaves(wide_fisher), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=1 / 128)


SHORT, LONG = jnp.zeros((2, 3)), jnp.zeros((2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: categorical_log_prob(SHORT, jnp.zeros(3, int)),
            r"actions has shape \(3,\), logits has \(2, 3\); give one action for each distribution, \(2,\)\.",
        ),
        (lambda: categorical_entropy(jnp.array(0.0)), r"categorical_entropy: logits has shape \(\), wanted \[..., K\]"),
        (lambda: categorical_kl(SHORT, LONG), r"categorical_kl: ref_logits has shape \(2, 4\), logits has \(2, 3\)"),
        (lambda: categorical_fisher(SHORT, LONG), r"categorical_fisher: tangents has shape \(2, 4\)"),
        (lambda: gaussian.entropy((SHORT, jnp.zeros(3))), r"normal_entropy: log_std has shape \(3,\), mean has"),
        (lambda: gaussian.log_prob((SHORT, SHORT), LONG), r"normal_log_prob: actions has shape \(2, 4\), mean has"),
        (lambda: normal_kl((SHORT, SHORT), (LONG, LONG)), r"normal_kl: ref_mean has shape \(2, 4\), mean has"),
        (lambda: normal_kl((SHORT, SHORT), (SHORT, LONG)), r"normal_kl: log_std has shape \(2, 4\), mean has"),
        (lambda: normal_fisher((SHORT, SHORT), (SHORT, LONG)), r"normal_fisher: log_std_tangents has shape \(2, 4\)"),
        (lambda: gaussian.sample(jax.random.key(0), (SHORT, LONG)), r"normal_sample: log_std has shape \(2, 4\)"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
