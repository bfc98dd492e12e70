"""Numbers kept in fewer bits beside the scales that undo it, for a sampler: weights, and keys and values.

A sampler reads every weight at every token, and every key of its row: half or a quarter of the bytes is what it can
save. The learner keeps its own numbers, so its ratio to such a sampler is not 1, and a correction makes up for it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mapping import CACHE
from rlax_llm.core.mesh import AXES, devices_along
from rlax_llm.core.platform import platform
from rlax_llm.models.config import TARGETS, DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.token_rows import with_rows

LEVELS = 127  # int8 on both sides of 0
SMALL = 2**16  # numbers of a matrix that is not worth a loop
TABLES = ("embed", "head")
EXPERTS = ("expert_gate", "expert_up", "expert_down")


class Narrow(NamedTuple):
    """``values · scales``, which is never formed where it is large.

    Attributes:
        values: int8, or bfloat16 with scales of 1.
        scales: of 1 along the axis that shares one, else as ``values``; in the dtype of the numbers that these are of.
    """

    values: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the numbers."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """Their axes."""
        return self.values.ndim

    @property
    def dtype(self) -> jnp.dtype:
        """That of the numbers that these are of."""
        return self.scales.dtype


Matrix = jax.Array | Narrow


def narrowed(x: jax.Array, dtype: str, axis: int) -> Narrow:
    """Symmetric quantization with one scale along ``axis``: ``s = max|x| / 127``, ``values = round(x / s)`` in int8.

    The error is at most half a scale. Limiting cases: bfloat16 is rounding, with scales of 1; zeros have a scale of 1.

    Args:
        x: any array of floats.
        dtype: ``"int8"`` or ``"bfloat16"``.
        axis: that shares a scale; for a weight that of its inputs, so that each output channel has its own.

    >>> narrowed(jnp.array([[1.0, -0.5], [-127.0, 254.0]]), "int8", 0).values.tolist()
    [[1, 0], [-127, 127]]
    """
    if dtype != "int8":
        shape = jax.eval_shape(lambda x: x.max(axis, keepdims=True), x).shape
        return Narrow(x.astype(dtype), jnp.ones(shape, x.dtype))
    largest = jnp.abs(x).max(axis, keepdims=True)
    scales = jnp.where(largest == 0, 1, largest / LEVELS).astype(x.dtype)
    return Narrow(jnp.clip(jnp.round(x / scales), -LEVELS, LEVELS).astype(jnp.int8), scales)


def widened(x: Matrix) -> jax.Array:
    """The numbers themselves.

    >>> widened(narrowed(jnp.array([1.0, -127.0]), "int8", 0)).tolist()
    [1.0, -127.0]
    """
    return x.values.astype(x.dtype) * x.scales if isinstance(x, Narrow) else x


def rows_of(table: Matrix, rows: jax.Array) -> jax.Array:
    """Some rows of a table.

    >>> rows_of(narrowed(jnp.array([[1.0, 127.0], [2.0, 254.0]]), "int8", 1), jnp.array([1])).tolist()
    [[2.0, 254.0]]
    """
    return widened(jax.tree.map(lambda x: x[rows], table))


def product(x: jax.Array, weight: Narrow) -> jax.Array:
    """``x · (values · scales)`` as ``(x · values) · scales`` or ``(x · scales) · values``, with float32 sums.

    Limiting case: that of the numbers themselves, but for the order of the sums.

    Args:
        x: ``[…, N, in]``; the product is in its dtype.
        weight: ``[…, in, out]``, with a scale for each output or for each input.

    Returns:
        ``[…, N, out]`` in float32.

    >>> product(jnp.ones((1, 2)), narrowed(jnp.array([[1.0, 127.0], [2.0, 254.0]]), "int8", 1)).tolist()
    [[3.0, 381.0]]
    """
    values, scales = weight
    if scales.shape[-1] == 1 and values.shape[-1] != 1:
        return _multiplied((x * scales.swapaxes(-1, -2)).astype(x.dtype), values)
    return _multiplied(x, values) * scales


def table_product(x: jax.Array, table: Narrow) -> jax.Array:
    """``x · tableᵀ`` with a scale for each row of the table.

    Args:
        x: ``[…, D]``.
        table: ``[V, D]``.

    Returns:
        ``[…, V]`` in float32.

    >>> table_product(jnp.ones((1, 2)), narrowed(jnp.array([[1.0, 127.0], [2.0, 254.0]]), "int8", 1)).tolist()
    [[128.0, 256.0]]
    """
    values, scales = table
    flat = x.reshape(-1, x.shape[-1])

    def times(part: jax.Array) -> jax.Array:
        over_last = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(part.astype(x.dtype), flat, over_last, preferred_element_type=jnp.float32)

    def block(index: jax.Array) -> jax.Array:
        return times(jax.lax.dynamic_slice_in_dim(values, index * size, size))

    size, count = _blocks(values, 0)
    if count == 1:
        found = times(values)
    else:
        whole = jax.lax.map(block, jnp.arange(count)).reshape(-1, flat.shape[0])
        found = jnp.concatenate([whole, times(values[size * count :])]) if values.shape[0] % count else whole
    return (found * scales).T.reshape(*x.shape[:-1], -1)


def _multiplied(x: jax.Array, values: jax.Array) -> jax.Array:
    """``x · values`` in x's dtype, with float32 sums."""

    wide = jnp.promote_types(x.dtype, jnp.float32)

    def times(x: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.matmul(x, values.astype(x.dtype), preferred_element_type=wide)

    def part(start: jax.Array | int, size: int) -> jax.Array:
        read = jax.lax.dynamic_slice_in_dim(x, start, size, -1)
        return times(read, jax.lax.dynamic_slice_in_dim(values, start, size, -2))

    size, count = _blocks(values, -2)
    if count == 1:
        return times(x, values)
    rest = values.shape[-2] - size * count
    begun = part(size * count, rest) if rest else jnp.zeros((*x.shape[:-1], values.shape[-1]), wide)
    return jax.lax.fori_loop(0, count, lambda index, so_far: so_far + part(index * size, size), begun)


def _blocks(values: jax.Array, axis: int) -> tuple[int, int]:
    """Rows of a block and the number of whole blocks that are widened one after the other.

    A CPU's compiler would widen all matrices first, and read what it wrote from memory; in a loop a block stays in
    the cache. Others widen on their way into the product.
    """
    length = values.shape[axis]
    if platform() != "cpu" or devices_along(*AXES) > 1 or values.ndim != 2 or values.size < SMALL:
        return length, 1
    count = max(2, -(-values.size // CACHE))
    return length // count, count


def narrow_matrices(config: DecoderConfig, params: Params) -> Params:
    """The matrices as a sampler reads them at every token: in ``config.sampler_dtype``, or as is computed in.

    As is computed in, the numbers that come out are the same: what is rounded here would be rounded at each use. Norms
    and biases keep their dtype, and so do adapters and routers; trained rows are put into their tables. Limiting cases:
    without either dtype nothing changes, and what is narrow or in blocks stays as it is.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``, and ``config.adapter_shapes`` where there is an adapter.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, compute_dtype="bfloat16")
    >>> found = narrow_matrices(config, {"embed": jnp.ones((5, 4)), "layers": {}, "norm": jnp.ones(4)})
    >>> found["embed"].dtype.name, found["norm"].dtype.name
    ('bfloat16', 'float32')
    """
    params = with_rows(config, params)
    if config.compute_dtype is None and config.sampler_dtype is None:
        return params

    def chosen(name: str, leaf: Matrix) -> Matrix:
        # A matrix in parts, narrow or in blocks, is as small as it should be.
        if isinstance(leaf, Narrow) or not jax.tree_util.all_leaves([leaf]):
            return leaf
        if name not in (*TABLES, *TARGETS, *EXPERTS):
            return leaf
        if config.sampler_dtype is None:
            return leaf.astype(config.compute_dtype)
        return narrowed(leaf, config.sampler_dtype, -1 if name in TABLES else -2)

    layers = {name: chosen(name, leaf) for name, leaf in params["layers"].items()}
    return {name: chosen(name, leaf) for name, leaf in params.items() if name != "layers"} | {"layers": layers}
