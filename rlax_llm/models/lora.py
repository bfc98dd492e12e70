"""Low-rank adapters (arXiv 2106.09685): their parameters and their merge into the base.

The decoder itself reads an adapter where its config has a ``Lora``: ``join_trees(adapter, base)`` are its parameters
then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.names import did_you_mean
from rlax_llm.core.trees import join_trees, widen
from rlax_llm.models.blocks import dequantized
from rlax_llm.models.config import TARGETS, DecoderConfig, Lora
from rlax_llm.models.dora import column_shares, lengths
from rlax_llm.models.functional import Params
from rlax_llm.models.token_rows import row_tokens, with_rows

WHOLE = ("embed", "norm", "head")
"""What of a model an adapter may hold whole, beside leaves of the layers."""
SAVED = ("embed", "head", "norms")
"""What may be trained whole beside adapters, by what ``saved_parts`` calls it."""


def init_adapter(config: DecoderConfig, key: jax.Array, dtype: Any = jnp.float32, base: Params | None = None) -> Params:
    """``A ~ U(−1/√in, 1/√in)`` and ``B = 0``, as PEFT draws them (Kaiming-uniform with a = √5): the base, exactly.

    Args:
        config: shapes, with its ``lora``.
        key: a typed PRNG key.
        dtype: of the adapter; float32 also over a bfloat16 base keeps small steps.
        base: its parameters, whose columns' lengths DoRA begins with, and whose rows the tokens'; else not read.

    Returns:
        The nested dict of ``config.adapter_shapes``.

    Raises:
        ValueError: ``config.lora`` is None, or is DoRA or has tokens without a base.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, lora=Lora(3, 6.0, ("q",)))
    >>> {name: leaf.shape for name, leaf in init_adapter(config, jax.random.key(0))["layers"].items()}
    {'q_lora_a': (1, 4, 3), 'q_lora_b': (1, 3, 4)}
    """
    layers = {}
    lora = lora_of("init_adapter", config)
    if base is None and (lora.dora or row_tokens(config)):
        what = "is DoRA" if lora.dora else "has tokens"
        raise ValueError(f"init_adapter: base is None and config.lora {what}, wanted the base's parameters; give them.")
    for target, one in zip(lora.targets, jax.random.split(key, len(TARGETS)), strict=False):
        a, b = (config.adapter_shapes["layers"][f"{target}_lora_{side}"] for side in "ab")
        bound = a[1] ** -0.5
        drawn = jax.random.uniform(one, a, jnp.promote_types(dtype, jnp.float32), -bound, bound)
        layers |= {f"{target}_lora_a": drawn.astype(dtype), f"{target}_lora_b": jnp.zeros(b, dtype)}
        if lora.dora and base is not None:
            update = layers[f"{target}_lora_a"], layers[f"{target}_lora_b"]
            layers[f"{target}_lora_m"] = _lengths(base["layers"][target], update, lora.scale).astype(dtype)
    return {"layers": layers} | _rows(config, base or {}, dtype)


def _rows(config: DecoderConfig, base: Params, dtype: Any) -> Params:
    """The base's own rows of the tokens of each table."""
    tables = row_tokens(config)
    taken = {leaf: base.get(leaf, base["embed"])[jnp.array(tokens)] for leaf, tokens in tables.items()}
    return {f"{leaf}_rows": rows.astype(dtype) for leaf, rows in taken.items()}


@jax.jit
def _lengths(weights: Any, update: tuple[jax.Array, jax.Array], scale: float) -> jax.Array:
    """Of the columns of all layers, a layer at a time."""
    return jax.lax.map(lambda layer: lengths(layer[0], (*layer[1], scale)), (weights, update))


def merge_adapter(config: DecoderConfig, params: Params, adapter: Params) -> Params:
    """``W + (alpha / rank) · A·B``, of DoRA with its own lengths: one model without adapter, to draw from and export.

    Limiting case: B = 0 is the base, bit for bit.

    Args:
        config: shapes, with its ``lora``; the result belongs to ``replace(config, lora=None)``.
        params: the base's, ``config.parameter_shapes``; a matrix in blocks comes back wide.
        adapter: ``config.adapter_shapes``, and what takes the place of the base's own: a ``score``, an embedding, a
            head, a norm.

    Returns:
        Parameters like ``params``, in their dtype; sums and products are of at least float32.

    Raises:
        ValueError: ``config.lora`` is None, or the adapter does not fit it.
    """
    lora = lora_of("merge_adapter", config)
    check_adapter("merge_adapter", config, adapter)
    model = with_rows(config, join_trees(under_adapter(config, dequantized(params), adapter), adapter))
    layers = dict(model["layers"])
    for target in lora.targets:
        weight = layers[target]
        a = layers.pop(f"{target}_lora_a")
        b = layers.pop(f"{target}_lora_b")
        wide = jnp.promote_types(jnp.result_type(weight, a, b), jnp.float32)
        update = jnp.matmul(a.astype(wide), b.astype(wide), precision=jax.lax.Precision.HIGHEST)
        merged = weight.astype(wide) + lora.scale * update
        if lora.dora:
            shares = column_shares(layers.pop(f"{target}_lora_m"), weight, (a, b, lora.scale))
            merged = merged * shares[..., None, :]
        layers[target] = merged.astype(weight.dtype)
    return model | {"layers": layers}


def saved_parts(config: DecoderConfig, base: Params, names: Sequence[str]) -> Params:
    """What of a base is trained whole beside its adapters (PEFT's ``modules_to_save``), at its start.

    ``join_trees`` adds it to an adapter, and ``under_adapter`` says what is left of the base. Limiting case: of no
    names nothing, and the adapter is alone.

    Args:
        config: shapes.
        base: its parameters.
        names: of ``SAVED``: the embedding (which is the head too where they are tied), the head, all norms.

    Returns:
        Leaves of ``config.parameter_shapes``, in float32.

    Raises:
        ValueError: for another name, and for a head that the model does not have.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
    >>> base = {"embed": jnp.ones((5, 4)), "layers": {"mlp_norm": jnp.ones((1, 4))}, "norm": jnp.ones(4)}
    >>> jax.tree.map(jnp.shape, saved_parts(config, base, ["norms"]))
    {'layers': {'mlp_norm': (1, 4)}, 'norm': (4,)}
    """
    for name in names:
        if name not in SAVED:
            raise ValueError(
                f"lora_save names {name!r}, which is unknown{did_you_mean(name, SAVED)} There are {', '.join(SAVED)}."
            )
    if "head" in names and "head" not in base:
        what = "has a score in its place" if "score" in base else "is the embedding; name embed, which trains both"
        raise ValueError(f"lora_save names 'head', and this model's head {what}.")
    layers = {leaf: value for leaf, value in base["layers"].items() if "norms" in names and leaf.endswith("norm")}
    top = {leaf: base[leaf] for leaf in ("embed", "head") if leaf in names}
    last = {"norm": base["norm"]} if "norms" in names else {}
    return widen({"layers": layers} | top | last) if names else {"layers": {}}


def under_adapter(config: DecoderConfig, params: Params, adapter: Params) -> Params:
    """What of a base stays under an adapter: all but what the adapter holds whole.

    Limiting case: of an adapter without whole parts the base as it is. Where an adapter's embedding or head was trained
    apart over a base that ties them, ``config`` does not tie them, and the head is the base's embedding.

    Args:
        config: of the adapter.
        params: the base's.
        adapter: what is joined to it.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, tie_embeddings=False)
    >>> base = {"embed": 1, "layers": {"q": 2}}
    >>> under_adapter(config, base, {"embed": 3, "layers": {"q_lora_a": 4}})
    {'layers': {'q': 2}, 'head': 1}
    """
    scalar = "score" in params or "score" in adapter
    there = "head" in params or "head" in adapter
    own = {} if config.tie_embeddings or scalar or there else {"head": params["embed"]}
    layers = {leaf: value for leaf, value in params["layers"].items() if leaf not in adapter["layers"]}
    rest = params | own | {"layers": layers}
    return {leaf: value for leaf, value in rest.items() if leaf == "layers" or leaf not in adapter}


def trains_head(config: DecoderConfig, trained: Params) -> bool:
    """Whether the whole head has a slope: it is trained itself, or is an embedding that is.

    Limiting case: of a model without adapters it always has. Rows that are trained alone have slopes of their own.

    Args:
        config: shapes.
        trained: what is, of ``config.parameter_shapes`` or an adapter with what it holds whole.

    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2)
    >>> [trains_head(config, {name: 0, "layers": {}}) for name in ("embed", "embed_rows")]
    [True, False]
    """
    return "head" in trained or ("embed" in trained and config.tie_embeddings)


def lora_of(where: str, config: DecoderConfig) -> Lora:
    """The config's ``Lora``.

    Args:
        where: for the error.
        config: shapes.

    Raises:
        ValueError: it has none.
    """
    if config.lora is None:
        raise ValueError(
            f"{where}: config.lora is None, wanted a Lora; give one with dataclasses.replace(config, lora=...)."
        )
    return config.lora


def check_adapter(where: str, config: DecoderConfig, adapter: Params) -> None:
    """Raise unless the leaves of an adapter have the shapes of the config.

    Args:
        where: for the error.
        config: shapes, with its ``lora``.
        adapter: ``config.adapter_shapes``, and what it holds whole.

    Raises:
        ValueError: naming a leaf.
    """
    model = config.parameter_shapes
    got = adapter.get("layers", {})
    whole = {name: shape for name, shape in model["layers"].items() if name in got}
    _check_leaves(where, "layers/", config.adapter_shapes["layers"] | whole, got)
    model |= {"head": model["embed"]}
    rows = {name: shape for name, shape in config.adapter_shapes.items() if name != "layers"}
    held = {name: value for name, value in adapter.items() if name in WHOLE or name.endswith("_rows")}
    _check_leaves(where, "", {name: model[name] for name in held if name in WHOLE} | rows, held)


def _check_leaves(where: str, inside: str, wanted: dict[str, tuple[int, ...]], got: Params) -> None:
    for name in sorted(wanted.keys() | got.keys()):
        shape = jnp.shape(got[name]) if name in got else "absent"
        if shape != wanted.get(name):
            raise ValueError(
                f"{where}: adapter leaf {inside}{name} is {shape}, the config wants {wanted.get(name, 'none')}; "
                "give the adapter that belongs to the config."
            )
