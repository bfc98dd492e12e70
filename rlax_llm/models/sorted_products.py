"""Products of tokens that are sorted by expert with their experts' matrices, as often differentiable as one likes.

Accelerators multiply them with ``jax.lax.ragged_dot``, a CPU by blocks of tokens. Experts of a base in blocks of codes
are multiplied by blocks of tokens everywhere: only the one that a block is sent to is widened.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.platform import platform
from rlax_llm.models.blocks import Blocks
from rlax_llm.models.narrow import Matrix, Narrow
from rlax_llm.models.row_blocks import Block, added_at, over_blocks, taken_at

SMALLEST, LARGEST = 8, 64  # tokens of a block of one product


def sorted_product(x: jax.Array, weights: Matrix | Blocks, sizes: jax.Array) -> jax.Array:
    """``x[n] · weights[e(n)]`` of rows that are sorted by expert; zeros for rows beyond the last expert's.

    Limiting case: one expert is a matrix product.

    Args:
        x: ``[R, D]``, the first ``sizes[0]`` rows of expert 0, then those of expert 1, and so on.
        weights: ``[E, D, F]``; a wider one is rounded to x's dtype here. A ``Narrow`` one, with a scale for each
            output of an expert, has no derivative: it is a sampler's. One in ``Blocks`` has none of its own, and x has:
            an expert is widened where a block of its rows is multiplied, on the way forth and again on the way back.
        sizes: ``[E]`` int32.

    Returns:
        ``[R, F]`` in x's dtype.

    >>> weights = jnp.arange(2.0)[:, None, None] + jnp.ones((2, 1, 1))
    >>> sorted_product(jnp.ones((4, 1)), weights, jnp.array([1, 2])).tolist()
    [[1.0], [2.0], [2.0], [0.0]]
    """
    rows = block_of(x.shape[0], weights.shape[0])
    if isinstance(weights, Blocks):
        return _blocks_product(rows, x, weights, sizes)
    block = rows if platform() == "cpu" else None
    if isinstance(weights, Narrow):
        found = _rows_times(block, x, weights.values, sizes, False)
        return (found * weights.scales[_experts_of(x.shape[0], sizes), 0]).astype(x.dtype)
    return _product(block, x, weights.astype(x.dtype), sizes)


def _experts_of(rows: int, sizes: jax.Array) -> jax.Array:
    """``[R]``, of each row; the last one's beyond it."""
    found = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows), side="right")
    return jnp.minimum(found, sizes.shape[0] - 1)


def block_of(rows: int, experts: int) -> int:
    """Rows of a block: about half of what an expert has, so that little is padding.

    >>> block_of(8_192, 64), block_of(64, 64)
    (64, 8)
    """
    share = max(rows // (2 * experts), 1)
    return int(np.clip(1 << (share.bit_length() - 1), SMALLEST, LARGEST))


def _padded(x: jax.Array, block: int) -> jax.Array:
    """With rows behind the last, so that no block ends the array."""
    return jnp.pad(x, ((0, block), (0, 0)))


def _ragged(x: jax.Array, other: jax.Array, sizes: jax.Array, contracted: tuple[int, int]) -> jax.Array:
    """An accelerator's product of rows that are sorted by expert, with a factor of each expert or with other rows.

    The rows of a factor are contracted, or its columns; where both are rows, those of each expert among themselves.
    """
    groups = [] if contracted[0] == 0 else [0]
    axes = (((contracted[0],), (contracted[1],)), ((), ()))
    numbers = jax.lax.RaggedDotDimensionNumbers(axes, [0], groups)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    @jax.custom_batching.sequential_vmap  # JAX maps no such product whose factors are not all mapped over
    def product(x: jax.Array, other: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot_general(x, other, sizes, numbers, preferred_element_type=wide)

    return product(x, other, sizes).astype(x.dtype)


def _own(x: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows that are of an expert, zeros behind: what ``ragged_dot`` says of those, or adds, is not promised."""
    return jnp.where((jnp.arange(x.shape[0]) < sizes.sum())[:, None], x, 0)


# Three products that are the slopes of one another, so that each may be differentiated again, as Fisher products do:
# ragged_dot's own second derivative is not there. A block of None is an accelerator's way.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(block: int | None, x: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows ``[R, D]`` times their expert's matrix, ``[R, F]``."""
    return _rows_times(block, x, weights, sizes, False)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product_back(block: int | None, slopes: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Rows ``[R, F]`` times the transpose of their expert's matrix, ``[R, D]``."""
    return _rows_times(block, slopes, weights, sizes, True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outer(block: int | None, x: jax.Array, slopes: jax.Array, sizes: jax.Array) -> jax.Array:
    """``Σ_n x[n]ᵀ · slopes[n]`` over the rows of each expert, ``[E, D, F]``."""
    if block is None:
        return _ragged(_own(x, sizes), _own(slopes, sizes), sizes, (0, 0))
    given, slopes = _padded(x, block), _padded(slopes, block)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(total: jax.Array, own: Block) -> jax.Array:
        read = jnp.where(own.there[:, None], jax.lax.dynamic_slice_in_dim(given, own.start, block), 0)
        slope = jax.lax.dynamic_slice_in_dim(slopes, own.start, block)
        return added_at(own.expert, total, jnp.matmul(read.T, slope, preferred_element_type=wide))

    zeros = jnp.zeros((sizes.shape[0], x.shape[1], slopes.shape[1]), wide)
    return over_blocks((block,), x.shape[0], sizes, step, zeros).astype(x.dtype)


def _rows_times(
    block: int | None, x: jax.Array, weights: jax.Array | Blocks, sizes: jax.Array, back: bool
) -> jax.Array:
    if block is None:
        assert not isinstance(weights, Blocks)
        return _own(_ragged(_own(x, sizes), weights.astype(x.dtype), sizes, (1, 2 if back else 1)), sizes)
    given = _padded(x, block)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def step(total: jax.Array, own: Block) -> jax.Array:
        read, weight = _expert_at(jax.lax.dynamic_slice_in_dim(given, own.start, block), weights, own.expert)
        found = jnp.matmul(read, weight.T if back else weight, preferred_element_type=wide)
        # Rows of the next expert are written again by its own block.
        return jax.lax.dynamic_update_slice_in_dim(total, jnp.where(own.there[:, None], found, 0), own.start, 0)

    zeros = jnp.zeros((given.shape[0], weights.shape[-2 if back else -1]), wide)
    return over_blocks((block,), x.shape[0], sizes, step, zeros)[: x.shape[0]].astype(x.dtype)


def _expert_at(read: jax.Array, weights: jax.Array | Blocks, expert: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Some rows, and the matrix of their expert in their dtype."""
    own = taken_at(weights, expert)
    if not isinstance(own, Blocks):
        return read, own.astype(read.dtype)
    # Tied to the rows: a compiler would widen all experts at once, before the loop.
    read, own = jax.lax.optimization_barrier((read, own))
    return read, own.wide().astype(read.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks_product(block: int, x: jax.Array, weights: Blocks, sizes: jax.Array) -> jax.Array:
    """``_product`` with experts that are only read."""
    return _rows_times(block, x, weights, sizes, False)


def _blocks_forth(block: int, x: jax.Array, weights: Blocks, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return _blocks_product(block, x, weights, sizes), (weights, sizes)


def _blocks_back(block: int, kept: tuple[Blocks, jax.Array], slopes: jax.Array) -> tuple:
    weights, sizes = kept
    return _rows_times(block, slopes, weights, sizes, True), None, None


_blocks_product.defvjp(_blocks_forth, _blocks_back)


def _kept(product: Any) -> Callable[..., Any]:
    """The forward pass of a product, which keeps its factors."""

    def forward(block: int | None, left: jax.Array, right: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
        return product(block, left, right, sizes), (left, right, sizes)

    return forward


def _slopes_of_product(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    x, weights, sizes = kept
    return _product_back(block, slopes, weights, sizes), _outer(block, x, slopes, sizes), None


def _slopes_of_product_back(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    given, weights, sizes = kept
    return _product(block, slopes, weights, sizes), _outer(block, slopes, given, sizes), None


def _slopes_of_outer(block: int | None, kept: tuple, slopes: jax.Array) -> tuple:
    x, given, sizes = kept
    return _product_back(block, given, slopes, sizes), _product(block, x, slopes, sizes), None


_product.defvjp(_kept(_product), _slopes_of_product)
_product_back.defvjp(_kept(_product_back), _slopes_of_product_back)
_outer.defvjp(_kept(_outer), _slopes_of_outer)
