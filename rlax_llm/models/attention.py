"""Grouped-query attention over segments of keys under one softmax, in memory linear in their length.

A row may attend to a prompt that all rows share and to tokens of its own: two segments, one softmax, no copy of the
prompt. Plain causal attention is the case of one segment. Few scores are made at once; many are made block by block,
forward and backward, with a running maximum, sum and mixture. It is plain XLA, runs everywhere, and is what kernels of
one platform are compared with. ``models/forms.py`` takes it over groups and devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.models.segments import (
    MASKED,
    NOWHERE,
    PLAIN,
    Block,
    Form,
    Reach,
    Segment,
    fold,
    join_heads,
    lows,
    matmul,
    mix,
    scores_of,
    slopes_of,
    split_heads,
    sunk,
    unfold,
)


def visits(reach: Reach, segments: Sequence[Segment], form: Form) -> list[jax.Array]:
    """For each segment ``[query blocks, 2]`` int32: the first block of keys that a query of the block reads, and the
    one after the last.

    What lies above the diagonal, before a window or in padding is not computed. Leading axes before rows are joined:
    one plan for all groups.

    >>> from rlax_llm.models.segments import reach_of
    >>> whole = reach_of(jnp.arange(4)[None])
    >>> part = Segment(jnp.ones((1, 1, 2, 4)), jnp.ones((1, 1, 4, 2)), jnp.arange(4)[None])
    >>> visits(whole, [part], Form(query_block=2, key_block=2))[0].tolist()
    [[0, 1], [0, 2]]
    """

    def plan(part: Segment) -> jax.Array:
        keys = _in_blocks(part.places, form.key_block)
        highest = keys.max(-1)
        lowest = jnp.where(keys == NOWHERE, jnp.iinfo(jnp.int32).max, keys).min(-1)
        valid = places != NOWHERE
        first = jnp.where(valid, begins, jnp.iinfo(jnp.int32).max).min(-1)
        read = (highest[..., None, :] >= first[..., None]) & (lowest[..., None, :] <= places.max(-1)[..., None])
        read = read.any(range(read.ndim - 2))
        count = read.shape[-1]
        span = jnp.stack([read.argmax(-1), count - read[:, ::-1].argmax(-1)], -1)
        return jnp.where(read.any(-1, keepdims=True), span, 0).astype(jnp.int32)

    places = _in_blocks(reach.places, form.query_block)
    begins = _in_blocks(lows(reach, form.window), form.query_block)
    return [plan(part) for part in segments]


def block_of(length: int, block: int) -> int:
    """The size of equal blocks of at most ``block`` that a length needs, with the least padding.

    >>> block_of(513, 512), block_of(100, 512)
    (257, 100)
    """
    return -(-length // -(-length // block))


def _pad(x: jax.Array, axis: int, block: int, filler: int = 0) -> jax.Array:
    """Pad an axis to whole blocks."""
    size = block_of(x.shape[axis], block)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths, constant_values=filler) if widths[axis][1] else x


def _in_blocks(places: jax.Array, block: int) -> jax.Array:
    """``[…, T]`` to ``[…, blocks, block]``."""
    padded = _pad(places, -1, block, NOWHERE)
    return padded.reshape(*places.shape[:-1], -1, block_of(places.shape[-1], block))


def _part_at(part: Segment, index: jax.Array | int, size: int) -> Segment:
    """Block ``index`` of a segment's keys."""

    def at(part: Any, axis: int) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size, axis), part)

    return Segment(at(part.keys, 3), at(part.values, 2), at(part.places, 1))


def _over_keys(form: Form, part: Segment, span: jax.Array, step: Any, carry: Any) -> Any:
    """``carry = step(carry, block of keys, its index, its size)`` over the blocks of a span."""
    length = part.keys.shape[-1]
    size = block_of(length, form.key_block)
    if size == length:
        return step(carry, part, 0, size)
    return jax.lax.fori_loop(
        span[0], span[1], lambda index, carry: step(carry, _part_at(part, index, size), index, size), carry
    )


def _queries_at(form: Form, index: jax.Array, arrays: Any, reach: Reach) -> tuple[Any, Reach]:
    """Block ``index`` of arrays ``[G, K, R, S, ·]`` and of the reach."""
    length = reach.places.shape[1]
    size = block_of(length, form.query_block)

    def at(x: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)

    return jax.tree.map(lambda x: at(x, 3), arrays), Reach(at(reach.places, 1), at(reach.begins, 1))


def _from_blocks(x: jax.Array) -> jax.Array:
    """``[blocks, G, K, R, block, ·]`` to ``[G, K, R, S, ·]``."""
    moved = jnp.moveaxis(x, 0, 3)
    return moved.reshape(*moved.shape[:3], -1, moved.shape[-1])


def _mix_in_blocks(
    grouped: jax.Array, reach: Reach, segments: Sequence[Segment], spans: Sequence[jax.Array], form: Form
) -> tuple[jax.Array, jax.Array]:
    """``mix`` with the scores of one block at a time: a running maximum, sum and mixture (arXiv 2112.05682)."""

    def block(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        queries, own = _queries_at(form, index, grouped, reach)
        shape = queries.shape

        def step(state: tuple, part: Segment, *_: Any) -> tuple:
            top, total, mixed = state
            scores = scores_of(queries, own, part, form)[0]
            higher = jnp.maximum(top, unfold(scores.max(-1, keepdims=True), part, shape))
            weights = jnp.exp(scores - fold(higher, part))
            kept = jnp.exp(top - higher)
            total = total * kept + unfold(weights.sum(-1, keepdims=True), part, shape)
            return higher, total, mixed * kept + unfold(matmul(weights, part.values), part, shape)

        wide = jnp.promote_types(segments[0].keys.dtype, jnp.float32)
        narrow = jnp.zeros((*shape[:-1], 1), wide)
        state = (narrow + MASKED, narrow, jnp.zeros(shape, wide))
        for part, span in zip(segments, spans, strict=True):
            state = _over_keys(form, part, span[index], step, state)
        top, total, mixed = state
        total = jnp.where(total == 0, 1, total)  # of queries that read nothing, all of whose blocks were left out
        return mixed / total, top + jnp.log(total)

    mixed, normalizer = jax.lax.map(block, jnp.arange(spans[0].shape[0]))
    return _from_blocks(mixed), _from_blocks(normalizer)


def _slopes_in_blocks(
    whole: Block, segments: Sequence[Segment], spans: Sequence[jax.Array], form: Form
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """``slopes_of`` all segments, one block at a time; those of keys and values are summed over blocks of queries."""
    wide = whole.normalizer.dtype

    def add(total: jax.Array, slope: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
        so_far = jax.lax.dynamic_slice_in_dim(total, start, slope.shape[axis], axis)
        return jax.lax.dynamic_update_slice_in_dim(total, so_far + slope, start, axis)

    def block(totals: list, index: jax.Array) -> tuple[list, jax.Array]:
        arrays = (whole.queries, whole.slopes, whole.mean, whole.normalizer)
        (queries, slopes, mean, normalizer), reach = _queries_at(form, index, arrays, whole.reach)
        own = Block(queries, reach, slopes, mean, normalizer)

        def step(state: tuple, part: Segment, at: jax.Array | int, size: int) -> tuple:
            queries_slope, keys_slope, values_slope = state
            found = slopes_of(own, part, form)
            return (
                queries_slope + found[0],
                add(keys_slope, found[1], at * size, 3),
                add(values_slope, found[2], at * size, 2),
            )

        queries_slope = jnp.zeros(queries.shape, wide)
        further = []
        for part, span, total in zip(segments, spans, totals, strict=True):
            queries_slope, *total = _over_keys(form, part, span[index], step, (queries_slope, *total))
            further.append(tuple(total))
        return further, queries_slope

    zeros = [(jnp.zeros(part.keys.shape, wide), jnp.zeros(part.values.shape, wide)) for part in segments]
    totals, queries_slope = jax.lax.scan(block, zeros, jnp.arange(spans[0].shape[0]))
    return _from_blocks(queries_slope), totals


def _forward(
    form: Form,
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    spans: Sequence[jax.Array] | None,
    sinks: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    key_heads = segments[0].keys.shape[1]
    grouped = split_heads(queries * queries.shape[-1] ** -0.5, key_heads)
    if spans is None:
        mixed, normalizer = mix(grouped, reach, segments, form)
    else:
        mixed, normalizer = _mix_in_blocks(grouped, reach, segments, spans, form)
    if sinks is not None:
        mixed, normalizer = sunk(mixed, normalizer, _by_key_head(sinks, key_heads))
    output = join_heads(mixed).astype(queries.dtype)
    return output, (queries, reach, segments, spans, sinks, output, normalizer)


def _by_key_head(sinks: jax.Array, key_heads: int) -> jax.Array:
    """``[H]`` to ``[K, R, 1, 1]``."""
    wide = sinks.astype(jnp.promote_types(sinks.dtype, jnp.float32))
    return wide.reshape(key_heads, -1, 1, 1)


def _backward(form: Form, residuals: tuple, slope: jax.Array) -> tuple:
    queries, reach, segments, spans, sinks, output, normalizer = residuals
    key_heads = segments[0].keys.shape[1]
    scale = queries.shape[-1] ** -0.5
    grouped = split_heads(queries * scale, key_heads)
    slopes = split_heads(slope.astype(normalizer.dtype), key_heads)
    mean = (slopes * split_heads(output, key_heads)).sum(-1, keepdims=True)
    block = Block(grouped, reach, slopes, mean, normalizer)
    if spans is None:
        found = [slopes_of(block, part, form) for part in segments]
        queries_slope = functools.reduce(jnp.add, [one[0] for one in found])
        rest = [one[1:] for one in found]
    else:
        queries_slope, rest = _slopes_in_blocks(block, segments, spans, form)
    segments_slope = [_as_kept(part, keys, values) for part, (keys, values) in zip(segments, rest, strict=True)]
    sinks_slope = _slope_of_sinks(sinks, block)
    return (join_heads(queries_slope) * scale).astype(queries.dtype), None, segments_slope, None, sinks_slope


def _as_kept(part: Segment, keys: jax.Array, values: jax.Array) -> Segment:
    """The slopes of a segment, in its own dtypes."""
    return part._replace(keys=keys.astype(part.keys.dtype), values=values.astype(part.values.dtype), places=None)


def _slope_of_sinks(sinks: jax.Array | None, block: Block) -> jax.Array | None:
    """``slopes_of`` a score whose value is 0, of every query: ∂sink = −Σ p_sink (∂o·o)."""
    if sinks is None:
        return None
    weights = jnp.exp(_by_key_head(sinks, block.mean.shape[1]) - block.normalizer)
    return -(weights * block.mean).sum((0, 3, 4)).reshape(sinks.shape).astype(sinks.dtype)


def _plain(
    form: Form,
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    spans: Sequence[jax.Array] | None,
    sinks: jax.Array | None,
) -> jax.Array:
    return _forward(form, queries, reach, segments, spans, sinks)[0]


_attention = jax.custom_vjp(_plain, nondiff_argnums=(0,))
_attention.defvjp(_forward, _backward)


def fits_at_once(length: int, keys: int, form: Form) -> bool:
    """Whether all scores of a row are no more than two blocks, and so are made at once; those of one query always are.

    >>> [fits_at_once(queries, keys, PLAIN) for queries, keys in ((128, 256), (256, 256), (1, 10**6))]
    [True, False, True]
    """
    return length == 1 or length * keys <= 2 * form.query_block * form.key_block


def attention(
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    form: Form = PLAIN,
    spans: Sequence[jax.Array] | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """``softmax(q·k / √head_dim) · v`` over the keys of all segments together that a query reads.

    Its derivative recomputes the weights from their normalizer, as flash attention does (arXiv 2205.14135), so no
    array of scores is kept; and where there are many, one block of them is made at a time, in both directions.
    Limiting cases: one segment is plain attention; splitting a segment in two changes nothing, nor do the blocks.

    Args:
        queries: ``[G, S, H, head_dim]``; query head h reads key head ``h // (H / K)``.
        reach: which places they read.
        segments: each with ``N`` = 1 (shared by the G rows) or G.
        form: window, cap and blocks.
        spans: of ``visits``, for several groups together; None is this group's own.
        sinks: ``[H]``, a logit of each head that is one more in its softmax, and is dropped (gpt-oss); None is none.

    Returns:
        ``[G, S, H · head_dim]`` in the queries' dtype.

    >>> from rlax_llm.models.segments import reach_of, segment
    >>> own = segment(jnp.ones((2, 3, 1, 4)), jnp.ones((2, 3, 1, 4)), jnp.arange(3)[None])
    >>> attention(jnp.ones((2, 1, 2, 4)), reach_of(jnp.array([[2]])), [own]).shape
    (2, 1, 8)
    """
    rows, length, _, _ = queries.shape
    if fits_at_once(length, sum(part.keys.shape[-1] for part in segments), form):
        return _attention(form, queries, reach, list(segments), None, sinks).reshape(rows, length, -1)
    spans = visits(reach, segments, form) if spans is None else spans
    padded = [
        Segment(
            jax.tree.map(lambda x: _pad(x, 3, form.key_block), part.keys),
            jax.tree.map(lambda x: _pad(x, 2, form.key_block), part.values),
            _pad(part.places, 1, form.key_block, NOWHERE),
        )
        for part in segments
    ]
    own = Reach(_pad(reach.places, 1, form.query_block, NOWHERE), _pad(reach.begins, 1, form.query_block))
    mixed = _attention(form, _pad(queries, 1, form.query_block), own, padded, list(spans), sinks)
    return mixed[:, :length].reshape(rows, length, -1)


def rotary(
    x: jax.Array,
    positions: jax.Array,
    frequencies: jax.Array,
    magnitude: float | jax.Array = 1.0,
    pairs: bool = False,
) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864) of a head's first numbers, as many as there are frequencies for.

    Limiting cases: the identity at position 0, and with frequencies of 0; dot products depend on position differences
    only; what turns in pairs of neighbors is what turns in halves, in another order.

    Args:
        x: ``[B, S, heads, head_dim]``.
        positions: ``[B, S]`` int32, tokens.
        frequencies: ``[rotated / 2]``, radians per token.
        magnitude: what turns is multiplied by it.
        pairs: numbers 2i and 2i + 1 turn together, and not i and i + rotated / 2 as in Llama.

    Returns:
        Same shape and dtype as ``x``.

    >>> rotary(jnp.ones((1, 1, 1, 4)), jnp.zeros((1, 1), int), jnp.ones(2)).tolist()
    [[[[1.0, 1.0, 1.0, 1.0]]]]
    """
    angles = positions[..., None, None] * frequencies
    cos = jnp.cos(angles)
    sin = jnp.sin(angles)
    if not isinstance(magnitude, float) or magnitude != 1:
        cos, sin = cos * magnitude, sin * magnitude
    rotated = 2 * frequencies.shape[-1]
    wide = x[..., :rotated].astype(jnp.promote_types(x.dtype, jnp.float32))
    whole = _turned(wide, cos, sin, pairs).astype(x.dtype)
    return whole if rotated == x.shape[-1] else jnp.concatenate([whole, x[..., rotated:]], -1)


def _turned(x: jax.Array, cos: jax.Array, sin: jax.Array, pairs: bool) -> jax.Array:
    left, right = (x[..., ::2], x[..., 1::2]) if pairs else jnp.split(x, 2, axis=-1)
    turned = left * cos - right * sin, right * cos + left * sin
    return jnp.stack(turned, -1).reshape(x.shape) if pairs else jnp.concatenate(turned, -1)
