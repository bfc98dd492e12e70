from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlax_llm.policy.ratios import sequence_ratio, sequence_token_ratio, summed_ratio, summed_token_ratio, token_ratio

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
ROWS, COLUMNS = 3, 5
masks = arrays(bool, (ROWS, COLUMNS))
SEQUENCE = {f.__name__: f for f in (sequence_ratio, summed_ratio, sequence_token_ratio, summed_token_ratio)}
each = pytest.mark.parametrize("name", SEQUENCE)


def value_and_gradient(ratio):
    """Ratios, and the gradient of their sum weighted by given cotangents."""

    def weighted(log_probs, old_log_probs, mask, cotangents):
        value = ratio(log_probs, old_log_probs, mask)
        return jnp.where(mask, cotangents * value, 0.0).sum(), value

    return jax.jit(jax.grad(weighted, has_aux=True))


JITTED = {name: value_and_gradient(ratio) for name, ratio in SEQUENCE.items()}


def literal(name: str, current, old, mask, cotangents) -> tuple[np.ndarray, np.ndarray]:
    """Row by row: what each paper writes, with the derivative by hand."""
    value, gradient = np.zeros(mask.shape), np.zeros(mask.shape)
    for b in range(mask.shape[0]):
        chosen = [t for t in range(mask.shape[1]) if mask[b, t]]
        total = sum(current[b, t] - old[b, t] for t in chosen)
        scale = 1 / len(chosen) if chosen and name.startswith("sequence") else 1.0
        for t in chosen:
            value[b, t] = total * scale
            own = cotangents[b, t]
            gradient[b, t] = own if "token" in name else scale * sum(cotangents[b, u] for u in chosen)
    return value, gradient


@each
@few
@given(mask=masks, seed=st.integers(0, 99), garbage=st.sampled_from([0.0, np.nan, np.inf, -np.inf, 80.0]))
def test_equals_the_formula_with_its_gradient_whatever_was_not_chosen(name, mask, seed, garbage):
    current, old, cotangents = np.random.default_rng(seed).normal(size=(3, ROWS, COLUMNS))
    expected, expected_gradient = literal(name, current, old, mask, cotangents)
    gradient, value = JITTED[name](np.where(mask, current, garbage), np.where(mask, old, garbage), mask, cotangents)
    np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0)


@each
@few
@given(seed=st.integers(0, 99), column=st.integers(0, COLUMNS - 1))
def test_of_one_token_is_the_token_ratio(name, seed, column):
    current, old, cotangents = np.random.default_rng(seed).normal(size=(3, ROWS, COLUMNS))
    mask = np.broadcast_to(np.arange(COLUMNS) == column, (ROWS, COLUMNS))
    gradient, value = JITTED[name](current, old, mask, cotangents)
    np.testing.assert_allclose(value, np.where(mask, token_ratio(current, old, mask), 0), rtol=1e-12)
    np.testing.assert_array_equal(gradient, np.where(mask, cotangents, 0))


@each
def test_a_row_alone_is_a_row_of_the_batch(name):
    current, old = np.random.default_rng(0).normal(size=(2, ROWS, COLUMNS))
    mask = np.random.default_rng(1).random((ROWS, COLUMNS)) < 0.6
    whole = SEQUENCE[name](current, old, mask)
    np.testing.assert_allclose(jax.vmap(SEQUENCE[name])(current, old, mask), whole, rtol=1e-14)
    np.testing.assert_allclose(SEQUENCE[name](current[1], old[1], mask[1]), whole[1], rtol=1e-14)


@each
def test_sums_of_sixteen_bit_numbers_are_taken_in_float32(name):
    ones = jnp.ones((1, 600), jnp.bfloat16)
    value = SEQUENCE[name](0 * ones, -ones, ones > 0)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, 600.0 if name.startswith("summed") else 1.0)
    gradient = jax.grad(lambda x: SEQUENCE[name](x, -ones, ones > 0).sum())(0 * ones)
    assert gradient.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_of_one_advantage_the_token_form_has_the_gradient_of_the_sequence():
    current, old, cotangents = np.random.default_rng(2).normal(size=(3, ROWS, COLUMNS))
    mask, cotangents = np.ones((ROWS, COLUMNS), bool), np.broadcast_to(cotangents[:, :1], (ROWS, COLUMNS))
    for form, scale in (("sequence", 1.0), ("summed", COLUMNS)):
        sequence = JITTED[f"{form}_ratio"](current, old, mask, cotangents)[0]
        np.testing.assert_allclose(sequence, scale * JITTED[f"{form}_token_ratio"](current, old, mask, cotangents)[0])


def test_token_ratio_is_a_difference_and_zero_on_the_first_update():
    current, old = -np.random.default_rng(0).exponential(size=(2, 3, 4))
    mask = np.ones((3, 4), bool)
    np.testing.assert_allclose(token_ratio(current, old, mask), current - old, rtol=1e-14)
    np.testing.assert_array_equal(token_ratio(old, old, mask), np.zeros((3, 4)))
    gradient = jax.grad(lambda x: token_ratio(x, jnp.asarray(old), mask).sum())(jnp.asarray(current))
    np.testing.assert_array_equal(gradient, np.ones((3, 4)))


@each
def test_bad_input_is_named(name):
    short, long = jnp.zeros((2, 3)), jnp.zeros((2, 4))
    with pytest.raises(
        ValueError, match=rf"{name}: mask has shape \(2, 4\), log_probs has \(2, 3\); give arrays of one"
    ):
        SEQUENCE[name](short, short, long > 0)
