"""The one decoder: every family of models by the switches of ``DecoderConfig``.

Parameters are a nested dict (``DecoderConfig.parameter_shapes``), the layers stacked on axis 0 and scanned. Rows may
be padded on either side; positions count the valid tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rlax_llm.core.caps import soft_cap
from rlax_llm.core.divergences import Predictions
from rlax_llm.core.heads import head_logits
from rlax_llm.core.mesh import (
    ROWS,
    TENSOR,
    dividing,
    is_split,
    per_device,
    place_along,
    spread,
    sum_over,
)
from rlax_llm.models.attention import rotary
from rlax_llm.models.blocks import Blocks, blocks_product
from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.dora import column_shares, turned
from rlax_llm.models.dropout import Drop, dropping, everything, layer_seeds
from rlax_llm.models.experts import Biases, Weights, clamped, gated_by, mixture
from rlax_llm.models.forms import blocks, grouped_attention
from rlax_llm.models.functional import Params, pure_functions
from rlax_llm.models.narrow import Matrix, Narrow, product, rows_of, table_product
from rlax_llm.models.ropes import magnitude_of
from rlax_llm.models.routers import Load
from rlax_llm.models.routing import BY_ROUTER, Routes, Send, routes_by_layer, sending
from rlax_llm.models.segments import EVERYTHING, Window, places_of, positions_of, reach_of, segment
from rlax_llm.models.token_rows import head, read_rows

Attend = Callable[[jax.Array, jax.Array, jax.Array, Window, jax.Array | None], tuple[jax.Array, Any]]
"""``(queries, keys, values, window, sinks) → (mixed values, what is carried)``."""

ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=False),
}


class Kind(NamedTuple):
    """What a layer is beside its weights; of several layers, each array is stacked.

    Attributes:
        frequencies: ``[rotated / 2]``, radians per token; zeros where nothing turns.
        magnitude: of what turns, a number.
        window: tokens that a query reads at most; None is all.
    """

    frequencies: jax.Array
    magnitude: float | jax.Array
    window: Window


def kind_of(config: DecoderConfig, layer: int) -> Kind:
    """One layer's kind.

    >>> kind_of(DecoderConfig(5, 4, 8, 1, 2, 1, 2, window=7), 0).window
    7
    """
    window = config.window_of(layer)
    rope = config.rope if window is None or config.local_rope is None else config.local_rope
    frequencies = rope.frequencies(config.rotated_width) * config.turns(layer)
    magnitude = magnitude_of(rope.scaling) if config.turns(layer) else 1.0
    return Kind(jnp.asarray(frequencies, jnp.float32), magnitude, window)


def kinds(config: DecoderConfig) -> Kind | None:
    """The kinds of all layers, stacked for a scan; None where they are one.

    >>> kinds(DecoderConfig(5, 4, 8, 2, 2, 1, 2)) is None
    True
    >>> kinds(DecoderConfig(5, 4, 8, 2, 2, 1, 2, window=7, sliding=(True, False))).window.tolist()
    [7, 1073741824]
    """
    if not any(len(set(each)) > 1 for each in (config.sliding, config.rotated)):
        return None
    each = [kind_of(config, layer) for layer in range(config.num_layers)]
    return Kind(
        jnp.stack([kind.frequencies for kind in each]),
        jnp.array([kind.magnitude for kind in each], jnp.float32),
        jnp.array([EVERYTHING if kind.window is None else kind.window for kind in each], jnp.int32),
    )


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """``x / √(mean(x²) + eps) · weight`` over the last axis, computed in float32 (arXiv 1910.07467), in x's dtype.

    >>> rms_norm(jnp.array([3.0, 4.0]), jnp.ones(2), 0.0).round(3).tolist()
    [0.84..., 1.13...]
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)
    return (wide * scale * weight).astype(x.dtype)


def norm(config: DecoderConfig, weight: jax.Array, x: jax.Array) -> jax.Array:
    """``rms_norm`` with the config's epsilon and offset.

    >>> norm(DecoderConfig(5, 4, 8, 1, 2, 1, 2, norm_offset=1.0), jnp.zeros(1), jnp.array([3.0])).round(3).tolist()
    [1.0]
    """
    if config.norm_offset != 0:  # in float32: a weight near 0 has digits that a sum near 1 in bfloat16 has not
        weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32)) + config.norm_offset
    return rms_norm(x, weight, config.norm_eps)


def linear(x: jax.Array, weight: Matrix | Blocks) -> jax.Array:
    """``x · weight`` over the last axis, as one matrix product over all tokens, in x's dtype.

    A wider weight is rounded here, at its use, so that its gradient is summed over all uses in the weight's own dtype.
    Contracting batch and time as two axes makes XLA copy the transposed slope for the weight's derivative: a quarter of
    a small model's update.

    >>> linear(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    return _multiplied(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)


def _multiplied(x: jax.Array, weight: Matrix | Blocks) -> jax.Array:
    """``x · weight`` of rows in x's dtype, in the way of what the weight is kept as."""
    if isinstance(weight, Blocks):
        return blocks_product(x, weight)
    return product(x, weight).astype(x.dtype) if isinstance(weight, Narrow) else x @ weight.astype(x.dtype)


class Block(nnx.Module):
    """Attention and gated MLP with their norms. ``attend`` decides which keys a query reads, and what to carry.

    So does ``send`` of the experts that a token is sent to.
    """

    router: nnx.Param
    shared_gate: nnx.Param
    sinks: nnx.Param

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.drop: Drop = everything
        for name, (_, *shape) in _layer_shapes(config).items():
            setattr(self, name, nnx.Param(_initial(rngs, name, tuple(shape), config.norm_offset)))

    def __call__(
        self, x: jax.Array, positions: jax.Array, attend: Attend, kind: Kind, send: Send, drop: Drop
    ) -> tuple[jax.Array, Any, Any]:
        """Map ``x [B, S, D]`` at ``positions [B, S]`` to the next residual stream and what is carried of each."""
        self.drop = drop
        attended, carried = self.attend(self.normed("attention_norm", x), positions, attend, kind)
        x = self.added(x, "attention_post_norm", self.project("o", attended))
        h = self.normed("mlp_norm", x)
        experts = self.config.experts
        found, sent = (self.mlp(h), None) if experts is None else self.mixed(h, experts, send)
        return spread(self.added(x, "mlp_post_norm", found), ROWS), carried, sent

    def mlp(self, h: jax.Array) -> jax.Array:
        """The gated MLP."""
        gated = ACTIVATION[self.config.activation](self.project("gate", h)) * self.project("up", h)
        return self.project("down", gated)

    def mixed(self, h: jax.Array, experts: Experts, send: Send) -> tuple[jax.Array, Any]:
        """The mixture of experts, and the MLP that all tokens share; and what ``send`` carries."""
        routed, sent = send(self.plus_bias("router", linear(h, self.router[...]), experts.biased))
        names = ("gate", "up", "down")
        weights = Weights(*(getattr(self, f"expert_{name}").get_value() for name in names))
        if experts.biased:
            biases = Biases(*(getattr(self, f"expert_{name}_bias")[...] for name in names))
            weights = weights._replace(biases=biases)
        gated = clamped(experts.clamped) if experts.clamped else gated_by(ACTIVATION[self.config.activation])
        found = mixture(h, routed, weights, gated)
        if not experts.shared:
            return found, sent
        return found + jax.nn.sigmoid(linear(h, self.shared_gate[...])) * self.mlp(h), sent

    def normed(self, name: str, x: jax.Array) -> jax.Array:
        """The norm of a name, where this decoder has it."""
        return norm(self.config, getattr(self, name)[...], x) if hasattr(self, name) else x

    def added(self, x: jax.Array, name: str, found: jax.Array) -> jax.Array:
        """The residual stream with what was found, behind the norm of a name."""
        scale = self.config.residual_scale
        found = self.normed(name, found)
        return x + (found if scale == 1 else found * scale)

    def project(self, name: str, x: jax.Array) -> jax.Array:
        """``x·W + b``, and with an adapter on it ``x·W + (alpha / rank) · (x·A)·B + b``: W + A·B is formed for DoRA
        alone."""
        return self.plus_bias(name, self.adapted(name, x), name in self.config.biases)

    def plus_bias(self, name: str, projected: jax.Array, biased: bool) -> jax.Array:
        """What was projected, and the bias of a name where there is one."""
        if not biased:
            return projected
        return (projected + getattr(self, f"{name}_bias")[...]).astype(projected.dtype)

    def adapted(self, name: str, x: jax.Array) -> jax.Array:
        """``project`` without the bias."""
        weight = getattr(self, name).get_value()
        projected = linear(x, weight)
        lora = self.config.lora
        if lora is None or name not in lora.targets:
            return projected
        a = getattr(self, f"{name}_lora_a")[...]
        b = getattr(self, f"{name}_lora_b")[...]
        # An adapter may be wider than its base: bfloat16 would round its small steps away.
        wide = x.astype(jnp.promote_types(x.dtype, a.dtype))
        read = self.drop(name, wide)
        update = linear(linear(read, a) * lora.scale, b).astype(projected.dtype)
        if not lora.dora:
            return projected + update
        shares = column_shares(getattr(self, f"{name}_lora_m")[...], weight, (a, b, lora.scale))
        if read is not wide:
            return turned(projected, linear(read.astype(x.dtype), weight), update, shares)
        return ((projected + update) * shares).astype(projected.dtype)

    def attend(self, h: jax.Array, positions: jax.Array, attend: Attend, kind: Kind) -> tuple[jax.Array, Any]:
        """Project to heads, norm, rotate and attend."""
        config = self.config

        def heads(name: str) -> jax.Array:
            projected = self.project(name, h)
            if config.qk_norm == "width":
                projected = self.normed(f"{name}_norm", projected)
            split = projected.reshape(*projected.shape[:-1], -1, config.head_dim)
            if config.qk_norm == "head":
                split = self.normed(f"{name}_norm", split)
            if name == "v":
                return split
            return rotary(split, positions, kind.frequencies, kind.magnitude, config.rope_pairs)

        queries = heads("q")
        if config.attention_scale is not None:  # attention itself divides by the root of the width
            queries = queries * (config.attention_scale * config.head_dim**0.5)
        sinks = self.sinks[...] if config.sinks else None
        return attend(queries, heads("k"), heads("v"), kind.window, sinks)


def _layer_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    return config.parameter_shapes["layers"] | config.adapter_shapes["layers"]


def _initial(rngs: nnx.Rngs, name: str, shape: tuple[int, ...], norm_offset: float) -> jax.Array:
    if name.endswith("norm"):
        return jnp.full(shape, 1.0 - norm_offset)
    if name.endswith("bias") or name == "sinks":
        return jnp.zeros(shape)
    return jax.random.normal(rngs.params(), shape) * shape[max(len(shape) - 2, 0)] ** -0.5


@lru_cache
def block(config: DecoderConfig) -> tuple[Callable[[jax.Array], Params], Callable[..., Any]]:
    """``init(key)`` and ``apply(params, x, positions, attend, kind, send, drop)`` of one layer.

    A kind of None is the first layer's; a ``send`` of None takes the router's choice, and carries nothing; adapters
    read all of their inputs unless a ``drop`` says otherwise.

    Raises:
        ValueError: at trace time, where ``params`` are not the layer's, such as an adapter without ``config.lora``.
    """
    init, apply = pure_functions(lambda rngs: Block(config, rngs))
    wanted = set(_layer_shapes(config))

    def checked(
        params: Params,
        x: jax.Array,
        positions: jax.Array,
        attend: Attend,
        kind: Kind | None = None,
        send: Send | None = None,
        drop: Drop = everything,
    ) -> Any:
        if params.keys() != wanted:
            raise ValueError(
                f"decoder: the layers lack {sorted(wanted - params.keys())} and have {sorted(params.keys() - wanted)} "
                f"beside what a config with lora {config.lora} wants; join the adapter, or merge it and take lora out."
            )
        kind = kind_of(config, 0) if kind is None else kind
        return apply(params, x, positions, attend, kind, sending(config) if send is None else send, drop)

    return init, checked


def init_decoder(config: DecoderConfig, key: jax.Array, dtype: jnp.dtype | type = jnp.float32) -> Params:
    """Random parameters: normal, scaled by the fan-in; the embedding scaled so that tied logits start near 1.

    Args:
        config: shapes.
        key: a typed PRNG key.
        dtype: of every parameter; activations follow it.

    Returns:
        The nested dict of ``config.parameter_shapes``.
    """
    embed_key, head_key, layer_key = jax.random.split(key, 3)
    base = replace(config, lora=None)
    layers = jax.vmap(block(base)[0])(jax.random.split(layer_key, config.num_layers))
    table = (config.vocab_size, config.hidden_size)
    scale = config.hidden_size**-0.5
    params = {
        "embed": jax.random.normal(embed_key, table) * scale,
        "layers": layers,
        "norm": jnp.full(config.hidden_size, 1.0 - config.norm_offset),
    }
    if not config.tie_embeddings:
        params["head"] = jax.random.normal(head_key, table) * scale
    return jax.tree.map(lambda x: x.astype(dtype), params)


def embedding(config: DecoderConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """The first residual stream ``[…, D]`` of ``tokens``, in the dtype that is computed in.

    It is rounded after the rows are taken, so that a row's gradient is summed over its tokens in the table's dtype.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, compute_dtype="bfloat16")
    >>> embedding(config, {"embed": jnp.ones((5, 4))}, jnp.array([3])).dtype.name
    'bfloat16'
    """
    vocabulary, rows = dividing((config.vocab_size,), (TENSOR,)), dividing(tokens.shape, (ROWS,))
    # Gathered over fsdp first, for all tokens together.
    table = jax.tree.map(lambda x: spread(x, TENSOR), params["embed"])
    taken = per_device(_lookup, (vocabulary, rows), rows)(table, tokens)
    taken = read_rows(config, params, tokens, taken)
    taken = taken if config.compute_dtype is None else taken.astype(config.compute_dtype)
    return taken if config.embedding_scale == 1 else taken * jnp.asarray(config.embedding_scale, taken.dtype)


def _lookup(table: Matrix, tokens: jax.Array) -> jax.Array:
    """Rows of the table, of which a device may have a part."""
    if not is_split(TENSOR):
        return rows_of(table, tokens)
    size = table.shape[0]
    within = tokens - place_along(TENSOR) * size
    found = rows_of(table, jnp.clip(within, 0, size - 1))
    return sum_over(jnp.where(((within >= 0) & (within < size))[..., None], found, 0.0), TENSOR)


def to_vocabulary(config: DecoderConfig, hidden: jax.Array) -> jax.Array:
    """Hidden states ``[…, D]`` as the head reads them.

    Limiting case: with a ``logit_divisor`` of 1, as they are.

    >>> to_vocabulary(DecoderConfig(5, 4, 8, 1, 2, 1, 2, logit_divisor=2.0), jnp.ones((1, 1))).tolist()
    [[0.5]]
    """
    return hidden if config.logit_divisor == 1 else hidden / jnp.asarray(config.logit_divisor, hidden.dtype)


def predictions(config: DecoderConfig, params: Params, hidden: jax.Array) -> Predictions:
    """What hidden states ``[…, D]`` predict, of all rows flat, before it is computed.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
    >>> predictions(config, {"embed": jnp.ones((5, 4))}, jnp.ones((2, 3, 4))).hidden.shape
    (6, 4)
    """
    flat = to_vocabulary(config, hidden).reshape(-1, hidden.shape[-1])
    return Predictions(flat, head(config, params), cap=config.logit_cap)


def vocabulary_logits(config: DecoderConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """``hidden · headᵀ``, ``[…, V]``, scaled and capped: the product in hidden's dtype, its sums in float32.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
    >>> vocabulary_logits(config, {"embed": jnp.ones((5, 4))}, jnp.ones((2, 4), jnp.bfloat16)).dtype.name
    'float32'
    """
    hidden = to_vocabulary(config, hidden)
    table = head(config, params)
    wide = head_logits(hidden, table, jnp.float32) if not isinstance(table, Narrow) else table_product(hidden, table)
    return wide if config.logit_cap is None else soft_cap(wide, config.logit_cap)[0]


def causal(config: DecoderConfig, valid: jax.Array, segments: jax.Array | None = None) -> Attend:
    """Attend to valid tokens of the own row ``[B, T]``, and segment, up to the query; carries the keys and values."""
    places = places_of(valid)[:, None]
    positions = None if segments is None else positions_of(valid, segments)[:, None]
    reach = reach_of(places, positions)
    form = blocks()._replace(packed=segments is not None)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        own = jax.vmap(segment)(k[:, None], v[:, None], places)
        mixed = grouped_attention(config, q[:, None], reach, [own], form, window, sinks)
        return mixed[:, 0], (own.keys[:, 0], own.values[:, 0])

    return attend


def layer_scan(
    config: DecoderConfig, params: Params, step: Callable[..., Any], carry: Any, remat: bool, *beside: Any
) -> Any:
    """Scan ``step(carry, layer, kind, *beside) → (carry, output)`` over the stacked layers, and what is stacked beside
    them; ``remat`` keeps only the carries."""

    def one(carry: Any, of: tuple) -> Any:
        return step(carry, *of)

    return jax.lax.scan(jax.checkpoint(one) if remat else one, carry, (params["layers"], kinds(config), *beside))


def layers_in_turn(
    config: DecoderConfig, params: Params, step: Callable[..., Any], carry: Any, beside: Sequence[Any]
) -> tuple[Any, list[Any]]:
    """``layer_scan`` of layers that lie apart: ``step(carry, layer, kind, beside) → (carry, output)`` of each in turn.

    The program is unrolled, but what layers of one kind and of the same shapes do is traced and lowered once.

    Args:
        config: shapes.
        params: their ``layers`` are a sequence.
        step: of a layer.
        carry: before the first.
        beside: for each layer what its step reads, a pytree.

    Returns:
        The carry behind the last layer, and the output of each.

    >>> config, params = DecoderConfig(5, 4, 8, 2, 2, 1, 2), {"layers": [{"w": jnp.float32(2)}, {"w": jnp.float32(3)}]}
    >>> last, found = layers_in_turn(config, params, lambda x, layer, kind, own: (x * layer["w"], x + own), 1.0, [7, 8])
    >>> float(last), [float(x) for x in found]
    (6.0, [8.0, 10.0])
    """

    @cache
    def of_kind(first: int) -> Callable[..., Any]:
        return jax.jit(lambda carry, layer, own: step(carry, layer, kind_of(config, first), own))

    firsts: dict[tuple[int | None, bool], int] = {}
    outputs = []
    for index, (layer, own) in enumerate(zip(params["layers"], beside, strict=True)):
        first = firsts.setdefault((config.window_of(index), config.turns(index)), index)
        carry, output = of_kind(first)(carry, layer, own)
        outputs.append(output)
    return carry, outputs


def hidden_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    remat: bool = False,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Final hidden states, after the last norm; the distribution of token t + 1 is ``softmax(head · h[t])``.

    Limiting case: with ``segments`` each one has the states that it has in a row of its own.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[B, T]`` int32.
        valid: ``[B, T]`` bool, False on padding, on either side.
        remat: recompute each layer in the backward pass: a tenth of the memory for a third more time.
        segments: ``[B, T]`` int32, alike on the neighboring tokens that may see one another; None is whole rows.

    Returns:
        ``[B, T, D]``.
    """
    return row_states(config, params, tokens, valid, remat, segments)[0]


def row_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    remat: bool = False,
    segments: jax.Array | None = None,
    routes: Routes = BY_ROUTER,
    dropped: jax.Array | None = None,
) -> tuple[jax.Array, Load | None]:
    """``hidden_states``, and how each layer's router shares the tokens out, ``[L, …]``.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[B, T]`` int32.
        valid: ``[B, T]`` bool.
        remat: recompute each layer in the backward pass.
        segments: ``[B, T]`` int32, or None.
        routes: where tokens are sent, and how often each counts; a decoder without experts tells nothing.
        dropped: ``[B]``, of ``Completions.dropout``.
    """
    apply = block(config)[1]
    positions = positions_of(valid, segments)
    attend = causal(config, valid, segments)
    places = positions_of(valid)

    def step(x: jax.Array, layer: Params, kind: Kind | None, seeds: Any, given: Any) -> tuple[jax.Array, Any]:
        send = sending(config, routes.counted, given)
        x, _, sent = apply(layer, x, positions, attend, kind, send, dropping(config, seeds, places))
        return x, sent

    beside = layer_seeds(config, dropped), routes_by_layer(config, routes.given)
    x, load = layer_scan(config, params, step, embedding(config, params, tokens), remat, *beside)
    return norm(config, params["norm"], x), load


@partial(jax.jit, static_argnums=0)
def logits(config: DecoderConfig, params: Params, tokens: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """All logits ``[B, T, V]`` in float32: for tests and small models; the learner uses ``token_log_probs`` instead.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``, from ``init_decoder`` or a loaded model.
        tokens: ``[B, T]`` int32.
        valid: ``[B, T]`` bool, False on padding, on either side; None where there is none.
    """
    valid = jnp.ones(tokens.shape, bool) if valid is None else valid
    return vocabulary_logits(config, params, hidden_states(config, params, tokens, valid))
