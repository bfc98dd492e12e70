from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.core.masked import (
    at_least_float32,
    divide_by_std,
    masked_deviation,
    masked_mean,
    masked_variance,
    unit_variance,
    whiten,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
SHAPE = (2, 3)
numbers = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=6, max_size=6)
arrays = numbers.map(lambda x: np.round(np.reshape(x, SHAPE), 3))
masks = st.lists(st.booleans(), min_size=6, max_size=6).map(lambda x: np.reshape(x, SHAPE))
X = np.array([[1.0, -2.0, 4.0], [0.5, 3.0, 7.0]])
MASK = np.array([[True, False, True], [True, True, False]])


def z_score(x, mask):
    return divide_by_std(masked_deviation(x, mask), x, mask, 1, 1e-4)


def heavy_deviation(x, mask):
    return masked_deviation(x, mask, jnp.array([[1.0, 2.0, 3.0], [0.0, 5.0, 6.0]]))


def literal(name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each formula over a list of the masked entries, with Python's own loops."""
    at = [i for i in np.ndindex(*x.shape) if mask[i]]
    weights = dict.fromkeys(at, 1.0)
    if name == "heavy_deviation":
        weights = {i: [[1.0, 2.0, 3.0], [0.0, 5.0, 6.0]][i[0]][i[1]] for i in at}
    total = sum(weights.values())
    mean = sum(weights[i] * x[i] for i in at) / total if total else 0.0
    squares = sum((x[i] - mean) ** 2 for i in at)
    unbiased = squares / (len(at) - 1) if len(at) > 1 else 0.0
    if name == "masked_mean":
        return np.array(mean)
    if name == "masked_variance":
        return np.array(unbiased)
    values = {
        "masked_deviation": lambda i: x[i] - mean,
        "heavy_deviation": lambda i: x[i] - mean if total else 0.0,
        "whiten": lambda i: (x[i] - mean) / (unbiased + 1e-8) ** 0.5,
        "whiten_biased": lambda i: (x[i] - mean) / (squares / len(at) + 1e-3) ** 0.5,
        "unit_variance": lambda i: (x[i] - mean) / (unbiased + 1e-8) ** 0.5 + mean,
        "z_score": lambda i: (x[i] - mean) / (unbiased**0.5 + 1e-4),
    }[name]
    result = np.zeros(x.shape)
    for i in at:
        result[i] = values(i)
    return result


FUNCTIONS = {
    "masked_mean": masked_mean,
    "masked_deviation": masked_deviation,
    "heavy_deviation": heavy_deviation,
    "masked_variance": masked_variance,
    "whiten": whiten,
    "whiten_biased": lambda x, mask: whiten(x, mask, 0, 1e-3),
    "unit_variance": unit_variance,
    "z_score": z_score,
}
COMPILED = {name: jax.jit(function) for name, function in FUNCTIONS.items()}
SLOPES = {name: jax.jit(jax.jacrev(function)) for name, function in FUNCTIONS.items()}
each = pytest.mark.parametrize("name", FUNCTIONS)


@each
@few
@given(x=arrays, mask=masks)
def test_equals_the_formula(name, x, mask):
    np.testing.assert_allclose(COMPILED[name](x, mask), literal(name, x, mask), rtol=1e-9, atol=1e-9)


@each
def test_gradient_is_the_finite_difference(name):
    check_grads(lambda x: FUNCTIONS[name](x, MASK), (jnp.asarray(X),), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


@each
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 80.0, -80.0])
@pytest.mark.parametrize("mask", [MASK, np.zeros(SHAPE, bool)], ids=["some", "none"])
def test_what_is_masked_is_never_read_and_has_no_gradient(name, garbage, mask):
    spoilt = np.where(mask, X, garbage)
    np.testing.assert_array_equal(COMPILED[name](spoilt, mask), COMPILED[name](X, mask))
    slopes = np.asarray(SLOPES[name](spoilt, mask))
    np.testing.assert_array_equal(slopes, SLOPES[name](X, mask))
    assert np.all(np.isfinite(slopes))
    assert not np.any(slopes[..., ~mask])


@each
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6 + 0.1, 1e30])
def test_equal_entries_have_no_spread_and_a_finite_slope(name, value):
    x = np.full(SHAPE, value)
    result = np.asarray(COMPILED[name](x, MASK))
    mean_kept = {"masked_mean": value, "unit_variance": np.where(MASK, value, 0.0)}.get(name, 0.0)
    np.testing.assert_allclose(result, np.broadcast_to(mean_kept, result.shape), rtol=1e-15, atol=0)
    assert np.all(np.isfinite(SLOPES[name](x, MASK)))


def test_whiten_without_an_epsilon_has_variance_one_and_mean_zero():
    white = whiten(jnp.asarray(X), MASK, eps=0.0)
    np.testing.assert_allclose(masked_variance(white, MASK), 1, rtol=1e-12)
    np.testing.assert_allclose(masked_mean(white, MASK), 0, atol=1e-14)
    kept = unit_variance(jnp.asarray(X), MASK, eps=0.0)
    np.testing.assert_allclose(masked_variance(kept, MASK), 1, rtol=1e-12)
    np.testing.assert_allclose(masked_mean(kept, MASK), X[MASK].mean(), rtol=1e-12)
    assert not np.any(whiten(jnp.full(SHAPE, 3.0), MASK, eps=0.0))


@pytest.mark.parametrize("ddof", [0, 1])
def test_both_epsilons_agree_where_they_are_zero(ddof):
    beside = divide_by_std(masked_deviation(X, MASK), X, MASK, ddof, 0.0)
    np.testing.assert_allclose(whiten(X, MASK, ddof, 0.0), beside, rtol=1e-12)


def test_no_more_entries_than_degrees_of_freedom_give_variance_zero():
    one = np.array([[False, True, False], [False, False, False]])
    assert masked_variance(X, one) == 0
    assert masked_variance(X, ~one & ~one.T.any(), 9) == 0
    np.testing.assert_array_equal(whiten(X, one), np.zeros(SHAPE))


def test_weights_of_the_mean():
    mask = np.ones(SHAPE, bool)
    weights = np.zeros(SHAPE)
    np.testing.assert_array_equal(masked_deviation(X, mask, weights), np.zeros(SHAPE))
    weights[1, 1] = 2.0
    np.testing.assert_allclose(masked_deviation(X, mask, weights), X - X[1, 1], rtol=1e-15)
    np.testing.assert_allclose(masked_deviation(X, mask, np.full(SHAPE, 3)), X - X.mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(jnp.bfloat16, "float32"), (jnp.float16, "float32"), (jnp.float32, "float32"), (np.float64, "float64")],
)
def test_sums_are_taken_in_at_least_float32(dtype, wide):
    assert at_least_float32(jnp.ones(2, dtype)).dtype == wide
    many = jnp.ones(5000, dtype)
    mean = masked_mean(many, many > 0)
    assert mean == 1
    assert mean.dtype == wide
    assert whiten(many, many > 0).dtype == wide


def test_integers_are_taken_as_numbers():
    np.testing.assert_array_equal(whiten(X.astype(int), MASK), whiten(np.trunc(X), MASK))
    with jax.enable_x64(False):
        assert at_least_float32(np.array([1, 2])).dtype == "float32"


def test_rows_are_whitened_by_vmap():
    rows = jax.vmap(whiten)(X, MASK)
    np.testing.assert_allclose(rows, [whiten(x, mask) for x, mask in zip(X, MASK, strict=True)], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: masked_mean(X, MASK[0]), "masked_mean: mask has shape (3,), x has (2, 3)"),
        (lambda: whiten(X, MASK[0]), "masked_deviation: mask has shape (3,), x has (2, 3)"),
        (lambda: masked_deviation(X, MASK, X[0]), "masked_deviation: weights has shape (3,), x has (2, 3)"),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
