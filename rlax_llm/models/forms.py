"""Attention over groups and devices, in the form that the platform and the shapes choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.core.mapping import map_in_cache
from rlax_llm.core.mesh import ROWS, TENSOR, dividing, per_device
from rlax_llm.core.platform import platform
from rlax_llm.models.attention import attention, fits_at_once, visits
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.kernels import cudnn_attention, splash_attention
from rlax_llm.models.segments import EVERYTHING, PLAIN, Form, Reach, Segment, Window, within

KERNELS = {"tpu": "splash", "gpu": "cudnn"}
KERNEL_LENGTH = 256  # queries of a row from which a kernel is worth the padding of its blocks
CUDNN_HEAD = 128
PLACES_NDIM = 3  # ``[P, N, T]``; keys and values have heads too


def blocks() -> Form:
    """Blocks of the plain form for the platform: as many scores as a core's cache holds, or as fill an accelerator."""
    return PLAIN if platform() == "cpu" else PLAIN._replace(query_block=512, key_block=512)


def attention_form(
    config: DecoderConfig, length: int, dtype: jax.typing.DTypeLike = jnp.float32, form: Form = PLAIN
) -> str:
    """What computes the attention of rows: ``"blockwise"``, ``"splash"`` or ``"cudnn"``.

    A sampler's single queries are plain XLA under all of them: they read each key once.

    Args:
        config: shapes, and the form that is asked for.
        length: queries of a row, tokens.
        dtype: of the queries.
        form: window, cap, packed.

    Raises:
        ValueError: where the form that ``config.attention`` asks for cannot serve.

    >>> attention_form(DecoderConfig(5, 4, 8, 1, 2, 1, 2), 4096)
    'blockwise'
    """
    asked = config.attention
    dtype = jnp.dtype(dtype)
    if asked == "auto":
        kernel = KERNELS.get(platform(), "blockwise")
        wanted = length >= KERNEL_LENGTH and not _hindrance(kernel, config, dtype, form)
        return kernel if wanted else "blockwise"
    hindrance = _hindrance(asked, config, dtype, form)
    if hindrance:
        raise ValueError(f"attention: {asked} {hindrance}; choose auto, or blockwise.")
    return asked


def _hindrance(kernel: str, config: DecoderConfig, dtype: jnp.dtype, form: Form) -> str:
    """Why a kernel cannot serve, as the end of a sentence; empty where it can."""
    if kernel == "blockwise":
        return ""
    home = {name: place for place, name in KERNELS.items()}[kernel]
    if platform() != home:
        return f"runs on a {home.upper()}, and this is a {platform().upper()}"
    if kernel == "splash":
        return ""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, and the model in {dtype.name}"
    if config.head_dim % 8 or config.head_dim > CUDNN_HEAD:
        return f"takes heads of at most {CUDNN_HEAD}, a multiple of 8, and these are of {config.head_dim}"
    if config.sinks:
        return "has no attention sinks, and the model has them"
    if form.packed:
        return "takes one sequence a row, and rows are packed"
    if form.soft_cap is not None:
        return "has no soft cap, and the model has one"
    return ""


def _blockwise(
    form: Form, queries: jax.Array, reach: Reach, segments: Sequence[Segment], sinks: jax.Array | None = None
) -> jax.Array:
    """Plain attention over groups, as many at a time as have their scores in cache together."""
    length = queries.shape[2]
    lengths = [part.keys.shape[-1] for part in segments]
    rows = math.prod(queries.shape[1:-1])
    if fits_at_once(length, sum(lengths), form):
        each = partial(attention, form=form, sinks=sinks)
        return map_in_cache(each, (queries, reach, list(segments)), rows * sum(lengths))
    scores = rows // length * min(length, form.query_block) * min(max(lengths), form.key_block)
    each = partial(attention, form=form, spans=visits(reach, segments, form), sinks=sinks)
    return map_in_cache(each, (queries, reach, list(segments)), scores)


COMPUTE: dict[str, Callable[..., jax.Array]] = {
    "blockwise": _blockwise,
    "splash": splash_attention,
    "cudnn": cudnn_attention,
}


def grouped_attention(
    config: DecoderConfig,
    queries: jax.Array,
    reach: Reach,
    segments: Sequence[Segment],
    form: Form | None = None,
    window: Window = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """``attention`` of ``P`` groups, on every device its own groups and key heads.

    Limiting case: ``vmap(attention)``, in all forms.

    Args:
        config: shapes, and the form that is asked for.
        queries: ``[P, G, S, H, head_dim]``.
        reach: ``[P, G or 1, S]`` each.
        segments: as ``attention``'s, with the groups in front; the last is the rows' own, laid out as the queries are.
        form: packed and blocks; None is not packed, in the platform's blocks. The cap is the config's.
        window: places that a query reads at most; of a layer that is one of several kinds it is traced, and the
            config's or ``EVERYTHING``.
        sinks: as ``attention``'s.

    Returns:
        ``[P, G, S, H · head_dim]``.

    Raises:
        ValueError: where the form that ``config.attention`` asks for cannot serve.
    """
    form = (blocks() if form is None else form)._replace(soft_cap=config.attention_cap)
    name = attention_form(config, queries.shape[2], queries.dtype, form)
    if name == "blockwise":
        reach, window = within(reach, window), None
    compute, traced = _behind_window(COMPUTE[name], form, window, config.window)
    rows, heads = dividing((queries.shape[0], segments[0].keys.shape[2]), (ROWS, TENSOR))
    by_row = PartitionSpec(rows)
    by_head = PartitionSpec(rows, None, heads)
    by_query_head = PartitionSpec(rows, None, None, heads)
    keys_and_places = jax.tree.map(lambda x: by_row if x.ndim == PLACES_NDIM else by_head, list(segments))
    in_specs = (*(PartitionSpec() for _ in traced), by_query_head, by_row, keys_and_places, PartitionSpec(heads))
    return per_device(compute, in_specs, by_query_head)(*traced, queries, reach, list(segments), sinks)


def _behind_window(
    compute: Callable[..., jax.Array], form: Form, window: Window, size: int | None
) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]:
    """A kernel behind a window, and what is traced of it.

    The kernel must know the window's size: of layers of two kinds, each has it or reaches everything.
    """
    if window is None or isinstance(window, int):
        return partial(compute, form._replace(window=window)), ()

    def computed(window: jax.Array, *given: Any) -> jax.Array:
        whole = partial(compute, form)
        return jax.lax.cond(window < EVERYTHING, partial(compute, form._replace(window=size)), whole, *given)

    return computed, (window,)
