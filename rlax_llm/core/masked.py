"""Means and spreads over the True positions of a mask; what stands elsewhere, NaN and inf included, is never read.

Each function is over the whole of one array of any layout; ``vmap`` takes it over rows or groups. Sums are taken in at
least float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments


@check_arguments
def at_least_float32(x: jax.Array) -> jax.Array:
    """The array as floats that can be summed: integers and 16-bit floats become float32, wider ones stay.

    Args:
        x: any shape, any number type.

    Returns:
        Same shape.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype.name
    'float32'
    """
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x, float), jnp.float32))


@check_arguments
def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the masked entries, ``Σ m x / Σ m``; 0 where none is True.

    Args:
        x: any shape.
        mask: same shape, bool.

    Returns:
        Scalar, in the units of ``x``.

    Raises:
        ValueError: for shapes that differ.

    >>> float(masked_mean(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([True, False, True])))
    2.0
    """
    checks.same_shape("masked_mean", x=x, mask=mask)
    return jnp.where(mask, at_least_float32(x), 0.0).sum() / jnp.maximum(mask.sum(), 1)


@check_arguments
def masked_deviation(x: jax.Array, mask: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Difference from the weighted mean of the masked entries, ``x_i − Σ w x / Σ w``.

    Limiting cases: exactly 0 where all masked entries are equal, whatever their magnitude; without ``weights``
    ``x − masked_mean(x)``, which sums to 0.

    Args:
        x: any shape.
        mask: same shape, bool.
        weights: same shape, not negative; None weighs all alike.

    Returns:
        Same shape, in the units of ``x``; 0 where ``mask`` is False, or where all the weights are 0.

    Raises:
        ValueError: for shapes that differ.

    >>> masked_deviation(jnp.array([1.0, 3.0, jnp.inf]), jnp.array([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    checks.same_shape("masked_deviation", x=x, mask=mask, weights=weights)
    x = at_least_float32(x)
    # Differences from one entry are summed, not the entries: equal ones then give exactly 0, whatever their magnitude.
    # Which entry does not matter, so that no gradient goes through it.
    largest = jax.lax.stop_gradient(jnp.where(mask, x, -jnp.inf).max())
    shifted = jnp.where(mask, x - jnp.where(mask.any(), largest, 0.0), 0.0)
    if weights is None:
        return jnp.where(mask, shifted - shifted.sum() / jnp.maximum(mask.sum(), 1), 0.0)
    weights = jnp.where(mask, weights, 0.0).astype(x.dtype)
    total = weights.sum()
    mean = (weights * shifted).sum() / jnp.where(total > 0, total, 1.0)
    return jnp.where(mask & (total > 0), shifted - mean, 0.0)


@check_arguments
def masked_variance(x: jax.Array, mask: jax.Array, ddof: int = 1) -> jax.Array:
    """Variance of the masked entries, ``Σ m (x − mean)² / (Σ m − ddof)``; 0 where there are no more than ``ddof``.

    Args:
        x: any shape.
        mask: same shape, bool.
        ddof: delta degrees of freedom, 1 (unbiased, Bessel) or 0.

    Returns:
        Scalar, in the squared units of ``x``.

    >>> float(masked_variance(jnp.array([1.0, 3.0]), jnp.array([True, True])))
    2.0
    """
    count = mask.sum()
    variance = jnp.square(masked_deviation(x, mask)).sum() / jnp.maximum(count - ddof, 1)
    return jnp.where(count > ddof, variance, 0.0)


@check_arguments
def divide_by_std(numerator: jax.Array, x: jax.Array, mask: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """``numerator / (std(x) + eps)``, the standard deviation over the masked entries of ``x``.

    The epsilon of z-scores is added to the standard deviation; that of ``whiten`` stands under the root.
    Limiting case: 0 where ``x`` has no spread.

    Args:
        numerator: any shape.
        x: what the standard deviation is of, any shape.
        mask: the shape of ``x``, bool.
        ddof: delta degrees of freedom.
        eps: added to the standard deviation, in the units of ``x``.

    Returns:
        The numerator's shape.

    >>> pair = jnp.array([1.0, 5.0])
    >>> divide_by_std(pair, pair, pair > 0, ddof=0, eps=0.0).tolist()
    [0.5, 2.5]
    """
    variance = masked_variance(x, mask, ddof)
    # The root's slope at 0 is infinite, and inf · 0 would be NaN in the gradient.
    std = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    return jnp.where(variance > 0, numerator / (std + eps), 0.0)


@check_arguments
def whiten(x: jax.Array, mask: jax.Array, ddof: int = 1, eps: float = 1e-8) -> jax.Array:
    """Mean 0 and variance 1 over the masked entries, ``(x − mean) / √(var + eps)``.

    Limiting cases: equal entries give exactly 0; ``eps = 0`` is the z-score with ``eps = 0``. Peers differ in ``ddof``
    (1, or 0: OpenRLHF) and in where the epsilon stands (see ``divide_by_std``).

    Args:
        x: any shape: rewards, or advantages of a whole batch.
        mask: same shape, bool.
        ddof: delta degrees of freedom of the variance.
        eps: added to the variance, in the squared units of ``x``.

    Returns:
        Same shape, dimensionless; 0 where ``mask`` is False.

    Raises:
        ValueError: for shapes that differ.

    >>> whiten(jnp.array([1.0, 5.0, jnp.nan]), jnp.array([True, True, False]), ddof=0, eps=0.0).tolist()
    [-1.0, 1.0, 0.0]
    """
    denominator = masked_variance(x, mask, ddof) + eps
    return masked_deviation(x, mask) / jnp.sqrt(jnp.where(denominator > 0, denominator, 1.0))


@check_arguments
def unit_variance(x: jax.Array, mask: jax.Array, ddof: int = 1, eps: float = 1e-8) -> jax.Array:
    """Variance 1 with the mean kept, ``whiten(x) + mean(x)``: how RLHF-PPO whitens rewards.

    A reward's sign means something (stop, or go on), so its mean is not moved.

    Args:
        x: any shape.
        mask: same shape, bool.
        ddof: delta degrees of freedom of the variance.
        eps: added to the variance, in the squared units of ``x``.

    Returns:
        Same shape; 0 where ``mask`` is False.

    >>> unit_variance(jnp.array([1.0, 5.0]), jnp.array([True, True]), ddof=0, eps=0.0).tolist()
    [2.0, 4.0]
    """
    return jnp.where(mask, whiten(x, mask, ddof, eps) + masked_mean(x, mask), 0.0)
