"""Credit over a whole batch of groups ``[P, G]``: statistics that reach beyond one prompt.

Each estimator is an ``Advantage``, ``Scored → [P, G]`` or, where tokens differ, ``[P, G, T]``. A completion without a
score (NaN) is in no statistic and has advantage 0. Whitening moves a raw 0 by the batch's mean, so that equal scores in
a group do *not* give 0 there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import divide_by_std, masked_deviation, whiten
from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import (
    Advantage,
    centered,
    check_groups,
    check_rows,
    check_scored,
    has_rival,
    per_group,
    reference_for,
    z_score,
)
from rlax_llm.credit.returns import discounted_returns
from rlax_llm.credit.shaping import informative, kl_in_reward, score_at_end


@check_arguments
def has_score(scores: jax.Array) -> jax.Array:
    """The completions that have a score.

    Args:
        scores: ``[P, G]``, NaN where a completion has none.

    Returns:
        ``[P, G]`` bool.

    >>> has_score(jnp.array([[1.0, jnp.nan]])).tolist()
    [[True, False]]
    """
    return ~jnp.isnan(scores)


@check_arguments
def batch_std(ddof: int = 1, eps: float = 1e-4) -> Advantage:
    """Centered in the group, scaled by the batch: ``A_i = (s_i − mean_group) / (std_batch + eps)``.

    Lite PPO (arXiv 2508.08221). The standard deviation is that of the raw scores of all groups together, so that easy
    and hard prompts keep their proportion. Limiting case: one group is ``z_score``.

    Args:
        ddof: delta degrees of freedom of the standard deviation.
        eps: added to it, in the scores' units.

    Returns:
        An estimator ``Scored → [P, G]``.

    >>> scores = jnp.array([[1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    >>> batch_std(ddof=0, eps=0.0)(Scored(scores, None, None)).tolist()
    [[-2.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def advantage(scored: Scored) -> jax.Array:
        check_groups("batch_std", scored)
        return divide_by_std(per_group(centered)(scored), scored.scores, has_score(scored.scores), ddof, eps)

    return advantage


@check_arguments
def whiten_advantages(
    advantage: Advantage, ddof: int = 1, eps: float = 1e-8, rows: Callable[[jax.Array], jax.Array] = has_score
) -> Advantage:
    """Whiten another estimator's advantages over all chosen tokens of the batch, so that long completions weigh more.

    Args:
        advantage: ``Scored → [P, G]`` (each token of a completion takes its value) or ``[P, G, T]``.
        ddof: delta degrees of freedom of the variance.
        eps: added to the variance.
        rows: ``scores [P, G] → [P, G]``, the completions that take part; the others have advantage 0.

    Returns:
        An estimator ``Scored → [P, G, T]``; 0 where the policy did not choose.

    >>> scored = Scored(jnp.array([[0.0, 4.0]]), None, jnp.array([[[True, False], [True, False]]]))
    >>> whiten_advantages(per_group(centered), ddof=0, eps=0.0)(scored).tolist()
    [[[-1.0, 0.0], [1.0, 0.0]]]
    """

    def over_batch(scored: Scored) -> jax.Array:
        check_rows("whiten_advantages", scored)
        credit = advantage(scored)
        credit = credit[..., None] if credit.ndim == 2 else credit
        taken = scored.mask & rows(scored.scores)[..., None]
        return whiten(jnp.broadcast_to(credit, scored.mask.shape), taken, ddof, eps)

    return over_batch


@check_arguments
def returns_to_go(kl_coef: float = 0.0, discount: float = 1.0) -> Advantage:
    """Each token's return: the score at the end minus the KL of the tokens from here on.

    ``G_t = Σ_{t'≥t} discount^(t'−t) · (s · [t' is last] − kl_coef · k1(t'))``, where t counts chosen tokens: tool
    output between two turns decays nothing. Limiting case: without KL and discount, the score on every token.

    Args:
        kl_coef: β ≥ 0, score units per nat; with 0 no reference is needed.
        discount: γ of one token, 0 … 1.

    Returns:
        An estimator ``Scored → [P, G, T]``; 0 for a NaN score and where the policy did not choose.

    Raises:
        ValueError: at trace time, where ``kl_coef`` is not 0 and there are no ``ref_log_probs``.

    >>> scored = Scored(jnp.array([[4.0]]), None, jnp.array([[[False, True, False, True, False]]]))
    >>> returns_to_go(discount=0.5)(scored).tolist()
    [[[0.0, 2.0, 0.0, 4.0, 0.0]]]
    """

    def advantage(scored: Scored) -> jax.Array:
        check_rows("returns_to_go", scored)
        known = has_score(scored.scores)
        taken = scored.mask & known[..., None]
        rewards = score_at_end(jnp.where(known, scored.scores, 0.0), taken)
        ref_log_probs = reference_for("returns_to_go", scored, kl_coef)
        if ref_log_probs is not None:
            rewards = kl_in_reward(rewards, scored.log_probs, ref_log_probs, taken, kl_coef)
        discounts = jnp.where(taken, discount, jnp.ones_like(rewards))
        return jnp.where(taken, jax.vmap(jax.vmap(discounted_returns))(rewards, discounts), 0.0)

    return advantage


@check_arguments
def reinforce_plus_plus(kl_coef: float = 0.0, discount: float = 1.0, ddof: int = 1, eps: float = 1e-8) -> Advantage:
    """REINFORCE++ (arXiv 2501.03262): the tokens' returns, whitened over the batch; groups play no part.

    Args:
        kl_coef: weight of k1 in the reward, score units per nat; with 0 no reference is needed.
        discount: γ of one token, 0 … 1.
        ddof: delta degrees of freedom of the whitening.
        eps: added to its variance.

    Returns:
        An estimator ``Scored → [P, G, T]``.

    Raises:
        ValueError: at trace time, where ``kl_coef`` is not 0 and there are no ``ref_log_probs``.

    >>> scored = Scored(jnp.array([[1.0], [5.0]]), None, jnp.ones((2, 1, 1), bool))
    >>> reinforce_plus_plus(ddof=0, eps=0.0)(scored).tolist()
    [[[-1.0]], [[1.0]]]
    """
    return whiten_advantages(returns_to_go(kl_coef, discount), ddof, eps)


@check_arguments
def reinforce_plus_plus_baseline(ddof: int = 1, eps: float = 1e-8) -> Advantage:
    """REINFORCE++-baseline (arXiv 2501.03262): centered in the group, then whitened over the batch's tokens.

    Limiting case: proportional to ``centered`` where all completions have one length, for centered scores then have
    mean 0; where lengths differ, the mean over tokens is taken off as well.

    Args:
        ddof: delta degrees of freedom of the whitening.
        eps: added to its variance.

    Returns:
        An estimator ``Scored → [P, G, T]``; 0 in a group with fewer than two scored members.

    >>> scored = Scored(jnp.array([[1.0, 5.0]]), None, jnp.ones((1, 2, 1), bool))
    >>> reinforce_plus_plus_baseline(ddof=0, eps=0.0)(scored).tolist()
    [[[-1.0], [1.0]]]
    """
    return whiten_advantages(per_group(centered), ddof, eps, jax.vmap(has_rival))


@check_arguments
def informative_share(scores: jax.Array) -> jax.Array:
    """Share of the scored completions that are in a group with different scores: GPG's ``(B − M) / B``.

    Args:
        scores: ``[P, G]``, NaN where a completion has no score.

    Returns:
        Scalar, 0 … 1.

    >>> float(informative_share(jnp.array([[0.0, 1.0], [1.0, 1.0]])))
    0.5
    """
    scored = has_score(scores)
    kept = scored & jax.vmap(informative)(scores)[:, None]
    return kept.sum() / jnp.maximum(scored.sum(), 1)


@check_arguments
def nonzero_share(scores: jax.Array) -> jax.Array:
    """Share of the scored completions with a score that is not 0: what verl's GPG divides by.

    Args:
        scores: ``[P, G]``, NaN where a completion has no score.

    Returns:
        Scalar, 0 … 1.

    >>> float(nonzero_share(jnp.array([[0.0, 1.0], [1.0, 1.0]])))
    0.75
    """
    scored = has_score(scores)
    return (scored & (scores != 0)).sum() / jnp.maximum(scored.sum(), 1)


@check_arguments
def gpg(f_norm: float = 1.0, share: Callable[[jax.Array], jax.Array] = informative_share) -> Advantage:
    """GPG's advantage ``A_i = α (s_i − mean_group) / f_norm`` with ``α = 1 / share`` (arXiv 2504.02546).

    α makes up for the completions that teach nothing but stand in the loss's denominator. Limiting case: ``centered``
    where every group is informative and ``f_norm = 1``.

    Args:
        f_norm: a constant, in the scores' units.
        share: ``scores [P, G] → scalar``, the share that teaches.

    Returns:
        An estimator ``Scored → [P, G]``; 0 where the share is 0.

    Raises:
        ValueError: for an ``f_norm`` that is not positive.

    >>> gpg()(Scored(jnp.array([[0.0, 1.0], [1.0, 1.0]]), None, None)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    checks.positive("gpg", f_norm=f_norm)

    def advantage(scored: Scored) -> jax.Array:
        credit = per_group(centered)(scored) / f_norm
        kept = share(scored.scores).astype(credit.dtype)
        return jnp.where(kept > 0, credit / jnp.where(kept > 0, kept, 1.0), 0.0)

    return advantage


@check_arguments
def gdpo(scores: jax.Array, weights: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """Several rewards, each a z-score in its group before they are added; the sum is scaled over the batch.

    ``A = (S − mean_batch(S)) / (std_batch(S) + eps)``, ``S = Σ_k w_k z_score(s_k)`` (GDPO, arXiv 2601.05242). Rewards
    of different spread so weigh what ``weights`` says. Limiting case: one reward in one group is ``z_score``, up to
    the epsilons.

    Args:
        scores: ``[K, P, G]``, one plane a reward, G ≥ 2, NaN where that reward could not score a completion.
        weights: ``[K]``.
        ddof: delta degrees of freedom of both standard deviations.
        eps: added to both.

    Returns:
        ``[P, G]`` dimensionless advantages; 0 for a completion that no reward could compare within its group.

    Raises:
        ValueError: for other shapes, or groups of one.

    >>> scores = jnp.array([[[0.0, 2.0], [5.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    >>> gdpo(scores, jnp.array([1.0, 3.0]), ddof=0, eps=0.0).tolist()
    [[-1.0, 1.0], [1.0, -1.0]]
    """
    checks.rank("gdpo", "scores", scores, 3, "[K, P, G]")
    if jnp.shape(weights) != (scores.shape[0],):
        raise ValueError(
            f"gdpo: weights has shape {jnp.shape(weights)}, scores has {scores.shape}; give one weight for each of "
            f"the {scores.shape[0]} rewards."
        )
    each = jax.vmap(jax.vmap(lambda group: z_score(group, ddof, eps)))(scores)
    total = jnp.tensordot(jnp.asarray(weights, each.dtype), each, 1)
    compared = jax.vmap(jax.vmap(has_rival))(scores).any(0)
    return divide_by_std(masked_deviation(total, compared), total, compared, ddof, eps)


@check_arguments
def per_reward(weights: tuple[float, ...]) -> Advantage:
    """``gdpo`` as an estimator of ``Scored`` whose scores are ``[K, P, G]``, or ``[P, G]`` for a single reward.

    Args:
        weights: one for each reward.

    Returns:
        An estimator ``Scored → [P, G]``.

    >>> per_reward((1.0,))(Scored(jnp.array([[[0.0, 1.0, 2.0]]]), None, None)).round(2).tolist()
    [[-1.0, 0.0, 1.0]]
    """

    def advantage(scored: Scored) -> jax.Array:
        check_scored("per_reward", scored)
        scores = scored.scores[None] if scored.scores.ndim == 2 else scored.scores
        return gdpo(scores, jnp.asarray(weights))

    return advantage
