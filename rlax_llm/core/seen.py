"""What penalties make of logits, by the tokens that were there before.

These follow from the tokens themselves, so a learner takes the same distribution as the sampler did.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.penalties import Penalties

NOTHING = -(2**31)
"""Of a history, where no token was."""


class Seen(NamedTuple):
    """Tokens that were there before the one that is drawn.

    Attributes:
        anywhere: ``[…, V]`` bool, in the prompt or in the completion.
        counts: ``[…, V]`` int32, times in the completion.
    """

    anywhere: jax.Array
    counts: jax.Array


def penalized(logits: jax.Array, penalties: Penalties, seen: Seen) -> jax.Array:
    """Logits with penalties: repetition first, then presence and frequency.

    Limiting cases: the logits themselves for no penalty, or where nothing was there before.

    Args:
        logits: ``[…, V]``.
        penalties: numbers, or scalars of a trace.
        seen: what was there before.

    >>> seen = Seen(jnp.array([True, True, False]), jnp.array([2, 0, 0]))
    >>> penalized(jnp.array([1.0, -1.0, 1.0]), Penalties(2.0, 0.5, 0.25), seen).tolist()
    [-0.5, -2.0, 1.0]
    """
    counts = seen.counts.astype(logits.dtype)
    repeated = logits * repetition_slope(logits, penalties, seen)
    return repeated - penalties.frequency * counts - penalties.presence * (counts > 0)


def repetition_slope(logits: jax.Array, penalties: Penalties, seen: Seen) -> jax.Array:
    """``∂ penalized / ∂ logits``, ``[…, V]``: what the repetition penalty multiplies a logit by.

    Args:
        logits: ``[…, V]``.
        penalties: numbers, or scalars of a trace.
        seen: what was there before.
    """
    factor = jnp.asarray(penalties.repetition, logits.dtype)
    return jnp.where(seen.anywhere, jnp.where(logits < 0, factor, 1 / factor), 1.0).astype(logits.dtype)


def histories(
    rows: tuple[jax.Array, jax.Array, jax.Array], columns: int, segments: jax.Array | None = None
) -> jax.Array:
    """What was there before each of the last columns, ``[B, columns, T]`` int32, which ``tally`` counts.

    A token is in the completion where the policy chose it and chose all that followed up to here: a tool's answer
    begins another, and what was before it is read as a prompt is.

    Args:
        rows: ``tokens``, ``valid`` and ``mask``, ``[B, T]`` each.
        columns: S.
        segments: ``[B, T]``, of packed rows; None where a row is one.

    Returns:
        v of a token v of the completion, −1 − v of another that was read, ``NOTHING`` where none was.

    >>> row = jnp.array([[7, 5, 6]]), jnp.array([[True, True, True]]), jnp.array([[False, True, True]])
    >>> histories(row, 1).tolist() == [[[-8, 5, NOTHING]]]
    True
    """
    tokens, valid, mask = rows
    length = tokens.shape[1]
    parts = jnp.cumsum(~mask, -1)
    before = (jnp.arange(length) < jnp.arange(length - columns, length)[:, None]) & valid[:, None, :]
    if segments is not None:
        before &= segments[:, None, :] == segments[:, -columns:, None]
    own = mask[:, None, :] & (parts[:, None, :] == parts[:, -columns:, None])
    found = jnp.where(own, tokens[:, None, :], -1 - tokens[:, None, :])
    return jnp.where(before, found, NOTHING).astype(jnp.int32)


def tally(history: jax.Array, size: int, first: jax.Array | int = 0) -> Seen:
    """What histories hold of some tokens.

    Args:
        history: ``[N, T]``, of ``histories``.
        size: how many tokens.
        first: the first of them.

    >>> seen = tally(jnp.array([[-3, 1, 1, NOTHING]]), 4)
    >>> seen.anywhere.tolist(), seen.counts.tolist()
    ([[False, True, True, False]], [[0, 2, 0, 0]])
    """
    rows = jnp.arange(history.shape[0])[:, None]
    zeros = jnp.zeros((history.shape[0], size), jnp.int32)

    def counted(tokens: jax.Array) -> jax.Array:
        own = tokens - first
        place = jnp.where((tokens >= 0) & (own >= 0) & (own < size), own, size)  # what lies beyond is dropped
        return zeros.at[rows, place].add(1, mode="drop")

    counts = counted(history)
    return Seen((counts > 0) | (counted(-1 - history) > 0), counts)
