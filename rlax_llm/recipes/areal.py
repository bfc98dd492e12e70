"""What AReaL computes (``ppo_actor_loss_fn`` and ``sapo_loss_fn`` of ``utils/functional``), as its GRPO examples do.

Rewards are normalized in the group and advantages once more over the batch's tokens. Its loss is the mean over tokens.
With ``use_decoupled_loss`` the clip is around the policy that the update starts from, which is what every recipe does
here with a correction, ``masked_importance(ceiling=5)``: a token beyond ``behav_imp_weight_cap`` is left out. M2PO is
``second_moment_mask``.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import divide_by_std, masked_deviation
from rlax_llm.core.types import Scored
from rlax_llm.credit.batches import has_score
from rlax_llm.credit.groups import check_rows, per_group, z_score
from rlax_llm.policy import proximal, trust_regions
from rlax_llm.policy.corrections import masked_importance
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import sequence_ratio
from rlax_llm.policy.trust_regions import clip
from rlax_llm.recipes.group import dapo


@check_arguments
def normalized_twice(scored: Scored, eps: float = 1e-5) -> jax.Array:
    """``reward_norm`` of the group, then ``adv_norm`` of all tokens: z-scores of z-scores.

    Args:
        scored: completions in groups.
        eps: added to both standard deviations.

    Returns:
        ``[P, G, T]``; 0 for a NaN score and where the policy did not choose.

    >>> scored = Scored(jnp.array([[0.0, 1.0]]), None, jnp.ones((1, 2, 1), bool))
    >>> [round(x, 3) for x in normalized_twice(scored, 0.0).ravel().tolist()]
    [-0.707, 0.707]
    """
    check_rows("normalized_twice", scored)
    credit = per_group(partial(z_score, eps=eps))(scored)[..., None]
    credit = jnp.broadcast_to(credit, scored.mask.shape)
    taken = scored.mask & has_score(scored.scores)[..., None]
    return divide_by_std(masked_deviation(credit, taken), credit, taken, 1, eps)


@check_arguments
def grpo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """The PPO loss with ``reward_norm`` by group and ``adv_norm`` by batch, no KL.

    Args:
        eps: ``eps_clip``.
        eps_high: ``eps_clip_higher``; ``eps`` where None.

    >>> grpo().kl is None
    True
    """
    return dapo()._replace(advantage=normalized_twice, trust_region=clip(eps, eps_high))


@check_arguments
def gspo(eps: float = 0.2) -> Objective:
    """``importance_sampling_level="sequence"``: one ratio a completion, still with the mean over tokens.

    Args:
        eps: ``eps_clip``.

    >>> gspo().ratio is sequence_ratio
    True
    """
    return grpo(eps)._replace(ratio=sequence_ratio)


@check_arguments
def sapo(temperature_positive: float = 1.0, temperature_negative: float = 1.05) -> Objective:
    """``use_sapo_loss``: the soft clip with the mean over tokens.

    Args:
        temperature_positive: ``sapo_tau_pos``.
        temperature_negative: ``sapo_tau_neg``.

    >>> sapo().kl is None
    True
    """
    return grpo()._replace(trust_region=trust_regions.sapo(temperature_positive, temperature_negative))


@check_arguments
def log_linear(eps: float = 0.2, ceiling: float = 5.0) -> Objective:
    """``prox_logp_method="loglinear"``: the clip is around a policy on the line from the sampler to the one at hand.

    Args:
        eps: ``eps_clip``.
        ceiling: ``behav_imp_weight_cap``; a token of a larger weight is left out.

    >>> log_linear().kl is None
    True
    """
    return grpo()._replace(trust_region=proximal.log_linear(clip(eps), masked_importance(ceiling=ceiling)))
