"""Named algorithms: each states its difference from its parent, in at most six lines."""

from __future__ import annotations

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlEstimator, k3, kl_penalty
from rlax_llm.credit import batches as batch_credit
from rlax_llm.credit.groups import (
    centered,
    kl_in_score,
    leave_one_out,
    length_centered,
    per_group,
    z_score,
)
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import NaturalStep, backtracking_search, improves_within
from rlax_llm.policy import coupled, trust_regions
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_ratio, sequence_token_ratio, summed_token_ratio, token_ratio
from rlax_llm.policy.trust_regions import clip, score_function
from rlax_llm.policy.weightings import fixed_length, sequence_mean, sequence_sum, token_mean


@check_arguments
def penalty_or_none(estimator: KlEstimator, kl_coef: float) -> KlEstimator | None:
    """``kl_penalty(estimator, kl_coef)``, or None for a coefficient of 0: then no reference is needed.

    Args:
        estimator: ``k2`` or ``k3``.
        kl_coef: weight ≥ 0, per nat.

    >>> penalty_or_none(k3, 0.0) is None
    True
    """
    return None if isinstance(kl_coef, (int, float)) and kl_coef == 0 else kl_penalty(estimator, kl_coef)


@check_arguments
def grpo(kl_coef: float = 0.04, eps: float = 0.2) -> Objective:
    """Group Relative Policy Optimization (arXiv 2402.03300): z-scores, PPO clip, sequence mean, k3 in the loss.

    Args:
        kl_coef: weight of the k3 term; with 0 there is none, and no reference is needed.
        eps: half-width of the clip.

    >>> grpo(kl_coef=0).kl is None
    True
    """
    return Objective(per_group(z_score), token_ratio, clip(eps), sequence_mean, penalty_or_none(k3, kl_coef))


@check_arguments
def dr_grpo(max_new_tokens: int, eps: float = 0.2) -> Objective:
    """Dr.GRPO (arXiv 2503.20783): no division by the group's std or by the completion's length, no KL.

    Args:
        max_new_tokens: the constant in place of the length: the sampler's limit, tokens.
        eps: half-width of the clip.

    >>> dr_grpo(8).kl is None
    True
    """
    return grpo(0, eps)._replace(advantage=per_group(centered), weighting=fixed_length(max_new_tokens))


@check_arguments
def dapo(eps: float = 0.2, eps_high: float = 0.28) -> Objective:
    """DAPO's loss (arXiv 2503.14476): clip-higher and the token mean, no KL.

    Args:
        eps: half-width of the clip below 1.
        eps_high: half-width of the clip above 1.

    >>> dapo().weighting is token_mean
    True
    """
    return grpo(0)._replace(trust_region=clip(eps, eps_high), weighting=token_mean)


@check_arguments
def rloo(kl_coef: float = 0.05) -> Objective:
    """REINFORCE Leave-One-Out (arXiv 2402.14740): whole completions, leave-one-out baseline, k1 in the score.

    Args:
        kl_coef: weight of the sequence's k1 in its score; with 0 no reference is needed.

    >>> rloo().trust_region is score_function
    True
    """
    advantage = kl_in_score(per_group(leave_one_out), kl_coef)
    return Objective(advantage, token_ratio, score_function, sequence_sum)


@check_arguments
def gspo(eps: float = 3e-4, eps_high: float = 4e-4) -> Objective:
    """Group Sequence Policy Optimization (arXiv 2507.18071): one ratio per completion, no KL.

    Args:
        eps: half-width of the clip below 1, of the mean ratio of a token.
        eps_high: half-width above 1.

    >>> gspo().ratio is sequence_ratio
    True
    """
    return grpo(0)._replace(ratio=sequence_ratio, trust_region=clip(eps, eps_high))


@check_arguments
def gspo_token(eps: float = 3e-4, eps_high: float = 4e-4) -> Objective:
    """GSPO-token (arXiv 2507.18071): the completion's ratio with each token's own gradient.

    Args:
        eps: half-width of the clip below 1.
        eps_high: half-width above 1.

    >>> gspo_token().ratio is sequence_token_ratio
    True
    """
    return gspo(eps, eps_high)._replace(ratio=sequence_token_ratio)


@check_arguments
def luspo(eps: float = 3e-4, eps_high: float = 4e-4) -> Objective:
    """LUSPO: GSPO whose completions weigh as many tokens as they have.

    Args:
        eps: half-width of the clip below 1.
        eps_high: half-width above 1.

    >>> luspo().weighting is sequence_sum
    True
    """
    return gspo(eps, eps_high)._replace(weighting=sequence_sum)


@check_arguments
def gmpo(eps: float = 0.4) -> Objective:
    """Geometric-Mean Policy Optimization (arXiv 2507.20673).

    Args:
        eps: half-width of the clip of a token's log-ratio, nats.

    >>> gmpo().weighting is sequence_mean
    True
    """
    return grpo(0)._replace(trust_region=coupled.gmpo(eps))


@check_arguments
def cispo(ceiling: float) -> Objective:
    """CISPO (arXiv 2506.13585): detached, capped importance weights, the mean over tokens, no KL.

    Args:
        ceiling: largest weight, the ratio itself.

    >>> cispo(5.0).weighting is token_mean
    True
    """
    return dapo()._replace(trust_region=trust_regions.cispo(ceiling=ceiling))


@check_arguments
def sapo(temperature_positive: float = 1.0, temperature_negative: float = 1.05) -> Objective:
    """Soft Adaptive Policy Optimization (arXiv 2511.20347).

    Args:
        temperature_positive: τ where A > 0.
        temperature_negative: τ elsewhere.

    >>> sapo().weighting is sequence_mean
    True
    """
    return grpo(0)._replace(trust_region=trust_regions.sapo(temperature_positive, temperature_negative))


@check_arguments
def vespo() -> Objective:
    """VESPO (arXiv 2602.10693): Gamma-shaped weights of whole completions, the mean over tokens.

    >>> vespo().ratio is summed_token_ratio
    True
    """
    return dapo()._replace(ratio=summed_token_ratio, trust_region=trust_regions.vespo())


@check_arguments
def dppo_tv(eps: float = 0.2) -> Objective:
    """Divergence PPO by total variation (arXiv 2602.04879).

    Args:
        eps: half-width, of a token's probability.

    >>> dppo_tv().weighting is token_mean
    True
    """
    return dapo()._replace(trust_region=coupled.dppo_tv(eps))


@check_arguments
def dppo_kl(limit: float = 0.05) -> Objective:
    """Divergence PPO by the KL of "this token or another" (arXiv 2602.04879).

    Args:
        limit: largest divergence of a token, nats.

    >>> dppo_kl().weighting is token_mean
    True
    """
    return dapo()._replace(trust_region=coupled.dppo_kl(limit))


@check_arguments
def lite_ppo() -> Objective:
    """Lite PPO (arXiv 2508.08221): the group's mean, the batch's std, the mean over tokens.

    >>> lite_ppo().weighting is token_mean
    True
    """
    return dapo(0.2, 0.2)._replace(advantage=batch_credit.batch_std())


@check_arguments
def opo() -> Objective:
    """OPO (arXiv 2505.23585): the length-weighted mean of the group as baseline, the score function.

    >>> opo().trust_region is score_function
    True
    """
    return rloo(0)._replace(advantage=length_centered)


@check_arguments
def gpg() -> Objective:
    """GPG (arXiv 2504.02546): centered scores, made up for uninformative groups, and the score function.

    >>> gpg().trust_region is score_function
    True
    """
    return dapo()._replace(advantage=batch_credit.gpg(), trust_region=score_function)


@check_arguments
def reinforce_plus_plus(kl_coef: float = 0.01) -> Objective:
    """REINFORCE++ (arXiv 2501.03262): the tokens' returns with k1 in the reward, whitened over the batch.

    Args:
        kl_coef: weight of k1 in the reward; with 0 no reference is needed.

    >>> reinforce_plus_plus().weighting is token_mean
    True
    """
    return dapo(0.2, 0.2)._replace(advantage=batch_credit.reinforce_plus_plus(kl_coef))


@check_arguments
def reinforce_plus_plus_baseline() -> Objective:
    """REINFORCE++-baseline (arXiv 2501.03262): centered in the group, whitened over the batch.

    >>> reinforce_plus_plus_baseline().weighting is token_mean
    True
    """
    return dapo(0.2, 0.2)._replace(advantage=batch_credit.reinforce_plus_plus_baseline())


@check_arguments
def gdpo(reward_weights: tuple[float, ...]) -> Objective:
    """GDPO (arXiv 2601.05242): several rewards, each a z-score in its group before they are added; the token mean.

    Args:
        reward_weights: one for each reward; the scores are ``[K, P, G]``.

    >>> gdpo((1.0, 0.5)).weighting is token_mean
    True
    """
    return dapo(0.2, 0.2)._replace(advantage=batch_credit.per_reward(reward_weights))


@check_arguments
def trpo(kl_radius: float = 0.01) -> NaturalStep:
    """TRPO (arXiv 1502.05477) on groups: z-scores, and a natural-gradient step within a KL per token.

    Args:
        kl_radius: largest KL(π_old‖π), nats per token.

    >>> trpo()._fields
    ('advantage', 'direction', 'search')
    """
    direction = natural_direction(kl_radius, damping=0.1)
    return NaturalStep(per_group(z_score), direction, backtracking_search(improves_within(kl_radius)))
