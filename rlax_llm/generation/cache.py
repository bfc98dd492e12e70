"""Keys and values that a generation keeps, in the number format that its config asks for.

A key or value of int8 has a scale of its own, so that it is written once and for all. What a query reads of it is
what it attends to: the log-probabilities that are captured are those of the distribution that is drawn from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, TENSOR, spread
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.narrow import Matrix, narrowed

Cache = tuple[tuple[Matrix, Matrix], ...]  # keys and values of each layer

KEYS = (-2, -1)  # of keys the axis of a vector's numbers and that of time
VALUES = (-1, -2)


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


def empty_cache(config: DecoderConfig, shape: tuple[int, int, int], room: int, dtype: Any) -> Cache:
    """Keys and values of no token, for ``(prompts, group_size, key heads)``."""

    def empty(size: tuple[int, int], axes: tuple[int, int]) -> Matrix:
        found = kept(config, jnp.zeros((*shape, *size), dtype), axes[0])
        return jax.tree.map(lambda x: spread(x, ROWS, None, TENSOR), found)

    pair = (empty((config.head_dim, room), KEYS), empty((room, config.head_dim), VALUES))
    return (pair,) * config.num_layers


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

    >>> cache = empty_cache(DecoderConfig(5, 4, 8, 1, 2, 1, 2), (1, 1, 1), 3, jnp.float32)
    >>> over_columns(lambda x, time: jnp.take(x, jnp.array([0]), time), cache)[0][1].shape
    (1, 1, 1, 1, 2)
    """

    def of(x: Matrix, time: int) -> Matrix:
        return jax.tree.map(lambda x: function(x, time), x)

    return tuple((of(keys, KEYS[1]), of(values, VALUES[1])) for keys, values in cache)


def vacant_cache(cache: Cache, rows: int, room: int) -> Cache:
    """A cache of so many rows by themselves and of so many columns, in which nothing is."""

    def empty(x: jax.Array, time: int) -> jax.Array:
        shape = [rows, 1, *x.shape[2:]]
        shape[time] = room
        return jnp.zeros(shape, x.dtype)

    return over_columns(empty, cache)
