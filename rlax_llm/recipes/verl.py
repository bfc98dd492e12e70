"""What verl computes (``core_algos``), by the names of its estimators and losses and with its defaults.

Its policy loss is the dual clip with a ceiling of 3, log-ratios held within ±20, and the mean over tokens. A group of
one has advantage 0 here and its raw score there.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit import batches as batch_credit
from rlax_llm.credit.groups import centered, leave_one_out, length_centered, per_group, z_score
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import Ratio, sequence_token_ratio, token_ratio
from rlax_llm.policy.trust_regions import cispo as cispo_region
from rlax_llm.policy.trust_regions import dual_clip
from rlax_llm.policy.weightings import token_mean
from rlax_llm.recipes import group as recipes


@check_arguments
def bound_ratio(ratio: Ratio, limit: float = 20.0) -> Ratio:
    """A ratio held within ±limit, nats; no gradient beyond.

    Args:
        ratio: ``(log_probs, old_log_probs, mask) → log_ratio``.
        limit: > 0, nats.

    Returns:
        A ratio.

    >>> bound_ratio(token_ratio)(jnp.array([90.0]), jnp.array([0.0]), jnp.array([True])).tolist()
    [20.0]
    """
    return lambda log_probs, old, mask: jnp.clip(ratio(log_probs, old, mask), -limit, limit)


@check_arguments
def padded_length(mask: jax.Array) -> jax.Array:
    """``seq-mean-token-sum-norm``: one over the padded length, whatever the number of rows.

    Args:
        mask: ``[B, T]`` bool.

    Returns:
        ``[B, T]`` weights: they grow with the batch.

    >>> padded_length(jnp.array([[True, False], [True, True]])).tolist()
    [[0.5, 0.0], [0.5, 0.5]]
    """
    return mask / jnp.float32(mask.shape[-1])


@check_arguments
def grpo(eps: float = 0.2, eps_high: float | None = None, ceiling: float = 3.0) -> Objective:
    """``adv_estimator=grpo``: z-scores with an eps of 1e-6, no KL.

    Args:
        eps: ``clip_ratio_low``.
        eps_high: ``clip_ratio_high``; ``eps`` where None.
        ceiling: ``clip_ratio_c``.

    >>> grpo().kl is None
    True
    """
    advantage = per_group(partial(z_score, eps=1e-6))
    return Objective(advantage, bound_ratio(token_ratio), dual_clip(eps, eps_high, ceiling), token_mean)


@check_arguments
def dr_grpo() -> Objective:
    """``norm_adv_by_std_in_grpo=False`` with ``seq-mean-token-sum-norm``.

    >>> dr_grpo().weighting is padded_length
    True
    """
    return grpo()._replace(advantage=per_group(centered), weighting=padded_length)


@check_arguments
def rloo() -> Objective:
    """``adv_estimator=rloo``: only the advantage; ratios stay a token's.

    >>> rloo().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=per_group(leave_one_out))


@check_arguments
def reinforce_plus_plus() -> Objective:
    """``adv_estimator=reinforce_plus_plus``.

    >>> reinforce_plus_plus().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=batch_credit.reinforce_plus_plus())


@check_arguments
def reinforce_plus_plus_baseline() -> Objective:
    """``adv_estimator=reinforce_plus_plus_baseline``.

    >>> reinforce_plus_plus_baseline().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=batch_credit.reinforce_plus_plus_baseline())


@check_arguments
def opo() -> Objective:
    """``adv_estimator=opo``: the length-weighted mean as baseline.

    >>> opo().weighting is token_mean
    True
    """
    return grpo()._replace(advantage=length_centered)


@check_arguments
def gpg() -> Objective:
    """``adv_estimator=gpg`` with ``loss_mode=gpg``: the score function; α counts the scores that are not 0.

    >>> gpg().kl is None
    True
    """
    return recipes.gpg()._replace(advantage=batch_credit.gpg(share=batch_credit.nonzero_share))


@check_arguments
def gspo(eps: float = 0.2) -> Objective:
    """``loss_mode=gspo``: the token's gradient at the sequence's ratio, the mean over sequences.

    Args:
        eps: half-width of the clip.

    >>> gspo().kl is None
    True
    """
    return recipes.gspo(eps, eps)._replace(advantage=grpo().advantage, ratio=sequence_token_ratio)


@check_arguments
def cispo(eps: float = 0.2) -> Objective:
    """``loss_mode=cispo``: the ratio bounded on both sides, relative to 1.

    Args:
        eps: half-width of the clip.

    >>> cispo().weighting is token_mean
    True
    """
    return grpo()._replace(trust_region=cispo_region(ceiling=1 + eps, floor=1 - eps))


@check_arguments
def gmpo(eps: float = 0.2) -> Objective:
    """``loss_mode=geo_mean``: the clip of the other losses instead of the paper's 0.4.

    Args:
        eps: half-width in nats.

    >>> gmpo().kl is None
    True
    """
    return recipes.gmpo(eps)._replace(advantage=grpo().advantage)
