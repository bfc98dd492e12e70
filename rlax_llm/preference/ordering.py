"""From scores to pairs: which of a prompt's completions are preferred to which.

A *pairing* is ``(scores [G], others [H]) → Pairs`` for one prompt: of its own completions and of those that a rival
drew for it, which stand behind them. ``vmap`` takes it over prompts. A NaN score means "could not be scored", and such
a completion is in no pair; two of the same score are no pair either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import at_least_float32
from rlax_llm.credit.shaping import informative
from rlax_llm.preference.pairs import Preference


class Pairs(NamedTuple):
    """K pairs of a prompt's completions.

    Attributes:
        chosen: ``[K]`` int32, places among the ``G + H`` completions.
        rejected: ``[K]`` int32.
        there: ``[K]`` bool; where False there is nothing to prefer, and the pair is padding.
    """

    chosen: jax.Array
    rejected: jax.Array
    there: jax.Array


Pairing = Callable[[jax.Array, jax.Array], Pairs]


class OnlinePairs(NamedTuple):
    """Learning from pairs of completions that are drawn on the way; ``_replace`` states how one way differs.

    Attributes:
        preference: what a pair pays.
        pairing: ``(scores [G], others [H]) → Pairs``, of each prompt.
        rivals: share of the reference in the geometric mixture that rivals are drawn from, ``π^(1 − m) · π_ref^m``
            token by token: 0 is the policy itself, 1 the reference. None where there are no rivals.
    """

    preference: Preference
    pairing: Pairing
    rivals: float | None = None


@check_arguments
def best_and_worst(scores: jax.Array, others: jax.Array) -> Pairs:
    """One pair of each prompt: the best of all its completions, and the worst.

    Limiting case: of two completions their order, which is online DPO (arXiv 2402.04792).

    Args:
        scores: ``[G]``.
        others: ``[H]``, of rivals; may be none.

    Raises:
        ValueError: for other ranks.

    >>> found = best_and_worst(jnp.array([0.5, jnp.nan, 2.0]), jnp.zeros(0))
    >>> found.chosen.tolist(), found.rejected.tolist(), found.there.tolist()
    ([2], [0], [True])
    """
    every = _together("best_and_worst", scores, others)
    known = ~jnp.isnan(every)
    best = jnp.argmax(jnp.where(known, every, -jnp.inf)).astype(jnp.int32)
    worst = jnp.argmin(jnp.where(known, every, jnp.inf)).astype(jnp.int32)
    return Pairs(best[None], worst[None], informative(every)[None])


@check_arguments
def each_against_its_rival(scores: jax.Array, others: jax.Array) -> Pairs:
    """A pair for each own completion: itself and the rival of the same number (XPO, arXiv 2405.21046).

    Args:
        scores: ``[G]``.
        others: ``[G]``, of rivals.

    Raises:
        ValueError: for other ranks, or not as many rivals.

    >>> found = each_against_its_rival(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]))
    >>> found.chosen.tolist(), found.rejected.tolist(), found.there.tolist()
    ([0, 3], [2, 1], [True, False])
    """
    every = _together("each_against_its_rival", scores, others)
    checks.same_shape("each_against_its_rival", scores=scores, others=others)
    own = jnp.arange(scores.shape[0], dtype=jnp.int32)
    wins = scores > others
    there = jax.vmap(lambda *pair: informative(jnp.stack(pair)))(*jnp.split(every, 2))
    rival = own + own.size
    return Pairs(jnp.where(wins, own, rival), jnp.where(wins, rival, own), there)


def _together(where: str, scores: jax.Array, others: jax.Array) -> jax.Array:
    checks.rank(where, "scores", scores, 1, "[G]")
    checks.rank(where, "others", others, 1, "[H]")
    return at_least_float32(jnp.concatenate([scores, others]))
