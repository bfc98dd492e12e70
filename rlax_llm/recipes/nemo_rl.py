"""What NeMo-RL computes (``ClippedPGLossFn`` and its advantage estimators), with its defaults.

Its baseline leaves the completion out, and so does the standard deviation that it divides by.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import k3
from rlax_llm.core.masked import masked_variance
from rlax_llm.credit.batches import reinforce_plus_plus_baseline as whitened_baseline
from rlax_llm.credit.groups import has_rival, leave_one_out, per_group
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_ratio
from rlax_llm.policy.trust_regions import clip, dual_clip, score_function
from rlax_llm.policy.weightings import sequence_mean
from rlax_llm.recipes.group import dapo, penalty_or_none


@check_arguments
def in_stds_of_the_others(scores: jax.Array, eps: float = 1e-6) -> jax.Array:
    """``leave_one_out`` over the (biased) standard deviation of the other members; as it is where they are all equal.

    Args:
        scores: ``[G]``, NaN where a completion has no score.
        eps: added to the standard deviation.

    Returns:
        ``[G]`` advantages; 0 for NaN and where fewer than two are scored.

    >>> in_stds_of_the_others(jnp.array([3.0, 0.0, 0.0]), 0.0).tolist()
    [3.0, -1.0, -1.0]
    """
    known = has_rival(scores)
    others = known & ~jnp.eye(scores.shape[0], dtype=bool)
    variance = jax.vmap(partial(masked_variance, scores, ddof=0))(others)
    differ = variance > 0
    std = jnp.sqrt(jnp.where(differ, variance, 1.0))
    return leave_one_out(scores) / jnp.where(differ, std + eps, 1.0)


@check_arguments
def grpo(kl_coef: float = 0.01, eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``grpo`` of its estimators with the clipped loss: in standard deviations of the others, the mean over tokens, k3.

    ``ratio_clip_c`` makes it a dual clip: ``grpo_dual``.

    Args:
        kl_coef: ``reference_policy_kl_penalty``.
        eps: ``ratio_clip_min``.
        eps_high: ``ratio_clip_max``; ``eps`` where None.

    >>> grpo(kl_coef=0).kl is None
    True
    """
    parent = dapo()._replace(advantage=per_group(in_stds_of_the_others), trust_region=clip(eps, eps_high))
    return parent._replace(kl=penalty_or_none(k3, kl_coef))


@check_arguments
def grpo_dual(kl_coef: float = 0.01, ceiling: float = 3.0) -> Objective:
    """``grpo`` with ``ratio_clip_c``.

    Args:
        kl_coef: as in ``grpo``.
        ceiling: ``ratio_clip_c``.

    >>> grpo_dual(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(trust_region=dual_clip(0.2, None, ceiling))


@check_arguments
def dr_grpo(kl_coef: float = 0.01) -> Objective:
    """``normalize_rewards=False``: the leave-one-out baseline alone; the loss stays the mean over tokens.

    Args:
        kl_coef: as in ``grpo``.

    >>> dr_grpo(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=per_group(leave_one_out))


@check_arguments
def rloo(kl_coef: float = 0.01) -> Objective:
    """``disable_ppo_ratio``: the score function on the leave-one-out baseline, the mean over tokens.

    Args:
        kl_coef: as in ``grpo``.

    >>> rloo().trust_region is score_function
    True
    """
    return dr_grpo(kl_coef)._replace(trust_region=score_function)


@check_arguments
def gspo(kl_coef: float = 0.01, eps: float = 0.2) -> Objective:
    """``sequence_level_importance_ratios`` without ``token_level_loss``.

    Args:
        kl_coef: as in ``grpo``.
        eps: ``ratio_clip_min`` and ``ratio_clip_max``.

    >>> gspo().ratio is sequence_ratio
    True
    """
    return grpo(kl_coef, eps)._replace(ratio=sequence_ratio, weighting=sequence_mean)


@check_arguments
def reinforce_plus_plus_baseline(kl_coef: float = 0.01) -> Objective:
    """``reinforce_plus_plus`` of its estimators, whose ``minus_baseline`` is on: whitened by the biased variance.

    Args:
        kl_coef: as in ``grpo``.

    >>> reinforce_plus_plus_baseline(0).kl is None
    True
    """
    return grpo(kl_coef)._replace(advantage=whitened_baseline(ddof=0))
