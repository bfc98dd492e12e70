from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.trees import cast_like, dot, widen

pytestmark = pytest.mark.usefixtures("float64")


def tree(seed: int):
    random = np.random.default_rng(seed)
    return {"a": jnp.asarray(random.normal(size=(2, 3))), "b": (jnp.asarray(random.normal(size=4)), jnp.array(0.5))}


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_a_tree_is_its_vector():
    x, y = tree(0), tree(1)
    np.testing.assert_allclose(dot(x, y), flat(x) @ flat(y), rtol=1e-14)
    np.testing.assert_allclose(flat(optax.tree.add_scale(x, -0.3, y)), flat(x) - 0.3 * flat(y), rtol=1e-14)


def test_dtypes():
    mixed = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(widen(mixed))} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(widen(mixed | {"c": jnp.ones(1)}))} == {jnp.dtype(jnp.float64)}
    back = cast_like(widen(mixed), mixed)
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [jnp.bfloat16, jnp.float32]


def test_sums_of_bfloat16_are_taken_in_float32():
    ones = jnp.ones(1001, jnp.bfloat16)
    assert dot(ones, ones) == 1001
