"""Conjugate gradients against a direct solution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from rlax_llm.natural.fisher import (
    conjugate_gradient,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=20, deadline=None)


def spd(seed: int, size: int, condition: float = 30.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(random.normal(size=(size, size)))
    return vectors @ np.diag(np.geomspace(1, condition, size)) @ vectors.T


SIZE = 6
solve = jax.jit(lambda matrix, b: conjugate_gradient(lambda x: matrix @ x, b, 30, 1e-12))


@few
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-20, 1.0, 1e20]))
def test_conjugate_gradient_solves(seed, scale):
    matrix, b = spd(seed, SIZE), scale * np.random.default_rng(seed + 1).normal(size=SIZE)
    found = solve(matrix, b)
    expected = jnp.linalg.solve(matrix, b)
    np.testing.assert_allclose(found.x, expected, rtol=1e-9, atol=1e-10 * np.abs(expected).max())
    assert found.residual <= 1e-12
    assert SIZE <= found.iterations <= 2 * SIZE


def test_conjugate_gradient_on_a_tree_equals_the_flat_vector():
    random = np.random.default_rng(2)
    b = {"w": jnp.asarray(random.normal(size=(3, 4))), "b": (jnp.asarray(random.normal(size=4)), jnp.ones((4, 3)))}
    flat, unravel = ravel_pytree(b)
    matrix = spd(0, flat.size)
    found = conjugate_gradient(lambda x: unravel(matrix @ ravel_pytree(x)[0]), b, 60, 1e-11)
    np.testing.assert_allclose(ravel_pytree(found.x)[0], np.linalg.solve(matrix, flat), rtol=1e-8, atol=1e-10)
    assert jax.tree.structure(found.x) == jax.tree.structure(b)


def test_each_iteration_is_the_textbooks():
    matrix, b = spd(3, SIZE), np.random.default_rng(4).normal(size=SIZE)
    x, residual, direction = np.zeros(SIZE), b.copy(), b.copy()
    for count in range(1, 5):
        size = residual @ residual / (direction @ matrix @ direction)
        x = x + size * direction
        after = residual - size * matrix @ direction
        direction = after + (after @ after) / (residual @ residual) * direction
        residual = after
        found = conjugate_gradient(lambda v: matrix @ v, jnp.asarray(b), count, 0.0)
        np.testing.assert_allclose(found.x, x, rtol=1e-10)
        np.testing.assert_allclose(found.residual, np.linalg.norm(b - matrix @ x) / np.linalg.norm(b), rtol=1e-8)
        assert found.iterations == count


def test_it_stops_at_the_tolerance_and_at_the_solution():
    matrix, b = jnp.asarray(spd(5, SIZE)), jnp.asarray(np.random.default_rng(6).normal(size=SIZE))
    found = conjugate_gradient(lambda v: matrix @ v, b, 30, 0.1)
    assert found.residual <= 0.1
    assert conjugate_gradient(lambda v: matrix @ v, b, int(found.iterations) - 1, 0.1).residual > 0.1
    for factor in (1.0, 4.0):
        identity = conjugate_gradient(lambda v, factor=factor: factor * v, jnp.ones(4), 10, 0.0)
        np.testing.assert_array_equal(identity.x, np.full(4, 1 / factor))
        assert (identity.iterations, identity.residual) == (1, 0)
    nothing = conjugate_gradient(lambda v: matrix @ v, jnp.zeros(SIZE))
    np.testing.assert_array_equal(nothing.x, np.zeros(SIZE))
    assert (nothing.iterations, nothing.residual) == (0, 0)


def test_singular_and_broken_matrices_give_no_nan():
    b = jnp.array([1.0, 2.0, 0.0])
    singular = conjugate_gradient(lambda v: v * jnp.array([1.0, 4.0, 0.0]), b, 20, 1e-12)
    np.testing.assert_allclose(singular.x, [1.0, 0.5, 0.0], rtol=1e-12)
    outside = conjugate_gradient(lambda v: v * jnp.array([1.0, 4.0, 0.0]), b + jnp.array([0, 0, 1.0]), 20, 1e-12)
    assert np.all(np.isfinite(outside.x))
    for factor in (0.0, -1.0, np.nan):
        broken = conjugate_gradient(lambda v, factor=factor: factor * v, b)
        np.testing.assert_array_equal(broken.x, np.zeros(3))
        assert (broken.iterations, broken.residual) == (1, 1)
    for value in (np.nan, np.inf):
        lost = conjugate_gradient(lambda v: v, b.at[0].set(value))
        assert np.isnan(lost.residual)


def test_vmap_with_lanes_that_end_at_different_times():
    matrices = np.stack([np.eye(SIZE), spd(7, SIZE), spd(8, SIZE), np.zeros((SIZE, SIZE))])
    b = np.random.default_rng(9).normal(size=(4, SIZE))
    b[2] = 0
    many = jax.vmap(solve)(matrices, b)
    assert np.all(np.isfinite(many.x))
    for lane in range(4):
        alone = solve(matrices[lane], b[lane])
        np.testing.assert_allclose(many.x[lane], alone.x, rtol=1e-9, atol=1e-12)
        assert many.iterations[lane] == alone.iterations
