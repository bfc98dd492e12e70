"""Where the tokens of a mixture of experts are sent, and how that is written down beside them.

A router's choice is not continuous: a sampler that computes in other numbers, or sums in another order, sends some
tokens elsewhere, and their log-probabilities are then those of another network. So a learner may be told where the
sampler sent them (``Completions.routed``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.routers import Load, Routed, load_of, mismatch_of, replay, route

Send = Callable[[jax.Array], tuple[Routed, Any]]
"""``router's logits [B, S, E] → (where tokens go, what is carried)``."""


class Routes(NamedTuple):
    """What routers are told of tokens.

    Attributes:
        counted: ``[B, T]``, how often each token counts in the ``Load`` that is told; None tells nothing.
        given: ``[B, T, L·k]``, of ``Completions.routed``, where a sampler sent them; None goes by the router.
    """

    counted: jax.Array | None = None
    given: jax.Array | None = None


BY_ROUTER = Routes()


def sending(config: DecoderConfig, counted: jax.Array | None = None, given: jax.Array | None = None) -> Send:
    """Tokens go where the router sends them, or where a sampler sent them.

    Args:
        config: shapes.
        counted: ``[B, S]``, how often each token counts in the ``Load`` that is carried; None carries nothing.
        given: ``[B, S, k]``, as ``routers.replay`` takes it; None goes by the router.

    >>> config, logits = DecoderConfig(5, 4, 8, 1, 2, 1, 2, experts=Experts(2, 1, 3)), jnp.array([[[0.0, 1.0]]])
    >>> [sending(config, None, given)(logits)[0].experts.tolist() for given in (None, jnp.array([[[1]]]))]
    [[[[1]]], [[[0]]]]
    """

    def send(logits: jax.Array) -> tuple[Routed, Load | None]:
        assert config.experts is not None
        routed = route(logits, config.experts) if given is None else replay(logits, given, config.experts)
        if counted is None:
            return routed, None
        load = load_of(logits, routed, counted)
        return routed, load if given is None else load._replace(mismatch=mismatch_of(logits, routed, counted))

    return send


def keeping(config: DecoderConfig) -> Send:
    """Tokens go where the router sends them, which is carried: ``[B, S, k]`` int32.

    Args:
        config: shapes.

    >>> keeping(DecoderConfig(5, 4, 8, 1, 2, 1, 2, experts=Experts(2, 1, 3)))(jnp.array([[[0.0, 1.0]]]))[1].tolist()
    [[[1]]]
    """

    def send(logits: jax.Array) -> tuple[Routed, jax.Array]:
        assert config.experts is not None
        routed = route(logits, config.experts)
        return routed, routed.experts

    return send


def routes_of(config: DecoderConfig, sent: jax.Array) -> jax.Array:
    """What was carried, as ``Completions.routed`` holds it: in the smallest integers that hold all numbers.

    Args:
        config: shapes.
        sent: ``[L, …, k]``, of ``keeping``.

    Returns:
        ``[…, L·k]``, the first layer's first.

    >>> config = DecoderConfig(5, 4, 8, 2, 2, 1, 2, experts=Experts(300, 2, 3))
    >>> found = routes_of(config, jnp.array([[[7, 299]], [[0, 1]]]))
    >>> found.tolist(), found.dtype.name
    ([[8, 300, 1, 2]], 'uint16')
    """
    experts = _experts(config)
    by_token = jnp.moveaxis(sent, 0, -2) + 1
    return by_token.reshape(*by_token.shape[:-2], -1).astype(np.min_scalar_type(experts.count))


def routes_by_layer(config: DecoderConfig, routed: jax.Array | None) -> jax.Array | None:
    """``Completions.routed`` for a scan over layers, ``[L, B, T, k]``.

    Limiting case: ``routes_of`` undone, but for the 1 that is added.

    Args:
        config: shapes.
        routed: ``[B, T, L·k]``, or None.

    Raises:
        ValueError: it is of another model.

    >>> config = DecoderConfig(5, 4, 8, 2, 2, 1, 2, experts=Experts(3, 2, 3))
    >>> routes_by_layer(config, jnp.array([[[1, 2, 3, 0]]])).tolist()
    [[[[1, 2]]], [[[3, 0]]]]
    """
    if routed is None:
        return None
    per_token = _experts(config).per_token
    if routed.shape[-1] != config.num_layers * per_token:
        raise ValueError(
            f"log_probs: completions.routed has {routed.shape[-1]} numbers for each token, wanted {per_token} for each "
            f"of {config.num_layers} layers; it is of another model: leave it out (routed=None)."
        )
    return jnp.moveaxis(routed.reshape(*routed.shape[:-1], config.num_layers, per_token), -2, 0)


def _experts(config: DecoderConfig) -> Experts:
    if config.experts is None:
        raise ValueError(
            "log_probs: completions.routed says where tokens were sent, and the model has no experts; leave it out "
            "(routed=None)."
        )
    return config.experts
