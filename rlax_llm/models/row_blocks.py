"""Rows that are sorted by expert, in blocks of one expert each: of which sizes, and one block after another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

EIGHTHS = (2, 4, 6, 7, 8, 9, 10, 12)  # of what an expert has on average
STEP, LARGEST = 8, 256
FEW = (1, 4)

Carry = TypeVar("Carry")


class Block(NamedTuple):
    """Some rows of one expert.

    Attributes:
        start: the first row.
        there: ``[B]``, which of the B rows from there on are the expert's.
        expert: its number.
    """

    start: jax.Array
    there: jax.Array
    expert: jax.Array


class _Table(NamedTuple):
    """All blocks of one size.

    Attributes:
        starts: ``[N]``, the first row.
        ends: ``[N]``, the one after the last row of its expert.
        experts: ``[N]``.
        used: how many of the N blocks there are.
    """

    starts: jax.Array
    ends: jax.Array
    experts: jax.Array
    used: jax.Array


def ladder_of(rows: int, experts: int) -> tuple[int, ...]:
    """Sizes of blocks around what an expert has on average, so that most experts are one block with little padding.

    What a block costs beside its rows is its expert, which is read, and laid out anew for a product; for a single row
    it is only read, and most experts of a sampler's few tokens have no more.

    >>> ladder_of(64, 64), ladder_of(1_024, 64), ladder_of(4_096, 64)
    ((1, 4, 8), (8, 16, 24), (16, 32, 48, 56, 64, 72, 80, 96))
    """
    share = min(-(-rows // experts), LARGEST)
    around = {-(-share * eighths // (8 * STEP)) * STEP for eighths in EIGHTHS}
    return tuple(sorted(around.union(FEW if share <= STEP else ())))


def over_blocks(
    ladder: tuple[int, ...], rows: int, sizes: jax.Array, step: Callable[[Carry, Block], Carry], carry: Carry
) -> Carry:
    """``step(carry, block)`` of one block after another, which hold each row of an expert once.

    An expert has as many blocks of the largest size as it fills, and one of the smallest size that holds what is left.
    Each size is a loop of its own: a choice within one loop would copy what it carries. Limiting case: of one size,
    blocks come in the order of their rows.

    Args:
        ladder: sizes of blocks, rising.
        rows: of all experts, at most.
        sizes: ``[E]`` int32, the rows of each expert, which lie one behind the other.
        step: of a block. Rows behind its expert's are no rows of its own.
        carry: what the first step is given.

    >>> def named(total, block):
    ...     there = jnp.arange(7) - block.start
    ...     own = (there >= 0) & (there < block.there.sum())
    ...     return jnp.where(own, 10 * block.there.size + block.expert, total)
    >>> over_blocks((1, 2), 6, jnp.array([3, 0, 2]), named, jnp.zeros(7, int)).tolist()
    [20, 20, 10, 22, 22, 0, 0]
    """
    for table, size in zip(_tables(ladder, rows, sizes), ladder, strict=True):
        carry = jax.lax.fori_loop(0, table.used, partial(_one, table, size, step), carry)
    return carry


def _one(table: _Table, size: int, step: Callable[[Carry, Block], Carry], index: jax.Array, carry: Carry) -> Carry:
    start = table.starts[index]
    there = start + jnp.arange(size) < table.ends[index]
    return step(carry, Block(start, there, table.experts[index]))


def _tables(ladder: tuple[int, ...], rows: int, sizes: jax.Array) -> list[_Table]:
    largest = ladder[-1]
    whole = sizes // largest
    left = sizes - whole * largest
    first = jnp.cumsum(sizes) - sizes
    fitting = jnp.searchsorted(jnp.array(ladder), left, method="compare_all")
    found = []
    for place, size in enumerate(ladder):
        each = ((left > 0) & (fitting == place)).astype(jnp.int32)
        begin = first + whole * largest
        most = sizes.shape[0]
        if size == largest:
            each, begin, most = each + whole, first, most + rows // largest
        found.append(_table(size, most, each, begin, first + sizes))
    return found


def _table(size: int, most: int, each: jax.Array, begin: jax.Array, end: jax.Array) -> _Table:
    """Of experts that have ``each`` blocks, one behind the other from a row on."""
    behind = jnp.cumsum(each)
    index = jnp.arange(most)
    expert = jnp.searchsorted(behind, index, side="right", method="compare_all")
    expert = jnp.minimum(expert, each.shape[0] - 1).astype(jnp.int32)
    start = begin[expert] + (index - (behind - each)[expert]) * size
    return _Table(start.astype(jnp.int32), end[expert].astype(jnp.int32), expert, behind[-1])


def taken_at(tree: Any, index: jax.Array) -> Any:
    """What one expert has of arrays ``[E, …]``."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


def added_at(index: jax.Array, total: jax.Array, added: jax.Array) -> jax.Array:
    """``total [E, …]`` with something added to what one expert has."""
    so_far = taken_at(total, index)
    return jax.lax.dynamic_update_index_in_dim(total, so_far + added, index, 0)
