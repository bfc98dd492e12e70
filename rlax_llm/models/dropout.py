"""LoRA dropout: what adapters leave out of their inputs in training.

What is dropped follows from a number of the row, the layer, the projection and the token's place in its row, and from
nothing else: so padding, micro-batches and remat change nothing, and what is computed without a gradient, which has no
such numbers, drops nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.models.config import TARGETS, DecoderConfig

Drop = Callable[[str, jax.Array], jax.Array]
"""``(projection, its inputs [B, S, in]) → what its adapter reads of them``."""


def everything(name: str, x: jax.Array) -> jax.Array:
    """Nothing is dropped.

    Args:
        name: not read.
        x: the inputs.

    >>> everything("q", jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    del name
    return x


def with_dropout(rows: Any, key: jax.Array | None) -> Any:
    """Rows whose adapters drop inputs, each by a number of its own, where the config has a ``Lora.dropout``.

    Args:
        rows: ``Completions``, or a record with their ``truncated`` and ``dropout``.
        key: of the step, typed; None drops nothing.

    >>> from rlax_llm.core.types import Completions
    >>> some = jnp.ones((2, 1), bool)
    >>> rows = with_dropout(Completions(some, some, some, some, some[:, 0]), jax.random.key(0))
    >>> rows.dropout.shape, rows.dropout.dtype.name, with_dropout(rows._replace(dropout=None), None).dropout
    ((2,), 'uint32', None)
    """
    return rows if key is None else rows._replace(dropout=jax.random.bits(key, rows.truncated.shape, jnp.uint32))


def layer_seeds(config: DecoderConfig, rows: jax.Array | None) -> jax.Array | None:
    """The numbers of rows ``[B]`` as each layer has them, ``[L, B]``; None where nothing is dropped.

    Args:
        config: shapes, with the rate in its ``lora``.
        rows: ``Completions.dropout``.

    >>> layer_seeds(DecoderConfig(5, 4, 8, 2, 2, 1, 2), jnp.zeros(3, jnp.uint32)) is None
    True
    """
    if rows is None or config.lora is None or config.lora.dropout == 0:
        return None

    def of_layer(layer: jax.Array) -> jax.Array:
        return jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(jax.random.key(row), layer)))(rows)

    return jax.vmap(of_layer)(jnp.arange(config.num_layers))


def dropping(config: DecoderConfig, seeds: jax.Array | None, places: jax.Array) -> Drop:
    """Inverted dropout of each number by itself: ``x · m / (1 − p)`` with ``m ~ Bernoulli(1 − p)`` (PEFT's).

    Each projection has masks of its own, as each module of PEFT's has. (A family that joins projections has one module
    for q, k and v there, and so one mask; the share that each of them drops is the same.) Limiting cases: without seeds
    every input is read as it is; the mean over many masks is x.

    Args:
        config: shapes, with p in its ``lora``.
        seeds: ``[B]``, of one layer; None drops nothing.
        places: ``[B, S]`` int32, of tokens in their rows; tokens of a row at different places drop different numbers.

    >>> from rlax_llm.models.config import Lora
    >>> config = DecoderConfig(5, 4, 8, 1, 2, 1, 2, lora=Lora(1, 1.0, dropout=0.5))
    >>> drop = dropping(config, jnp.zeros(1, jnp.uint32), jnp.zeros((1, 1), jnp.int32))
    >>> sorted(set(drop("q", jnp.ones((1, 1, 99))).ravel().tolist()))
    [0.0, 2.0]
    """
    if seeds is None or config.lora is None:
        return everything
    kept = 1 - config.lora.dropout

    def drop(name: str, x: jax.Array) -> jax.Array:
        def of_token(seed: jax.Array, place: jax.Array, own: jax.Array) -> jax.Array:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), TARGETS.index(name)), place)
            return jnp.where(jax.random.bernoulli(key, kept, own.shape), own / kept, 0)

        return jax.vmap(jax.vmap(of_token, (None, 0, 0)))(seeds, places, x)

    return drop
