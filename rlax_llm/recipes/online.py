"""Named algorithms of online preference and of rejection sampling, each by its difference from its parent."""

from __future__ import annotations

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit.groups import best_of_group, centered, fixed_baseline, kl_in_score, per_group
from rlax_llm.credit.rivals import above_value, win_rate
from rlax_llm.policy.coupled import against_reference, centered_in_group
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import summed_ratio, token_ratio
from rlax_llm.policy.rivals import OnlineGroups
from rlax_llm.policy.trust_regions import clip, regression, score_function
from rlax_llm.policy.weightings import sequence_mean, sequence_sum
from rlax_llm.preference.ordering import OnlinePairs, best_and_worst, each_against_its_rival
from rlax_llm.preference.pairs import explored_response
from rlax_llm.recipes.preference import dpo


@check_arguments
def raft() -> Objective:
    """Rejection sampling, RAFT (arXiv 2304.06767): supervised training on the best completion of each prompt.

    >>> raft().trust_region is score_function
    True
    """
    return Objective(per_group(best_of_group), token_ratio, score_function, sequence_mean)


@check_arguments
def raft_plus_plus(eps: float = 0.2, eps_high: float | None = None) -> Objective:
    """RAFT++ (arXiv 2504.11343): ``raft`` with importance weights and PPO's clip, for more than one step of a rollout.

    Args:
        eps: half-width of the clip below 1.
        eps_high: half-width of the clip above 1; ``eps`` where None.

    >>> raft_plus_plus().weighting is sequence_mean
    True
    """
    return raft()._replace(trust_region=clip(eps, eps_high))


@check_arguments
def gvpo(group_size: int, beta: float | jax.Array = 0.1) -> Objective:
    """Group Variance Policy Optimization (arXiv 2504.19599, eq. 9): implicit rewards are regressed on scores.

    ``½ ((R_θ − mean R_θ) − (R − mean R))²`` with ``R_θ = β log π/π_old`` of whole completions, means over the group.

    Args:
        group_size: completions of a prompt.
        beta: β > 0, score units per nat; may be traced.

    >>> gvpo(8).ratio is summed_ratio
    True
    """
    region = centered_in_group(regression(beta), group_size)
    return Objective(per_group(centered), summed_ratio, region, lambda mask: 0.5 * sequence_mean(mask))


@check_arguments
def online_dpo(beta: float | jax.Array = 0.1) -> OnlinePairs:
    """Online DPO (arXiv 2402.04792): ``dpo`` on the best and the worst of a prompt's own completions, two as a rule.

    Args:
        beta: temperature β > 0, reward per nat.

    >>> online_dpo().rivals is None
    True
    """
    return OnlinePairs(dpo(beta), best_and_worst)


@check_arguments
def xpo(beta: float | jax.Array = 0.1, alpha: float | jax.Array = 1e-5) -> OnlinePairs:
    """XPO (arXiv 2405.21046): a completion of the policy and one of the reference, ``dpo + α log π`` of the latter.

    The term makes what the reference says less likely, so that the policy explores. Sums of the paper are over pairs
    here too, means of whole completions. Two of the same score pay the term alone: it asks for no preference.

    Args:
        beta: temperature β > 0, reward per nat.
        alpha: α ≥ 0, weight of the log-probability of the reference's completion, per nat.

    >>> xpo().rivals
    1.0
    """
    optimistic = dpo(beta)._replace(nll_coef=-alpha, likely=explored_response)
    return OnlinePairs(optimistic, each_against_its_rival, rivals=1.0)


@check_arguments
def nash_md(mixture: float = 0.5, kl_coef: float = 0.1) -> OnlineGroups:
    """Nash-MD (arXiv 2312.00886): win rates against a mixture of policy and reference, less ½, and a KL in the score.

    Args:
        mixture: share of the reference in the geometric mixture, from 0 (self-play) to 1.
        kl_coef: the paper's τ, weight of the completion's k1 to the reference, win rate per nat.

    >>> nash_md().comparison is win_rate
    True
    """
    advantage = kl_in_score(per_group(fixed_baseline(0.5)), kl_coef)
    objective = Objective(advantage, token_ratio, score_function, sequence_sum)
    return OnlineGroups(objective, win_rate, mixture)


@check_arguments
def best_of_n() -> OnlineGroups:
    """``raft`` as a way to learn online: without rivals.

    >>> best_of_n().rivals is None
    True
    """
    return OnlineGroups(raft())


@check_arguments
def a_star_po(beta: float | jax.Array = 1e-3, value_beta: float | jax.Array = 0.5) -> OnlineGroups:
    """A*-PO (arXiv 2505.20686): the implicit reward is regressed on the optimal advantage, ``(β log π/π_ref − A*)²``.

    ``A* = s − V*``, V* from the reference's samples of the same prompt (``soft_value``), which are drawn when the
    prompt is.

    Args:
        beta: the paper's β₂ > 0, score units per nat; may be traced.
        value_beta: its β₁ > 0, of V*, score units per nat; may be traced.

    >>> a_star_po().rivals
    1.0
    """
    objective = Objective(
        per_group(fixed_baseline(0.0)), summed_ratio, against_reference(regression(beta)), sequence_mean
    )
    return OnlineGroups(objective, above_value(value_beta), rivals=1.0)
