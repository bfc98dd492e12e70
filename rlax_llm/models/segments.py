"""Segments of keys, what queries read of them, and the attention of whole segments at once with its slopes.

What a query reads is no mask but an interval, so that nothing here is quadratic in length before the scores
themselves: every key has a *place*, its count among its row's valid tokens, and a query reads the places up to its
own. Everything is written for one group of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.caps import soft_cap
from rlax_llm.models.narrow import Matrix, Narrow, product

NOWHERE = -1  # the place of what is no token
EVERYTHING = 2**30  # a window that no sequence is longer than
MASKED = -1e30  # finite, so that a query without any key gives numbers (which nobody reads) and not NaN


Window = int | jax.Array | None
"""Places that a query reads at most, its own included (arXiv 2004.05150); None is all."""


class Segment(NamedTuple):
    """Keys that rows attend to. ``N`` is 1 where all rows of the group share them, else the number of rows.

    Attributes:
        keys: ``[N, K, head_dim, T]``: time last, so that scores are plain matmuls; an array, or a ``Narrow`` of a
            sampler with a scale for each.
        values: ``[N, K, T, head_dim]``, likewise.
        places: ``[N or 1, T]`` int32, of each key among the valid tokens of its row; −1 for what is none.
    """

    keys: Any
    values: Any
    places: jax.Array


class Reach(NamedTuple):
    """What the queries of ``G`` rows read: the places from ``begins`` up to their own, both included.

    Attributes:
        places: ``[G or 1, S]`` int32, of each query among the valid tokens of its row; −1 reads nothing.
        begins: ``[G or 1, S]`` int32, the first place that it may read: 0, or where its packed sequence begins.
    """

    places: jax.Array
    begins: jax.Array


class Form(NamedTuple):
    """How scores are made and in which blocks; static.

    Attributes:
        window: places that a query reads at most, its own included (arXiv 2004.05150); None is all.
        soft_cap: scores s become ``cap · tanh(s / cap)`` (arXiv 2408.00118); None leaves them.
        packed: rows may hold several sequences, so that some queries begin behind place 0.
        query_block: queries of a row that are worked on together.
        key_block: keys that they are compared with together.
    """

    window: int | None = None
    soft_cap: float | None = None
    packed: bool = False
    query_block: int = 128
    key_block: int = 128


PLAIN = Form()


def segment(keys: jax.Array, values: jax.Array, places: jax.Array) -> Segment:
    """Segment from keys and values laid out as a block makes them, ``[N, T, K, head_dim]``.

    >>> segment(jnp.ones((1, 5, 2, 4)), jnp.ones((1, 5, 2, 4)), jnp.arange(5)[None]).keys.shape
    (1, 2, 4, 5)
    """
    return Segment(keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3), places)


def positions_of(valid: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """Position of each token among the valid ones of its row ``[B, T]``; 0 on padding before the first.

    With ``segments`` it counts from the beginning of the own segment.

    >>> positions_of(jnp.array([[False, True, True, False]])).tolist()
    [[0, 0, 1, 1]]
    >>> positions_of(jnp.ones((1, 4), bool), jnp.array([[1, 1, 1, 2]])).tolist()
    [[0, 1, 2, 0]]
    """
    counted = jnp.maximum(jnp.cumsum(valid, -1, dtype=jnp.int32) - 1, 0)
    if segments is None:
        return counted
    begins = jnp.diff(segments, axis=-1, prepend=segments[:, :1]) != 0
    return counted - jax.lax.cummax(jnp.where(begins, counted, 0), axis=1)


def places_of(valid: jax.Array) -> jax.Array:
    """Place of each token among the valid ones of its row ``[B, T]``; −1 for padding.

    >>> places_of(jnp.array([[False, True, True, False]])).tolist()
    [[-1, 0, 1, -1]]
    """
    return jnp.where(valid, positions_of(valid), NOWHERE)


def reach_of(places: jax.Array, positions: jax.Array | None = None) -> Reach:
    """Queries that read up to their place; with ``positions``, from where those are 0.

    >>> reach_of(jnp.array([[0, 1, 2]]), jnp.array([[0, 1, 0]])).begins.tolist()
    [[0, 0, 2]]
    """
    return Reach(places, jnp.zeros_like(places) if positions is None else jnp.maximum(places - positions, 0))


def within(reach: Reach, window: Window) -> Reach:
    """What is left of a reach in a window.

    >>> within(reach_of(jnp.array([[0, 1, 2]])), 2).begins.tolist()
    [[0, 0, 1]]
    """
    return reach if window is None else reach._replace(begins=lows(reach, window))


def shared(rows: int, part: Segment) -> bool:
    """Whether all rows of a group read the same keys."""
    return part.keys.shape[0] != rows


def fold(x: jax.Array, part: Segment) -> jax.Array:
    """``[G, K, R, S, …]`` to ``[N, K, ·, …]``: all queries that read the same keys in one matrix."""
    rows, heads, _, _, size = x.shape
    return x.swapaxes(0, 1).reshape(1, heads, -1, size) if shared(rows, part) else x.reshape(rows, heads, -1, size)


def unfold(x: jax.Array, part: Segment, shape: tuple[int, ...]) -> jax.Array:
    """``fold`` undone, for queries of a shape ``[G, K, R, S, …]``."""
    rows, heads, ratio, length = shape[:4]
    if shared(rows, part):
        return x.reshape(heads, rows, ratio, length, -1).swapaxes(0, 1)
    return x.reshape(rows, heads, ratio, length, -1)


def matmul(x: jax.Array, y: Matrix) -> jax.Array:
    """Product in the keys' dtype, summed and returned in at least float32."""
    if isinstance(y, Narrow):
        return product(x.astype(y.dtype), y)
    return jnp.matmul(x.astype(y.dtype), y, preferred_element_type=jnp.promote_types(y.dtype, jnp.float32))


def lows(reach: Reach, window: Window) -> jax.Array:
    """The first place that each query reads, at least 0."""
    return reach.begins if window is None else jnp.maximum(reach.begins, reach.places - (window - 1))


def reads_of(reach: Reach, part: Segment, window: int | None) -> jax.Array:
    """``[G or 1, S, T]`` bool: which keys each query reads."""
    keys = part.places[:, None]
    return (keys >= lows(reach, window)[..., None]) & (keys <= reach.places[..., None])


def scores_of(queries: jax.Array, reach: Reach, part: Segment, form: Form) -> tuple[jax.Array, jax.Array | None]:
    """Masked scores ``[N, K, ·, T]`` of scaled queries ``[G, K, R, S, head_dim]``, and the slope of their cap."""
    rows, _, ratio, length, _ = queries.shape
    scores = matmul(fold(queries, part), part.keys)
    slope = None
    if form.soft_cap is not None:
        scores, slope = soft_cap(scores, form.soft_cap)
    reads = reads_of(reach, part, form.window)
    count = rows if shared(rows, part) else part.keys.shape[0]
    reads = jnp.broadcast_to(reads[:, None], (count, ratio, length, reads.shape[-1]))
    return jnp.where(reads.reshape(part.keys.shape[0], 1, -1, reads.shape[-1]), scores, MASKED), slope


def split_heads(x: jax.Array, key_heads: int) -> jax.Array:
    """``[G, S, H, head_dim]`` to ``[G, K, R, S, head_dim]``, R query heads per key head."""
    rows, length, heads, dim = x.shape
    return x.reshape(rows, length, key_heads, heads // key_heads, dim).transpose(0, 2, 3, 1, 4)


def join_heads(x: jax.Array) -> jax.Array:
    """``[G, K, R, S, head_dim]`` to ``[G, S, H, head_dim]``."""
    rows, key_heads, ratio, length, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(rows, length, key_heads * ratio, dim)


def mix(grouped: jax.Array, reach: Reach, segments: Sequence[Segment], form: Form) -> tuple[jax.Array, jax.Array]:
    """Mixed values ``[G, K, R, S, head_dim]`` and log-normalizers ``[G, K, R, S, 1]`` of whole segments at once."""
    scores = [scores_of(grouped, reach, part, form)[0] for part in segments]
    tops = [unfold(x.max(-1, keepdims=True), part, grouped.shape) for x, part in zip(scores, segments, strict=True)]
    top = functools.reduce(jnp.maximum, tops)
    total = jnp.float32(0)
    mixed = jnp.float32(0)
    for x, part in zip(scores, segments, strict=True):
        weights = jnp.exp(x - fold(top, part))
        total += unfold(weights.sum(-1, keepdims=True), part, grouped.shape)
        mixed += unfold(matmul(weights, part.values), part, grouped.shape)
    return mixed / total, top + jnp.log(total)


def sunk(mixed: jax.Array, normalizer: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``mix`` with one more logit in each head's softmax, that of a sink, whose value is 0 (arXiv 2309.17453).

    With z the log-normalizer without it and s the sink: ``o · σ(z − s)`` and ``log(exp(z) + exp(s))``. It comes behind
    all segments, so that it is counted once. Limiting case: a sink of −∞ changes nothing.

    Args:
        mixed: ``[G, K, R, S, head_dim]``.
        normalizer: ``[G, K, R, S, 1]``.
        sinks: ``[K, R, 1, 1]``.

    >>> mixed, normalizer = sunk(jnp.ones((1, 1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))
    >>> mixed.item(), round(normalizer.item(), 4)
    (0.5, 0.6931)
    """
    return mixed * jax.nn.sigmoid(normalizer - sinks), jnp.logaddexp(normalizer, sinks)


class Block(NamedTuple):
    """Some queries on the way back, ``[G, K, R, S, ·]`` each: scaled, with what the forward pass found for them."""

    queries: jax.Array
    reach: Reach
    slopes: jax.Array
    mean: jax.Array
    normalizer: jax.Array


def slopes_of(block: Block, part: Segment, form: Form) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The slopes of queries, keys and values, in at least float32.

    With p the weights and o the output: ∂v = pᵀ ∂o,  ∂score = p (∂o·v − ∂o·o).
    """
    scores, bend = scores_of(block.queries, block.reach, part, form)
    weights = jnp.exp(scores - fold(block.normalizer, part))
    folded = fold(block.slopes, part).astype(part.values.dtype)
    scores_slope = weights * (matmul(folded, part.values.swapaxes(-1, -2)) - fold(block.mean, part))
    scores_slope = (scores_slope if bend is None else scores_slope * bend).astype(part.keys.dtype)
    queries_slope = unfold(matmul(scores_slope, part.keys.swapaxes(-1, -2)), part, block.queries.shape)
    keys_slope = matmul(fold(block.queries, part).swapaxes(-1, -2), scores_slope)
    return queries_slope, keys_slope, matmul(weights.swapaxes(-1, -2), folded)
