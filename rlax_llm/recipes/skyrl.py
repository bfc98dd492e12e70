"""What SkyRL computes (``ppo_utils``), by its ``policy_loss_type`` and ``advantage_estimator`` and with its defaults.

Every loss has k3 to the reference (``use_kl_loss``, 0.001) and the mean over tokens (``loss_reduction``), those of GSPO
and SAPO too, for which it only warns. Log-ratios are held within ±20.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import k3
from rlax_llm.core.masked import masked_mean
from rlax_llm.credit.groups import centered, has_rival, leave_one_out, per_group, z_score
from rlax_llm.policy import coupled, trust_regions
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_token_ratio, token_ratio
from rlax_llm.policy.trust_regions import clip, unclipped
from rlax_llm.recipes.group import dapo, penalty_or_none
from rlax_llm.recipes.verl import bound_ratio


@check_arguments
def over_mean(scores: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Centered scores over the group's mean plus an epsilon, whatever its sign.

    Args:
        scores: ``[G]``, NaN where a completion has no score.
        eps: added to the mean.

    Returns:
        ``[G]`` advantages; 0 for NaN and where fewer than two are scored.

    >>> over_mean(jnp.array([0.0, 2.0]), 0.0).tolist()
    [-1.0, 1.0]
    """
    known = has_rival(scores)
    return jnp.where(known, centered(scores) / jnp.where(known.any(), masked_mean(scores, known) + eps, 1.0), 0.0)


@check_arguments
def grpo(kl_coef: float = 1e-3, eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``policy_loss_type="regular"``: z-scores with an eps of 1e-6, the clip, k3 in the loss.

    Args:
        kl_coef: ``kl_loss_coef``.
        eps: ``eps_clip_low``.
        eps_high: ``eps_clip_high``; ``eps`` where None.

    >>> grpo(kl_coef=0).kl is None
    True
    """
    parent = dapo()._replace(advantage=per_group(partial(z_score, eps=1e-6)), ratio=bound_ratio(token_ratio))
    return parent._replace(trust_region=clip(eps, eps_high), kl=penalty_or_none(k3, kl_coef))


@check_arguments
def dr_grpo(kl_coef: float = 1e-3) -> Objective:
    """``grpo_norm_by_std=False``: only the advantage.

    Args:
        kl_coef: as in ``grpo``.

    >>> dr_grpo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=per_group(centered))


@check_arguments
def rloo(kl_coef: float = 1e-3) -> Objective:
    """``advantage_estimator="rloo"``: only the advantage.

    Args:
        kl_coef: as in ``grpo``.

    >>> rloo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=per_group(leave_one_out))


@check_arguments
def maxrl(kl_coef: float = 1e-3) -> Objective:
    """``advantage_estimator="maxrl"``: only the advantage, over the mean whatever its sign.

    Args:
        kl_coef: as in ``grpo``.

    >>> maxrl(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=per_group(over_mean))


@check_arguments
def gspo(kl_coef: float = 1e-3, eps: float = 0.2) -> Objective:
    """``policy_loss_type="gspo"``: the token's gradient at the sequence's ratio.

    Args:
        kl_coef: as in ``grpo``.
        eps: half-width of the clip.

    >>> gspo().ratio is sequence_token_ratio
    True
    """
    return grpo(kl_coef, eps)._replace(ratio=sequence_token_ratio)


@check_arguments
def cispo(kl_coef: float = 1e-3, ceiling: float = 5.0) -> Objective:
    """``policy_loss_type="cispo"``: weights from 0 to 5.

    Args:
        kl_coef: as in ``grpo``.
        ceiling: 1 + ``cispo_eps_clip_high``.

    >>> cispo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=trust_regions.cispo(ceiling=ceiling))


@check_arguments
def sapo(kl_coef: float = 1e-3) -> Objective:
    """``policy_loss_type="sapo"``.

    Args:
        kl_coef: as in ``grpo``.

    >>> sapo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=trust_regions.sapo())


@check_arguments
def dppo_tv(kl_coef: float = 1e-3, eps: float = 0.2) -> Objective:
    """``policy_loss_type="dppo"``: the plain ratio, masked by total variation.

    Args:
        kl_coef: as in ``grpo``.
        eps: ``delta_low`` and ``delta_high``.

    >>> dppo_tv(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=coupled.mask_total_variation(unclipped, eps))


@check_arguments
def clip_cov(kl_coef: float = 1e-3, share: float = 2e-4) -> Objective:
    """``policy_loss_type="clip_cov"``.

    Args:
        kl_coef: as in ``grpo``.
        share: ``clip_ratio``.

    >>> clip_cov(0).trust_region.whole
    True
    """
    region = coupled.clip_cov(clip(0.2), jax.random.key(0), share)
    return grpo(kl_coef)._replace(ratio=token_ratio, trust_region=region)


@check_arguments
def kl_cov(kl_coef: float = 1e-3, share: float = 0.2) -> Objective:
    """``policy_loss_type="kl_cov"``: its share of tokens is a fifth, where the paper's is a few in ten thousand.

    Args:
        kl_coef: as in ``grpo``.
        share: ``kl_cov_frac``.

    >>> kl_cov(0).trust_region.whole
    True
    """
    region = coupled.kl_cov(unclipped, 1.0, share)
    return grpo(kl_coef)._replace(ratio=token_ratio, trust_region=region)
