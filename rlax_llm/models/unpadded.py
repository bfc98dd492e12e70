"""Tokens of rows side by side without their padding: what is computed token by token is not computed of padding.

Cells of rows ``[B, S]`` that hold a token are taken, in their order, and put back where rows are read as rows: by
attention. On several devices each takes those of its own rows, a *lane*, so that no token moves to another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, devices_along
from rlax_llm.models.segments import NOWHERE


class Way(NamedTuple):
    """Where each of some places has its content from.

    Attributes:
        source: ``[lanes, N]`` int32, a number of what is moved there.
        filled: ``[lanes, N]`` bool; what is not is 0.
    """

    source: jax.Array
    filled: jax.Array


class Unpadded(NamedTuple):
    """Between the cells of rows and the tokens in them; each way undoes the other, and is its derivative.

    Attributes:
        tokens: the way to tokens, from cells.
        cells: the way to cells, from tokens.
        first: ``[lanes, B / lanes]`` int32, the number of each row's first token; of a row of none ``N``.
    """

    tokens: Way
    cells: Way
    first: jax.Array


def lanes_of(rows: int) -> int:
    """Devices that have rows of their own; 1 where they do not divide them.

    >>> lanes_of(8)
    1
    """
    devices = devices_along(*ROWS)
    return devices if rows % devices == 0 else 1


def most_in_a_lane(valid: jax.Array) -> jax.Array:
    """The room that all lanes need, ``[]``: the tokens of the fullest, times the lanes.

    Args:
        valid: ``[B, S]`` bool.

    >>> most_in_a_lane(jnp.array([[True, False], [True, True]])).item()
    3
    """
    lanes = lanes_of(valid.shape[0])
    return valid.reshape(lanes, -1).sum(1).max() * lanes


def unpadded(valid: jax.Array, room: int) -> Unpadded:
    """The ways of the cells that are valid.

    Args:
        valid: ``[B, S]`` bool.
        room: places for tokens, a multiple of the lanes and no fewer than ``most_in_a_lane``.

    >>> ways = unpadded(jnp.array([[True, False], [True, True]]), 4)
    >>> taken(jnp.array([[5, 0], [6, 7]]), ways).tolist(), ways.first.tolist()
    ([[5, 6, 7, 0]], [[0, 1]])
    """
    rows = valid.shape[0]
    lanes = lanes_of(rows)
    flat = valid.reshape(lanes, -1)
    places = room // lanes
    count = flat.sum(1, keepdims=True)
    number = jnp.where(flat, jnp.cumsum(flat, 1, dtype=jnp.int32) - 1, NOWHERE)
    source = jnp.argsort(~flat, axis=1, stable=True)[:, :places].astype(jnp.int32)
    by_row = jnp.where(valid, number.reshape(valid.shape), places).min(1)
    return Unpadded(
        Way(source, jnp.arange(places) < count), Way(jnp.maximum(number, 0), flat), by_row.reshape(lanes, -1)
    )


def taken(x: jax.Array, ways: Unpadded) -> jax.Array:
    """Tokens ``[lanes, N, …]`` of cells ``[B, S, …]``; zeros behind the last.

    Args:
        x: of cells.
        ways: of ``unpadded``.
    """
    lanes = ways.first.shape[0]
    return _moved(x.reshape(lanes, -1, *x.shape[2:]), ways.tokens, ways.cells)


def put(x: jax.Array, ways: Unpadded) -> jax.Array:
    """Cells ``[B, S, …]`` of tokens ``[lanes, N, …]``; zeros where none was.

    Args:
        x: of tokens.
        ways: of ``unpadded``.

    >>> ways = unpadded(jnp.array([[True, False], [True, True]]), 4)
    >>> put(jnp.array([[5, 6, 7, 9]]), ways).tolist()
    [[5, 0], [6, 7]]
    """
    cells = _moved(x, ways.cells, ways.tokens)
    return cells.reshape(ways.first.size, -1, *x.shape[2:])


def before(x: jax.Array, begins: jax.Array, ways: Unpadded) -> jax.Array:
    """Of each token what the one before it has, and of a row's first what the row begins with.

    Args:
        x: of tokens, ``[lanes, N, D]``.
        begins: ``[B, D]``.
        ways: of ``unpadded``.

    >>> ways = unpadded(jnp.array([[True, False], [True, True]]), 4)
    >>> before(jnp.array([[[5], [6], [7], [9]]]), jnp.array([[1], [2]]), ways)[0, :3, 0].tolist()
    [1, 2, 6]
    """
    earlier = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], 1)
    own = begins.reshape(*ways.first.shape, -1)
    return jax.vmap(lambda lane, at, first: lane.at[at].set(first, mode="drop"))(earlier, ways.first, own)


@jax.custom_vjp
def _moved(x: jax.Array, way: Way, back: Way) -> jax.Array:
    """``[lanes, N, …]`` from ``[lanes, M, …]``. Its slope is taken back, where JAX's own would be added up."""
    del back
    found = jax.vmap(lambda lane, source: lane[source])(x, way.source)
    filled = way.filled.reshape(*way.filled.shape, *(1,) * (x.ndim - 2))
    return jnp.where(filled, found, jnp.zeros((), x.dtype))


def _moving(x: jax.Array, way: Way, back: Way) -> tuple[jax.Array, tuple[Way, Way]]:
    return _moved(x, way, back), (way, back)


def _moved_back(ways: tuple[Way, Way], slope: jax.Array) -> tuple[jax.Array, Any, Any]:
    way, back = ways
    return _moved(slope, back, way), None, None


_moved.defvjp(_moving, _moved_back)
