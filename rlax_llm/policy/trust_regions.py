"""Trust regions: ``(log_ratio, advantages) → loss``, elementwise over any layout.

A loss that writes log π (REINFORCE) differs from one that writes the log-ratio by a constant, so it has the same
gradient; hence one signature for all. Losses are minimized: they carry the minus sign. Write ``r = exp(log_ratio)``,
which goes on as its tangent where its square would leave the format (``exponentials``): every value and slope is
finite. Trust regions that read more than the log-ratio are in ``coupled``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.caps import soft_cap
from rlax_llm.core.exponentials import exp_then_line, expm1_then_line
from rlax_llm.core.kl import k3

TrustRegion = Callable[[jax.Array, jax.Array], jax.Array]


@check_arguments
def slopes(trust_region: TrustRegion, log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """``∂ Σ loss / ∂ log_ratio``: 0 on the tokens that a trust region clips.

    Limiting case: ``−advantages`` where the log-ratio is 0, for every trust region here.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``.
        log_ratio: any shape, nats.
        advantages: same shape.

    Returns:
        Same shape, without a gradient.

    >>> slopes(score_function, jnp.array([0.5, 3.0]), jnp.array([2.0, -1.0])).tolist()
    [-2.0, 1.0]
    """
    fixed = jax.lax.stop_gradient(jnp.asarray(log_ratio))
    return jax.lax.stop_gradient(jax.grad(lambda x: trust_region(x, advantages).sum())(fixed))


@check_arguments
def score_function(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """REINFORCE ``−A · log π`` (Williams, 1992), up to a constant.

    Limiting case: the gradient of every other trust region here where the log-ratio is 0.

    Args:
        log_ratio: any shape, nats.
        advantages: same shape.

    Returns:
        Same shape.

    >>> score_function(jnp.array([0.5]), jnp.array([2.0])).tolist()
    [-1.0]
    """
    checks.same_shape("score_function", log_ratio=log_ratio, advantages=advantages)
    return -advantages * log_ratio


@check_arguments
def regression(beta: float | jax.Array = 1.0) -> TrustRegion:
    """Least squares of the implicit reward on the advantage, ``(β · log_ratio − A)²``.

    It is 0 where the policy is the optimal one for a KL of weight β, and pulls back beyond that, so it needs no clip.
    With the log-ratio of whole completions to the reference it is A*-PO's loss (arXiv 2505.20686), with that to the
    sampler less its group's mean twice GVPO's (arXiv 2504.19599). Limiting case: where the log-ratio is 0 the slope is
    2β times that of ``score_function``.

    Args:
        beta: β > 0, units of the advantage per nat; may be traced.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a β that is not positive.

    >>> regression(0.5)(jnp.array([2.0, 0.0]), jnp.array([1.0, 3.0])).tolist()
    [0.0, 9.0]
    """
    checks.positive("regression", beta=beta)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("regression", log_ratio=log_ratio, advantages=advantages)
        return jnp.square(beta * log_ratio - advantages)

    return loss


@check_arguments
def unclipped(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """Importance-weighted surrogate ``−A · exp(log_ratio)`` (TRPO's objective, arXiv 1502.05477, eq. 14).

    Limiting cases: same gradient as ``score_function`` where the log-ratio is 0; ``clip`` with an infinite width; 0
    where the advantage is 0, however large the ratio.

    Args:
        log_ratio: any shape, nats.
        advantages: same shape.

    Returns:
        Same shape.

    >>> unclipped(jnp.array([0.0]), jnp.array([2.0])).tolist()
    [-2.0]
    """
    checks.same_shape("unclipped", log_ratio=log_ratio, advantages=advantages)
    return -advantages * exp_then_line(log_ratio)


@check_arguments
def clip(eps_low: float = 0.2, eps_high: float | None = None) -> TrustRegion:
    """PPO's pessimistic clip ``−min(r A, clamp(r, 1 − eps_low, 1 + eps_high) A)`` (arXiv 1707.06347, eq. 7).

    Separate halves are DAPO's clip-higher (arXiv 2503.14476). Limiting cases: ``unclipped`` for wide halves; the
    gradient is that of ``score_function`` where r = 1; no gradient where A > 0 and r > 1 + eps_high, or A < 0 and
    r < 1 − eps_low.

    Args:
        eps_low: half-width below 1 (dimensionless).
        eps_high: half-width above 1; ``eps_low`` where None.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a half-width that is not positive.

    >>> print(clip(0.2)(jnp.log(jnp.array([1.5, 0.5])), jnp.array([1.0, 1.0])))
    [-1.2 -0.5]
    """
    high = eps_low if eps_high is None else eps_high
    checks.positive("clip", eps_low=eps_low, eps_high=high)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("clip", log_ratio=log_ratio, advantages=advantages)
        ratio = exp_then_line(log_ratio)
        # fmin's derivative is one select; that of minimum shares ties between its sides and takes half as long again.
        return -jnp.fmin(ratio * advantages, jnp.clip(ratio, 1 - eps_low, 1 + high) * advantages)

    return loss


@check_arguments
def dual_clip(eps_low: float = 0.2, eps_high: float | None = None, ceiling: float = 3.0) -> TrustRegion:
    """PPO's clip whose loss is capped at ``−ceiling · A`` where A < 0 (arXiv 1912.09729).

    Without the cap a negative advantage with a large ratio has an unbounded loss. Limiting case: ``clip`` for an
    infinite ceiling and wherever A ≥ 0. A one-sided bound on r itself (a peer's ``delta``) is this ceiling.

    Args:
        eps_low: half-width below 1 (dimensionless).
        eps_high: half-width above 1; ``eps_low`` where None.
        ceiling: > 1, the ratio (absolute) beyond which a negative advantage has no gradient.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a half-width that is not positive or a ceiling that does not exceed 1.

    >>> dual_clip(ceiling=3.0)(jnp.log(jnp.array([5.0, 2.0])), jnp.array([-1.0, -1.0])).tolist()
    [3.0, 2.0]
    """
    checks.positive("dual_clip", **{"ceiling − 1": ceiling - 1})
    clipped = clip(eps_low, eps_high)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        pessimistic = clipped(log_ratio, advantages)
        return jnp.where(advantages < 0, jnp.minimum(pessimistic, -ceiling * advantages), pessimistic)

    return loss


@check_arguments
def cispo(*, ceiling: float, floor: float = 0.0) -> TrustRegion:
    """Clipped importance weights, detached: ``−sg(clamp(r, floor, ceiling)) · A · log π`` (arXiv 2506.13585).

    No token loses its gradient. Bounds are absolute values of the ratio: with half-widths eps they are
    ``floor=1 − eps_low, ceiling=1 + eps_high``. (Peers give one number two meanings: as the ratio itself, or above 1.)
    Limiting cases: ``score_function`` for ``floor = ceiling = 1``; the gradient of ``unclipped`` for wide bounds.

    Args:
        ceiling: largest weight.
        floor: smallest weight.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a negative floor, a ceiling that is not positive, or one below the floor.

    >>> cispo(ceiling=2.0)(jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0])).tolist()
    [-4.0, -0.0]
    """
    checks.positive("cispo", ceiling=ceiling)
    checks.not_negative("cispo", floor=floor, **{"ceiling − floor": ceiling - floor})

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("cispo", log_ratio=log_ratio, advantages=advantages)
        weights = jax.lax.stop_gradient(jnp.clip(exp_then_line(log_ratio), floor, ceiling))
        return score_function(log_ratio, weights * advantages)

    return loss


@check_arguments
def topr(ceiling: float = 1.0) -> TrustRegion:
    """Tapered off-policy REINFORCE (arXiv 2503.14286): plain where A > 0, ``cispo`` up to 1 elsewhere.

    Good completions are imitated whoever drew them; bad ones are pushed down no harder than they are likely. The
    paper's ratio is of the completion: take ``summed_token_ratio``. Limiting case: ``score_function`` on-policy.

    Args:
        ceiling: largest weight where A < 0.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a ceiling that is not positive.

    >>> [round(x, 4) for x in topr()(jnp.array([-1.0, -1.0]), jnp.array([1.0, -1.0])).tolist()]
    [1.0, -0.3679]
    """
    tapered = cispo(ceiling=ceiling)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        return jnp.where(advantages > 0, score_function(log_ratio, advantages), tapered(log_ratio, advantages))

    return loss


@check_arguments
def sapo(temperature_positive: float = 1.0, temperature_negative: float = 1.05) -> TrustRegion:
    """Soft clip ``−(4/τ) · sigmoid(τ (r − 1)) · A``, with one τ for A > 0 and another elsewhere (arXiv 2511.20347).

    The slope is ``4 p (1 − p) r`` times that of ``score_function``, with p the sigmoid. Limiting cases: the gradient of
    ``score_function`` where r = 1, whatever τ; that of ``unclipped`` for τ → 0.

    Args:
        temperature_positive: τ where A > 0: larger decays faster away from r = 1.
        temperature_negative: τ elsewhere.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a temperature that is not positive.

    >>> sapo(2.0)(jnp.array([0.0]), jnp.array([1.0])).tolist()
    [-1.0]
    """
    checks.positive("sapo", temperature_positive=temperature_positive, temperature_negative=temperature_negative)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("sapo", log_ratio=log_ratio, advantages=advantages)
        temperature = jnp.where(advantages > 0, temperature_positive, temperature_negative)
        return -advantages * 4 / temperature * jax.nn.sigmoid(temperature * (exp_then_line(log_ratio) - 1))

    return loss


@check_arguments
def vespo(
    k_positive: float = 2.0, lambda_positive: float = 3.0, k_negative: float = 3.0, lambda_negative: float = 2.0
) -> TrustRegion:
    """Gamma-shaped weights of whole completions: ``−sg(φ(w)) · A · log π``, ``φ(w) = w^k · exp(λ − λ w)``.

    Here w is the ratio of the whole completion: take ``summed_token_ratio`` as the objective's ratio
    (arXiv 2602.10693). With the sampler's log-probabilities as ``old_log_probs`` it also covers a sampler that differs
    from the learner. Its largest weight is at ``w = k/λ``. Limiting cases: the gradient of ``score_function`` where
    w = 1; that of ``unclipped`` for k = 1, λ = 0; ``score_function`` for k = λ = 0.

    Args:
        k_positive: exponent of w where A ≥ 0.
        lambda_positive: decay in w where A ≥ 0.
        k_negative: exponent of w where A < 0.
        lambda_negative: decay in w where A < 0.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a negative exponent or decay.

    >>> vespo(1.0, 0.0)(jnp.log(jnp.array([2.0, 1.0])), jnp.array([1.0, 1.0])).tolist()
    [-1.386..., -0.0]
    """
    checks.not_negative("vespo", k_positive=k_positive, lambda_positive=lambda_positive)
    checks.not_negative("vespo", k_negative=k_negative, lambda_negative=lambda_negative)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("vespo", log_ratio=log_ratio, advantages=advantages)
        k = jnp.where(advantages < 0, k_negative, k_positive)
        decay = jnp.where(advantages < 0, lambda_negative, lambda_positive)
        log_weights = k * log_ratio + decay * (1 - exp_then_line(log_ratio))
        return score_function(log_ratio, jax.lax.stop_gradient(exp_then_line(log_weights)) * advantages)

    return loss


def _soft_cap(x: jax.Array, bound: float) -> jax.Array:
    """``x`` below 0, ``bound · tanh(x / bound)`` above: smooth to the second derivative, and at most ``bound``."""
    positive = jnp.maximum(x, 0.0)
    return jnp.where(x > 0, soft_cap(positive, bound)[0], x)


@check_arguments
def discovered_policy_optimization(alpha: float = 2.0, beta: float = 0.6) -> TrustRegion:
    """Mirror learning with the drift that meta-learning found: ``−(r A − drift)`` (arXiv 2210.05639).

    ``drift = relu((r − 1) A − α tanh((r − 1) A / α))`` where A ≥ 0 and ``relu(A log r − β tanh(A log r / β))`` where
    A < 0. Not Direct Preference Optimization, which shares its acronym. Limiting cases: ``unclipped`` for infinite α
    and β, and wherever the update would undo the last one; the gradient of ``score_function`` where r = 1.

    Args:
        alpha: bound of the gain where A ≥ 0, in the advantages' units.
        beta: width in ``A log r`` where A < 0, in the advantages' units times nats.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a width that is not positive.

    >>> discovered_policy_optimization()(jnp.array([0.0, 80.0]), jnp.array([1.0, 1.0])).tolist()
    [-1.0, -3.0]
    """
    checks.positive("discovered_policy_optimization", alpha=alpha, beta=beta)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("discovered_policy_optimization", log_ratio=log_ratio, advantages=advantages)
        # relu(x − bound · tanh(x / bound)) is x − soft_cap(x); where A ≥ 0 the first x cancels r A, which may be huge.
        gain = expm1_then_line(log_ratio) * advantages
        log_gain = log_ratio * advantages
        kept = jnp.where(advantages < 0, gain - log_gain + _soft_cap(log_gain, beta), _soft_cap(gain, alpha))
        return -advantages - kept

    return loss


@check_arguments
def add_penalty(trust_region: TrustRegion, kl_coef: float) -> TrustRegion:
    """Add ``kl_coef · (r − 1 − log r)``, the k3 estimate of KL(π_old‖π) from the samples of π_old.

    PPO-penalty is ``add_penalty(unclipped, kl_coef)`` (arXiv 1707.06347, eq. 8), with the coefficient of
    ``doubling_coef`` from the metric ``kl_old``. The estimate and its gradient are unbiased however far π has moved.
    Limiting case: ``trust_region`` itself for ``kl_coef = 0``.

    Args:
        trust_region: ``(log_ratio, advantages) → loss``.
        kl_coef: β ≥ 0, per nat; may be traced.

    Returns:
        A trust region ``(log_ratio, advantages) → loss``.

    Raises:
        ValueError: for a negative coefficient.

    >>> add_penalty(unclipped, 0.5)(jnp.array([0.0]), jnp.array([2.0])).tolist()
    [-2.0]
    """
    checks.not_negative("add_penalty", kl_coef=kl_coef)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        return trust_region(log_ratio, advantages) + kl_coef * k3(jnp.zeros_like(log_ratio), log_ratio)

    return loss
