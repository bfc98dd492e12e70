"""Floating-point operations and bytes of memory that a program's products need, counted from shapes.

A compiler counts the body of a loop once, whatever its turns, and a kernel not at all; so they are counted here. What
is not a product (norms, activations, softmax) moves little and is left out: seconds that follow are a floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.generation.cache import Columns, windowed
from rlax_llm.generation.ladders import rooms
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.lora import trains_head

_FORWARD_PRODUCTS = 2  # of attention: scores, and values mixed by them
_LAST = ("down", "down_lora_b")  # of a layer, whose product nothing on the way back reads
_BACKWARD_PRODUCTS = 5  # the scores again, and the slopes of weights, values, queries and keys


@dataclass(frozen=True)
class Work:
    """What one device does.

    Attributes:
        flops: products and sums.
        bytes: read from and written to its memory.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: float) -> Work:
        """As often.

        >>> Work(1.0, 2.0).times(3)
        Work(flops=3.0, bytes=6.0)
        """
        return Work(self.flops * count, self.bytes * count)


class Grid(NamedTuple):
    """Devices that share the work.

    Attributes:
        lanes: over which rows lie, data · fsdp.
        tensor: over which heads, widths and the vocabulary lie.
    """

    lanes: int = 1
    tensor: int = 1


class Rows(NamedTuple):
    """What goes through a model.

    Attributes:
        tokens: through its layers.
        pairs: of a query and a key that it reads, per layer.
        scored: tokens that leave through its head.
    """

    tokens: float
    pairs: float
    scored: float


def grouped(rows: int, part: int, width: int, length: int, scored: bool = True) -> Rows:
    """Completions behind prompts that ``part`` of them share, each prompt computed once for these.

    Args:
        rows: completions.
        part: of a group, computed together.
        width: tokens of a prompt.
        length: tokens of a completion.
        scored: whether completions leave through the head.

    >>> grouped(4, 2, 3, 2)
    Rows(tokens=14.0, pairs=48.0, scored=8.0)
    """
    prompts = rows / part
    pairs = prompts * _causal(width) + rows * (width * length + _causal(length))
    return Rows(prompts * width + rows * length, pairs, float(rows * length * scored))


def _causal(length: int) -> float:
    return length * (length + 1) / 2


def _width(config: DecoderConfig, narrow: str | None = None) -> int:
    """Bytes of a number that is computed with, or of one that is read in a format of its own."""
    return jnp.dtype(narrow or config.compute_dtype or jnp.float32).itemsize


def _matrices(config: DecoderConfig, left_out: tuple[str, ...] = ()) -> list[tuple[int, int]]:
    """Ins and outs of a layer's matrices that a token passes, adapters' too but for DoRA's lengths; some left out."""
    shapes = config.adapter_shapes["layers"]
    adapters = [(name, *shape[1:]) for name, shape in shapes.items() if name.endswith(("_lora_a", "_lora_b"))]
    return [(into, out) for name, into, out in config.active_matrices() + adapters if name not in left_out]


def _adapters(config: DecoderConfig) -> float:
    return sum(math.prod(shape[1:]) for shape in config.adapter_shapes["layers"].values())


def _layers(config: DecoderConfig, tokens: float, grid: Grid, turns: float, left_out: tuple[str, ...] = ()) -> Work:
    """The products of all layers with weights, which are read once a turn."""
    flops = 0.0
    moved = 0.0
    for into, out in _matrices(config, left_out):
        size = into * out / grid.tensor
        flops += 2 * tokens / grid.lanes * size
        moved += turns * size * _width(config, config.sampler_dtype)
        moved += tokens / grid.lanes * (into + out) / grid.tensor * _width(config)
    return Work(flops, moved).times(config.num_layers)


def _attention(config: DecoderConfig, rows: Rows, grid: Grid, products: int) -> Work:
    """Scores and mixtures, which stay on the chip: what is read and written are queries, keys and values."""
    size = config.num_heads * config.head_dim / grid.tensor
    flops = 2 * products * rows.pairs / grid.lanes * size
    moved = products * rows.tokens / grid.lanes * size * _width(config)
    return Work(flops, moved).times(config.num_layers)


def _head(config: DecoderConfig, scored: float, grid: Grid, turns: float) -> Work:
    """One product with the head; logits are float32, and stay in chunks."""
    size = config.vocab_size * config.hidden_size / grid.tensor
    own = scored / grid.lanes
    moved = own * config.hidden_size * _width(config) + own * config.vocab_size / grid.tensor * 4
    return Work(2 * own * size, moved + turns * size * _width(config, config.sampler_dtype))


def forward(config: DecoderConfig, rows: Rows, grid: Grid, turns: int = 1) -> Work:
    """Once through a model.

    Args:
        config: shapes, with the adapters that are beside the weights.
        rows: of the whole batch.
        grid: the devices that share them.
        turns: parts that they are taken in; each reads the weights.

    >>> config = DecoderConfig(8, 4, 16, 1, 2, 2, 2)
    >>> forward(config, Rows(10, 0, 0), Grid()).flops == 2 * 10 * (4 * 4 * 4 + 3 * 4 * 16)
    True
    """
    through = _layers(config, rows.tokens, grid, turns) + _attention(config, rows, grid, _FORWARD_PRODUCTS)
    return through + (_head(config, rows.scored, grid, turns) if rows.scored else Work())


def learning(
    config: DecoderConfig, trained: Params, rows: Rows, grid: Grid, turns: int = 1, remat: bool = True
) -> Work:
    """Once through a model and back: the layers again where they are recomputed, two products for each on the way back.

    Under adapters the weights are frozen: one product there, two for an adapter. The head's logits are made again, a
    chunk at a time; where it is trained whole it has a slope of its own, and rows of it that are trained alone are few.

    Args:
        config: shapes, with the adapters that are trained.
        trained: what is; adapters, and what is trained whole beside them.
        rows: of the whole batch.
        grid: the devices that share them.
        turns: micro-batches; each reads the weights.
        remat: the layers are recomputed.
    """
    once = forward(config, rows, grid, turns)
    layers = _layers(config, rows.tokens, grid, turns)
    slopes = layers.times(2)
    if config.lora is not None:
        adapters = 2 * rows.tokens / grid.lanes * _adapters(config) * config.num_layers / grid.tensor
        slopes = layers + Work(adapters)
    back = slopes + _attention(config, rows, grid, _BACKWARD_PRODUCTS)
    if remat:
        again = _layers(config, rows.tokens, grid, turns, _LAST)
        back += again + _attention(config, rows, grid, _FORWARD_PRODUCTS)
    if rows.scored:
        back += _head(config, rows.scored, grid, turns).times(3 if trains_head(config, trained) else 2)
    return once + back


def moving(state: float) -> Work:
    """An optimizer step: parameters, moments and gradients are read, and written.

    Args:
        state: bytes of parameters and moments on a device.
    """
    return Work(0.0, 2.5 * state)


def decoding(
    config: DecoderConfig,
    prompts: int,
    group_size: int,
    width: int,
    length: int,
    grid: Grid,
    keeps: Columns = windowed,
) -> Work:
    """All tokens after the first of completions to the limit, at each of which all weights and caches are read.

    The own cache begins small and grows, and is read whole, in layers with a window as far as they keep it. All rows go
    on to the end.

    Args:
        config: shapes of what is sampled from.
        prompts: in the batch, with the copies that devices need.
        group_size: completions of each.
        width: tokens of a prompt.
        length: of a completion, at most.
        grid: the devices that share them.
        keeps: columns that each layer keeps.
    """

    def columns(most: int) -> float:
        """Those of a layer, on average."""
        return sum(keeps(config, most)) / config.num_layers

    rows, steps = prompts * group_size, length - 1
    room_read = sum(columns(room) * count for room, count in reads(length))
    prompt_read = columns(width) * steps
    pairs = rows * (prompt_read + room_read)
    numbers = 2 * config.num_kv_heads * config.head_dim / grid.tensor * config.num_layers
    kept = numbers * _width(config, config.cache_dtype)
    caches = kept * (prompts * prompt_read + rows * room_read) / grid.lanes
    through = _layers(config, rows * steps, grid, steps) + _head(config, rows * steps, grid, steps)
    scores = _attention(config, Rows(0, pairs, 0), grid, _FORWARD_PRODUCTS)
    return through + scores + Work(0.0, caches)


def reads(length: int) -> list[tuple[int, int]]:
    """Room of a completion's cache and tokens drawn with it, from the second token to the last.

    >>> reads(200)
    [(64, 64), (100, 36), (200, 99)]
    """
    found, drawn = [], 1
    for room in rooms(length):
        until = min(length, room + 1)
        found.append((room, until - drawn))
        drawn = until
    return found


def bytes_of(tree: Any) -> float:
    """Bytes of arrays on a device: of their parts where they have a sharding.

    >>> bytes_of(jax.ShapeDtypeStruct((2, 3), jnp.bfloat16))
    12.0
    """
    return float(sum(_own_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def _own_bytes(leaf: Any) -> float:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return math.prod(shape) * itemsize
