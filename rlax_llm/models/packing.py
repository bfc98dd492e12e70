"""The learner's view of packed rows: several completions side by side, each seeing itself alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rlax_llm.core.logit_bias import LogitBias
from rlax_llm.core.penalties import NONE, Penalties
from rlax_llm.core.types import Completions, Room
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import row_states
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import _scorer, routes_by, routing_of


class Packed(NamedTuple):
    """``Completions`` whose rows hold several prompts with their completions, one after another, then padding.

    The loops of ``loops/policy.py`` that take a row at a time (``supervised_loop``) take it as it is.

    Attributes:
        tokens: ``[B, T]`` int32.
        valid: ``[B, T]`` bool, False on padding.
        mask: ``[B, T]`` bool, True on what is learned; never on the first token of a segment.
        log_probs: ``[B, T]`` float32, nats.
        truncated: ``[B]`` bool.
        kept: ``[B, T, ceil(V/32)]`` uint32 as of ``Completions``, or None.
        versions: as of ``Completions``, or None.
        given: ``[B, T]`` bool as of ``Completions``, or None.
        teacher: as of ``Completions``, or None.
        dropout: ``[B]`` as of ``Completions``, or None.
        routed: ``[B, T, L·k]`` as of ``Completions``, or None.
        room: None; packed rows have little padding.
        segments: ``[B, T]`` int32, the number of the prompt and completion in their row, from 1; 0 on padding. The
            positions within them are ``segments.positions_of(valid, segments)``.
    """

    tokens: jax.Array
    valid: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    truncated: jax.Array
    kept: jax.Array | None
    versions: jax.Array | None
    given: jax.Array | None
    teacher: Any
    dropout: jax.Array | None
    routed: jax.Array | None
    room: Room | None
    segments: jax.Array

    @property
    def read(self) -> jax.Array:
        """``[B, T]`` bool, the tokens whose log-probabilities are taken."""
        return self.mask if self.given is None else self.mask | self.given


def packed_log_probs(
    config: DecoderConfig,
    remat: bool = False,
    temperature: float = 1.0,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> Callable[[Params, Any], tuple[jax.Array, jax.Array]]:
    """``(params, packed) → (log_probs, entropy)`` for packed rows.

    Limiting case: ``row_log_probs`` of the same prompts and completions in rows of their own, values and gradients.

    Args:
        config: shapes.
        remat: recompute each layer in the backward pass.
        temperature: the sampler's.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Returns:
        A function to arrays ``[B, T]`` in nats, 0 where ``mask`` is False.
    """

    score = _scorer(config, temperature, logit_bias, penalties)

    def log_probs(params: Params, packed: Packed) -> tuple[jax.Array, jax.Array]:
        routes, rows = routes_by(config, packed), (packed.tokens, packed.valid)
        hidden, load = row_states(config, params, *rows, remat, packed.segments, routes, packed.dropout)
        fields = packed._asdict()
        del fields["segments"]
        return score(params, hidden[:, :-1], Completions(**fields), packed.segments) + routing_of(config, load)

    return log_probs
