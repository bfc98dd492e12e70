"""Grouped-query attention over *segments* of keys under one softmax.

A row may attend to a prompt that all rows share and to tokens of its own: two segments, one softmax, no copy of the
prompt. Plain causal attention is the case of one segment. Everything is written for one group of rows; ``vmap`` (or a
``lax.map``, which keeps one group's scores in memory at a time) takes it over groups.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128  # tokens; smaller blocks make slow matmuls, larger ones waste work on keys behind the query
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


def _partial(queries: jax.Array, part: Segment) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maximum, normaliser and unnormalised output ``[G, K, R, S, 1 | 1 | head_dim]`` of one segment."""
    rows, heads, ratio, length, dim = queries.shape
    dtype = part.keys.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    if part.keys.shape[0] == rows:
        folded, shared = queries.reshape(rows, heads, ratio * length, dim), False
    else:
        folded, shared = queries.swapaxes(0, 1).reshape(1, heads, rows * ratio * length, dim), True

    def unfold(x: jax.Array) -> jax.Array:
        if shared:
            return x.reshape(heads, rows, ratio, length, -1).swapaxes(0, 1)
        return x.reshape(rows, heads, ratio, length, -1)

    scores = jnp.matmul(folded.astype(dtype), part.keys, preferred_element_type=wide)
    mask = jnp.broadcast_to(part.mask[:, None, None], (part.mask.shape[0], 1, ratio, length, part.mask.shape[-1]))
    if shared:
        mask = jnp.broadcast_to(mask[:, :, None], (1, 1, rows, ratio, length, mask.shape[-1]))
    scores = jnp.where(mask.reshape(mask.shape[0], 1, -1, mask.shape[-1]), scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    output = jnp.matmul(weights.astype(dtype), part.values, preferred_element_type=wide)
    return unfold(top), unfold(weights.sum(-1, keepdims=True)), unfold(output)


def attention(queries: jax.Array, segments: Sequence[Segment]) -> jax.Array:
    """``softmax(q·k / √head_dim) · v`` over the keys of all segments together.

    Limiting cases: one segment is plain attention; splitting a segment in two changes nothing.

    Args:
        queries: ``[G, S, H, head_dim]``; query head h reads key head ``h // (H / K)``.
        segments: each with ``N`` = 1 (shared by the G rows) or G.

    Returns:
        ``[G, S, H · head_dim]`` in the queries' dtype.

    >>> own = segment(jnp.ones((2, 3, 1, 4)), jnp.ones((2, 3, 1, 4)), jnp.ones((2, 1, 3), bool))
    >>> attention(jnp.ones((2, 1, 2, 4)), [own]).shape
    (2, 1, 8)
    """
    rows, length, heads, dim = queries.shape
    key_heads = segments[0].keys.shape[1]
    scaled = queries * (dim**-0.5)
    scaled = scaled.reshape(rows, length, key_heads, heads // key_heads, dim).transpose(0, 2, 3, 1, 4)
    parts = [_partial(scaled, part) for part in segments]
    top = functools.reduce(jnp.maximum, [part[0] for part in parts])
    scale = [jnp.exp(part[0] - top) for part in parts]
    total, mixed = (
        functools.reduce(jnp.add, [part[i] * s for part, s in zip(parts, scale, strict=True)]) for i in (1, 2)
    )
    mixed = mixed / total
    return mixed.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads * dim).astype(queries.dtype)


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
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x.dtype)
