"""Attention by the kernels of accelerators, with the arguments and results of ``models/attention.py``, over groups.

A kernel takes whole rows: keys of a shared prompt are repeated in front of each row's own (their states are still
computed once). The last segment is the rows' own, laid out as the queries are; what is before it, all of them read.
Valid tokens of a row are neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.models.segments import NOWHERE, Form, Reach, Segment

LANES = 128  # numbers that a TPU's registers hold side by side: keys come in multiples of it

CUDNN = partial(jax.nn.dot_product_attention, implementation="cudnn")


def _rows(x: jax.Array, group_size: int) -> jax.Array:
    """``[P, N, …]`` to ``[P · G, …]``."""
    wide = jnp.broadcast_to(x, (x.shape[0], group_size, *x.shape[2:]))
    return wide.reshape(-1, *wide.shape[2:])


def _joined(segments: Sequence[Segment], group_size: int) -> tuple[jax.Array, jax.Array]:
    """Keys and values ``[P · G, K, T, head_dim]`` of all segments, one after another."""
    keys = [_rows(part.keys, group_size).swapaxes(-1, -2) for part in segments]
    values = [_rows(part.values, group_size) for part in segments]
    return jnp.concatenate(keys, 2), jnp.concatenate(values, 2)


def _sequences(reach: Reach, segments: Sequence[Segment], group_size: int) -> tuple[jax.Array, jax.Array]:
    """For queries ``[P · G, S]`` and keys ``[P · G, T]`` the place where their sequence begins; −1 on padding."""

    def known(places: jax.Array, begins: jax.Array) -> jax.Array:
        return _rows(jnp.where(places == NOWHERE, NOWHERE, begins), group_size)

    own = known(reach.places, reach.begins)
    before = [known(part.places, jnp.zeros_like(part.places)) for part in segments[:-1]]
    return own, jnp.concatenate([*before, own], 1)


def _pad(x: jax.Array, axis: int, before: int, behind: int, filler: int = 0) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, behind)
    return jnp.pad(x, widths, constant_values=filler) if before or behind else x


def splash_block(length: int) -> int:
    """Tokens of a block of the kernel: more work at a time for longer rows, little padding for short ones.

    >>> splash_block(100), splash_block(1500), splash_block(4096)
    (128, 256, 512)
    """
    if length >= 2048:
        return 4 * LANES
    return 2 * LANES if length >= 1024 else LANES


def _splash_kernel(shape: tuple[int, int], heads: int, form: Form, block: int, interpret: bool) -> Callable[..., Any]:
    """The kernel of one row for ``(queries, keys)``; the queries are the last of the keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    before = shape[1] - shape[0]
    if form.window is None:
        mask: masks.Mask = masks.CausalMask(shape, offset=before)
    else:
        mask = masks.LocalMask(shape, (form.window - 1, 0), offset=before)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    return splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**sizes),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=form.soft_cap,
        interpret=interpret,
    )


def _splash_ids(sequences: tuple[jax.Array, jax.Array], before: int, behind: int) -> Any:
    """``_sequences`` with padding before and behind."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    own, every = sequences
    return SegmentIds(_pad(own, 1, 0, behind, NOWHERE), _pad(every, 1, before, behind, NOWHERE))


def splash_attention(
    form: Form,
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    sinks: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention of groups by ``jax.experimental.pallas.ops.tpu.splash_attention``, on a TPU.

    Args:
        form: window, cap, packed; its blocks are not read.
        queries: ``[P, G, S, H, head_dim]``.
        reach: ``[P, G or 1, S]`` each.
        segments: as ``attention``'s, with the groups in front.
        sinks: as ``attention``'s.
        interpret: run the kernel as plain operations, as a CPU can.

    Returns:
        ``[P, G, S, H · head_dim]``.
    """
    groups, group_size, length, heads, dim = queries.shape
    keys, values = _joined(segments, group_size)
    block = splash_block(length)
    before = -(keys.shape[2] - length) % block
    behind = -length % block
    keys, values = (_pad(x, 2, before, behind) for x in (keys, values))
    scaled = (queries * dim**-0.5).reshape(-1, length, heads, dim).swapaxes(1, 2)
    kernel = _splash_kernel((length + behind, keys.shape[2]), heads, form, block, interpret)
    ids = _splash_ids(_sequences(reach, segments, group_size), before, behind)
    mixed = jax.vmap(partial(kernel, sinks=sinks))(_pad(scaled, 2, 0, behind), keys, values, ids)
    mixed = mixed[:, :, :length].swapaxes(1, 2)
    return mixed.reshape(groups, group_size, length, heads * dim).astype(queries.dtype)


def cudnn_attention(
    form: Form,
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    sinks: jax.Array | None = None,
    dot: Callable[..., jax.Array] = CUDNN,
) -> jax.Array:
    """Attention of groups by cuDNN, on a GPU of NVIDIA's: no cap, no sinks, one sequence a row, numbers of 16 bits.

    It reads the first tokens of a row, so each row's valid ones are moved to its front, and counts queries from the
    first key, so queries that nobody reads stand before a row's own where it has a prompt.

    Args:
        form: the window; its blocks are not read.
        queries: ``[P, G, S, H, head_dim]``.
        reach: ``[P, G or 1, S]`` each.
        segments: as ``attention``'s, with the groups in front.
        sinks: None; it has none.
        dot: the kernel, with the arguments of ``jax.nn.dot_product_attention``.

    Returns:
        ``[P, G, S, H · head_dim]``.
    """
    del sinks  # attention_form asks another for them
    groups, group_size, length, heads, dim = queries.shape
    keys, values = (x.swapaxes(1, 2) for x in _joined(segments, group_size))
    before = keys.shape[1] - length
    whole = _pad(queries.reshape(-1, length, heads, dim), 1, before, 0)
    _, sequences = _sequences(reach, segments, group_size)
    padding = sequences == NOWHERE
    order = jnp.argsort(padding, axis=1, stable=True)
    lengths = (~padding).sum(1, dtype=jnp.int32)

    def moved(x: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, order[..., None, None], 1)

    mixed = dot(
        *(moved(x, order) for x in (whole, keys, values)),
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if form.window is None else (form.window - 1, 0),
    )
    back = moved(mixed, jnp.argsort(order, axis=1))[:, before:]
    back = jnp.where(padding[:, before:, None, None], 0, back)
    return back.reshape(groups, group_size, length, heads * dim).astype(queries.dtype)
