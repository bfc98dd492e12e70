"""Links: ``(chosen_rewards, rejected_rewards) → loss``, elementwise, minimized where the chosen reward is the higher.

Write Δ for the chosen minus the rejected reward. The first argument need not be a response: against a *reference
point* the same links are the losses of unpaired labels (``rlax_llm.preference.unpaired``), and against 0 those that
read each response by itself. Rewards carry β, so the links have none.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line
from rlax_llm.preference.marks import pairwise, pairwise_like

Link = Callable[[jax.Array, jax.Array], jax.Array]


def _difference(where: str, chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    checks.same_shape(where, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return chosen_rewards - rejected_rewards


@pairwise
@check_arguments
def logistic(chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    """Bradley-Terry negative log-likelihood ``−log σ(Δ)``: reward models (arXiv 2203.02155), DPO (arXiv 2305.18290).

    Limiting cases: log 2 at Δ = 0; ``hinge`` without its margin far from 0. OpenRLHF's "log-exp" loss is this.

    Args:
        chosen_rewards: any shape.
        rejected_rewards: same shape.

    Returns:
        Same shape, nats.

    >>> round(float(logistic(jnp.array(0.0), jnp.array(0.0))), 4)
    0.6931
    """
    return jax.nn.softplus(-_difference("logistic", chosen_rewards, rejected_rewards))


@pairwise
@check_arguments
def misranking(chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    """Bradley-Terry probability that the rejected one wins, ``1 − σ(Δ)``: KTO's value, APO's terms.

    It saturates at both ends: a pair that is hopelessly wrong has no gradient, unlike under ``logistic``.
    Limiting cases: ½ at Δ = 0; ``exp(−logistic)`` with the arguments exchanged.

    Args:
        chosen_rewards: any shape.
        rejected_rewards: same shape.

    Returns:
        Same shape, in (0, 1).

    >>> misranking(jnp.array([2.0]), jnp.array([2.0])).tolist()
    [0.5]
    """
    return jax.nn.sigmoid(-_difference("misranking", chosen_rewards, rejected_rewards))


@pairwise
@check_arguments
def hinge(chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    """Hinge ``max(0, 1 − Δ)``: of ``log_prob`` SLiC-HF (arXiv 2305.10425), of ``log_ratio`` RSO (arXiv 2309.06657).

    Limiting case: no gradient from Δ = 1 on. Peers differ in the reward: HALOs takes SLiC's, TRL that of RSO.

    Args:
        chosen_rewards: any shape.
        rejected_rewards: same shape.

    Returns:
        Same shape.

    >>> hinge(jnp.array([0.0, 3.0]), jnp.array([0.5, 0.0])).tolist()
    [1.5, 0.0]
    """
    return jax.nn.relu(1 - _difference("hinge", chosen_rewards, rejected_rewards))


@check_arguments
def squared(target: jax.typing.ArrayLike) -> Link:
    """Regression of the margin, ``(Δ − target)²`` (IPO, arXiv 2310.12036, eq. 17, with ``target = 1/(2τ)``).

    Limiting case: 0 at Δ = target, so that a preference without noise has a finite optimum, which DPO's has not.

    Args:
        target: the margin to reach, in the rewards' units.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    >>> squared(0.5)(jnp.array([2.0]), jnp.array([0.5])).tolist()
    [1.0]
    """

    def link(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return jnp.square(_difference("squared", chosen, rejected) - target)

    return link if jnp.ndim(target) else pairwise(link)


@check_arguments
def exo(eps: float = 1e-3) -> Link:
    """EXO's reverse KL between (σ(Δ), σ(−Δ)) and the smoothed label (1 − ε, ε) (arXiv 2402.00856, eq. 16).

    Limiting case: 0 at Δ = log((1 − ε)/ε). At ε = 0 it would be infinite; some peers then put 1e-3 in silently.

    Args:
        eps: ε in (0, 1), the probability of a wrong label.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``, nats.

    Raises:
        ValueError: for an ε outside (0, 1).

    >>> exo(0.5)(jnp.array([1.0]), jnp.array([1.0])).tolist()
    [0.0]
    """
    checks.positive("exo", eps=eps)
    _below("exo", eps, 1)

    def link(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        right = misranking(rejected, chosen) * (-logistic(chosen, rejected) - jnp.log1p(-eps))
        return right + misranking(chosen, rejected) * (-logistic(rejected, chosen) - jnp.log(eps))

    return pairwise(link)


@pairwise
@check_arguments
def nca(chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    """Noise-contrastive alignment of pairs, ``−log σ(w) − ½ log σ(−w) − ½ log σ(−l)`` (NCA, arXiv 2402.05369).

    Limiting case: 2 log 2 at rewards of 0. It anchors each reward at 0, so the chosen likelihood can't sink.

    Args:
        chosen_rewards: any shape, w above.
        rejected_rewards: same shape, l above.

    Returns:
        Same shape, nats.

    >>> round(float(nca(jnp.array(0.0), jnp.array(0.0))), 4)
    1.3863
    """
    checks.same_shape("nca", chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    zero = jnp.zeros_like(chosen_rewards)
    return logistic(chosen_rewards, zero) + 0.5 * (logistic(zero, chosen_rewards) + logistic(zero, rejected_rewards))


@pairwise
@check_arguments
def apo_down(chosen_rewards: jax.Array, rejected_rewards: jax.Array) -> jax.Array:
    """APO-down ``σ(w) + 1 − σ(w − l)``: lowers the chosen one too, the rejected one more (arXiv 2408.06266, eq. 8).

    For chosen responses that are worse than what the policy writes. Limiting case: 1 at rewards of 0.

    Args:
        chosen_rewards: any shape, w above.
        rejected_rewards: same shape, l above.

    Returns:
        Same shape, in (0, 2).

    >>> apo_down(jnp.array([0.0]), jnp.array([0.0])).tolist()
    [1.0]
    """
    return misranking(chosen_rewards, rejected_rewards) + misranking(jnp.zeros_like(chosen_rewards), chosen_rewards)


@check_arguments
def discopop(temperature: float = 0.05) -> Link:
    """DiscoPOP's blend ``(1 − m)(−log σ(Δ)) + m exp(−Δ)`` with ``m = σ(Δ/temperature)`` (arXiv 2406.08414, eq. 5).

    Limiting cases: ``logistic`` for Δ → −∞, ``exp(−Δ)`` for Δ → ∞; their mean as the temperature → ∞.

    Args:
        temperature: τ > 0, in the rewards' units.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    Raises:
        ValueError: for a temperature that is not positive.

    >>> round(float(discopop()(jnp.array(0.0), jnp.array(0.0))), 4)  # (log 2 + 1)/2
    0.8466
    """
    checks.positive("discopop", temperature=temperature)

    def link(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        delta = _difference("discopop", chosen, rejected)
        scaled = delta / temperature
        # One exponential: exp(−Δ) alone would overflow where m is 0.
        exponential = exp_then_line(jax.nn.log_sigmoid(scaled) - delta)
        return jax.nn.softplus(-delta) * jax.nn.sigmoid(-scaled) + exponential

    return pairwise(link)


# Modifiers: link → link.


@check_arguments
def demand_margin(link: Link, margin: jax.typing.ArrayLike) -> Link:
    """Demand a margin, ``link(w − margin, l)``: SimPO's γ (arXiv 2405.14734); Llama 2's reward model (2307.09288).

    Limiting case: a margin of 0 is ``link``. With ``squared`` it moves the target.

    Args:
        link: a link.
        margin: in the rewards' units, a number or one for each pair.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    >>> demand_margin(hinge, 0.5)(jnp.array([1.0]), jnp.array([0.0])).tolist()
    [0.5]
    """

    def demanding(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return link(chosen - margin, rejected)

    return demanding if jnp.ndim(margin) else pairwise_like(demanding, link)


def _flipped(link: Link, share: float) -> Link:
    def both_ways(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return (1 - share) * link(chosen, rejected) + share * link(rejected, chosen)

    return pairwise_like(both_ways, link)


@check_arguments
def smooth_labels(link: Link, eps: float) -> Link:
    """Label smoothing ``(1 − ε) link(w, l) + ε link(l, w)``: of ``logistic`` conservative DPO (Mitchell, 2023).

    Limiting cases: ε = 0 is ``link``; ε = ½ is symmetric in the two. TRL's DPO does not smooth its logistic loss (any
    more); OpenRLHF's, Tunix' and EasyDeL's do. ``demand_margin(smooth_labels(link, ε), γ)`` shifts both terms by γ.

    Args:
        link: a link.
        eps: ε in [0, ½], the share of labels that are believed to be wrong.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    Raises:
        ValueError: for an ε outside [0, ½].

    >>> smooth_labels(hinge, 0.25)(jnp.array([1.0]), jnp.array([0.0])).tolist()
    [0.5]
    """
    _share("smooth_labels", eps, closed=True)
    return _flipped(link, eps)


@check_arguments
def robust(link: Link, eps: float) -> Link:
    """Unbiased for labels flipped with probability ε: ``[(1 − ε) link(w, l) − ε link(l, w)]/(1 − 2ε)``.

    Robust DPO (arXiv 2403.00409). Its mean over the flips is ``link`` on the true labels. Limiting cases: ε = 0 is
    ``link``; it is ``smooth_labels`` with the negative ε/(2ε − 1).

    Args:
        link: a link.
        eps: ε in [0, ½), the probability of a flip.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``; it may be negative.

    Raises:
        ValueError: for an ε outside [0, ½).

    >>> robust(hinge, 0.25)(jnp.array([1.0]), jnp.array([0.0])).tolist()
    [-1.0]
    """
    _share("robust", eps, closed=False)
    return _flipped(link, -eps / (1 - 2 * eps))


@check_arguments
def compare_with_zero(link: Link) -> Link:
    """Each response against 0 instead of the other, ``link(w, 0) + link(0, l)``.

    Of ``logistic`` it is BCO on pairs (arXiv 2404.04656), of ``misranking`` APO-zero (arXiv 2408.06266, eq. 7), of
    ``squared(1/(2β))`` on log-ratios SPPO's hard form (arXiv 2405.00675). Limiting case: 2 ``link`` for w = −l with a
    ``link`` linear in Δ.

    Args:
        link: a link.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    >>> compare_with_zero(hinge)(jnp.array([0.5]), jnp.array([1.0])).tolist()
    [2.5]
    """

    def both(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        checks.same_shape("compare_with_zero", chosen_rewards=chosen, rejected_rewards=rejected)
        zero = jnp.zeros_like(chosen)
        return link(chosen, zero) + link(zero, rejected)

    return pairwise_like(both, link)


@check_arguments
def sorted_pairs(link: Link) -> Link:
    """Quantile against quantile, ``link(sort(w), sort(l))``: stochastic dominance of rewards (AOT, arXiv 2406.05882).

    The batch is the sample, so micro-batches differ from the whole, and a pair that is padding must not be in it.
    Limiting case: ``link`` for a single pair.

    Args:
        link: a link.

    Returns:
        A link of ``[B]`` arrays; entry i belongs to the i-th smallest, not to pair i, so weigh all alike.

    Raises:
        ValueError: at trace time, for rewards that are not ``[B]``.

    >>> sorted_pairs(hinge)(jnp.array([3.0, 1.0]), jnp.array([0.0, 2.5])).tolist()
    [0.0, 0.5]
    """

    def quantiles(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        checks.rank("sorted_pairs", "chosen_rewards", chosen, 1, "[B]")
        return link(jnp.sort(chosen), jnp.sort(rejected))

    return quantiles


@check_arguments
def chosen_drop(link: Link, drop_coef: float) -> Link:
    """Punish a chosen response that fell below the reference, ``link(w − λ max(0, −w), l)`` (DPOP, arXiv 2402.13228).

    Limiting cases: λ = 0, or a chosen reward above 0, is ``link``.

    Args:
        link: a link; ``logistic`` in the paper.
        drop_coef: λ ≥ 0, dimensionless.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    >>> chosen_drop(hinge, 2.0)(jnp.array([-1.0, 1.0]), jnp.array([0.0, 0.0])).tolist()
    [4.0, 0.0]
    """

    def dropped(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return link(chosen - drop_coef * jax.nn.relu(-chosen), rejected)

    return pairwise_like(dropped, link)


@check_arguments
def centered_rewards(link: Link, centering_coef: float) -> Link:
    """Keep a reward model's scores around 0, ``link(w, l) + c (w + l)²`` (arXiv 2312.09244, eq. 2).

    Bradley-Terry reads differences only, so scores may drift by any constant. Limiting case: c = 0 is ``link``.
    Peers differ in the default: none (TRL), 0.1 (EasyDeL).

    Args:
        link: a link; ``logistic`` for reward models.
        centering_coef: c ≥ 0, per squared score.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    >>> centered_rewards(hinge, 0.5)(jnp.array([1.0]), jnp.array([1.0])).tolist()
    [3.0]
    """

    def centered(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        return link(chosen, rejected) + centering_coef * jnp.square(chosen + rejected)

    return pairwise_like(centered, link)


@check_arguments
def weighted_sum(*terms: tuple[float | jax.Array, Link]) -> Link:
    """Several links at once, ``Σ_k c_k link_k(w, l)``, as in mixed preference optimization (arXiv 2411.10442).

    Limiting case: one term with c = 1 is that link.

    Args:
        terms: pairs of a coefficient, a number or one for each pair, and a link.

    Returns:
        A link ``(chosen_rewards, rejected_rewards) → loss``.

    Raises:
        ValueError: without a term.

    >>> weighted_sum((0.5, hinge), (2.0, squared(0.0)))(jnp.array([1.0]), jnp.array([2.0])).tolist()
    [3.0]
    """
    if not terms:
        raise ValueError("weighted_sum: got no term; give at least one pair (coefficient, link).")

    def total(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
        first, *others = (coef * link(chosen, rejected) for coef, link in terms)
        return sum(others, start=first)

    return pairwise_like(total, *(link for _, link in terms))


def _below(where: str, eps: float, ceiling: float) -> None:
    if isinstance(eps, (int, float)) and not eps < ceiling:
        raise ValueError(f"{where}: eps is {eps}, wanted a number below {ceiling}.")


def _share(where: str, eps: float, closed: bool) -> None:
    if isinstance(eps, (int, float)) and not (0 <= eps <= 0.5 if closed else 0 <= eps < 0.5):
        raise ValueError(f"{where}: eps is {eps}, wanted a share of labels in [0, 0.5{']' if closed else ')'}.")
