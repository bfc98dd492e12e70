"""Prompts are read: the keys and values of their tokens, in as many parts as memory wants.

What all prompts begin with is read once, by itself, and held once (``common_tokens``, ``read_common``): the prompts'
own tokens then attend to it as to keys that their rows share. Long prompts are read some columns at a time, each part
attending to those before it. Limiting case: all at once, up to the order of sums.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import AXES, ROWS, devices_along
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import Attend, Kind, block, causal, embedding, kinds, layer_scan, norm
from rlax_llm.models.forms import grouped_attention
from rlax_llm.models.functional import Params
from rlax_llm.models.routing import Send
from rlax_llm.models.segments import NOWHERE, Segment, Window, positions_of, reach_of, segment

AT_ONCE = 2**16  # tokens on each device that are read together
LEAST_COMMON = 32  # tokens; fewer are read again with each prompt

Stacked = tuple[jax.Array, jax.Array]  # keys [L, P, K, head_dim, W] and values [L, P, K, W, head_dim]


def common_tokens(tokens: np.ndarray, valid: np.ndarray) -> int:
    """How many tokens all prompts begin with, in one of few numbers; at least one token is left of each.

    Args:
        tokens: ``[P, W]``, padded on the left.
        valid: ``[P, W]`` bool.

    >>> tokens = np.arange(50)[None].repeat(2, 0)
    >>> tokens[1, 40] = 7
    >>> common_tokens(tokens, np.ones((2, 50), bool)), common_tokens(tokens[:1], np.ones((1, 50), bool))
    (32, 0)
    """
    if len(tokens) == 1 or devices_along(*AXES) > 1:
        return 0
    lengths = valid.sum(1)
    first = tokens.shape[1] - lengths
    shortest = int(lengths.min())
    starts = np.take_along_axis(tokens, first[:, None] + np.arange(shortest), 1)
    same = (starts == starts[:1]).all(0)
    count = shortest if same.all() else int(same.argmin())
    count = min(count, shortest - 1)
    sizes = [size << power for power in range(count.bit_length()) for size in (LEAST_COMMON, 3 * LEAST_COMMON // 2)]
    return max((size for size in sizes if size <= count), default=0)


def parts_of(prompts: int, columns: int) -> int:
    """Parts of the columns of so many prompts, that each holds at most ``AT_ONCE`` tokens on a device.

    Where no number of about so many parts divides the columns it is one part; those of ``pad_prompts`` have divisors.

    >>> parts_of(64, 96), parts_of(64, 4096)
    (1, 4)
    """
    devices = devices_along(*ROWS)
    lanes = devices if prompts % devices == 0 else 1
    wanted = max(-(-prompts // lanes * columns // AT_ONCE), 1)
    return next((parts for parts in range(wanted, 4 * wanted) if columns % parts == 0), 1)


def read(
    config: DecoderConfig, params: Params, tokens: jax.Array, valid: jax.Array, before: Stacked | None = None
) -> tuple[jax.Array, Stacked]:
    """The state after each prompt's last column, and the keys and values of its tokens.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[P, W]`` int32, padded on the left.
        valid: ``[P, W]`` bool.
        before: keys ``[L, 1, K, head_dim, C]`` and values ``[L, 1, K, C, head_dim]`` of what all prompts begin with, of
            which ``tokens`` has nothing; or None.

    Returns:
        ``[P, D]`` after the last norm, and ``Stacked``.
    """
    return read_sending(config, params, (tokens, valid), None, before)[:2]


def read_sending(
    config: DecoderConfig,
    params: Params,
    prompts: tuple[jax.Array, jax.Array],
    send: Send | None,
    before: Stacked | None = None,
) -> tuple[jax.Array, Stacked, Any]:
    """``read``, and what ``send`` carries of each token, ``[L, P, W, …]``.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
        send: where tokens of a mixture go; None goes by the router, and carries nothing.
        before: as ``read``'s.
    """
    parts = parts_of(*prompts[0].shape)
    if parts == 1 and before is None:
        x, caches, sent = _at_once(config, params, prompts, send)
    else:
        x, caches, sent = _in_parts(config, params, prompts, before, parts, send)
    return norm(config, params["norm"], x), caches, sent


def _at_once(
    config: DecoderConfig, params: Params, prompts: tuple[jax.Array, jax.Array], send: Send | None
) -> tuple[jax.Array, Stacked, Any]:
    tokens, valid = prompts
    apply = block(config)[1]
    positions = positions_of(valid)
    attend = causal(config, valid)

    def step(x: jax.Array, layer: Params, kind: Kind | None) -> tuple[jax.Array, tuple[Stacked, Any]]:
        x, held, sent = apply(layer, x, positions, attend, kind, send)
        return x, (held, sent)

    x, (caches, sent) = layer_scan(config, params, step, embedding(config, params, tokens), False)
    return x[:, -1], caches, sent


def _in_parts(
    config: DecoderConfig,
    params: Params,
    prompts: tuple[jax.Array, jax.Array],
    before: Stacked | None,
    parts: int,
    send: Send | None,
) -> tuple[jax.Array, Stacked, Any]:
    """Some columns after the others: each layer's keys and values fill up, part by part."""
    tokens, valid = prompts
    count, columns = tokens.shape
    size = columns // parts
    begin = 0 if before is None else before[0].shape[-1]
    places = jnp.where(valid, begin + positions_of(valid), NOWHERE)

    def part(held: Stacked, start: jax.Array) -> tuple[Stacked, tuple[jax.Array, Any]]:
        own = tuple(jax.lax.dynamic_slice_in_dim(x, start, size, 1) for x in (tokens, places))
        known = jnp.where(jnp.arange(columns) < start, places, NOWHERE)
        last, held, sent = _columns(config, params, (own[0], own[1]), held, known, before, start, send)
        return held, (last, sent)

    depth, heads, dim = config.num_layers, config.num_kv_heads, config.head_dim
    dtype = jax.eval_shape(partial(embedding, config), params, tokens).dtype
    empty = jnp.zeros((depth, count, heads, dim, columns), dtype), jnp.zeros((depth, count, heads, columns, dim), dtype)
    held, (last, sent) = jax.lax.scan(part, empty, jnp.arange(parts) * size)
    return last[-1], held, jax.tree.map(_side_by_side, sent)


def _side_by_side(parts: jax.Array) -> jax.Array:
    """Of all columns ``[L, P, W, …]`` what some have after the others, ``[parts, L, P, W / parts, …]``."""
    by_prompt = jnp.moveaxis(parts, 0, 2)
    return by_prompt.reshape(*by_prompt.shape[:2], -1, *by_prompt.shape[4:])


def extend(
    config: DecoderConfig,
    params: Params,
    prompts: tuple[jax.Array, jax.Array],
    held: Stacked,
    known: jax.Array,
    columns: int,
    before: Stacked | None = None,
) -> tuple[jax.Array, Stacked]:
    """``read`` of prompts whose keys are held but for the last tokens of each: only these are run.

    Limiting cases: with nothing held and all columns ``read``; of one token a step of ``decode``.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        held: keys and values of the tokens that are known; those of other columns may be anything.
        known: ``[P, W]`` bool, the first tokens of each prompt, but not all.
        columns: the last ones, in which all others are; static.
        before: of what all prompts begin with, as ``read``'s.

    Returns:
        ``[P, D]`` after the last norm, and ``Stacked`` of all tokens.

    >>> from rlax_llm.models.decoder import init_decoder
    >>> config = DecoderConfig(9, 8, 8, 2, 2, 1, 4)
    >>> params, row = init_decoder(config, jax.random.key(0)), jnp.array([[1, 2, 3, 4, 5]])
    >>> whole, held = read(config, params, row, row > 0)
    >>> found, _ = extend(config, params, (row, row > 0), held, row < 4, 2)
    >>> bool(jnp.allclose(found, whole, atol=1e-5))
    True
    """
    tokens, valid = prompts
    start = tokens.shape[1] - columns
    begin = 0 if before is None else before[0].shape[-1]
    places = jnp.where(valid, begin + positions_of(valid), NOWHERE)
    own = tokens[:, start:], jnp.where(known, NOWHERE, places)[:, start:]
    x, held, _ = _columns(config, params, own, held, jnp.where(known, places, NOWHERE), before, start)
    return norm(config, params["norm"], x), held


def _columns(
    config: DecoderConfig,
    params: Params,
    own: tuple[jax.Array, jax.Array],
    held: Stacked,
    known: jax.Array,
    before: Stacked | None,
    start: jax.Array | int,
    send: Send | None = None,
) -> tuple[jax.Array, Stacked, Any]:
    """The last state of tokens at places ``[P, n]``, in the columns from ``start`` on, what is held with them, and what
    ``send`` carries.

    They read what is held at places ``known [P, W]``. Where they are none, columns stay as they are.
    """
    tokens, places = own
    there = places != NOWHERE
    apply = block(config)[1]

    def put(x: jax.Array, new: jax.Array, there: jax.Array, time: int) -> jax.Array:
        old = jax.lax.dynamic_slice_in_dim(x, start, new.shape[time], time)
        return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(there, new, old), start, time)

    def layer(x: jax.Array, of: tuple) -> tuple[jax.Array, tuple[Stacked, Any]]:
        weights, kind, keys, values, *common = of
        attend = _behind(config, tuple(common), Segment(keys, values, known), places)
        x, (new_keys, new_values), sent = apply(weights, x, jnp.maximum(places, 0), attend, kind, send)
        keys = put(keys, new_keys, there[:, None, None], -1)
        return x, ((keys, put(values, new_values, there[:, None, :, None], -2)), sent)

    of = (params["layers"], kinds(config), *held, *(before or ()))
    x, (held, sent) = jax.lax.scan(layer, embedding(config, params, tokens), of)
    return x[:, -1], held, sent


def _behind(config: DecoderConfig, common: tuple[jax.Array, ...], held: Segment, places: jax.Array) -> Attend:
    """Tokens at places ``[P, S]``, behind what all rows share, what each row held before, and each other."""
    if config.window is not None:  # a kernel counts a window in columns, and between these there are empty ones
        config = replace(config, attention="blockwise")

    def grouped(q: jax.Array, parts: list[Segment], window: Window, sinks: jax.Array | None) -> jax.Array:
        if not common:  # each row is a group of its own
            alone = jax.tree.map(lambda x: x[:, None], (q, reach_of(places), parts))
            return grouped_attention(config, *alone, window=window, sinks=sinks)[:, 0]
        keys, values = common
        shared = Segment(keys, values, jnp.arange(keys.shape[-1])[None])
        together = jax.tree.map(lambda x: x[None], (q, reach_of(places), [shared, *parts]))
        return grouped_attention(config, *together, window=window, sinks=sinks)[0]

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, Stacked]:
        own = segment(k, v, places)
        return grouped(q, [held, own], window, sinks), (own.keys, own.values)

    return attend


@partial(jax.jit, static_argnums=0)
def read_common(config: DecoderConfig, params: Params, tokens: jax.Array) -> Stacked:
    """Keys and values of what all prompts begin with.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[C]`` int32.
    """
    return read(config, params, tokens[None], jnp.ones((1, len(tokens)), bool))[1]
