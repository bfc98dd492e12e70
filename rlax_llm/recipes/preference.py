"""Named preference algorithms on pairs, each stated as its difference from another.

Those that differ from ``dpo`` by a plain link have no function of their own: ``dpo(β)._replace(link=…)`` with
``hinge`` (RSO), ``nca`` or ``apo_down``. f-DPO and length-desensitized DPO replace ``rewards``; WPO is ``factors``, and
the negative log-likelihood of RPO ``nll_coef``.
"""

from __future__ import annotations

import jax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.preference import links
from rlax_llm.preference.implicit_rewards import (
    Slope,
    alpha_slope,
    divergence_reward,
    log_odds,
    log_prob,
    log_ratio,
    mean_log_prob,
    mean_log_ratio,
)
from rlax_llm.preference.links import (
    compare_with_zero,
    demand_margin,
    logistic,
    misranking,
    sorted_pairs,
    squared,
    weighted_sum,
)
from rlax_llm.preference.pairs import Preference, gold_response, per_response, policy_and_reference


@check_arguments
def dpo(beta: float | jax.Array = 0.1) -> Preference:
    """Direct Preference Optimization, ``−log σ(β (log π/π_ref (w) − log π/π_ref (l)))`` (arXiv 2305.18290, eq. 7).

    Limiting case: log 2 where the policy is the reference.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        ``per_response(log_ratio(beta)) × logistic``.

    Raises:
        ValueError: for a β that is not positive.

    >>> dpo(0.1).link.__name__
    'logistic'
    """
    return Preference(per_response(log_ratio(beta)), logistic)


@check_arguments
def f_dpo(slope: Slope, beta: float | jax.Array = 0.1) -> Preference:
    """f-DPO, ``−log σ(β f′(π/π_ref (w)) − β f′(π/π_ref (l)))`` (arXiv 2309.16240, eq. 8): ``dpo`` of an f-divergence.

    Limiting cases: ``dpo`` for a slope that is the identity, the reverse KL's, and near the reference for any here.

    Args:
        slope: f′ of the log-ratio: ``alpha_slope(α)``, ``forward_kl_slope`` or ``jensen_shannon_slope``.
        beta: temperature β > 0, reward per unit of slope.

    Returns:
        ``per_response(divergence_reward(log_ratio(), slope, beta)) × logistic``.

    Raises:
        ValueError: for a β that is not positive.

    >>> f_dpo(alpha_slope(0.5)).link.__name__
    'logistic'
    """
    return dpo(beta)._replace(rewards=per_response(divergence_reward(log_ratio(), slope, beta)))


@check_arguments
def cdpo(beta: float | jax.Array = 0.1, label_smoothing: float = 0.1) -> Preference:
    """Conservative DPO: ``dpo`` under labels of which a share is wrong.

    Args:
        beta: temperature β > 0, reward per nat.
        label_smoothing: that share, from 0 to below 0.5.

    >>> cdpo().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=links.smooth_labels(logistic, label_smoothing))


@check_arguments
def robust(beta: float | jax.Array = 0.1, label_smoothing: float = 0.1) -> Preference:
    """Robust DPO (arXiv 2403.00409): ``cdpo`` without its bias.

    Args:
        beta: temperature β > 0, reward per nat.
        label_smoothing: share of wrong labels, from 0 to below 0.5.

    >>> robust().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=links.robust(logistic, label_smoothing))


@check_arguments
def exo(beta: float | jax.Array = 0.1, label_smoothing: float = 1e-3) -> Preference:
    """EXO on pairs (arXiv 2402.00856): the reverse KL to the smoothed label.

    Args:
        beta: temperature β > 0, reward per nat.
        label_smoothing: share of wrong labels, above 0.

    >>> exo().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=links.exo(label_smoothing))


@check_arguments
def bco(beta: float | jax.Array = 0.1) -> Preference:
    """BCO on pairs (arXiv 2404.04656): each response against a reward of 0.

    Args:
        beta: temperature β > 0, reward per nat.

    >>> bco().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=compare_with_zero(logistic))


@check_arguments
def apo_zero(beta: float | jax.Array = 0.1) -> Preference:
    """APO-zero (arXiv 2408.06266): the chosen response up, the rejected one down.

    Args:
        beta: temperature β > 0, reward per nat.

    >>> apo_zero().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=compare_with_zero(misranking))


@check_arguments
def discopop(beta: float | jax.Array = 0.1) -> Preference:
    """DiscoPOP (arXiv 2406.08414): a link that was found by search.

    Args:
        beta: temperature β > 0, reward per nat.

    >>> discopop().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=links.discopop())


@check_arguments
def dpop(beta: float | jax.Array = 0.1, drop_coef: float = 5.0) -> Preference:
    """DPOP (arXiv 2402.13228): ``dpo`` that punishes a chosen response below the reference.

    Args:
        beta: temperature β > 0, reward per nat.
        drop_coef: λ, weight of the drop.

    >>> dpop().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=links.chosen_drop(logistic, drop_coef))


@check_arguments
def aot_unpaired(beta: float | jax.Array = 0.1) -> Preference:
    """Alignment via Optimal Transport of rewards (arXiv 2406.05882): the sorted ones of the batch.

    Args:
        beta: temperature β > 0, reward per nat.

    >>> aot_unpaired().nll_coef
    0.0
    """
    return dpo(beta)._replace(link=sorted_pairs(logistic))


@check_arguments
def dpo_norm(beta: float | jax.Array = 0.1) -> Preference:
    """``dpo`` of log-ratios per token.

    Args:
        beta: temperature β > 0, reward per nat per token.

    >>> dpo_norm().link is logistic
    True
    """
    return dpo()._replace(rewards=per_response(mean_log_ratio(beta)))


@check_arguments
def ipo(beta: float | jax.Array = 0.1) -> Preference:
    """Identity Preference Optimization, ``(Δ − 1/(2β))²`` of log-ratios per token (arXiv 2310.12036, eq. 17).

    The paper writes whole responses; per token is what its authors ran and TRL, HALOs and EasyDeL compute. On sums, as
    in OpenRLHF and DPO's own code: ``ipo(beta)._replace(rewards=per_response(log_ratio()))``; β is not comparable.

    Args:
        beta: the paper's τ > 0, strength of the regularization, per nat.

    Returns:
        ``per_response(mean_log_ratio()) × squared(1/(2β))``.

    Raises:
        ValueError: for a β that is not positive.

    >>> import jax.numpy as jnp
    >>> ipo(0.25).link(jnp.array([3.0]), jnp.array([0.0])).tolist()
    [1.0]
    """
    checks.positive("ipo", beta=beta)
    return Preference(per_response(mean_log_ratio()), squared(1 / (2 * beta)))


@check_arguments
def sppo(beta: float | jax.Array = 0.1) -> Preference:
    """Self-Play Preference Optimization with hard labels, ``(w − 1/(2β))² + (l + 1/(2β))²`` (arXiv 2405.00675, 4.7).

    Limiting case: 0 where both log-ratios are at their targets ±1/(2β).

    Args:
        beta: β > 0, the reciprocal of the paper's η, per nat.

    Returns:
        ``per_response(log_ratio()) × compare_with_zero(squared(1/(2β)))``.

    Raises:
        ValueError: for a β that is not positive.

    >>> import jax.numpy as jnp
    >>> sppo(0.5).link(jnp.array([1.0]), jnp.array([0.0])).tolist()
    [1.0]
    """
    checks.positive("sppo", beta=beta)
    return Preference(per_response(log_ratio()), compare_with_zero(squared(1 / (2 * beta))))


@check_arguments
def aot(beta: float | jax.Array = 0.1) -> Preference:
    """Alignment via Optimal Transport on pairs: sorted margins of the policy and of the reference (arXiv 2406.05882).

    Limiting case: ``dpo`` for a batch of one pair. The unpaired form sorts rewards instead:
    ``dpo(beta)._replace(link=sorted_pairs(logistic))``.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        ``policy_against_reference(log_prob(beta)) × sorted_pairs(logistic)``.

    Raises:
        ValueError: for a β that is not positive.

    >>> aot(0.1).nll_coef
    0.0
    """
    return Preference(policy_and_reference(log_prob(beta)), sorted_pairs(logistic))


@check_arguments
def cpo(beta: float | jax.Array = 0.1, nll_coef: float = 0.0) -> Preference:
    """Contrastive Preference Optimization: ``dpo`` without a reference, plus likelihood (arXiv 2401.08417).

    Limiting case: ``dpo`` under a uniform reference. The paper's likelihood term is ``nll_coef = 1`` with
    ``sequence_sum`` weights; TRL's is 1 with ``token_mean``.

    Args:
        beta: temperature β > 0, reward per nat.
        nll_coef: weight of the chosen responses' negative log-likelihood, per nat.

    Returns:
        ``per_response(log_prob(beta)) × logistic + nll_coef · NLL``.

    Raises:
        ValueError: for a β that is not positive.

    >>> cpo(0.1, 1.0).nll_coef
    1.0
    """
    return Preference(per_response(log_prob(beta)), logistic, nll_coef)


@check_arguments
def simpo(beta: float | jax.Array = 2.0, gamma: float = 0.5, nll_coef: float = 0.0) -> Preference:
    """SimPO, ``−log σ(β (log π(w)/|w| − log π(l)/|l|) − γ)`` (arXiv 2405.14734, eq. 6).

    Limiting case: γ = 0 is length-normalized ``cpo``. Peers differ: TRL keeps a likelihood term of weight 1 unless it
    is set to 0 (``nll_coef = 1`` with ``token_mean`` is that, known as CPO-SimPO); HALOs gives γ/β.

    Args:
        beta: temperature β > 0, reward per nat a token.
        gamma: margin γ ≥ 0, reward.
        nll_coef: weight of the chosen responses' negative log-likelihood, per nat.

    Returns:
        ``per_response(mean_log_prob(beta)) × shifted(logistic, gamma)``.

    Raises:
        ValueError: for a β that is not positive.

    >>> simpo().nll_coef
    0.0
    """
    return Preference(per_response(mean_log_prob(beta)), demand_margin(logistic, gamma), nll_coef)


@check_arguments
def tpo(beta: float | jax.Array = 0.01, nll_coef: float = 1.0) -> Preference:
    """Triple Preference Optimization (arXiv 2405.16681, eq. 8): ``cpo`` whose likelihood is a third, gold response's.

    Limiting cases: ``cpo`` where the gold response is the chosen one; supervised training on it for β → 0.

    Args:
        beta: temperature β > 0, reward per nat.
        nll_coef: the paper's α, weight of the gold responses' negative log-likelihood, per nat.

    Returns:
        ``per_response(log_prob(beta)) × logistic + nll_coef · NLL(gold)``.

    Raises:
        ValueError: for a β that is not positive.

    >>> tpo().likely.__name__
    'gold_response'
    """
    return cpo(beta, nll_coef)._replace(likely=gold_response)


@check_arguments
def tpo_length(beta: float | jax.Array = 2.0, gamma: float = 0.5, nll_coef: float = 1.0) -> Preference:
    """TPO-L (arXiv 2405.16681): ``simpo`` with the likelihood of ``tpo``.

    Args:
        beta: temperature β > 0, reward per nat a token.
        gamma: margin γ ≥ 0, reward.
        nll_coef: weight of the gold responses' negative log-likelihood, per nat.

    Returns:
        ``per_response(mean_log_prob(beta)) × shifted(logistic, gamma) + nll_coef · NLL(gold)``.

    Raises:
        ValueError: for a β that is not positive.

    >>> tpo_length().nll_coef
    1.0
    """
    return simpo(beta, gamma, nll_coef)._replace(likely=gold_response)


@check_arguments
def alpha_po(alpha: float = 0.25, beta: float | jax.Array = 2.0, gamma: float = 0.5) -> Preference:
    """AlphaPO: ``simpo`` with the reward bent to ``β (1 − p^−α)/α``, p per token (arXiv 2501.03884).

    Limiting case: α → 0 is ``simpo``.

    Args:
        alpha: α, dimensionless.
        beta: temperature β > 0.
        gamma: margin γ ≥ 0, reward.

    Returns:
        ``per_response(sloped(mean_log_prob(), alpha_slope(1 − alpha), beta)) × shifted(logistic, gamma)``.

    Raises:
        ValueError: for a β that is not positive.

    >>> alpha_po().nll_coef
    0.0
    """
    return simpo(beta, gamma)._replace(
        rewards=per_response(divergence_reward(mean_log_prob(), alpha_slope(1 - alpha), beta))
    )


@check_arguments
def orpo(beta: float = 0.1) -> Preference:
    """Odds-Ratio Preference Optimization, ``NLL − β log σ(log odds(w) − log odds(l))`` (arXiv 2403.07691, eq. 6).

    Limiting case: β = 0 is supervised training on the chosen responses. Peers differ in the likelihood's tokens:
    prompt and response (TRL; give such ``token_weights``), or the response alone.

    Args:
        beta: the paper's λ, weight of the odds-ratio term.

    Returns:
        ``per_response(log_odds) × β logistic + NLL``.

    >>> orpo().nll_coef
    1.0
    """
    return Preference(per_response(log_odds), weighted_sum((beta, logistic)), 1.0)
