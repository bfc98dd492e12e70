"""Baselines that run through training: advantages that remember something from one step to the next.

A ``Remembering`` stands where an ``Advantage`` does. What it remembers is a pytree of arrays in the loop's state, so
that it is in every checkpoint, and a step stays a pure function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import at_least_float32, whiten
from rlax_llm.core.types import Scored
from rlax_llm.credit.batches import has_score
from rlax_llm.credit.groups import Advantage, check_groups, known_of


class Remembering(NamedTuple):
    """An advantage with a memory.

    Attributes:
        init: ``() → memory``, a pytree of arrays.
        credit: ``(memory, Scored) → (advantages, memory)``, advantages ``[P, G]`` or ``[P, G, T]``.
    """

    init: Callable[[], Any]
    credit: Callable[[Any, Scored], tuple[jax.Array, Any]]


@check_arguments
def remembering(advantage: Advantage | Remembering) -> Remembering:
    """An advantage as one with a memory, of which it keeps nothing in the special case of an ``Advantage``.

    Args:
        advantage: an estimator of ``Scored``, or a ``Remembering``, which stays as it is.

    >>> advantage = remembering(lambda scored: scored.scores)
    >>> advantage.init(), advantage.credit((), Scored(jnp.ones((1, 1)), None, None))[0].tolist()
    ((), [[1.0]])
    """
    if isinstance(advantage, Remembering):
        return advantage
    return Remembering(lambda: (), lambda memory, scored: (advantage(scored), memory))


@check_arguments
def halving(half_life: float, floor: float = 0.875, ceiling: float = 0.96) -> Callable[[jax.Array], jax.Array]:
    """What is left of a memory over a distance, ``2^(−distance / half_life)`` between two bounds.

    Limiting cases: the ceiling where nothing moved; the floor far away.

    Args:
        half_life: > 0, in the distance's units.
        floor: least that is left, at least 0.
        ceiling: most that is left, at most 1.

    Returns:
        ``distance → share``, any shape.

    Raises:
        ValueError: for a half-life that is not positive, or bounds out of order.

    >>> halving(1.0, 0.25, 1.0)(jnp.array([0.0, 1.0, 9.0])).tolist()
    [1.0, 0.5, 0.25]
    """
    checks.positive("halving", half_life=half_life)
    checks.not_negative("halving", floor=floor, **{"ceiling − floor": ceiling - floor, "1 − ceiling": 1 - ceiling})
    return lambda distance: jnp.clip(jnp.exp2(-distance / half_life), floor, ceiling)


class Tracked(NamedTuple):
    """What is remembered of each prompt.

    Attributes:
        won: ``[N]``, α of a Beta distribution: weight of what was scored, forgotten by and by.
        lost: ``[N]``, β: weight of what was missed of a score of 1.
        seen: ``[N]`` int32, the step in which the prompt was last had; −1 before.
        step: scalar int32, steps so far.
    """

    won: jax.Array
    lost: jax.Array
    seen: jax.Array
    step: jax.Array


def _tracked(memory: Tracked, which: jax.Array, kept: jax.Array, scores: jax.Array) -> Tracked:
    """The memory of prompts ``which [P]``, of which the share ``kept [P]`` is left, and their new scores ``[P, G]``."""
    known = has_score(scores)
    won, lost = memory.won[which], memory.lost[which]
    gained, missed = (jnp.where(known, x, 0.0).sum(-1).astype(won.dtype) for x in (scores, 1 - scores))
    # A prompt may be there more than once: it is forgotten once, and all its scores are added.
    return Tracked(
        memory.won.at[which].set(kept * won).at[which].add(gained),
        memory.lost.at[which].set(kept * lost).at[which].add(missed),
        memory.seen.at[which].set(jnp.where(known.any(-1), memory.step, memory.seen[which])),
        memory.step + 1,
    )


@check_arguments
def running_value(
    prompts: int, forgetting: Callable[[jax.Array], jax.Array] | None = None, weight: float = 8.0
) -> Remembering:
    """Score minus a running estimate of the prompt's, ``A = s − α/(α + β)``; then ``α ← ρα + s``, ``β ← ρβ + 1 − s``.

    SPO (arXiv 2509.13232) before its whitening: one completion of a prompt is enough. ρ is what is left of the memory
    since the policy last had the prompt: by ``known.drift`` in nats, as in the paper, or else by the steps since. The
    estimate is the one before the score enters it, so that it does not depend on the completion. Limiting cases:
    without forgetting the estimate is the mean of all scores and ``weight`` prior ones of 1/2; of a memory that is
    forgotten at once, the mean of the prompt's last scores.

    Args:
        prompts: N, numbers that ``known.prompts`` may have.
        forgetting: ``distance → ρ``, ``halving`` for one; None is ``halving(8.0)``.
        weight: of the estimate of 1/2 that each prompt begins with, completions.

    Returns:
        A ``Remembering`` of scores ``[P, G]`` between 0 and 1; 0 for NaN, which is not remembered either.

    Raises:
        ValueError: for fewer than one prompt or a weight that is not positive; at trace time without ``known.prompts``.

    >>> from rlax_llm.core.types import Known
    >>> value = running_value(3, lambda distance: jnp.ones_like(distance), weight=2.0)
    >>> scored = Scored(jnp.array([[1.0]]), None, None, known=Known(prompts=jnp.array([2])))
    >>> first, memory = value.credit(value.init(), scored)
    >>> first.tolist(), round(float(value.credit(memory, scored)[0][0, 0]), 4)
    ([[0.5]], 0.3333)
    """
    checks.at_least_one("running_value", prompts=prompts)
    checks.positive("running_value", weight=weight)
    left = halving(8.0) if forgetting is None else forgetting

    def init() -> Tracked:
        # Two arrays: a loop that is given its state away may not be given one of them twice.
        won, lost = (jnp.full(prompts, weight / 2, jnp.float32) for _ in range(2))
        return Tracked(won, lost, jnp.full(prompts, -1, jnp.int32), jnp.int32(0))

    def credit(memory: Tracked, scored: Scored) -> tuple[jax.Array, Tracked]:
        check_groups("running_value", scored)
        which, scores = known_of("running_value", scored, "prompts"), at_least_float32(scored.scores)
        known = has_score(scores)
        won, lost = memory.won[which], memory.lost[which]
        advantages = jnp.where(known, scores - (won / (won + lost))[:, None], 0.0)
        since = memory.step - jnp.maximum(memory.seen[which], 0)
        drift = since.astype(won.dtype) if scored.known.drift is None else scored.known.drift
        # What a prompt has not been asked yet, there is nothing to forget of; nor where no score came in.
        kept = jnp.where((memory.seen[which] < 0) | ~known.any(-1), 1.0, left(drift)).astype(won.dtype)
        return advantages, _tracked(memory, which, kept, scores)

    return Remembering(init, credit)


@check_arguments
def role_baseline(roles: int, decay: float = 0.95) -> Remembering:
    """Score minus a running mean of the scores of its role, ``A = s − b[role]`` (RAE, arXiv 2506.24119).

    ``b[role] ← decay · b[role] + (1 − decay) · s`` with each completion of the role, one after the other. The means are
    those before the step's scores enter, so that none depends on its own completion. Limiting cases: a decay of 1
    keeps b at 0, which is REINFORCE; of 0, the last score of the role in the step before.

    Args:
        roles: R, numbers that ``known.roles`` may have.
        decay: in [0, 1], of one completion.

    Returns:
        A ``Remembering`` of scores ``[P, G]``, in their units; 0 for NaN, which is not remembered either.

    Raises:
        ValueError: for fewer than one role or a decay out of range; at trace time without ``known.roles``.

    >>> from rlax_llm.core.types import Known
    >>> baseline = role_baseline(2, decay=0.5)
    >>> scored = Scored(jnp.array([[1.0, -1.0]]), None, None, known=Known(roles=jnp.array([[0, 1]])))
    >>> first, memory = baseline.credit(baseline.init(), scored)
    >>> first.tolist(), memory.tolist(), baseline.credit(memory, scored)[0].tolist()
    ([[1.0, -1.0]], [0.5, -0.5], [[0.5, -0.5]])
    """
    checks.at_least_one("role_baseline", roles=roles)
    checks.not_negative("role_baseline", decay=decay, **{"1 − decay": 1 - decay})

    def credit(memory: jax.Array, scored: Scored) -> tuple[jax.Array, jax.Array]:
        check_groups("role_baseline", scored)
        who, scores = known_of("role_baseline", scored, "roles"), at_least_float32(scored.scores)
        known = has_score(scores)

        def one(means: jax.Array, of: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            role, score, there = of
            moved = decay * means[role] + (1 - decay) * score
            return means.at[role].set(jnp.where(there, moved, means[role])), None

        rows = who.ravel(), jnp.where(known, scores, 0.0).ravel().astype(memory.dtype), known.ravel()
        after = jax.lax.scan(one, memory, rows)[0]
        return jnp.where(known, scores - memory[who], 0.0), after

    return Remembering(lambda: jnp.zeros(roles, jnp.float32), credit)


@check_arguments
def whitened(advantage: Remembering, ddof: int = 1, eps: float = 1e-8) -> Remembering:
    """Another's advantages, centered and scaled over the batch's completions: SPO's last step.

    Args:
        advantage: gives ``[P, G]``.
        ddof: delta degrees of freedom of the variance.
        eps: added to the variance.

    Returns:
        A ``Remembering``; 0 for NaN scores.

    >>> from rlax_llm.core.types import Known
    >>> scored = Scored(jnp.array([[1.0, 3.0]]), None, None, known=Known(roles=jnp.array([[0, 0]])))
    >>> baseline = whitened(role_baseline(1), ddof=0, eps=0.0)
    >>> baseline.credit(baseline.init(), scored)[0].tolist()
    [[-1.0, 1.0]]
    """

    def credit(memory: Any, scored: Scored) -> tuple[jax.Array, Any]:
        credit, memory = advantage.credit(memory, scored)
        return whiten(credit, has_score(scored.scores), ddof, eps), memory

    return Remembering(advantage.init, credit)
