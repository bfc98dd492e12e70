"""The one recurrence of every return: ``y[t] = x[t] + a[t] · y[t+1]``, from the end of a stream to its start."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from rlax_llm.core import checks


@jax.custom_jvp
def cut_product(factors: jax.Array, values: jax.Array) -> jax.Array:
    """``factors · values`` where 0 · x is 0 for every x: a factor of 0 cuts off what stands after it.

    Limiting case: the plain product wherever it is a number, with the plain product's derivatives there.

    Args:
        factors: any shape.
        values: a shape that broadcasts against it.

    Returns:
        The broadcast shape.

    >>> cut_product(jnp.array([0.0, 0.5, 0.0]), jnp.array([jnp.nan, 4.0, jnp.inf])).tolist()
    [0.0, 2.0, 0.0]
    """
    return jnp.where(factors == 0, 0, factors * values)


@cut_product.defjvp
def _cut_product_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """A rule of its own, because that of ``where`` would multiply by the NaN, or drop the slope at a factor of 0."""
    factors, values = primals
    finite = jnp.where((factors == 0) & ~jnp.isfinite(values), 0, values)
    return cut_product(factors, values), finite * tangents[0] + cut_product(factors, tangents[1])


def reverse_affine_scan(
    offsets: jax.Array,
    factors: jax.Array | float | tuple[jax.Array | float, ...],
    last: jax.Array | float = 0.0,
) -> jax.Array:
    """Solve ``y[t] = x[t] + a[t] · y[t+1]`` with ``y[T] = last``, from T − 1 down to 0.

    Limiting cases: ``a = 0`` gives ``x``; ``a = 1`` the sums of ``x`` from each step to the end; ``x = 0`` and factors
    of 0 and 1 carry a value backwards. A factor of exactly 0 is a cut: nothing after it is read, NaN included.

    Args:
        offsets: x, ``[T, ...]``, time on axis 0.
        factors: a, the same shape, or a scalar for every step; or a tuple of such, whose product is a.
        last: the y after the end, ``[...]`` or a scalar.

    Returns:
        y, ``[T, ...]``, in float32 or wider (integers and bfloat16 are summed in float32).

    Raises:
        ValueError: at trace time, for offsets without a time axis, and for shapes that do not fit.

    >>> reverse_affine_scan(jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 0.0, 0.5]), 8.0).tolist()
    [2.0, 2.0, 7.0]
    """
    parts = factors if isinstance(factors, tuple) else (factors,)
    _check(offsets, parts, last)
    dtype = jnp.promote_types(jnp.result_type(offsets, *parts, last), jnp.float32)
    x = jnp.asarray(offsets, dtype)
    arrays = [jnp.asarray(part, dtype) for part in parts if jnp.ndim(part)]
    product = functools.reduce(cut_product, arrays) if arrays else jnp.ones_like(x)
    # Scalars are multiplied within the step: another array of products would cost as much as the scan.
    constants = [jnp.asarray(part, dtype) for part in parts if not jnp.ndim(part)]

    def step(y: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = now[0] + cut_product(functools.reduce(cut_product, constants, now[1]), y)
        return y, y

    end = jnp.broadcast_to(jnp.asarray(last, dtype), x.shape[1:])
    return jax.lax.scan(step, end, (x, product), reverse=True)[1]


def _check(offsets: jax.Array, parts: tuple[jax.Array | float, ...], last: jax.Array | float) -> None:
    if jnp.ndim(offsets) == 0:
        raise ValueError("reverse_affine_scan: offsets is a scalar, wanted [T, ...]; give one number per step.")
    for part in parts:
        if jnp.ndim(part):
            checks.same_shape("reverse_affine_scan", offsets=offsets, factors=part)
    step_shape = jnp.shape(offsets)[1:]
    if jnp.shape(last) not in ((), step_shape):
        raise ValueError(
            f"reverse_affine_scan: last has shape {jnp.shape(last)}, one step of offsets has {step_shape}; "
            "give a scalar or one step."
        )
