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


def check_trainable(where: str, params: Tree) -> None:
    """Raise where a float that is to be trained is narrower than float32.

    A bfloat16 number has 8 bits: an optimizer's step of a thousandth of it, as most are, rounds away, and nothing shows
    it. Costs nothing in a compiled program.

    Args:
        where: the loop, for the error.
        params: what is trained, any pytree.

    Raises:
        ValueError: naming the first leaf and its dtype.

    >>> check_trainable("group_loop", {"w": jnp.ones(2, jnp.bfloat16)})
    Traceback (most recent call last):
    ValueError: group_loop: the parameter ['w'] is bfloat16, which rounds an optimizer's small steps away; wanted \
float32. Keep the parameters in float32 and compute in bfloat16 (DecoderConfig.compute_dtype), or pass them as frozen.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < jnp.finfo(jnp.float32).bits:
            raise ValueError(
                f"{where}: the parameter {jax.tree_util.keystr(path)} is {dtype}, which rounds an optimizer's small "
                f"steps away; wanted float32. Keep the parameters in float32 and compute in {dtype} "
                "(DecoderConfig.compute_dtype), or pass them as frozen."
            )


def cast_like(tree: Tree, model: Tree) -> Tree:
    """Each leaf in the dtype of its counterpart.

    Args:
        tree: pytree of arrays.
        model: pytree of the same structure.

    >>> cast_like(jnp.ones(2), jnp.ones(2, jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda x, old: jnp.asarray(x, jnp.result_type(old)), tree, model)


def all_finite(tree: Tree) -> jax.Array:
    """Whether every number of every leaf of floats is finite: a scalar bool, true of a tree without any.

    Args:
        tree: pytree of arrays.

    >>> bool(all_finite({"w": jnp.ones(2), "n": 3})), bool(all_finite([jnp.ones(2), jnp.array(jnp.inf)]))
    (True, False)
    """
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all() if floats else jnp.array(True)


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


def join_trees(left: Tree, right: Tree) -> Tree:
    """Recursive union of two nested dicts without a common leaf: what is trained and what is frozen, as one model.

    Limiting case: None on one side passes the other through, whatever it is.

    Args:
        left: nested dict, or None.
        right: nested dict, or None.

    Returns:
        A nested dict with the leaves of both.

    Raises:
        ValueError: naming a leaf that both have.

    >>> join_trees({"layers": {"q": 1}}, {"layers": {"k": 2}, "norm": 3})
    {'layers': {'q': 1, 'k': 2}, 'norm': 3}
    """
    if left is None or right is None:
        return right if left is None else left
    return _union(left, right, "")


def _union(left: Tree, right: Tree, path: str) -> Tree:
    if not (isinstance(left, dict) and isinstance(right, dict)):
        raise ValueError(f"joined: both trees have a leaf {path!r}; leave it out of one.")
    common = {name: _union(left[name], right[name], f"{path}/{name}".lstrip("/")) for name in left if name in right}
    return left | right | common
