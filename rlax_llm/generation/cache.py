"""Keys and values that a generation keeps, in the number format that its config asks for.

A key or value of int8 has a scale of its own, so that it is written once and for all. What a query reads of it is
what it attends to: the log-probabilities that are captured are those of the distribution that is drawn from.

A layer with a window keeps a ring: no more columns than one token reads, which are used again from the first on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, TENSOR, spread
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.narrow import Matrix, narrowed

Cache = tuple[tuple[Matrix, Matrix], ...]  # keys and values of each layer

Columns = Callable[[DecoderConfig, int], tuple[int, ...]]
"""``(config, columns) → columns that each layer keeps``, of so many that hold a token of a row each."""

BLOCK = 8  # columns; those of a window are a multiple

KEYS = (-2, -1)  # of keys the axis of a vector's numbers and that of time
VALUES = (-1, -2)


def windowed(config: DecoderConfig, columns: int) -> tuple[int, ...]:
    """All columns of a layer that reads all; of one with a window those of its last tokens, as many as it reads.

    Limiting case: ``whole`` where no layer has a window, or none has a smaller one.

    Args:
        config: shapes, with the window of each layer.
        columns: that hold a token of a row each.

    >>> config = DecoderConfig(5, 4, 8, 3, 2, 1, 2, window=10, sliding=(True, True, False))
    >>> windowed(config, 40), windowed(config, 12)
    ((16, 16, 40), (12, 12, 12))
    """
    if config.window is None:
        return whole(config, columns)
    ring = min(-(-config.window // BLOCK) * BLOCK, columns)
    return tuple(ring if config.slides(layer) else columns for layer in range(config.num_layers))


def whole(config: DecoderConfig, columns: int) -> tuple[int, ...]:
    """All columns of every layer, whatever it reads: where columns are numbers of tokens, or keys outlive their rows.

    >>> whole(DecoderConfig(5, 4, 8, 2, 2, 1, 2, window=3), 40)
    (40, 40)
    """
    return (columns,) * config.num_layers


def kept(config: DecoderConfig, x: jax.Array, vector: int) -> Matrix:
    """Keys or values as the cache keeps them.

    Limiting case: without ``config.cache_dtype`` as they are.

    Args:
        config: shapes, and the cache's number format.
        x: keys ``[…, head_dim, T]`` or values ``[…, T, head_dim]``.
        vector: the axis of head_dim.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, cache_dtype="int8")
    >>> kept(config, jnp.array([[1.0, 3.0], [127.0, -381.0]]), -2).scales.tolist()
    [[1.0, 3.0]]
    """
    if config.cache_dtype is None:
        return x
    return narrowed(x, "int8", vector) if config.cache_dtype == "int8" else x.astype(config.cache_dtype)


def empty_cache(config: DecoderConfig, shape: tuple[int, int, int], columns: tuple[int, ...], dtype: Any) -> Cache:
    """Keys and values of no token, for ``(prompts, group_size, key heads)``, in so many columns of each layer."""

    def empty(size: tuple[int, int], axes: tuple[int, int]) -> Matrix:
        found = kept(config, jnp.zeros((*shape, *size), dtype), axes[0])
        return jax.tree.map(lambda x: spread(x, ROWS, None, TENSOR), found)

    pairs = {
        room: (empty((config.head_dim, room), KEYS), empty((room, config.head_dim), VALUES))
        for room in dict.fromkeys(columns)
    }
    return tuple(pairs[room] for room in columns)


def written(config: DecoderConfig, cache: Matrix, new: jax.Array, at: jax.Array, axes: tuple[int, int]) -> Matrix:
    """The cache with the keys, or values, of one token in column ``at``.

    Args:
        config: shapes, and the cache's number format.
        cache: keys or values of a layer.
        new: of one token.
        at: scalar int32.
        axes: ``KEYS`` or ``VALUES``.
    """
    vector, time = axes
    narrow = kept(config, new, vector)
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, at, time), cache, narrow)


def over_columns(function: Callable[[jax.Array, int], jax.Array], cache: Cache) -> Cache:
    """``function(array, its axis of columns)`` of all keys and values, their scales too.

    >>> cache = empty_cache(DecoderConfig(5, 4, 8, 1, 2, 1, 2), (1, 1, 1), (3,), jnp.float32)
    >>> over_columns(lambda x, time: jnp.take(x, jnp.array([0]), time), cache)[0][1].shape
    (1, 1, 1, 1, 2)
    """

    def of(x: Matrix, time: int) -> Matrix:
        return jax.tree.map(lambda x: function(x, time), x)

    return tuple((of(keys, KEYS[1]), of(values, VALUES[1])) for keys, values in cache)


def columns_of(cache: Cache) -> tuple[int, ...]:
    """Columns of each layer.

    >>> columns_of(empty_cache(DecoderConfig(5, 4, 8, 2, 2, 1, 2), (1, 1, 1), (3, 5), jnp.float32))
    (3, 5)
    """
    return tuple(keys.shape[KEYS[1]] for keys, _ in cache)


def by_layer(function: Callable[[int, jax.Array, int], jax.Array], cache: Cache, columns: tuple[int, ...]) -> Cache:
    """``over_columns`` with a number of each layer, as the columns that it is to have.

    Args:
        function: ``(number, array, its axis of columns) → array``.
        cache: keys and values.
        columns: a number for each layer.
    """
    numbered = zip(columns, cache, strict=True)
    return tuple(over_columns(partial(function, number), (layer,))[0] for number, layer in numbered)


def last_columns(cache: Cache, columns: tuple[int, ...]) -> Cache:
    """The last so many columns of each layer.

    >>> cache = empty_cache(DecoderConfig(5, 4, 8, 2, 2, 1, 2), (1, 1, 1), (3, 3), jnp.float32)
    >>> columns_of(last_columns(cache, (2, 3)))
    (2, 3)
    """

    def last(count: int, x: jax.Array, time: int) -> jax.Array:
        size = x.shape[time]
        return x if size == count else jax.lax.slice_in_dim(x, size - count, None, axis=time)

    return by_layer(last, cache, columns)


_WITH_GROUPS = 5  # axes of keys and values


def without_groups(cache: Any) -> Any:
    """Keys and values ``[B, K, …]`` of rows by themselves, whose groups are of one: ``[B, 1, K, …]``. Others stay.

    A compiler takes such an axis away before each product, and copies the whole cache for it, at every token.

    Args:
        cache: any tree of such arrays.

    >>> [without_groups(jnp.ones(shape)).shape for shape in ((3, 1, 2, 4, 5), (3, 2, 2, 4, 5))]
    [(3, 2, 4, 5), (3, 2, 2, 4, 5)]
    """
    return jax.tree.map(lambda x: jnp.squeeze(x, 1) if x.shape[1] == 1 else x, cache)


def with_groups(cache: Any) -> Any:
    """``without_groups`` undone.

    >>> [with_groups(jnp.ones(shape)).shape for shape in ((3, 2, 4, 5), (3, 2, 2, 4, 5))]
    [(3, 1, 2, 4, 5), (3, 2, 2, 4, 5)]
    """
    return jax.tree.map(lambda x: x if x.ndim == _WITH_GROUPS else jnp.expand_dims(x, 1), cache)


def vacant_cache(cache: Cache, rows: int, columns: tuple[int, ...]) -> Cache:
    """A cache of so many rows by themselves and of so many columns of each layer, in which nothing is."""

    def empty(room: int, x: jax.Array, time: int) -> jax.Array:
        shape = [rows, 1, *x.shape[2:]]
        shape[time] = room
        return jnp.zeros(shape, x.dtype)

    return by_layer(empty, cache, columns)
