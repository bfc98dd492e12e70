"""What OpenRLHF computes, by its ``advantage_estimator``: the PPO clip and the mean over tokens throughout.

Its DPO smooths labels where TRL's no longer does, and its IPO takes whole completions.
"""

from __future__ import annotations

from functools import partial

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit import batches as batch_credit
from rlax_llm.credit.groups import centered, leave_one_out, per_group, z_score
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_ratio, token_ratio
from rlax_llm.policy.trust_regions import clip
from rlax_llm.policy.weightings import sequence_mean, token_mean
from rlax_llm.preference.implicit_rewards import log_ratio
from rlax_llm.preference.links import logistic, smooth_labels
from rlax_llm.preference.pairs import Preference, per_response
from rlax_llm.recipes import preference as preference_recipes


@check_arguments
def grpo(eps: float = 0.2) -> Objective:
    """``group_norm``: z-scores with an eps of 1e-9. Its KL in the reward (k1, 0.01) is the caller's ``kl_in_reward``.

    Args:
        eps: ``eps_clip``.

    >>> grpo().kl is None
    True
    """
    return Objective(per_group(partial(z_score, eps=1e-9)), token_ratio, clip(eps), token_mean)


@check_arguments
def dr_grpo() -> Objective:
    """``dr_grpo``: only the advantage; the loss stays the mean over tokens, without a constant length.

    >>> dr_grpo().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=per_group(centered))


@check_arguments
def rloo() -> Objective:
    """``rloo``: only the advantage; ratios stay a token's.

    >>> rloo().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=per_group(leave_one_out))


@check_arguments
def reinforce_plus_plus(kl_coef: float = 0.01, discount: float = 1.0) -> Objective:
    """``reinforce``: the tokens' returns with k1 in the reward, whitened over the batch by the biased variance.

    Args:
        kl_coef: ``init_kl_coef``.
        discount: ``gamma``.

    >>> reinforce_plus_plus().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=batch_credit.reinforce_plus_plus(kl_coef, discount, ddof=0))


@check_arguments
def reinforce_plus_plus_baseline() -> Objective:
    """``reinforce_baseline``, its KL left to the caller.

    >>> reinforce_plus_plus_baseline().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=batch_credit.reinforce_plus_plus_baseline(ddof=0))


@check_arguments
def gspo(eps: float = 0.2) -> Objective:
    """``policy_loss_type=gspo``: the half-width stays a token's unless it is set.

    Args:
        eps: ``eps_clip``.

    >>> gspo().weighting is sequence_mean
    True
    """
    return grpo(eps)._replace(ratio=sequence_ratio, weighting=sequence_mean)


@check_arguments
def dpo(beta: float = 0.1, eps: float = 0.0) -> Preference:
    """``DPOTrainer`` with its ``label_smoothing``.

    Args:
        beta: reward per nat.
        eps: ``label_smoothing``, the share of flipped labels.

    >>> dpo().nll_coef
    0.0
    """
    return preference_recipes.dpo(beta)._replace(link=smooth_labels(logistic, eps))


@check_arguments
def ipo(beta: float = 0.1) -> Preference:
    """``ipo``: the squared margin of whole completions, not of their means.

    Args:
        beta: the paper's τ, per nat.

    >>> ipo().nll_coef
    0.0
    """
    return preference_recipes.ipo(beta)._replace(rewards=per_response(log_ratio()))
