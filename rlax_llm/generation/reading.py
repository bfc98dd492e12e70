"""Prompts are read: the keys and values of their tokens, in as many parts as memory wants.

What all prompts begin with is read once, by itself, and held once (``common_tokens``, ``read_common``): the prompts'
own tokens then attend to it as to keys that their rows share. Long prompts are read some columns at a time, each part
attending to those before it. Limiting case: all at once, up to the order of sums.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import AXES, ROWS, devices_along
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import Attend, block, causal, embedding, layer_scan, rms_norm
from rlax_llm.models.forms import blocks, grouped_attention
from rlax_llm.models.functional import Params
from rlax_llm.models.segments import NOWHERE, Segment, positions_of, reach_of, segment

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
    parts = parts_of(*tokens.shape)
    if parts == 1 and before is None:
        x, caches = _at_once(config, params, tokens, valid)
    else:
        x, caches = _in_parts(config, params, (tokens, valid), before, parts)
    return rms_norm(x, params["norm"], config.norm_eps), caches


def _at_once(config: DecoderConfig, params: Params, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, Stacked]:
    apply = block(config)[1]
    positions = positions_of(valid)
    attend = causal(config, valid)
    embedded = embedding(config, params, tokens)
    x, caches = layer_scan(params, lambda x, layer: apply(layer, x, positions, attend), embedded, False)
    return x[:, -1], caches


def _in_parts(
    config: DecoderConfig, params: Params, prompts: tuple[jax.Array, jax.Array], before: Stacked | None, parts: int
) -> tuple[jax.Array, Stacked]:
    """Some columns after the others: each layer's keys and values fill up, part by part."""
    tokens, valid = prompts
    count, columns = tokens.shape
    size = columns // parts
    begin = 0 if before is None else before[0].shape[-1]
    places = jnp.where(valid, begin + positions_of(valid), NOWHERE)
    positions = begin + positions_of(valid)
    apply = block(config)[1]

    def part(held: Stacked, start: jax.Array) -> tuple[Stacked, jax.Array]:
        def own(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size, 1)

        read_before = jnp.where(jnp.arange(columns) < start, places, NOWHERE)

        def layer(x: jax.Array, of: tuple) -> tuple[jax.Array, Stacked]:
            weights, keys, values, *common = of
            attend = _behind(config, tuple(common), Segment(keys, values, read_before), own(places))
            x, (new_keys, new_values) = apply(weights, x, own(positions), attend)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, new_keys, start, -1)
            values = jax.lax.dynamic_update_slice_in_dim(values, new_values, start, -2)
            return x, (keys, values)

        x, held = jax.lax.scan(
            layer, embedding(config, params, own(tokens)), (params["layers"], *held, *(before or ()))
        )
        return held, x[:, -1]

    depth, heads, dim = config.num_layers, config.num_kv_heads, config.head_dim
    dtype = jax.eval_shape(partial(embedding, config), params, tokens).dtype
    empty = jnp.zeros((depth, count, heads, dim, columns), dtype), jnp.zeros((depth, count, heads, columns, dim), dtype)
    held, last = jax.lax.scan(part, empty, jnp.arange(parts) * size)
    return last[-1], held


def _behind(config: DecoderConfig, common: tuple[jax.Array, ...], held: Segment, places: jax.Array) -> Attend:
    """Tokens at places ``[P, S]``, behind what all rows share, what each row held before, and each other."""

    def grouped(q: jax.Array, parts: list[Segment]) -> jax.Array:
        if not common:  # each row is a group of its own
            alone = jax.tree.map(lambda x: x[:, None], (q, reach_of(places), parts))
            return grouped_attention(config, alone[0], alone[1], alone[2], blocks())[:, 0]
        keys, values = common
        shared = Segment(keys, values, jnp.arange(keys.shape[-1])[None])
        together = jax.tree.map(lambda x: x[None], (q, reach_of(places), [shared, *parts]))
        return grouped_attention(config, together[0], together[1], together[2], blocks())[0]

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Stacked]:
        own = segment(k, v, places)
        return grouped(q, [held, own]), (own.keys, own.values)

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
