"""Credit from rivals: what a prompt's own completions are worth beside those that somebody else drew for it.

A *comparison* is ``(scores [G], others [H]) → [G]`` for one prompt; ``vmap`` gives ``[P, G]``. A NaN score means "could
not be scored": of an own completion it stays NaN, of a rival it counts nowhere. Without a scored rival all are NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import at_least_float32, masked_mean

Comparison = Callable[[jax.Array, jax.Array], jax.Array]


def _check(where: str, scores: jax.Array, others: jax.Array) -> None:
    checks.rank(where, "scores", scores, 1, "[G]")
    checks.rank(where, "others", others, 1, "[H]")


@check_arguments
def as_scored(scores: jax.Array, others: jax.Array) -> jax.Array:
    """The scores as they are: without rivals there is nothing to compare with.

    Args:
        scores: ``[G]``.
        others: ``[H]``, not read.

    >>> as_scored(jnp.array([1.0, 0.0]), jnp.zeros(0)).tolist()
    [1.0, 0.0]
    """
    _check("as_scored", scores, others)
    return scores


@check_arguments
def win_rate(scores: jax.Array, others: jax.Array) -> jax.Array:
    """Probability of being preferred to a rival, ``P_i = mean_j σ(s_i − s_j′)`` (Bradley-Terry).

    What Nash-MD (arXiv 2312.00886) pays a completion. Limiting cases: ½ against rivals of the same score; for scores
    far apart the share of the rivals that it beats, so a weight in front of the rewards says how sure the judge is.

    Args:
        scores: ``[G]``, of the own completions, in nats of preference.
        others: ``[H]``, of the rivals.

    Returns:
        ``[G]`` in (0, 1); NaN where nothing can be compared.

    Raises:
        ValueError: for other ranks.

    >>> win_rate(jnp.array([1.0, jnp.nan]), jnp.array([1.0, 1.0])).tolist()
    [0.5, nan]
    """
    _check("win_rate", scores, others)
    won = jax.nn.sigmoid(at_least_float32(scores)[:, None] - others[None])
    known = ~jnp.isnan(others)
    means = jax.vmap(lambda row: masked_mean(row, known))(won)
    return jnp.where(known.any() & ~jnp.isnan(scores), means, jnp.nan)


@check_arguments
def soft_value(scores: jax.Array, beta: float | jax.Array) -> jax.Array:
    """``V* = β log mean_j exp(s_j / β)``: a prompt's value under the policy that is optimal for a KL of weight β.

    It is estimated from samples of the reference, and needs no sample of that policy (arXiv 2505.20686). Limiting
    cases: the mean for β → ∞, the largest score for β → 0.

    Args:
        scores: ``[H]``, of the reference's samples; NaN counts nowhere.
        beta: β > 0, score units per nat; may be traced.

    Returns:
        Scalar, in the scores' units; NaN without a score.

    Raises:
        ValueError: for another rank, or a β that is not positive.

    >>> round(float(soft_value(jnp.array([0.0, 1.0, jnp.nan]), 1.0)), 4)  # log((1 + e)/2)
    0.6201
    """
    checks.rank("soft_value", "scores", scores, 1, "[H]")
    checks.positive("soft_value", beta=beta)
    known = ~jnp.isnan(scores)
    exponents = jnp.where(known, at_least_float32(scores), 0.0) / beta
    total = jax.nn.logsumexp(exponents, where=known)
    return jnp.where(known.any(), beta * (total - jnp.log(jnp.maximum(known.sum(), 1))), jnp.nan)


@check_arguments
def above_value(beta: float | jax.Array) -> Comparison:
    """Score above the prompt's ``soft_value``, ``A*_i = s_i − V*``: the advantage of the optimal policy.

    Limiting case: for β → ∞ the score minus the rivals' mean.

    Args:
        beta: of ``soft_value``.

    Returns:
        A comparison ``(scores [G], others [H]) → [G]``, in the scores' units.

    Raises:
        ValueError: for a β that is not positive; by the comparison, for other ranks.

    >>> above_value(1.0)(jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0])).tolist()
    [1.0, -1.0]
    """
    checks.positive("above_value", beta=beta)

    def compare(scores: jax.Array, others: jax.Array) -> jax.Array:
        _check("above_value", scores, others)
        return scores - soft_value(others, beta)

    return compare
