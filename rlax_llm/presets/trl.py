"""What TRL computes (trainers ``GRPOTrainer`` and ``RLOOTrainer``), by its ``loss_type`` and its defaults.

Here rows without a chosen token (filtered out) count in the mean over rows, as they do there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm import preference_recipes, recipes
from rlax_llm.arguments import checked
from rlax_llm.coupled import importance_corrected
from rlax_llm.groups import kl_in_score, leave_one_out, per_group
from rlax_llm.kl import k3, kl_penalty
from rlax_llm.objectives import Objective
from rlax_llm.preferences import Preference
from rlax_llm.ratios import summed_ratio
from rlax_llm.recipes import penalty_or_none
from rlax_llm.trust_regions import cispo as cispo_region
from rlax_llm.trust_regions import clip, dual_clip
from rlax_llm.weightings import Weighting, token_mean


@checked
def over_all_rows(length: int | None = None) -> Weighting:
    """``1 / (B · len_i)``, or ``1 / (B · length)`` for a constant, B the number of all rows, the empty ones too.

    Limiting cases: ``sequence_mean`` and ``fixed_length(length)`` where every row has a chosen token.

    Args:
        length: tokens, or None for each row's own.

    Returns:
        A weighting ``mask [B, T] → weights [B, T]``.

    >>> over_all_rows()(jnp.array([[True, True], [False, False]])).tolist()
    [[0.25, 0.25], [0.0, 0.0]]
    """

    def weights(mask: jax.Array) -> jax.Array:
        lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1) if length is None else length
        return mask / (lengths * mask.shape[0] * jnp.ones((), jnp.float32))

    return weights


@checked
def grpo(
    kl_coef: float = 0.0, eps: float = 0.2, eps_high: float | None = None, delta: float | None = None
) -> Objective:
    """``GRPOTrainer`` with its defaults: ``loss_type="dapo"`` is the mean over tokens, and there is no KL term.

    ``bnpo`` is the same with one micro-batch a step. With a ``beta``, later versions multiply the KL term by the ratio
    unless ``use_bias_correction_kl=False``: that is ``grpo_corrected_kl``.

    Args:
        kl_coef: ``beta``, weight of k3 in the loss.
        eps: ``epsilon``, half-width of the clip below 1, and above it where ``eps_high`` is None.
        eps_high: ``epsilon_high``.
        delta: a ceiling of the ratio where A < 0, above 1 + eps_high.

    >>> grpo().weighting is token_mean
    True
    """
    region = clip(eps, eps_high) if delta is None else dual_clip(eps, eps_high, delta)
    return recipes.grpo(0)._replace(trust_region=region, weighting=token_mean, kl=penalty_or_none(k3, kl_coef))


@checked
def grpo_corrected_kl(kl_coef: float, eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``use_bias_correction_kl``, the default of later versions: k3 times the ratio of policy to sampler.

    Args:
        kl_coef: ``beta``.
        eps: as in ``grpo``.
        eps_high: as in ``grpo``.

    >>> grpo_corrected_kl(0.1).weighting is token_mean
    True
    """
    return grpo(0.0, eps, eps_high)._replace(kl=importance_corrected(kl_penalty(k3, kl_coef)))


@checked
def grpo_sequence_mean(kl_coef: float = 0.0, eps: float = 0.2) -> Objective:
    """``loss_type="grpo"``: the mean over all rows of each row's mean.

    Args:
        kl_coef: ``beta``.
        eps: half-width of the clip.

    >>> grpo_sequence_mean().kl is None
    True
    """
    return grpo(kl_coef, eps)._replace(weighting=over_all_rows())


@checked
def dr_grpo(max_new_tokens: int, eps: float = 0.2) -> Objective:
    """``loss_type="dr_grpo"``; the advantage keeps the division by the std unless ``scale_rewards="none"`` is set too.

    Args:
        max_new_tokens: ``max_completion_length``.
        eps: half-width of the clip.

    >>> dr_grpo(8).kl is None
    True
    """
    return grpo(0, eps)._replace(weighting=over_all_rows(max_new_tokens))


@checked
def gspo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``importance_sampling_level="sequence"``: the half-widths stay a token's, 0.2, unless they are set.

    Args:
        eps: half-width of the clip below 1.
        eps_high: above 1; ``eps`` where None.

    >>> gspo().kl is None
    True
    """
    return recipes.gspo(eps, eps if eps_high is None else eps_high)._replace(weighting=over_all_rows())


@checked
def luspo(eps: float = 0.2) -> Objective:
    """``loss_type="luspo"`` with sequence-level ratios.

    Args:
        eps: half-width of the clip.

    >>> luspo().kl is None
    True
    """
    return gspo(eps)._replace(weighting=over_all_rows(1))


@checked
def sapo() -> Objective:
    """``loss_type="sapo"``.

    >>> sapo().kl is None
    True
    """
    return recipes.sapo()._replace(weighting=over_all_rows())


@checked
def cispo(eps_high: float = 0.2) -> Objective:
    """``loss_type="cispo"``: ``epsilon_high`` is the ceiling of the ratio itself, so its default of 0.2 scales by 0.2.

    Args:
        eps_high: the ceiling, dimensionless; a value near 5 is what the recipe wants.

    >>> cispo(5.0).weighting is token_mean
    True
    """
    return recipes.grpo(0)._replace(trust_region=cispo_region(ceiling=eps_high), weighting=token_mean)


@checked
def vespo() -> Objective:
    """``loss_type="vespo"``.

    >>> vespo().weighting is token_mean
    True
    """
    return recipes.vespo()._replace(weighting=token_mean)


@checked
def rloo(kl_coef: float = 0.05, eps: float = 0.2) -> Objective:
    """``RLOOTrainer``: the ratio of whole completions, clipped; k1 in the score.

    Args:
        kl_coef: ``beta``, weight of the completion's k1 in its score.
        eps: half-width of the clip.

    >>> rloo().ratio is summed_ratio
    True
    """
    return Objective(kl_in_score(per_group(leave_one_out), kl_coef), summed_ratio, clip(eps), over_all_rows())


@checked
def cpo(beta: float = 0.1) -> Preference:
    """``CPOTrainer``: ``cpo_alpha`` is 1, so the likelihood of the chosen completions counts (``token_mean`` weights).

    Args:
        beta: reward per nat.

    >>> cpo().nll_coef
    1.0
    """
    return preference_recipes.cpo(beta, nll_coef=1.0)


@checked
def simpo(beta: float = 0.1, gamma: float = 0.5) -> Preference:
    """``CPOTrainer`` with ``loss_type="simpo"``: ``cpo_alpha`` stays 1 unless it is set to 0.

    Args:
        beta: reward per nat a token; the paper's are 2 to 10.
        gamma: ``simpo_gamma``, reward.

    >>> simpo().nll_coef
    1.0
    """
    return preference_recipes.simpo(beta, gamma, nll_coef=1.0)
