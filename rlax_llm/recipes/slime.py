"""What slime computes (``utils/ppo_utils.py`` and the loss of its training backends), by its flags and defaults.

Losses are means over completions of their tokens' means unless ``--calculate-per-token-loss``. Its truncated importance
weights (``--use-tis``, a ceiling of 2) are a correction: ``truncated_importance(ceiling=2)``.
"""

from __future__ import annotations

from functools import partial

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit import batches
from rlax_llm.credit.groups import centered, per_group, z_score
from rlax_llm.policy import trust_regions
from rlax_llm.policy.coupled import mask_off_policy
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_ratio
from rlax_llm.policy.trust_regions import clip
from rlax_llm.recipes import group as recipes


@check_arguments
def grpo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``--advantage-estimator grpo``: z-scores with an eps of 1e-6, no KL.

    Args:
        eps: ``--eps-clip``.
        eps_high: ``--eps-clip-high``; ``eps`` where None.

    >>> grpo().kl is None
    True
    """
    advantage = per_group(partial(z_score, eps=1e-6))
    return recipes.grpo(0)._replace(advantage=advantage, trust_region=clip(eps, eps_high))


@check_arguments
def dr_grpo() -> Objective:
    """``--disable-grpo-std-normalization``: only the advantage; the loss keeps dividing by the completion's length.

    >>> dr_grpo().kl is None
    True
    """
    return grpo()._replace(advantage=per_group(centered))


@check_arguments
def gspo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``--advantage-estimator gspo``: one ratio a completion; the half-widths stay a token's unless they are set.

    Args:
        eps: ``--eps-clip``.
        eps_high: ``--eps-clip-high``; ``eps`` where None.

    >>> gspo().ratio is sequence_ratio
    True
    """
    return grpo(eps, eps_high)._replace(ratio=sequence_ratio)


@check_arguments
def opsm(threshold: float = 1e-4) -> Objective:
    """``--use-opsm``: without the completions of negative advantage that the policy has left.

    Args:
        threshold: ``--opsm-delta``, nats per token.

    >>> opsm().kl is None
    True
    """
    return grpo()._replace(trust_region=mask_off_policy(clip(0.2), threshold))


@check_arguments
def cispo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``--advantage-estimator cispo``: weights bounded on both sides, relative to 1.

    Args:
        eps: ``--eps-clip``; 1 takes the lower bound away.
        eps_high: ``--eps-clip-high``; ``eps`` where None.

    >>> cispo().kl is None
    True
    """
    ceiling = 1 + (eps if eps_high is None else eps_high)
    return grpo()._replace(trust_region=trust_regions.cispo(ceiling=ceiling, floor=1 - eps))


@check_arguments
def reinforce_plus_plus(kl_coef: float = 0.0) -> Objective:
    """``--advantage-estimator reinforce_plus_plus``, which asks for ``--normalize-advantages``: only the advantage.

    Args:
        kl_coef: ``--kl-coef``, of k1 in the reward; with 0 no reference is needed.

    >>> reinforce_plus_plus().kl is None
    True
    """
    return grpo()._replace(advantage=batches.reinforce_plus_plus(kl_coef))


@check_arguments
def reinforce_plus_plus_baseline() -> Objective:
    """``--advantage-estimator reinforce_plus_plus_baseline`` with its ``--kl-coef`` of 0: only the advantage.

    >>> reinforce_plus_plus_baseline().kl is None
    True
    """
    return grpo()._replace(advantage=batches.reinforce_plus_plus_baseline())
