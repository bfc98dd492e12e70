from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.loops.scaling import Moments, merge_moments, no_scaling, standardization, unit_return

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
COUNT = 12
numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
samples = st.lists(st.tuples(numbers, numbers), min_size=COUNT, max_size=COUNT).map(np.array)
NONE = Moments(jnp.zeros(()), jnp.zeros(2), jnp.ones(2))


@given(samples=samples, cuts=st.lists(st.integers(1, COUNT - 1), unique=True).map(sorted))
@few
def test_the_moments_of_any_cut_are_those_of_all(samples, cuts):
    moments = NONE
    for part in np.split(samples, cuts):
        moments = merge_moments(moments, jnp.asarray(part))
    assert moments.samples == COUNT
    np.testing.assert_allclose(moments.mean, samples.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.variance, samples.var(0), rtol=1e-9, atol=1e-8)


@given(samples=samples)
@few
def test_the_order_of_the_samples_does_not_matter(samples):
    one, other = (
        merge_moments(merge_moments(NONE, x[:5]), x[5:]) for x in (jnp.asarray(samples), jnp.asarray(samples[::-1]))
    )
    for found, wanted in zip(one, other):
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-8)


def test_a_large_offset_costs_no_digits_in_float32():
    x = np.random.default_rng(0).normal(size=(40, 500)).astype(np.float32) + 4096
    moments = Moments(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32))
    moments = jax.jit(lambda x: jax.lax.scan(lambda m, part: (merge_moments(m, part), None), moments, x)[0])(
        jnp.asarray(x)
    )
    assert moments.mean.dtype == jnp.float32
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, x.astype(np.float64).var(), rtol=5e-3)


@given(samples=samples)
@few
def test_standardized_samples_have_mean_0_and_variance_1(samples):
    scaling = standardization(limit=1e6, eps=1e-12)
    # Against the spread of each column: a variance that rounding alone makes has no meaning.
    samples = samples + np.arange(COUNT)[:, None]
    scaled = scaling.apply(scaling.update(scaling.init((2,)), jnp.asarray(samples)), jnp.asarray(samples))
    expected = (samples - samples.mean(0)) / np.sqrt(samples.var(0) + 1e-12)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-6)


def test_before_any_sample_nothing_changes():
    x = jnp.array([[0.5, -2.0]])
    for scaling in (standardization(), unit_return()):
        np.testing.assert_allclose(scaling.apply(scaling.init((2,)), x), x, rtol=1e-7)
    np.testing.assert_array_equal(no_scaling.apply(no_scaling.init((2,)), x), x)
    assert jax.tree.leaves(no_scaling.update(no_scaling.init((2,)), x)) == []


def test_the_literal_definitions_and_their_limits():
    moments = Moments(jnp.array(9.0), jnp.array([1.0, 100.0]), jnp.array([4.0, 0.25]))
    x = np.array([[2.0, 100.0], [-30.0, 107.0]])
    deviation = np.sqrt(np.array([4.0, 0.25]) + 0.5)
    found = standardization(limit=8.0, eps=0.5).apply(moments, jnp.asarray(x))
    np.testing.assert_allclose(found, np.clip((x - [1.0, 100.0]) / deviation, -8, 8), rtol=1e-12)
    np.testing.assert_allclose(np.abs(found).max(), 8.0)
    found = unit_return(limit=8.0, eps=0.5).apply(moments, jnp.asarray(x))
    np.testing.assert_allclose(found, np.clip(x / deviation, -8, 8), rtol=1e-12)


@given(x=numbers)
@few
def test_a_rewards_sign_is_kept_and_a_zero_stays_zero(x):
    moments = Moments(jnp.array(9.0), jnp.array(50.0), jnp.array(4.0))
    assert np.sign(unit_return().apply(moments, jnp.array(x))) == np.sign(x)


def test_samples_of_any_shape():
    x = np.random.default_rng(0).normal(size=(7, 3, 4))
    for scaling in (standardization(), unit_return()):
        moments = scaling.update(scaling.init((3, 4)), jnp.asarray(x))
        np.testing.assert_allclose(moments.variance, x.var(0), rtol=1e-9)
        assert scaling.apply(moments, jnp.asarray(x[:, None])).shape == (7, 1, 3, 4)


@pytest.mark.parametrize("make", [standardization, unit_return])
@pytest.mark.parametrize("argument", ["limit", "eps"])
@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_errors_say_what_got_wanted(make, argument, wrong):
    with pytest.raises(ValueError, match=rf"^{make.__name__}: {argument} is {wrong}, wanted"):
        make(**{argument: wrong})
