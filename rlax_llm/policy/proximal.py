"""Trust regions between three policies, and along what follows a token: what a loss can read off one log-ratio more."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line
from rlax_llm.core.recurrence import reverse_affine_scan
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.corrections import Correction, truncated_importance
from rlax_llm.policy.coupled import Coupled, as_coupled, of_chosen
from rlax_llm.policy.ratios import sequence_ratio
from rlax_llm.policy.trust_regions import TrustRegion

TRUNCATED = truncated_importance(ceiling=2.0)


@check_arguments
def log_linear(trust_region: TrustRegion | Coupled, correction: Correction = TRUNCATED) -> Coupled:
    """A trust region around a policy between sampler and learner that is not computed: decoupled PPO, a pass less.

    ``log π_prox ≈ log π_old + α (log π − log π_old)`` with ``α = s / (s + 1)``, s the steps since the token was drawn
    (``batch.staleness``): versions count as distances on a line. The trust region reads π/π_prox, and its loss weighs
    what a correction makes of π_prox/π_old; both without a gradient of π_prox (AReaL, arXiv 2505.24298). Limiting
    cases: ``trust_region`` itself where s = 0; the gradient of ``cispo`` for s → ∞. The policy is the one at hand, so
    this is no correction of a sampler that computes otherwise: that differs at s = 0 too. The weight is the trust
    region's alone: a KL term stays as it is, as in AReaL, whose KL is in the reward, and in TRL, which adds it behind
    its correction; ``weigh_by_ratio`` is a KL term that makes up for the ratio by itself.

    Args:
        trust_region: of ``log π/π_prox``.
        correction: ``(log π_prox, log π_old, mask) → weights``; truncated at 2 as a rule.

    Returns:
        A ``Coupled`` trust region of ``token_ratio``.

    Raises:
        ValueError: at trace time, for a batch without ``staleness``.

    >>> from rlax_llm.policy.trust_regions import unclipped
    >>> one = jnp.ones((1, 1))
    >>> batch = PolicyBatch(-one, -2 * one, one, one > 0, staleness=0 * one)
    >>> log_linear(unclipped).loss(one, batch).tolist() == unclipped(one, one).tolist()
    True
    """
    inner = as_coupled(trust_region)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        if batch.staleness is None:
            raise ValueError(
                "log_linear: batch.staleness is None; give Groups(..., staleness=...), the steps since each token was "
                "drawn, or take a correction."
            )
        fixed = jax.lax.stop_gradient(log_ratio)
        moved = batch.staleness / (batch.staleness + 1.0) * fixed
        between = batch.old_log_probs + moved
        weights = correction(between, batch.old_log_probs, batch.mask)
        return weights * inner.loss(log_ratio - moved, batch._replace(old_log_probs=between))

    return of_chosen(loss, inner.whole, inner.members)


@check_arguments
def future_kl(
    trust_region: TrustRegion | Coupled,
    half_life: float = 32.0,
    floor: float = 1.0,
    ceiling: float = 1.2,
    ratio_limit: float = 10.0,
    safe_ratio: float = 4.0,
) -> Coupled:
    """Advantages weighed by where the policy goes from each token on: ``A · clip(exp Σ_{k≥t} γ^(k−t) Δ_k)``.

    ``Δ = log π − log π_old`` of the chosen tokens, without a gradient, and ``γ = 2^(−1/half_life)`` (FIPO, arXiv
    2603.19835): a token is worth more whose continuation is reinforced. Tokens with a ratio above ``ratio_limit`` count
    for nothing in the sum, and where A < 0 one above ``safe_ratio`` is never weighed by more than 1. Limiting case:
    ``trust_region`` itself on-policy, and for bounds of 1.

    Args:
        trust_region: of the weighed advantages.
        half_life: > 0, chosen tokens.
        floor: smallest weight.
        ceiling: largest weight.
        ratio_limit: > 0, absolute.
        safe_ratio: > 0, absolute.

    Returns:
        A ``Coupled`` trust region over rows of tokens.

    Raises:
        ValueError: for numbers that are not positive, or a ceiling below the floor.

    >>> from rlax_llm.policy.trust_regions import score_function
    >>> log_ratio = jnp.log(jnp.array([[1.0, 1.1]]))
    >>> batch = PolicyBatch(log_ratio, 0 * log_ratio, jnp.ones((1, 2)), log_ratio > -1)
    >>> slope = jax.grad(lambda x: future_kl(score_function).loss(x, batch).sum())(log_ratio)
    >>> [round(x, 3) for x in slope.ravel().tolist()]
    [-1.098, -1.1]
    """
    positive = {"half_life": half_life, "floor": floor, "ratio_limit": ratio_limit, "safe_ratio": safe_ratio}
    checks.positive("future_kl", **positive)
    checks.not_negative("future_kl", **{"ceiling − floor": ceiling - floor})
    inner, discount = as_coupled(trust_region), 2 ** (-1 / half_life)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        fixed = jax.lax.stop_gradient(log_ratio)
        drift = jnp.where(fixed <= jnp.log(ratio_limit), fixed, 0.0)
        decay = jnp.where(batch.mask, discount, 1.0)
        ahead = jnp.moveaxis(reverse_affine_scan(jnp.moveaxis(drift, -1, 0), jnp.moveaxis(decay, -1, 0)), 0, -1)
        weights = jnp.clip(exp_then_line(ahead), floor, ceiling)
        unsafe = (batch.advantages < 0) & (fixed > jnp.log(safe_ratio))
        weights = jnp.where(unsafe, jnp.minimum(weights, 1.0), weights)
        return inner.loss(log_ratio, batch._replace(advantages=weights * batch.advantages))

    return of_chosen(loss, inner.whole, inner.members)


@check_arguments
def classify(group_size: int, temperature: float = 0.5) -> Coupled:
    """Tell right completions of a group from wrong ones: ``log(1 + Σ₊ e^(−s/τ)) + log(1 + Σ₋ e^(s/τ))`` (REAL).

    s is the mean log-ratio of a completion's tokens, + are those of A > 0 and − of A < 0 (arXiv 2602.05630). The
    gradient of a completion weighs at most 1/τ and falls where it is told apart already, with no clip. Every token of
    the group has the group's loss: take ``sequence_mean``, which gives the mean over groups. Limiting case: a group of
    one is the logistic loss of s/τ.

    Args:
        group_size: G, rows that stand together.
        temperature: τ > 0, nats.

    Returns:
        A ``Coupled`` trust region of ``token_ratio``, of rows in whole groups.

    Raises:
        ValueError: for a group size below 1 or a temperature that is not positive; at trace time, for rows that are no
            whole groups.

    >>> row = jnp.zeros((2, 1))
    >>> batch = PolicyBatch(row, row, jnp.array([[1.0], [-1.0]]), row == 0)
    >>> classify(2).loss(row, batch).round(4).tolist() == (2 * jnp.log(jnp.full((2, 1), 2.0))).round(4).tolist()
    True
    """
    checks.at_least_one("classify", group_size=group_size)
    checks.positive("classify", temperature=temperature)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        rows = log_ratio.shape[0]
        if rows % group_size:
            raise ValueError(f"classify: the batch has {rows} rows, wanted whole groups of {group_size}.")
        means = sequence_ratio(log_ratio, jnp.zeros_like(log_ratio), batch.mask)
        # One number of each row, wherever its tokens are.
        here = batch.mask.any(-1)
        logit = means.sum(-1) / jnp.maximum(batch.mask.sum(-1), 1) / temperature
        label = jnp.where(batch.mask, jnp.sign(batch.advantages), 0.0)
        label = label.sum(-1) / jnp.maximum(batch.mask.sum(-1), 1)

        def anchored(sign: float) -> jax.Array:
            there = here & (sign * label > 0)
            terms = jnp.where(there, -sign * logit, -jnp.inf).reshape(-1, group_size)
            return jax.nn.logsumexp(jnp.pad(terms, ((0, 0), (1, 0))), -1)

        of_groups = jnp.repeat(anchored(1.0) + anchored(-1.0), group_size)
        return jnp.where(batch.mask, of_groups[:, None], 0.0)

    return of_chosen(loss, whole=True)
