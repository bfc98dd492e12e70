"""What prime-rl computes (its trainer's ``rl/loss.py``, its orchestrator's ``algo/``), with the defaults of its losses.

Scores are centered in the group and never divided by a standard deviation. Its loss is a mean over tokens of the plain
ratio, masked by how far a token's probability moved, and the squared log-ratio to the sampler.
"""

from __future__ import annotations

from rlax_llm.core.arguments import check_arguments
from rlax_llm.credit.groups import mean_relative, per_group
from rlax_llm.policy.coupled import mask_probability_change, mask_total_variation
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.trust_regions import unclipped
from rlax_llm.recipes.mixed import kimi


@check_arguments
def grpo(eps: float = 0.2, eps_high: float | None = None, tau: float = 1e-3) -> Objective:
    """The default loss with ``grpo`` credit: centered scores, the mask of DPPO-TV, and ``kl_tau`` times (log π/π_old)².

    Args:
        eps: ``dppo_mask_low``.
        eps_high: ``dppo_mask_high``; ``eps`` where None.
        tau: ``kl_tau``.

    >>> [term.name for term in grpo().terms]
    ['squared_ratio']
    """
    return kimi(tau)._replace(trust_region=mask_total_variation(unclipped, eps, eps_high))


@check_arguments
def max_rl() -> Objective:
    """The default loss with ``max_rl`` credit: scores relative to the group's mean.

    >>> max_rl().kl is None
    True
    """
    return grpo()._replace(advantage=per_group(mean_relative))


@check_arguments
def ipo(eps: float, tau: float = 1e-3) -> Objective:
    """The ``ipo`` loss: what moved by more than a threshold is left out, whichever way it moved.

    Args:
        eps: ``ipo_threshold``, of a token's probability.
        tau: ``kl_tau``.

    >>> [term.name for term in ipo(0.2).terms]
    ['squared_ratio']
    """
    return kimi(tau)._replace(trust_region=mask_probability_change(unclipped, eps))
