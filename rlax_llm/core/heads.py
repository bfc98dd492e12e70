"""An output embedding as one table, or as a table some of whose rows stand apart; its logits and its slopes.

Rows that are trained over a frozen table are few. Put into it they would cost a copy of the table in every pass, and
the slope of all of it on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, TENSOR, place_along, sum_over


@partial(jax.tree_util.register_dataclass, data_fields=("table", "rows", "tokens"), meta_fields=())
@dataclass(frozen=True)
class Patched:
    """A head ``[V, D]`` with other rows in the place of some of a table's, which is never formed.

    Attributes:
        table: ``[V, D]``; under a mesh a device sees a part of the vocabulary.
        rows: ``[n, D]``.
        tokens: ``[n]`` int32, all different, whose rows they are; those from V on are not read.

    >>> Patched(jnp.ones((5, 2)), jnp.zeros((1, 2)), jnp.array([3])).shape
    (5, 2)
    """

    table: jax.Array
    rows: jax.Array
    tokens: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the table."""
        return self.table.shape


Head = jax.Array | Patched


def _places(head: Patched) -> jax.Array:
    """Where the rows stand in this part of the vocabulary; its size, which is nowhere, for those of another part."""
    size = head.table.shape[0]
    places = head.tokens - place_along(TENSOR) * size
    return jnp.where((places >= 0) & (places < size), places, size)


def first_tokens(head: Head, count: int) -> Head:
    """The head of the first so many tokens.

    Args:
        head: of the whole vocabulary.
        count: at most V.

    >>> first_tokens(jnp.ones((5, 2)), 3).shape
    (3, 2)
    """
    return Patched(head.table[:count], head.rows, head.tokens) if isinstance(head, Patched) else head[:count]


def head_logits(hidden: jax.Array, head: Head, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``hidden · headᵀ`` over this part of the vocabulary: the product in hidden's dtype.

    Limiting case: of a ``Patched`` that of its table with the rows in it.

    Args:
        hidden: ``[…, D]``.
        head: ``[V, D]``.
        dtype: of the sums and the result.

    >>> head_logits(jnp.ones((1, 2)), Patched(jnp.ones((3, 2)), jnp.zeros((1, 2)), jnp.array([1])), float).tolist()
    [[2.0, 0.0, 2.0]]
    """
    if isinstance(head, Patched):
        own = head_logits(hidden, head.rows, dtype)
        return head_logits(hidden, head.table, dtype).at[..., _places(head)].set(own, mode="drop")
    return jnp.matmul(hidden, head.astype(hidden.dtype).T, preferred_element_type=dtype)


def no_slopes(head: Head, dtype: jax.typing.DTypeLike) -> Any:
    """Zeros, to which ``head_slopes`` are added.

    Args:
        head: ``[V, D]``.
        dtype: of the sums.

    >>> no_slopes(jnp.ones((2, 1)), float).tolist()
    [[0.0], [0.0]]
    """
    if isinstance(head, Patched):
        return Patched(no_slopes(head.table, dtype), no_slopes(head.rows, dtype), cast(Any, None))
    return jnp.zeros(head.shape, dtype)


def head_slopes(slope: jax.Array, hidden: jax.Array, head: Head, so_far: Any) -> tuple[jax.Array, Any]:
    """The slopes of hidden states and of a head from those of their logits, the head's added to others.

    Args:
        slope: ``[N, V]`` of the logits, in the dtype of ``hidden``; of this part of the vocabulary.
        hidden: ``[N, D]``.
        head: ``[V, D]``.
        so_far: of ``no_slopes``, or of other rows.

    Returns:
        ``[N, D]``, of this part of the vocabulary, and what ``so_far`` is.

    >>> jax.tree.map(jnp.shape, head_slopes(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.zeros((3, 2))))
    ((4, 2), (3, 2))
    """
    if isinstance(head, Patched):
        places = _places(head)
        own = slope.at[:, places].get(mode="fill", fill_value=0)
        rest = slope.at[:, places].set(0, mode="drop")
        hidden_of_table, table = head_slopes(rest, hidden, head.table, so_far.table)
        hidden_of_rows, rows = head_slopes(own, hidden, head.rows, so_far.rows)
        return hidden_of_table + hidden_of_rows, Patched(table, rows, so_far.tokens)
    added = jnp.matmul(slope.T, hidden, preferred_element_type=so_far.dtype)
    return slope @ head.astype(hidden.dtype), so_far + added


def slopes_of_all(head: Head, own: Any) -> Any:
    """A head's slopes in its own dtype, from those that each device has found of its rows and its part.

    Args:
        head: ``[V, D]``.
        own: of ``head_slopes``.

    >>> slopes_of_all(jnp.ones(1, jnp.bfloat16), jnp.ones(1)).dtype.name
    'bfloat16'
    """
    if isinstance(head, Patched):
        rows = sum_over(slopes_of_all(head.rows, own.rows), TENSOR)
        return Patched(slopes_of_all(head.table, own.table), rows, own.tokens)
    return sum_over(own, *ROWS).astype(head.dtype)


def parts_of(head: Head, vocabulary: Any, whole: Any) -> Any:
    """Where each part of a head lies.

    Args:
        head: ``[V, D]``.
        vocabulary: where a table does.
        whole: where what all devices have does.
    """
    return Patched(vocabulary, whole, whole) if isinstance(head, Patched) else vocabulary
