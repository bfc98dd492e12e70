"""Arithmetic on pytrees of floats, as vectors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def widen(tree: Tree) -> Tree:
    """All leaves in one dtype, of at least float32.

    Args:
        tree: pytree of floats.

    >>> widen({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
    dtype('float32')
    """
    common = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    return jax.tree.map(lambda x: jnp.asarray(x, common), tree)


def cast_like(tree: Tree, model: Tree) -> Tree:
    """Each leaf in the dtype of its counterpart.

    Args:
        tree: pytree of arrays.
        model: pytree of the same structure.

    >>> cast_like(jnp.ones(2), jnp.ones(2, jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda x, old: jnp.asarray(x, jnp.result_type(old)), tree, model)


def dot(left: Tree, right: Tree) -> jax.Array:
    """``Σ_i x_i y_i`` over all leaves, in at least float32 and never by a matmul, which accelerators may round.

    Args:
        left: pytree of floats.
        right: like ``left``.

    Returns:
        A scalar.

    >>> float(dot({"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}, {"w": jnp.ones(2), "b": jnp.array(2.0)}))
    9.0
    """
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda x, y: jnp.sum(x * y), widen(left), widen(right)))
