"""Initial weights of the control networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

ITERATIONS = 40


def _polar_factors(gaussians: jax.Array) -> jax.Array:
    """Polar factors of tall matrices ``[N, rows, columns]``; rows and columns of zeros stay zero."""
    # A bound on the largest singular value, and every iteration takes the small ones up by half.
    start = gaussians / (jnp.linalg.norm(gaussians, axis=(1, 2), keepdims=True) + 1e-30)

    def iterate(_: int, x: jax.Array) -> jax.Array:
        return 1.5 * x - 0.5 * x @ (jnp.swapaxes(x, 1, 2) @ x)

    return jax.lax.fori_loop(0, ITERATIONS, iterate, start)


def orthogonal(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Semi-orthogonal matrices, uniform over all of them, times ``scale``: the polar factor of a Gaussian matrix.

    The factor comes from Newton-Schulz iterations ``X ← X (3I − XᵀX) / 2``: matrix products alone. A QR decomposition
    mapped over many seeds inside one program is slow, and was seen to hang on a CPU.

    Limiting case: for a square matrix ``XᵀX = scale² I``; else the shorter side's rows or columns are orthonormal.

    Args:
        scale: the singular values.

    Returns:
        An initializer ``(key, shape, dtype) → array`` for matrices.

    Raises:
        ValueError: for a shape that is not a matrix.

    >>> x = orthogonal(2.0)(jax.random.key(0), (8, 3))
    >>> bool(jnp.allclose(x.T @ x, 4 * jnp.eye(3), atol=1e-4))
    True
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        if len(shape) != 2:
            raise ValueError(f"orthogonal: shape is {tuple(shape)}, wanted a matrix (rows, columns).")
        return orthogonal_kernels(key, jnp.zeros(tuple(shape), dtype), lambda path: scale)

    return init


def orthogonal_kernels(key: jax.Array, params: Any, scale: Callable[[str], float]) -> Any:
    """``orthogonal`` for all matrices of a pytree at once, in one loop: a program of many layers compiles faster.

    Args:
        key: randomness.
        params: pytree of arrays; only matrices are replaced.
        scale: ``path → singular values``, such as ``"['actor']['head']['kernel']"``.

    Returns:
        A pytree like ``params``.

    >>> params = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
    >>> x = orthogonal_kernels(jax.random.key(0), params, lambda path: 1.0)
    >>> bool(jnp.allclose(x["kernel"] @ x["kernel"].T, jnp.eye(2), atol=1e-5)), x["bias"].tolist()
    (True, [0.0, 0.0, 0.0])
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    shapes = [leaf.shape for _, leaf in leaves if leaf.ndim == 2]
    if not shapes:
        return params
    factors = iter(_polar_factors(_gaussians(key, shapes)))

    def filled(path: Any, leaf: jax.Array) -> jax.Array:
        if leaf.ndim != 2:
            return leaf
        factor = next(factors)[: max(leaf.shape), : min(leaf.shape)]
        factor = factor if leaf.shape[0] >= leaf.shape[1] else factor.T
        return (scale(jax.tree_util.keystr(path)) * factor).astype(leaf.dtype)

    return jax.tree_util.tree_unflatten(structure, [filled(path, leaf) for path, leaf in leaves])


def _gaussians(key: jax.Array, shapes: Sequence[Sequence[int]]) -> jax.Array:
    """Gaussian matrices that are no wider than tall, in the corners of as many zero matrices of one shape."""
    tall = max(max(shape) for shape in shapes)
    wide = max(min(shape) for shape in shapes)
    drawn = jax.random.normal(key, (len(shapes), tall, wide))
    rows = jnp.array([max(shape) for shape in shapes])[:, None, None]
    columns = jnp.array([min(shape) for shape in shapes])[:, None, None]
    inside = (jnp.arange(tall)[:, None] < rows) & (jnp.arange(wide) < columns)
    return jnp.where(inside, drawn, 0.0)
