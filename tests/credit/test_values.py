from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.credit.values import (
    clipped_value_loss,
    explained_variance,
    huber_value_loss,
    squared_value_loss,
    symexp,
    symlog,
    two_hot,
    two_hot_value,
    two_hot_value_loss,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
numbers = st.floats(-10, 10, allow_subnormal=False)
VALUES, OLD, TARGETS = (x.ravel() for x in np.meshgrid(np.linspace(-2, 2, 17), [-1.0, 0.1, 1.3], [-1.7, 0.04, 0.9]))
clipped, huber = clipped_value_loss(0.5), huber_value_loss(0.7)


def literal_clipped(v: float, old: float, target: float) -> tuple[float, float]:
    held = min(max(v, old - 0.5), old + 0.5)
    free, kept = (v - target) ** 2 / 2, (held - target) ** 2 / 2
    if abs(v - old) <= 0.5:
        return free, v - target
    return (free, v - target) if free > kept else (kept, 0.0)


def literal_huber(v: float, old: float, target: float) -> tuple[float, float]:
    error = v - target
    if abs(error) <= 0.7:
        return error**2 / 2, error
    return 0.7 * (abs(error) - 0.35), 0.7 * np.sign(error)


LOSSES = {
    "squared": (lambda v, old, r: squared_value_loss(v, r), lambda v, old, r: ((v - r) ** 2 / 2, v - r)),
    "clipped": (clipped, literal_clipped),
    "huber": (lambda v, old, r: huber(v, r), literal_huber),
}
each = pytest.mark.parametrize("name", LOSSES)


@each
def test_equals_the_formula_with_its_gradient(name):
    loss, formula = LOSSES[name]
    expected = np.array([formula(*triple) for triple in zip(VALUES, OLD, TARGETS, strict=True)])
    np.testing.assert_allclose(loss(VALUES, OLD, TARGETS), expected[:, 0], rtol=1e-12)
    slopes = jax.grad(lambda v: loss(v, OLD, TARGETS).sum())(jnp.asarray(VALUES))
    np.testing.assert_allclose(slopes, expected[:, 1], rtol=1e-12, atol=1e-14)


@each
def test_elementwise_over_any_layout_and_type(name):
    loss = LOSSES[name][0]
    shaped = [x.reshape(9, 17) for x in (VALUES, OLD, TARGETS)]
    np.testing.assert_array_equal(loss(*shaped).ravel(), loss(VALUES, OLD, TARGETS))
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*shaped), loss(*shaped), rtol=1e-14)
    half = [jnp.asarray(x, jnp.bfloat16) for x in shaped]
    assert loss(*half).dtype == "float32"
    single = [np.asarray(x, np.float32) for x in half]
    np.testing.assert_allclose(loss(*half), loss(*single), rtol=1e-6)


@each
@pytest.mark.parametrize("value", [80.0, -80.0, 1e30, -1e30])
def test_extreme_errors_have_a_finite_slope(name, value):
    loss = LOSSES[name][0]
    for target in (80.0, -80.0):
        assert np.isfinite(jax.grad(loss)(value, 0.0, target))


def test_on_the_border_of_the_interval_the_slope_is_the_error():
    edges = jnp.array([0.5, -0.5])
    slopes = jax.grad(lambda v: clipped(v, jnp.zeros(2), jnp.full(2, 3.0)).sum())(edges)
    np.testing.assert_array_equal(slopes, edges - 3)
    slopes = jax.grad(lambda v: huber_value_loss(0.5)(v, jnp.zeros(2)).sum())(edges)
    np.testing.assert_array_equal(slopes, edges)


def test_wide_intervals_are_the_squared_loss():
    squared = squared_value_loss(VALUES, TARGETS)
    np.testing.assert_array_equal(clipped_value_loss(1e6)(VALUES, OLD, TARGETS), squared)
    np.testing.assert_array_equal(huber_value_loss(1e6)(VALUES, TARGETS), squared)
    assert np.all(clipped(VALUES, OLD, TARGETS) >= squared)
    assert np.all(huber(VALUES, TARGETS) <= squared)
    traced = jax.vmap(lambda eps: clipped_value_loss(eps)(VALUES, OLD, TARGETS))(jnp.array([0.5, 1e6]))
    np.testing.assert_allclose(traced, [clipped(VALUES, OLD, TARGETS), squared], rtol=1e-14)


def streams() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return *random.normal(size=(2, 3, 4)), random.random((3, 4)) < 0.6


def test_explained_variance_equals_the_formula_with_its_gradient():
    values, targets, mask = streams()
    v, r = values[mask], targets[mask]
    expected = 1 - np.var(r - v) / np.var(r)
    np.testing.assert_allclose(explained_variance(values, targets, mask), expected, rtol=1e-12)
    check_grads(lambda v, r: explained_variance(v, r, mask), (values, targets), 1, modes=["rev"])


def test_explained_variance_limits():
    _, targets, mask = streams()
    np.testing.assert_allclose(explained_variance(targets + 3, targets, mask), 1, rtol=1e-12)
    np.testing.assert_allclose(explained_variance(np.full_like(targets, 3), targets, mask), 0, atol=1e-12)
    np.testing.assert_allclose(explained_variance(-targets, targets, mask), -3, rtol=1e-12)
    assert explained_variance(targets, np.full_like(targets, 0.1), mask) == 0
    assert explained_variance(targets, targets, np.zeros_like(mask)) == 0


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_explained_variance_never_reads_what_is_masked(garbage):
    values, targets, mask = streams()
    spoilt = [np.where(mask, x, garbage) for x in (values, targets)]
    np.testing.assert_array_equal(explained_variance(*spoilt, mask), explained_variance(values, targets, mask))
    slopes = jax.grad(explained_variance, (0, 1))(*map(jnp.asarray, spoilt), mask)
    assert np.all(np.isfinite(slopes))
    assert not np.any(np.asarray(slopes)[:, ~mask])


def test_symlog_and_its_inverse():
    x = np.array([-80.0, -1.5, -1e-9, 0.0, 1e-9, 0.3, 80.0, 1e6])
    expected = [np.sign(v) * np.log1p(abs(v)) for v in x]
    np.testing.assert_allclose(symlog(x), expected, rtol=1e-14)
    np.testing.assert_allclose(symexp(symlog(x)), x, rtol=1e-12)
    slopes = jax.vmap(jax.grad(symlog))(x)
    np.testing.assert_allclose(slopes, 1 / (1 + np.abs(x)), rtol=1e-14)
    np.testing.assert_allclose(jax.vmap(jax.grad(symexp))(x[:-1]), np.exp(np.abs(x[:-1])), rtol=1e-14)


BINS = np.array([-5.0, -1.0, -0.5, 0.0, 2.0, 7.0])
spread = jax.jit(lambda x: two_hot(x, BINS))


def literal_two_hot(x: float) -> np.ndarray:
    code = np.zeros(len(BINS))
    x = min(max(x, BINS[0]), BINS[-1])
    for k in range(len(BINS) - 1):
        if BINS[k] <= x <= BINS[k + 1]:
            part = (x - BINS[k]) / (BINS[k + 1] - BINS[k])
            code[k], code[k + 1] = 1 - part, part
            return code
    raise AssertionError


@few
@given(x=numbers)
def test_two_hot_equals_the_formula(x):
    code = np.asarray(spread(x))
    np.testing.assert_allclose(code, literal_two_hot(x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(code.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(code @ BINS, np.clip(x, -5, 7), rtol=1e-9, atol=1e-9)


def test_two_hot_of_the_bins_and_of_far_numbers():
    np.testing.assert_array_equal(spread(BINS), np.eye(6))
    np.testing.assert_array_equal(spread(np.array([-80.0, 80.0, -np.inf, np.inf])), np.eye(6)[[0, 5, 0, 5]])


def test_two_hot_loss_equals_the_formula_with_its_gradient():
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=(4, 6)), 20 * random.normal(size=4)
    expected, slopes = np.zeros(4), np.zeros((4, 6))
    for i in range(4):
        probabilities = np.exp(logits[i]) / np.exp(logits[i]).sum()
        code = literal_two_hot(np.sign(targets[i]) * np.log1p(abs(targets[i])))
        expected[i] = -sum(code[k] * np.log(probabilities[k]) for k in range(6))
        slopes[i] = probabilities - code
    loss = two_hot_value_loss(BINS)
    np.testing.assert_allclose(loss(logits, targets), expected, rtol=1e-12)
    gradient = jax.grad(lambda x: loss(x, targets).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, slopes, rtol=1e-10, atol=1e-12)


def test_the_value_of_a_two_hot_head_is_its_target():
    targets = np.array([-30.0, 0.0, 0.7, 100.0])
    logits = jnp.log(jnp.maximum(two_hot(symlog(targets), BINS), 1e-300))
    np.testing.assert_allclose(two_hot_value(BINS)(logits), targets, rtol=1e-9, atol=1e-9)
    plain = two_hot_value(BINS, lambda x: x)(jnp.log(jnp.maximum(two_hot(np.array([1.2]), BINS), 1e-300)))
    np.testing.assert_allclose(plain, [1.2], rtol=1e-9)


def test_two_hot_loss_of_extreme_logits_and_targets():
    logits = jnp.array([[80.0, -80.0, 0.0, 80.0, -80.0, 80.0]] * 2)
    gradient = jax.grad(lambda x: two_hot_value_loss(BINS)(x, jnp.array([1e30, -1e30])).sum())(logits)
    assert np.all(np.isfinite(gradient))
    assert two_hot_value_loss(BINS)(logits.astype(jnp.bfloat16), jnp.ones(2, jnp.bfloat16)).dtype == "float64"


SHORT, LONG = jnp.zeros((2, 3)), jnp.zeros((2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squared_value_loss(SHORT, LONG), "squared_value_loss: targets has shape (2, 4), values has (2, 3)"),
        (
            lambda: clipped(SHORT, LONG, SHORT),
            "clipped_value_loss: old_values has shape (2, 4), values has (2, 3)",
        ),
        (lambda: huber(SHORT, LONG), "huber_value_loss: targets has shape (2, 4), values has (2, 3)"),
        (
            lambda: explained_variance(SHORT, SHORT, LONG > 0),
            "explained_variance: mask has shape (2, 4), values has (2, 3)",
        ),
        (lambda: clipped_value_loss(0.0), "clipped_value_loss: eps is 0.0, wanted a number greater than 0."),
        (lambda: huber_value_loss(-1), "huber_value_loss: delta is -1, wanted a number greater than 0."),
        (
            lambda: two_hot_value_loss(jnp.array([0.0, 0.0])),
            "two_hot_value_loss: bins are [0.0, 0.0], wanted at least two numbers that increase.",
        ),
        (lambda: two_hot_value(jnp.array([1.0])), "two_hot_value: bins are [1.0], wanted at least two numbers"),
        (lambda: two_hot_value(jnp.array(1.0)), "two_hot_value: bins are 1.0, wanted at least two numbers"),
        (
            lambda: two_hot_value_loss(BINS)(SHORT, jnp.zeros(2)),
            "two_hot_value_loss: logits has shape (2, 3), wanted (2, 6); give one logit a bin on the last axis.",
        ),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
