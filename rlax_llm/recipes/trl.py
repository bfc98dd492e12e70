"""What TRL computes (trainers ``GRPOTrainer``, ``RLOOTrainer`` and others that are named), by its defaults.

Here rows without a chosen token (filtered out) count in the mean over rows, as they do there. Each preset is
``GRPOConfig`` or ``RLOOConfig`` with other settings: ``trl.GRPOConfig(beta=0.04, scale_rewards="none").build()`` takes
any of them, by TRL's own names.
"""

from __future__ import annotations

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.policy import coupled
from rlax_llm.policy.distillation import Distillation, blended
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.preference.pairs import Preference
from rlax_llm.recipes import distillation as distillation_recipes
from rlax_llm.recipes import preference as preference_recipes
from rlax_llm.recipes.trl_config import GRPOConfig, RLOOConfig, over_all_rows

__all__ = [
    "GRPOConfig",
    "RLOOConfig",
    "cispo",
    "cpo",
    "distillation",
    "dr_grpo",
    "gmpo",
    "grpo",
    "grpo_corrected_kl",
    "grpo_sequence_mean",
    "gspo",
    "iw_opd",
    "luspo",
    "over_all_rows",
    "rloo",
    "sapo",
    "sdpo",
    "simpo",
    "vespo",
]


@check_arguments
def grpo(
    kl_coef: float = 0.0, eps: float = 0.2, eps_high: float | None = None, delta: float | None = None
) -> Objective:
    """``GRPOTrainer`` with its defaults: ``loss_type="dapo"`` is the mean over tokens, and there is no KL term.

    ``bnpo`` is the same with one micro-batch per step. With a ``beta``, later versions multiply the KL term by the
    ratio unless ``use_bias_correction_kl=False``: that is ``grpo_corrected_kl``.

    Args:
        kl_coef: ``beta``, weight of k3 in the loss.
        eps: ``epsilon``, half-width of the clip below 1, and above it where ``eps_high`` is None.
        eps_high: ``epsilon_high``.
        delta: a ceiling of the ratio where A < 0, above 1 + eps_high.

    >>> grpo().kl is None
    True
    """
    return GRPOConfig(kl_coef, eps, eps_high, delta, use_bias_correction_kl=False).build()


@check_arguments
def grpo_corrected_kl(kl_coef: float, eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``use_bias_correction_kl``, the default of later versions: k3 times the ratio of policy to sampler.

    Args:
        kl_coef: ``beta``.
        eps: as in ``grpo``.
        eps_high: as in ``grpo``.

    >>> type(grpo_corrected_kl(0.1).kl).__name__
    'Coupled'
    """
    return GRPOConfig(kl_coef, eps, eps_high).build()


@check_arguments
def grpo_sequence_mean(kl_coef: float = 0.0, eps: float = 0.2) -> Objective:
    """``loss_type="grpo"``: the mean over all rows of each row's mean.

    Args:
        kl_coef: ``beta``.
        eps: half-width of the clip.

    >>> grpo_sequence_mean().kl is None
    True
    """
    return GRPOConfig(kl_coef, eps, loss_type="grpo", use_bias_correction_kl=False).build()


@check_arguments
def dr_grpo(max_new_tokens: int, eps: float = 0.2) -> Objective:
    """``loss_type="dr_grpo"``; the advantage keeps the division by the std unless ``scale_rewards="none"`` is set too.

    Args:
        max_new_tokens: ``max_completion_length``.
        eps: half-width of the clip.

    >>> dr_grpo(8).kl is None
    True
    """
    return GRPOConfig(epsilon=eps, loss_type="dr_grpo", max_completion_length=max_new_tokens).build()


@check_arguments
def gspo(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """``importance_sampling_level="sequence"``: the half-widths stay a token's, 0.2, unless they are set.

    Args:
        eps: half-width of the clip below 1.
        eps_high: above 1; ``eps`` where None.

    >>> gspo().kl is None
    True
    """
    return GRPOConfig(0.0, eps, eps_high, loss_type="grpo", importance_sampling_level="sequence").build()


@check_arguments
def luspo(eps: float = 0.2) -> Objective:
    """``loss_type="luspo"`` with sequence-level ratios.

    Args:
        eps: half-width of the clip.

    >>> luspo().kl is None
    True
    """
    return GRPOConfig(0.0, eps, loss_type="luspo", importance_sampling_level="sequence").build()


@check_arguments
def sapo() -> Objective:
    """``loss_type="sapo"``.

    >>> sapo().kl is None
    True
    """
    return GRPOConfig(loss_type="sapo").build()


@check_arguments
def cispo(eps_high: float = 0.2) -> Objective:
    """``loss_type="cispo"``: ``epsilon_high`` is the ceiling of the ratio itself, so its default of 0.2 scales by 0.2.

    Args:
        eps_high: the ceiling, dimensionless; a value near 5 is what the recipe wants.

    >>> cispo(5.0).kl is None
    True
    """
    return GRPOConfig(epsilon_high=eps_high, loss_type="cispo").build()


@check_arguments
def vespo() -> Objective:
    """``loss_type="vespo"``.

    >>> vespo().kl is None
    True
    """
    return GRPOConfig(loss_type="vespo").build()


@check_arguments
def rloo(kl_coef: float = 0.05, eps: float = 0.2) -> Objective:
    """``RLOOTrainer``: the ratio of whole completions, clipped; k1 in the score.

    Args:
        kl_coef: ``beta``, weight of the completion's k1 in its score.
        eps: half-width of the clip.

    >>> rloo().ratio.__name__
    'summed_ratio'
    """
    return RLOOConfig(kl_coef, eps).build()


@check_arguments
def gmpo(eps: float = 0.4, eps_high: float | None = None, kl_coef: float = 0.0) -> Objective:
    """``GMPOTrainer``: the paper's loss; its mean is over all rows.

    Args:
        eps: ``epsilon``, half-width of the clip of the log-ratio below 0, and above it where ``eps_high`` is None.
        eps_high: ``epsilon_high``.
        kl_coef: ``beta``, weight of k3 in the loss.

    >>> gmpo().kl is None
    True
    """
    return grpo_sequence_mean(kl_coef)._replace(trust_region=coupled.gmpo(eps, eps_high))


@check_arguments
def distillation(beta: float | jax.Array = 1.0) -> Distillation:
    """``DistillationTrainer``: ``gkd`` with the reverse KL, all of it on the student's own completions.

    Args:
        beta: of the Jensen-Shannon divergence; 0 is the forward KL, 1 the reverse one.

    >>> distillation().on_policy
    1.0
    """
    return distillation_recipes.gkd(beta, on_policy=1.0)


@check_arguments
def iw_opd(gamma: float | jax.Array = 0.5) -> Distillation:
    """``IWOPDTrainer``: the score function, without a ratio of policy to sampler; the same in the first step.

    Args:
        gamma: ``iw_opd_gamma``.

    >>> iw_opd().objective.trust_region is score_function
    True
    """
    paper = distillation_recipes.iw_opd(gamma)
    return paper._replace(objective=paper.objective._replace(trust_region=score_function))


@check_arguments
def sdpo(
    follows: float = 0.05,
    separator: str = "\n",
    teacher_prompt: str | None = None,
    attempt_template: str = "{hint}",
    feedback_template: str | None = None,
    coef: float = 1.0,
) -> Distillation:
    """``SDPOTrainer``: each row's mean, and the mean over all rows, those without a hint too.

    With a ``coef`` below 1 it stands beside ``grpo``, ``(1 − coef) · policy loss + coef · distillation loss``.

    Args:
        follows: ``teacher_update_rate``.
        separator: as in the recipe.
        teacher_prompt: ``reprompt_template``, in which ``{hint}`` stands for its solution and feedback.
        attempt_template: ``solution_template``, in which ``{hint}`` stands for the attempt.
        feedback_template: the same of the feedback.
        coef: ``distillation_weight``, from 0 to 1.

    >>> sdpo().follows, sdpo(coef=0.5).objective.trust_region is sdpo().objective.trust_region
    (0.05, False)
    """
    given = separator, teacher_prompt, attempt_template, feedback_template
    paper = distillation_recipes.sdpo(0.0, follows, *given)
    pure = paper.objective._replace(weighting=over_all_rows())
    return paper._replace(objective=pure if coef == 1 else blended(grpo(), pure, coef))


@check_arguments
def cpo(beta: float = 0.1) -> Preference:
    """``CPOTrainer``: ``cpo_alpha`` is 1, so the likelihood of the chosen completions counts (``token_mean`` weights).

    Args:
        beta: reward per nat.

    >>> cpo().nll_coef
    1.0
    """
    return preference_recipes.cpo(beta, nll_coef=1.0)


@check_arguments
def simpo(beta: float = 0.1, gamma: float = 0.5) -> Preference:
    """``CPOTrainer`` with ``loss_type="simpo"``: ``cpo_alpha`` stays 1 unless it is set to 0.

    Args:
        beta: reward per nat a token; the paper's are 2 to 10.
        gamma: ``simpo_gamma``, reward.

    >>> simpo().nll_coef
    1.0
    """
    return preference_recipes.simpo(beta, gamma, nll_coef=1.0)
