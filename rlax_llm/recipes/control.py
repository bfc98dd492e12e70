"""Named algorithms of control: each an ``Objective`` whose credit is taken from a stream of steps."""

from __future__ import annotations

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit.streams import Credit, gae, q_value, return_to_go
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import clip, score_function, unclipped
from rlax_llm.policy.weightings import token_mean


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
def a2c(lambda_: float | jax.Array = 1.0) -> Objective:
    """Advantage actor-critic (arXiv 1602.01783): REINFORCE with the return minus the value.

    Args:
        lambda_: of the advantage estimate; 0 is the TD residual.

    >>> a2c().trust_region is score_function
    True
    """
    return reinforce(gae(lambda_))


@check_arguments
def ppo(lambda_: float | jax.Array = 0.95, eps: float = 0.2) -> Objective:
    """PPO-clip (arXiv 1707.06347).

    Args:
        lambda_: of the advantage estimate.
        eps: half-width of the clip; may be traced.

    >>> ppo().kl is None
    True
    """
    return a2c(lambda_)._replace(trust_region=clip(eps))


@check_arguments
def ppo_penalty(lambda_: float | jax.Array = 0.95) -> Objective:
    """PPO-penalty's surrogate (arXiv 1707.06347, eq. 8); ``train.updates.Penalty`` adds its KL term.

    Args:
        lambda_: of the advantage estimate.

    >>> ppo_penalty().trust_region is unclipped
    True
    """
    return a2c(lambda_)._replace(trust_region=unclipped)
