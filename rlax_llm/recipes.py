"""Named algorithms: each states its difference from its parent, in at most six lines."""

from __future__ import annotations

from rlax_llm.groups import centred, kl_in_score, leave_one_out, per_group, z_score
from rlax_llm.kl import k3, kl_penalty
from rlax_llm.objectives import Objective
from rlax_llm.ratios import token_ratio
from rlax_llm.trust_regions import clip, score_function
from rlax_llm.weightings import fixed_length, sequence_mean, sequence_sum, token_mean


def grpo(kl_coef: float = 0.04, eps: float = 0.2) -> Objective:
    """Group Relative Policy Optimisation (arXiv 2402.03300): z-scores, PPO clip, sequence mean, k3 in the loss.

    Args:
        kl_coef: weight of the k3 term; with 0 there is none, and no reference is needed.
        eps: half-width of the clip.

    >>> grpo(kl_coef=0).kl is None
    True
    """
    kl = None if isinstance(kl_coef, (int, float)) and kl_coef == 0 else kl_penalty(k3, kl_coef)
    return Objective(per_group(z_score), token_ratio, clip(eps), sequence_mean, kl)


def dr_grpo(max_new_tokens: int, eps: float = 0.2) -> Objective:
    """Dr.GRPO (arXiv 2503.20783): no division by the group's std or by the completion's length, no KL.

    Args:
        max_new_tokens: the constant in place of the length: the sampler's limit, tokens.
        eps: half-width of the clip.

    >>> dr_grpo(8).kl is None
    True
    """
    return grpo(0, eps)._replace(advantage=per_group(centred), weighting=fixed_length(max_new_tokens))


def dapo(eps_low: float = 0.2, eps_high: float = 0.28) -> Objective:
    """DAPO's loss (arXiv 2503.14476): clip-higher and the token mean, no KL.

    Args:
        eps_low: half-width of the clip below 1.
        eps_high: half-width of the clip above 1.

    >>> dapo().weighting is token_mean
    True
    """
    return grpo(0)._replace(trust_region=clip(eps_low, eps_high), weighting=token_mean)


def rloo(kl_coef: float = 0.05) -> Objective:
    """REINFORCE Leave-One-Out (arXiv 2402.14740): whole completions, leave-one-out baseline, k1 in the score.

    Args:
        kl_coef: weight of the sequence's k1 in its score; with 0 no reference is needed.

    >>> rloo().trust_region is score_function
    True
    """
    advantage = kl_in_score(per_group(leave_one_out), kl_coef)
    return Objective(advantage, token_ratio, score_function, sequence_sum)
