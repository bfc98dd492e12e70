"""Grouped-query attention over *segments* of keys under one softmax.

A row may attend to a prompt that all rows share and to tokens of its own: two segments, one softmax, no copy of the
prompt. Plain causal attention is the case of one segment. Everything is written for one group of rows; ``vmap`` (or a
``lax.map``, which keeps one group's scores in memory at a time) takes it over groups.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128  # tokens; smaller blocks make slow matmuls, larger ones waste work on keys after the query
MASKED = -1e30  # finite, so that a query without any key gives numbers (which nobody reads) and not NaN


class Segment(NamedTuple):
    """Keys that rows attend to. ``N`` is 1 where all rows of the group share them, else the number of rows.

    Attributes:
        keys: ``[N, K, head_dim, T]``: time last, so that scores are plain matmuls.
        values: ``[N, K, T, head_dim]``.
        mask: ``[N, S or 1, T]`` bool, True where query s may read key t.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


def segment(keys: jax.Array, values: jax.Array, mask: jax.Array) -> Segment:
    """Segment from keys and values laid out as a block makes them, ``[N, T, K, head_dim]``.

    >>> segment(jnp.ones((1, 5, 2, 4)), jnp.ones((1, 5, 2, 4)), jnp.ones((1, 1, 5), bool)).keys.shape
    (1, 2, 4, 5)
    """
    return Segment(keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3), mask)


def _shared(rows: int, part: Segment) -> bool:
    return part.keys.shape[0] != rows


def _fold(x: jax.Array, part: Segment) -> jax.Array:
    """``[G, K, R, S, …]`` to ``[N, K, ·, …]``: all queries that read the same keys in one matrix."""
    rows, heads, _, _, size = x.shape
    return x.swapaxes(0, 1).reshape(1, heads, -1, size) if _shared(rows, part) else x.reshape(rows, heads, -1, size)


def _unfold(x: jax.Array, part: Segment, shape: tuple[int, ...]) -> jax.Array:
    rows, heads, ratio, length = shape[:4]
    if _shared(rows, part):
        return x.reshape(heads, rows, ratio, length, -1).swapaxes(0, 1)
    return x.reshape(rows, heads, ratio, length, -1)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """Product in the keys' dtype, summed and returned in at least float32."""
    return jnp.matmul(x.astype(y.dtype), y, preferred_element_type=jnp.promote_types(y.dtype, jnp.float32))


def _scores(queries: jax.Array, part: Segment) -> jax.Array:
    """Masked scores ``[N, K, ·, T]`` of scaled queries ``[G, K, R, S, head_dim]``."""
    rows, _, ratio, length, _ = queries.shape
    scores = _matmul(_fold(queries, part), part.keys)
    mask = jnp.broadcast_to(part.mask[:, None, None], (part.mask.shape[0], 1, ratio, length, part.mask.shape[-1]))
    if _shared(rows, part):
        mask = jnp.broadcast_to(mask[:, :, None], (1, 1, rows, ratio, length, mask.shape[-1]))
    return jnp.where(mask.reshape(mask.shape[0], 1, -1, mask.shape[-1]), scores, MASKED)


def _split_heads(x: jax.Array, key_heads: int) -> jax.Array:
    """``[G, S, H, head_dim]`` to ``[G, K, R, S, head_dim]``, R query heads per key head."""
    rows, length, heads, dim = x.shape
    return x.reshape(rows, length, key_heads, heads // key_heads, dim).transpose(0, 2, 3, 1, 4)


def _join_heads(x: jax.Array) -> jax.Array:
    rows, key_heads, ratio, length, dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(rows, length, key_heads * ratio, dim)


def _forward(queries: jax.Array, segments: Sequence[Segment]) -> tuple[jax.Array, tuple]:
    grouped = _split_heads(queries * queries.shape[-1] ** -0.5, segments[0].keys.shape[1])
    scores = [_scores(grouped, part) for part in segments]
    tops = [_unfold(x.max(-1, keepdims=True), part, grouped.shape) for x, part in zip(scores, segments, strict=True)]
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, tops))
    total = jnp.float32(0)
    mixed = jnp.float32(0)
    for x, part in zip(scores, segments, strict=True):
        weights = jnp.exp(x - _fold(top, part))
        total += _unfold(weights.sum(-1, keepdims=True), part, grouped.shape)
        mixed += _unfold(_matmul(weights, part.values), part, grouped.shape)
    output = _join_heads(mixed / total).astype(queries.dtype)
    return output, (queries, segments, output, top + jnp.log(total))


def _backward(residuals: tuple, slope: jax.Array) -> tuple[jax.Array, list[Segment]]:
    """With p the weights and o the output: ∂v = pᵀ ∂o,  ∂score = p (∂o·v − ∂o·o)."""
    queries, segments, output, normalizer = residuals
    key_heads = segments[0].keys.shape[1]
    scale = queries.shape[-1] ** -0.5
    wide = normalizer.dtype
    grouped = _split_heads(queries * scale, key_heads)
    slopes = _split_heads(slope.astype(wide), key_heads)
    mean = (slopes * _split_heads(output, key_heads)).sum(-1, keepdims=True)
    queries_slope = jnp.zeros((), wide)
    segments_slope = []
    for part in segments:
        weights = jnp.exp(_scores(grouped, part) - _fold(normalizer, part))
        folded = _fold(slopes, part).astype(part.values.dtype)
        scores_slope = weights * (_matmul(folded, part.values.swapaxes(-1, -2)) - _fold(mean, part))
        scores_slope = scores_slope.astype(part.keys.dtype)
        segments_slope.append(_segment_slope(part, grouped, folded, weights, scores_slope))
        queries_slope += _unfold(_matmul(scores_slope, part.keys.swapaxes(-1, -2)), part, grouped.shape)
    return (_join_heads(queries_slope) * scale).astype(queries.dtype), segments_slope


def _segment_slope(
    part: Segment, queries: jax.Array, folded: jax.Array, weights: jax.Array, scores_slope: jax.Array
) -> Any:
    """The slopes of a segment's keys and values, in their dtypes; a mask has none."""
    keys_slope = _matmul(_fold(queries, part).swapaxes(-1, -2), scores_slope)
    values_slope = _matmul(weights.swapaxes(-1, -2), folded)
    return part._replace(
        keys=keys_slope.astype(part.keys.dtype), values=values_slope.astype(part.values.dtype), mask=None
    )


@jax.custom_vjp
def _attention(queries: jax.Array, segments: list[Segment]) -> jax.Array:
    return _forward(queries, segments)[0]


_attention.defvjp(_forward, _backward)


def attention(queries: jax.Array, segments: Sequence[Segment]) -> jax.Array:
    """``softmax(q·k / √head_dim) · v`` over the keys of all segments together.

    Its derivative recomputes the weights from their normalizer, as flash attention does (arXiv 2205.14135), so no
    array of scores is kept. Limiting cases: one segment is plain attention; splitting a segment in two changes nothing.

    Args:
        queries: ``[G, S, H, head_dim]``; query head h reads key head ``h // (H / K)``.
        segments: each with ``N`` = 1 (shared by the G rows) or G.

    Returns:
        ``[G, S, H · head_dim]`` in the queries' dtype.

    >>> own = segment(jnp.ones((2, 3, 1, 4)), jnp.ones((2, 3, 1, 4)), jnp.ones((2, 1, 3), bool))
    >>> attention(jnp.ones((2, 1, 2, 4)), [own]).shape
    (2, 1, 8)
    """
    return _attention(queries, list(segments)).reshape(*queries.shape[:2], -1)


def causal_attention(queries: jax.Array, segments: Sequence[Segment]) -> jax.Array:
    """``attention`` to one segment whose mask lets query s read the keys up to s only, in blocks of queries.

    A block reads the keys up to its own end: what lies above the diagonal is mostly not computed, instead of masked.

    >>> own = segment(jnp.ones((1, 3, 1, 4)), jnp.ones((1, 3, 1, 4)), jnp.tril(jnp.ones((1, 3, 3), bool)))
    >>> causal_attention(jnp.ones((1, 3, 2, 4)), [own]).shape
    (1, 3, 8)
    """
    (own,) = segments
    blocks = []
    for start in range(0, queries.shape[1], QUERY_BLOCK):
        end = start + QUERY_BLOCK
        part = Segment(own.keys[..., :end], own.values[..., :end, :], own.mask[:, start:end, :end])
        blocks.append(attention(queries[:, start:end], [part]))
    return jnp.concatenate(blocks, 1)


def rotary(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding on halves (arXiv 2104.09864, in Llama's layout).

    Limiting case: the identity at position 0; dot products depend on position differences only.

    Args:
        x: ``[B, S, heads, head_dim]``.
        positions: ``[B, S]`` int32, tokens.
        frequencies: ``[head_dim / 2]``, radians per token.

    Returns:
        Same shape and dtype as ``x``.

    >>> rotary(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), int), jnp.ones(2)).tolist()
    [[[[1.0, 1.0, 1.0, 1.0]]]]
    """
    angles = positions[..., None, None] * frequencies
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)
