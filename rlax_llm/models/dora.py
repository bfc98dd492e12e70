"""DoRA (arXiv 2402.09353): an adapter that turns a matrix's columns, and a number for each that is its length."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.models.blocks import dequantized
from rlax_llm.models.narrow import widened


def lengths(weight: Any, update: tuple[jax.Array, jax.Array, float]) -> jax.Array:
    """``‖W + s·A·B‖`` over the inputs: the length of each column.

    Limiting case: of an update of 0 those of W.

    Args:
        weight: ``W […, in, out]``, in any of the forms that a product takes.
        update: ``A […, in, r]``, ``B […, r, out]`` and s.

    Returns:
        ``[…, out]``, in at least float32.

    >>> lengths(jnp.array([[3.0], [4.0]]), (jnp.ones((2, 1)), jnp.zeros((1, 1)), 2.0)).tolist()
    [5.0]
    """
    matrix, (a, b, scale) = widened(dequantized(weight)), update
    wide = jnp.promote_types(jnp.result_type(matrix, a, b), jnp.float32)
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.square(matrix.astype(wide) + scale * product).sum(-2))


def column_shares(magnitudes: jax.Array, weight: Any, update: tuple[jax.Array, jax.Array, float]) -> jax.Array:
    """``m / ‖W + s·A·B‖``, what ``x·(W + s·A·B)`` is multiplied by; a slope has the length constant (section 4.3).

    Limiting cases: 1 where m is the length; m for a column of zeros, which stays one.

    Args:
        magnitudes: m, ``[…, out]``.
        weight: as of ``lengths``.
        update: as of ``lengths``.

    >>> update = jnp.ones((2, 1)), jnp.zeros((1, 1)), 2.0
    >>> column_shares(jnp.array([10.0]), jnp.array([[3.0], [4.0]]), update).tolist()
    [2.0]
    """
    found = jax.lax.stop_gradient(lengths(weight, update))
    return magnitudes / jnp.where(found == 0, 1, found)


def turned(projected: jax.Array, read: jax.Array, update: jax.Array, shares: jax.Array) -> jax.Array:
    """``x·W + (g − 1) · x̃·W + g · s·x̃·A·B``: DoRA of inputs of which some are dropped, as PEFT has it.

    Limiting case: for x̃ = x it is ``g · (x·W + s·x·A·B)``.

    Args:
        projected: ``x·W``, ``[…, out]``.
        read: ``x̃·W`` of what is left of the inputs.
        update: ``s·x̃·A·B``.
        shares: g, ``[out]``.

    >>> turned(jnp.array([1.0]), jnp.array([4.0]), jnp.array([0.5]), jnp.array([2.0])).tolist()
    [6.0]
    """
    return (projected + (shares - 1) * read + shares * update).astype(projected.dtype)
