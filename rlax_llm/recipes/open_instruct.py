"""What open-instruct's GRPO computes (``grpo_utils``), by its ``loss_fn`` and with its defaults.

Its losses are means over tokens with a KL to the reference of 0.05. Truncated importance weights with a ceiling of 2
are on by default: a correction, ``truncated_importance(ceiling=2)``.
"""

from __future__ import annotations

from functools import partial

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import k3
from rlax_llm.credit.groups import centered, per_group, z_score
from rlax_llm.policy import coupled, trust_regions
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.trust_regions import unclipped
from rlax_llm.recipes.group import dapo, penalty_or_none


@check_arguments
def grpo(kl_coef: float = 0.05, eps: float = 0.2, eps_high: float = 0.272) -> Objective:
    """``loss_fn=dapo`` with ``advantage_normalization_type="standard"``: the biased std, an eps of 1e-8, and k3.

    Args:
        kl_coef: ``beta``.
        eps: ``clip_lower``.
        eps_high: ``clip_higher``.

    >>> grpo(kl_coef=0).kl is None
    True
    """
    advantage = per_group(partial(z_score, ddof=0, eps=1e-8))
    return dapo(eps, eps_high)._replace(advantage=advantage, kl=penalty_or_none(k3, kl_coef))


@check_arguments
def dr_grpo(kl_coef: float = 0.05) -> Objective:
    """``advantage_normalization_type="centered"``: only the advantage; ``loss_denominator`` stays the tokens.

    Args:
        kl_coef: as in ``grpo``.

    >>> dr_grpo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=per_group(centered))


@check_arguments
def cispo(kl_coef: float = 0.05, eps_high: float = 0.272) -> Objective:
    """``loss_fn=cispo``: weights of at most 1 + ``clip_higher``.

    Args:
        kl_coef: as in ``grpo``.
        eps_high: ``clip_higher``.

    >>> cispo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=trust_regions.cispo(ceiling=1 + eps_high))


@check_arguments
def dppo_tv(kl_coef: float = 0.05, eps: float = 0.1) -> Objective:
    """``loss_fn=dppo``: the plain ratio, masked by total variation, against the sampler's log-probabilities.

    Args:
        kl_coef: as in ``grpo``.
        eps: ``dppo_divergence_threshold``.

    >>> dppo_tv(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=coupled.mask_total_variation(unclipped, eps))


@check_arguments
def tvpo(group_size: int, kl_coef: float = 0.05, limit: float = 0.02) -> Objective:
    """``loss_fn=tvpo``: weights of at most 20, against the sampler's log-probabilities, within a prompt's variation.

    Args:
        group_size: ``num_samples_per_prompt_rollout``.
        kl_coef: as in ``grpo``.
        limit: ``tvpo_divergence_threshold``.

    >>> tvpo(8, 0).trust_region.whole
    True
    """
    region = coupled.mask_group_variation(trust_regions.cispo(ceiling=20.0), limit, group_size)
    return grpo(kl_coef)._replace(trust_region=region)
