"""One token of each row: what may come, given the tokens before it, and the draw.

A row's own tokens decide by a request's penalties, its minimum of tokens and its automata. What is remembered of them
is kept up token by token, so a draw costs the same at any length.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.penalties import NONE
from rlax_llm.core.seen import Seen, penalized
from rlax_llm.core.token_sets import EVERY, are_bits, members_of, to_bits, words
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Draw


class Memory(NamedTuple):
    """What is remembered of each row's tokens.

    Attributes:
        read: ``[B, ceil(V/32)]`` uint32, the tokens of the prompt; None without penalties.
        counts: ``[B, V]`` int32, times of each token in the completion; None without penalties.
        states: of each automaton ``[B]`` int32, its state.
    """

    read: jax.Array | None = None
    counts: jax.Array | None = None
    states: tuple[jax.Array, ...] = ()

    def seen(self, vocabulary: int) -> Seen:
        """What penalties read; there are some."""
        assert self.read is not None and self.counts is not None
        return Seen(members_of(self.read, vocabulary) | (self.counts > 0), self.counts)


def first_memory(request: Request, tokens: jax.Array, valid: jax.Array, vocabulary: int) -> Memory:
    """The memory of ``P · G`` rows that have their prompts alone.

    Args:
        request: static.
        tokens: ``[P, W]`` int32.
        valid: ``[P, W]`` bool.
        vocabulary: V.
    """
    rows = tokens.shape[0] * request.group_size
    # Of a state that it knows XLA works out the sets of all rows while it compiles, for seconds.
    states = tuple(jax.lax.optimization_barrier(jnp.zeros(rows, jnp.int32)) for _ in request.automata)
    if request.penalties == NONE:
        return Memory(states=states)
    place = jnp.where(valid, tokens, vocabulary)  # what lies beyond is dropped
    there = jnp.zeros((tokens.shape[0], vocabulary), bool)
    there = there.at[jnp.arange(tokens.shape[0])[:, None], place].set(True, mode="drop")
    read = jnp.repeat(to_bits(there), request.group_size, 0)
    return Memory(read, jnp.zeros((rows, vocabulary), jnp.int32), states)


def remember(
    request: Request, memory: Memory, tokens: jax.Array, lengths: jax.Array, going: jax.Array
) -> tuple[Memory, jax.Array]:
    """The memory after a draw, and who has ended with it ``[B]``.

    Args:
        request: static.
        memory: before.
        tokens: ``[B]``, drawn.
        lengths: ``[B]``, tokens before.
        going: ``[B]`` bool, whose the draw is.
    """
    ended = jnp.isin(tokens, jnp.asarray(request.stop_ids, jnp.int32)) if request.stop_ids else jnp.zeros_like(going)
    early = lengths + 1 < request.min_new_tokens
    states = []
    for automaton, state in zip(request.automata, memory.states, strict=True):
        reached = jnp.asarray(automaton.moves)[state, jnp.asarray(automaton.classes)[tokens]]
        count = len(automaton.moves)
        ended |= (reached >= count) & ~early
        states.append(jnp.where(going, reached % count, state))
    counts = memory.counts
    if counts is not None:
        counts = counts.at[jnp.arange(len(tokens)), tokens].add(going.astype(counts.dtype))
    return Memory(memory.read, counts, tuple(states)), ended & going


def sampled(request: Request, lengths: jax.Array, memory: Memory, keys: jax.Array, logits: jax.Array) -> Draw:
    """One draw per row, of so many tokens so far.

    Args:
        request: static; before ``min_new_tokens`` no stop token can be drawn or kept, whatever the sampler.
        lengths: ``[B]`` int32.
        memory: of the tokens so far.
        keys: ``[B]``.
        logits: ``[B, V]``.

    Raises:
        ValueError: where the sampler's ``kept`` is no set of tokens.
    """
    rows, vocabulary = logits.shape
    bits = []
    for automaton, state in zip(request.automata, memory.states, strict=True):
        if automaton.forbids:
            of_class = jnp.asarray(automaton.moves >= 0)[state]
            allowed = of_class[:, automaton.classes]
            logits = jnp.where(allowed, logits, -jnp.inf)
            bits.append(to_bits(allowed))
    if request.min_new_tokens and request.stop_ids:
        stops = np.isin(np.arange(vocabulary), request.stop_ids)
        early = (lengths < request.min_new_tokens)[:, None]
        logits = jnp.where(early & stops, -jnp.inf, logits)
        bits.append(jnp.where(early, to_bits(~stops), EVERY))
    draw = _checked(_draw(request, memory, keys, logits), rows, vocabulary)
    for own in bits:
        kept = jnp.full((rows, words(vocabulary)), EVERY) if draw.kept is None else draw.kept
        draw = draw._replace(kept=kept & own)
    return draw


def _draw(request: Request, memory: Memory, keys: jax.Array, logits: jax.Array) -> Draw:
    if request.penalties == NONE:
        return request.sampler(keys, logits)
    seen = memory.seen(logits.shape[-1])
    return request.sampler(keys, logits, penalize=partial(penalized, penalties=request.penalties, seen=seen))


def _checked(draw: Draw, rows: int, vocabulary: int) -> Draw:
    if draw.kept is None or are_bits(draw.kept, (rows,), vocabulary):
        return draw
    raise ValueError(
        f"Request: the sampler's kept is {draw.kept.dtype} of shape {draw.kept.shape}, wanted uint32 "
        f"{(rows, words(vocabulary))}, or None where it never cuts; pack the set that it drew from by to_bits."
    )
