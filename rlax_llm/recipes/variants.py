"""Named algorithms that choose tokens or completions, classify, look ahead, or take a baseline from elsewhere."""

from __future__ import annotations

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit import filtering, groups, running
from rlax_llm.credit.group_tokens import optimal_token_baseline, step_wise
from rlax_llm.credit.groups import against_baselines, per_group, z_score
from rlax_llm.policy import coupled, proximal
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.trust_regions import clip, dual_clip, unclipped
from rlax_llm.recipes.group import dapo, grpo, rloo


@check_arguments
def clip_cov(eps: float = 0.2, share: float = 2e-4) -> Objective:
    """Clip-Cov (arXiv 2505.22617): no loss on a few of the tokens that make the entropy fall.

    Args:
        eps: half-width of the clip.
        share: of the chosen tokens that are left out.

    >>> clip_cov().trust_region.whole
    True
    """
    return dapo(eps, eps)._replace(trust_region=coupled.clip_cov(clip(eps), jax.random.key(0), share))


@check_arguments
def kl_cov(coef: float = 1.0, share: float = 2e-4) -> Objective:
    """KL-Cov (arXiv 2505.22617): a penalty for moving on the few tokens that make the entropy fall most, and no clip.

    Args:
        coef: weight of ``|log π/π_old|`` on them, per nat.
        share: of the chosen tokens.

    >>> kl_cov().trust_region.whole
    True
    """
    return dapo()._replace(trust_region=coupled.kl_cov(unclipped, coef, share))


@check_arguments
def pass_at_k(eps: float = 0.2) -> Objective:
    """Pass@k for k = G (arXiv 2503.19595): only the group's best learns, by how far it is ahead.

    Args:
        eps: half-width of the clip.

    >>> pass_at_k().kl is None
    True
    """
    return dapo(eps, eps)._replace(advantage=per_group(groups.pass_at_k))


@check_arguments
def remax() -> Objective:
    """ReMax (arXiv 2310.10505): whole completions against the greedy completion of the prompt, the score function.

    >>> remax().advantage is against_baselines
    True
    """
    return rloo(0)._replace(advantage=against_baselines)


@check_arguments
def otb() -> Objective:
    """The optimal token baseline (arXiv 2602.07078): at each token the baseline of least variance of the group.

    >>> otb().kl is None
    True
    """
    return rloo(0)._replace(advantage=optimal_token_baseline())


@check_arguments
def fipo(eps: float = 0.2, eps_high: float = 0.28) -> Objective:
    """FIPO (arXiv 2603.19835): DAPO whose tokens weigh more where what follows them is being reinforced.

    Args:
        eps: half-width of the clip below 1.
        eps_high: above 1.

    >>> fipo().kl is None
    True
    """
    return dapo()._replace(trust_region=proximal.future_kl(dual_clip(eps, eps_high, 10.0)))


@check_arguments
def real(group_size: int, temperature: float = 0.5) -> Objective:
    """REAL (arXiv 2602.05630): scores are labels, and a group's completions are told apart by their mean log-ratio.

    Args:
        group_size: completions of a prompt.
        temperature: τ, nats.

    >>> real(8).trust_region.whole
    True
    """
    return grpo(0)._replace(
        advantage=filtering.right_or_wrong(), trust_region=proximal.classify(group_size, temperature)
    )


@check_arguments
def gfpo(share: float = 0.5) -> Objective:
    """GFPO (arXiv 2508.09726): of a large group learn from those with the highest score per token.

    Args:
        share: of a group that is learned from.

    >>> gfpo().kl is None
    True
    """
    kept = filtering.keep_best(per_group(z_score), filtering.token_efficiency, share)
    return dapo(0.2, 0.2)._replace(advantage=kept)


@check_arguments
def gfpo_shortest(share: float = 0.5) -> Objective:
    """GFPO (arXiv 2508.09726) that learns from the shortest.

    Args:
        share: of a group that is learned from.

    >>> gfpo_shortest().kl is None
    True
    """
    return gfpo()._replace(advantage=filtering.keep_best(per_group(z_score), filtering.shortness, share))


@check_arguments
def gigpo(step_coef: float = 1.0) -> Objective:
    """GiGPO (arXiv 2505.10978): credit of the episode, and of each turn among the turns from the same state.

    A turn's state and return are known (``Known``). On the command line a state is what the tool answered last, and a
    return is the score, times 0.95 for each turn before the last.

    Args:
        step_coef: ω, weight of the turns.

    >>> gigpo().kl is None
    True
    """
    return grpo(0)._replace(advantage=step_wise(per_group(z_score), step_coef))


@check_arguments
def spo(prompts: int, half_life: float = 8.0) -> Objective:
    """SPO (arXiv 2509.13232): one completion of a prompt against the prompt's running value, whitened over the batch.

    Args:
        prompts: numbers that a prompt may have.
        half_life: of what is remembered of a prompt, steps, or nats of drift where they are known.

    >>> spo(3).kl is None
    True
    """
    value = running.running_value(prompts, running.halving(half_life))
    return dapo()._replace(advantage=running.whitened(value))


@check_arguments
def rae(roles: int, decay: float = 0.95) -> Objective:
    """Role-conditioned advantages of self-play (SPIRAL, arXiv 2506.24119): a running baseline of each role.

    Args:
        roles: numbers that a role may have.
        decay: of the baseline, in one completion.

    >>> type(rae(2).advantage).__name__
    'Remembering'
    """
    return rloo(0)._replace(advantage=running.role_baseline(roles, decay))
