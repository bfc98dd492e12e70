"""Named algorithms of control: each an ``Objective`` whose credit is taken from a stream of steps."""

from __future__ import annotations

from typing import NamedTuple

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlControl, doubling_coef
from rlax_llm.credit.streams import Credit, gae, q_value, return_to_go
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import NaturalStep, backtracking_search, improves_within
from rlax_llm.policy import trust_regions
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import clip, score_function, unclipped
from rlax_llm.policy.weightings import token_mean

_SHRINK = 0.8


class Penalized(NamedTuple):
    """An objective with a KL term ``β · KL(π_old‖π)`` whose weight is steered.

    Attributes:
        objective: without the term.
        control: ``(coef, kl) → coef``, from update to update.
    """

    objective: Objective
    control: KlControl


@check_arguments
def reinforce(credit: Credit = return_to_go) -> Objective:
    """REINFORCE (Williams, 1992) with any of the policy gradient's weights.

    Args:
        credit: one of ``credits``.

    >>> reinforce().trust_region is score_function
    True
    """
    return Objective(credit, token_ratio, score_function, token_mean)


@check_arguments
def q_actor_critic() -> Objective:
    """The first actor-critic: the critic's Q(s, a) = r + γ V(s′) as the weight.

    >>> q_actor_critic().advantage is q_value
    True
    """
    return reinforce(q_value)


@check_arguments
def a2c(gae_lambda: float | jax.Array = 1.0) -> Objective:
    """Advantage actor-critic (arXiv 1602.01783): REINFORCE with the return minus the value.

    Args:
        gae_lambda: λ of the advantage estimate; 0 is the TD residual.

    >>> a2c().trust_region is score_function
    True
    """
    return reinforce(gae(gae_lambda))


@check_arguments
def ppo(gae_lambda: float | jax.Array = 0.95, eps: float = 0.2) -> Objective:
    """PPO-clip (arXiv 1707.06347).

    Args:
        gae_lambda: λ of the advantage estimate.
        eps: half-width of the clip; may be traced.

    >>> ppo().kl is None
    True
    """
    return a2c(gae_lambda)._replace(trust_region=clip(eps))


@check_arguments
def ppo_penalty(gae_lambda: float | jax.Array = 0.95) -> Objective:
    """PPO-penalty's surrogate (arXiv 1707.06347, eq. 8); ``steered_ppo_penalty`` adds its KL term.

    Args:
        gae_lambda: λ of the advantage estimate.

    >>> ppo_penalty().trust_region is unclipped
    True
    """
    return a2c(gae_lambda)._replace(trust_region=unclipped)


@check_arguments
def steered_ppo_penalty(gae_lambda: float | jax.Array = 0.95, kl_target: float = 0.01) -> Penalized:
    """PPO-penalty (arXiv 1707.06347, section 4) with its KL term, whose weight doubles or halves towards a target.

    Args:
        gae_lambda: λ of the advantage estimate.
        kl_target: KL per step, nats.

    >>> steered_ppo_penalty().objective.trust_region is unclipped
    True
    """
    return Penalized(ppo_penalty(gae_lambda), doubling_coef(kl_target))


@check_arguments
def dual_clip(gae_lambda: float | jax.Array = 0.95, eps: float = 0.2) -> Objective:
    """``ppo`` with the dual clip (arXiv 1912.09729).

    Args:
        gae_lambda: λ of the advantage estimate.
        eps: half-width of the clip; may be traced.

    >>> dual_clip().weighting is token_mean
    True
    """
    return ppo(gae_lambda)._replace(trust_region=trust_regions.dual_clip(eps))


@check_arguments
def cispo(gae_lambda: float | jax.Array = 0.95, eps: float = 0.2) -> Objective:
    """``ppo`` with detached importance weights, held within 1 ± eps (arXiv 2506.13585).

    Args:
        gae_lambda: λ of the advantage estimate.
        eps: half-width; may be traced.

    >>> cispo().weighting is token_mean
    True
    """
    return ppo(gae_lambda)._replace(trust_region=trust_regions.cispo(ceiling=1 + eps, floor=1 - eps))


@check_arguments
def sapo(gae_lambda: float | jax.Array = 0.95) -> Objective:
    """``ppo`` with a soft clip (arXiv 2511.20347).

    Args:
        gae_lambda: λ of the advantage estimate.

    >>> sapo().weighting is token_mean
    True
    """
    return ppo(gae_lambda)._replace(trust_region=trust_regions.sapo())


@check_arguments
def discovered_policy_optimization(gae_lambda: float | jax.Array = 0.95) -> Objective:
    """``ppo`` with the drift that meta-learning found (arXiv 2210.05639).

    Args:
        gae_lambda: λ of the advantage estimate.

    >>> discovered_policy_optimization().weighting is token_mean
    True
    """
    return ppo(gae_lambda)._replace(trust_region=trust_regions.discovered_policy_optimization())


@check_arguments
def trpo(
    gae_lambda: float | jax.Array = 0.98,
    kl_radius: float | jax.Array = 0.01,
    damping: float | jax.Array = 1e-3,
    cg_iterations: int = 15,
) -> NaturalStep:
    """TRPO (arXiv 1502.05477): one natural-gradient step per rollout within a KL.

    Args:
        gae_lambda: λ of the advantage estimate.
        kl_radius: largest KL(π_old‖π), nats per step.
        damping: added to the Fisher matrix's diagonal.
        cg_iterations: of conjugate gradients.

    >>> trpo()._fields
    ('advantage', 'direction', 'search')
    """
    direction = natural_direction(kl_radius, damping, cg_iterations)
    search = backtracking_search(improves_within(kl_radius), _SHRINK)
    return NaturalStep(gae(gae_lambda), direction, search)
