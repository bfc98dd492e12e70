from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlax_llm.core.shuffling import permutation

DRAWS = 4000


@functools.cache
def draws(n: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return np.asarray(jax.jit(jax.vmap(lambda key: permutation(key, n)))(keys))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 500, 512, 1000])
def test_every_number_comes_once(n):
    found = draws(n)[:50]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(np.sort(found, -1), np.tile(np.arange(n), (50, 1)))


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_it_is_a_bijection_at_every_key(seed):
    assert sorted(shuffled_37(jax.random.key(seed)).tolist()) == list(range(37))


shuffled_37 = jax.jit(lambda key: permutation(key, 37))


@pytest.mark.parametrize("n", [2, 3, 7, 16, 64])
def test_every_position_is_equally_likely(n):
    found = draws(n)
    counts = np.stack([np.bincount(found[:, position], minlength=n) for position in range(n)])
    # Rows and columns of the table sum to the draws, so that (n − 1)² cells are free.
    statistic = (np.square(counts - DRAWS / n) / (DRAWS / n)).sum()
    assert 1e-4 < stats.chi2.sf(statistic, (n - 1) ** 2) < 1 - 1e-4


@pytest.mark.parametrize("n", [3, 4])
def test_of_a_few_numbers_every_order_is_nearly_equally_likely(n):
    orders = np.unique(draws(n), axis=0, return_counts=True)[1]
    assert len(orders) == np.prod(np.arange(1, n + 1))
    np.testing.assert_allclose(orders / DRAWS, 1 / len(orders), atol=4.5 * np.sqrt(1 / len(orders) / DRAWS))


@pytest.mark.parametrize(("n", "minibatches"), [(16, 4), (64, 4), (512, 4), (512, 32)])
def test_two_rows_share_a_minibatch_as_often_as_in_a_uniform_permutation(n, minibatches):
    places = np.argsort(draws(n), -1) // (n // minibatches)
    exact = (n // minibatches - 1) / (n - 1)
    deviation = np.sqrt(exact * (1 - exact) / DRAWS)
    for gap in (1, 2, 3, 8, n // 2, n - 1):
        # Neighbors in time, and the environments of one step.
        first = np.arange(0, n - gap, max(1, (n - gap) // 16))
        together = (places[:, first] == places[:, first + gap]).mean(0)
        assert np.abs(together - exact).max() < 4.5 * deviation
        all_pairs = (places[:, : n - gap] == places[:, gap:]).mean()
        assert abs(all_pairs - exact) < 0.02 * exact + 4.5 * deviation / np.sqrt(len(first))


def test_two_keys_give_independent_orders():
    found = draws(512)[:400]
    agreements = (found[::2] == found[1::2]).sum(-1)
    # Of two uniform permutations one number on average stands at one place, with variance 1.
    np.testing.assert_allclose(agreements.mean(), 1.0, atol=5 / np.sqrt(200))
    assert agreements.max() < 10


def test_successive_seeds_give_other_orders():
    keys = jnp.stack([jax.random.key(seed) for seed in range(50)])
    found = np.asarray(jax.vmap(shuffled_37)(keys))
    assert len(np.unique(found, axis=0)) == 50


def test_mapped_over_keys_it_is_what_it_is_alone():
    keys = jax.random.split(jax.random.key(3), 4)
    for key, found in zip(keys, jax.vmap(shuffled_37)(keys)):
        np.testing.assert_array_equal(found, shuffled_37(key))
    np.testing.assert_array_equal(permutation(key, 37), shuffled_37(key))


def test_nothing_is_sorted():
    assert "sort" not in str(jax.make_jaxpr(lambda key: permutation(key, 37))(jax.random.key(0)))


@pytest.mark.parametrize("n", [0, -3])
def test_errors_say_what_got_wanted(n):
    with pytest.raises(ValueError, match=rf"^permutation: n is {n}, wanted a whole number"):
        permutation(jax.random.key(0), n)
