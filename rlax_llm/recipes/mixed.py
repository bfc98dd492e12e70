"""Named algorithms that came later: of relative scores, of further terms, of tokens that another policy chose."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import PolicyBatch
from rlax_llm.credit.groups import centered, mean_relative, per_group
from rlax_llm.policy import trust_regions
from rlax_llm.policy.coupled import Coupled
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import summed_token_ratio, token_ratio
from rlax_llm.policy.terms import Term, given, likelihood, rewarded, shaped_advantage, squared_ratio, undecided
from rlax_llm.policy.trust_regions import TrustRegion, clip, score_function, unclipped
from rlax_llm.policy.weightings import Weighting, sequence_sum, token_mean
from rlax_llm.recipes.control import ppo
from rlax_llm.recipes.group import grpo


@check_arguments
def maxrl(eps: float = 0.2) -> Objective:
    """MaxRL (arXiv 2602.02710): scores relative to the group's mean, no KL.

    Args:
        eps: half-width of the clip.

    >>> maxrl().kl is None
    True
    """
    return grpo(0, eps)._replace(advantage=per_group(mean_relative))


@check_arguments
def topr() -> Objective:
    """Tapered off-policy REINFORCE (arXiv 2503.14286): whole completions, weighed by at most their ratio where A < 0.

    >>> topr().ratio is summed_token_ratio
    True
    """
    return Objective(per_group(centered), summed_token_ratio, trust_regions.topr(), sequence_sum)


@check_arguments
def kimi(tau: float | jax.Array = 0.1) -> Objective:
    """Kimi K2.5's (arXiv 2602.02276): the plain ratio, centered scores, and the squared log-ratio in place of a clip.

    Args:
        tau: weight of ``(log π/π_old)²``, per nat²; may be traced.

    >>> [term.name for term in kimi().terms]
    ['squared_ratio']
    """
    penalty = Term("squared_ratio", squared_ratio, tau, corrects=True)
    return Objective(per_group(centered), token_ratio, unclipped, token_mean, terms=(penalty,))


@check_arguments
def dro(beta: float | jax.Array = 0.2) -> Objective:
    """DRO (arXiv 2405.19107) with a group's mean for the value: ``−A log π + β/2 · (log π/π_old)²``.

    Args:
        beta: weight of half the squared log-ratio; may be traced.

    >>> dro().trust_region is score_function
    True
    """
    return kimi(0.5 * beta)._replace(trust_region=score_function)


@check_arguments
def chord(mu: float | jax.Array = 0.1, eps: float = 0.2) -> Objective:
    """CHORD-φ (arXiv 2508.11408): ``(1 − μ) · GRPO + μ · imitation`` of given tokens, each weighed by p (1 − p).

    Args:
        mu: from 0, which is GRPO without a KL, to 1; may be traced, as a schedule over steps wants.
        eps: half-width of the clip.

    >>> [term.name for term in chord().terms]
    ['imitation']
    """
    parent = grpo(0, eps)
    imitation = Term("imitation", likelihood(undecided), mu, given)
    return parent._replace(weighting=_scaled(parent.weighting, 1 - mu), terms=(imitation,))


def _scaled(weighting: Weighting, share: float | jax.Array) -> Weighting:
    return lambda mask: share * weighting(mask)


@check_arguments
def echo(nll_coef: float | jax.Array = 0.1, eps: float = 0.2) -> Objective:
    """ECHO (arXiv 2605.24517): GRPO, and the negative log-likelihood of what tools answered.

    Args:
        nll_coef: weight of a given token's nats; with 0 it is GRPO without a KL. May be traced.
        eps: half-width of the clip.

    >>> [term.name for term in echo().terms]
    ['given_nll']
    """
    return grpo(0, eps)._replace(terms=(Term("given_nll", likelihood(), nll_coef, given),))


@check_arguments
def positive_examples(coef: float | jax.Array = 0.1, threshold: float | jax.Array = 0.0) -> Term:
    """VAPO's term (arXiv 2504.05118, section 4.4): the negative log-likelihood of completions that score well.

    Args:
        coef: weight of a token's nats; may be traced.
        threshold: a completion counts whose score is above it.

    >>> positive_examples().name
    'positive_nll'
    """
    return Term("positive_nll", likelihood(), coef, rewarded(threshold))


@check_arguments
def vapo(
    nll_coef: float | jax.Array = 0.1,
    nll_threshold: float | jax.Array = 0.0,
    eps: float = 0.2,
    eps_high: float | None = 0.28,
) -> Objective:
    """VAPO's loss (arXiv 2504.05118): PPO with a higher clip above 1, and the likelihood of what scores well.

    Its credit is decoupled: ``Shaping(trace=length_adaptive_trace, value_trace=1.0)`` of ``rlhf_loop``. Limiting case:
    ``control.ppo`` for ``nll_coef`` 0 and ``eps_high`` None.

    Args:
        nll_coef: μ, weight of a token's nats; may be traced.
        nll_threshold: a completion counts whose score is above it.
        eps: half-width of the clip below 1.
        eps_high: half-width above 1; None is ``eps``.

    >>> [term.name for term in vapo().terms]
    ['positive_nll']
    """
    return ppo()._replace(trust_region=clip(eps, eps_high), terms=(positive_examples(nll_coef, nll_threshold),))


@check_arguments
def mixed_policy(on_policy: TrustRegion, gamma: float | jax.Array = 0.1) -> Coupled:
    """A trust region for what the policy chose, and ``shaped_advantage`` for what was given and teaches.

    Args:
        on_policy: such as ``clip(0.2)``.
        gamma: of ``shaped_advantage``.

    >>> one = jnp.ones((1, 2))
    >>> batch = PolicyBatch(0 * one, 0 * one, one, one > 0, given=jnp.array([[True, False]]))
    >>> [round(x, 4) for x in mixed_policy(unclipped).loss(0 * one, batch)[0].tolist()]
    [-0.9091, -1.0]
    """
    shaped = shaped_advantage(gamma)

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        own = on_policy(jnp.where(given(batch), 0.0, log_ratio), batch.advantages)
        return jnp.where(given(batch), shaped(batch), own)

    return Coupled(loss, members=True)


@check_arguments
def luffy(gamma: float | jax.Array = 0.1, eps: float = 0.2) -> Objective:
    """LUFFY (arXiv 2504.14945): demonstrations beside a group's own completions, with shaped credit and no clip.

    A demonstration's tokens are ``given`` and in the ``mask``, so that they weigh as others do, and its score is one of
    its group's. Limiting case: without demonstrations, ``dapo``'s weights on ``dr_grpo``'s advantage.

    Args:
        gamma: of ``shaped_advantage``.
        eps: half-width of the clip, of the policy's own tokens.

    >>> luffy().weighting is token_mean
    True
    """
    return Objective(per_group(centered), token_ratio, mixed_policy(clip(eps), gamma), token_mean)
