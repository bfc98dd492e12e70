"""Implicit rewards: what a policy's own log-probabilities say a response is worth, ``[..., T] → [...]``.

A *reward* is a function ``(log_probs, ref_log_probs, mask) → rewards`` of per-token arrays; a preference loss is a
link (``rlax_llm.preference.links``) of two of them. Factories take the temperature β; a response without a token has
reward 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks, kl
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import expm1_then_line
from rlax_llm.preference.marks import reads_like, reference_free

Reward = Callable[[jax.Array, jax.Array | None, jax.Array], jax.Array]
Slope = Callable[[jax.Array], jax.Array]

SMALLEST_SURPRISE = 1e-7  # nats; the odds of a certain response are infinite


class Responses(NamedTuple):
    """Per-token log-probabilities of a batch of responses.

    Attributes:
        log_probs: ``[B, T]`` float, the current policy's, nats; the only entry that carries a gradient.
        mask: ``[B, T]`` bool, True on the tokens of the response.
        ref_log_probs: ``[B, T]`` float or None, the frozen reference's, nats.
        log_collisions: ``[B, T]`` float or None, ``log Σ_v p_v²`` of what the policy predicts there, nats.
    """

    log_probs: jax.Array
    mask: jax.Array
    ref_log_probs: jax.Array | None = None
    log_collisions: jax.Array | None = None


@check_arguments
def wide(values: jax.Array) -> jax.Array:
    """Values in at least float32, the precision in which sums over tokens are taken.

    >>> wide(jnp.ones(1, jnp.bfloat16)).dtype.name
    'float32'
    """
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


@check_arguments
def log_prob(beta: float | jax.Array = 1.0) -> Reward:
    """Scaled log-probability of the response, ``r = β Σ_t log π(y_t)`` (CPO, arXiv 2401.08417).

    Limiting case: ``log_ratio`` under a reference that gives every response the same probability, up to a constant.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``; the reference is not read and may be None.

    Raises:
        ValueError: for a β that is not positive.

    >>> log_prob(0.5)(jnp.array([-1.0, -2.0, -9.0]), None, jnp.array([True, True, False])).tolist()
    -1.5
    """
    checks.positive("log_prob", beta=beta)

    def reward(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
        checks.same_shape("log_prob", log_probs=log_probs, mask=mask)
        return beta * jnp.where(mask, wide(log_probs), 0.0).sum(-1)

    return reference_free(reward)


@check_arguments
def log_ratio(beta: float | jax.Array = 1.0) -> Reward:
    """DPO's reward ``r = β Σ_t (log π(y_t) − log π_ref(y_t))`` (arXiv 2305.18290, eq. 5 without its constant).

    Limiting cases: 0 where the policy is the reference; ``log_prob`` of the per-token ``kl.k1``.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``.

    Raises:
        ValueError: for a β that is not positive; at trace time, without reference log-probabilities.

    >>> log_ratio(0.5)(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.5]), jnp.array([True, True])).tolist()
    0.75
    """
    total = log_prob(beta)

    def reward(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
        if ref_log_probs is None:
            raise ValueError("log_ratio: ref_log_probs is None; give the reference's, or use log_prob.")
        checks.same_shape("log_ratio", log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
        return total(kl.k1(wide(log_probs), wide(ref_log_probs)), None, mask)

    return reward


@check_arguments
def normalize_length(reward: Reward) -> Reward:
    """Reward per token, ``r / |y|``.

    Limiting case: the reward itself for a response of one token. ``normalize_length(log_prob(β))`` is SimPO's reward
    (arXiv 2405.14734, eq. 4); of ``log_ratio(β)`` that of length-normalized DPO (Tülu 3, arXiv 2411.15124) and of the
    peers' IPO.

    Args:
        reward: a reward of whole responses.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``.

    >>> normalize_length(log_prob())(jnp.array([-1.0, -2.0]), None, jnp.array([True, True])).tolist()
    -1.5
    """

    def normalized(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
        return reward(log_probs, ref_log_probs, mask) / jnp.maximum(mask.sum(-1), 1)

    return reads_like(normalized, reward)


@check_arguments
def mean_log_prob(beta: float | jax.Array = 1.0) -> Reward:
    """SimPO's reward ``r = β/|y| Σ_t log π(y_t)`` (arXiv 2405.14734, eq. 4): ``normalize_length(log_prob(beta))``.

    Limiting case: ``log_prob`` for a response of one token.

    Args:
        beta: temperature β > 0, reward per nat a token.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``; the reference is not read and may be None.

    Raises:
        ValueError: for a β that is not positive.

    >>> mean_log_prob(2.0)(jnp.array([-1.0, -2.0]), None, jnp.array([True, True])).tolist()
    -3.0
    """
    return normalize_length(log_prob(beta))


@check_arguments
def mean_log_ratio(beta: float | jax.Array = 1.0) -> Reward:
    """Log-ratio per token, ``r = β/|y| Σ_t (log π − log π_ref)``: ``normalize_length(log_ratio(beta))``.

    Limiting case: ``log_ratio`` for a response of one token.

    Args:
        beta: temperature β > 0, reward per nat a token.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``.

    Raises:
        ValueError: for a β that is not positive; at trace time, without reference log-probabilities.

    >>> mean_log_ratio(2.0)(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.5]), jnp.array([True, True])).tolist()
    1.5
    """
    return normalize_length(log_ratio(beta))


@check_arguments
def regularize_length(reward: Reward, length_coef: float) -> Reward:
    """Reward plus a bonus for length, ``r + α |y|`` (R-DPO, arXiv 2403.19159).

    The bonus is what the optimal policy of a length-*penalized* objective implies: a long chosen response is already
    explained by its length, so its likelihood is pushed less. Limiting case: α = 0 is the reward itself.

    Args:
        reward: a reward of whole responses.
        length_coef: α, reward per token.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``.

    >>> regularize_length(log_prob(), 0.25)(jnp.array([-1.0, -2.0]), None, jnp.array([True, True])).tolist()
    -2.5
    """

    def regularized(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
        return reward(log_probs, ref_log_probs, mask) + length_coef * mask.sum(-1)

    return reads_like(regularized, reward)


@check_arguments
def divergence_reward(reward: Reward, slope: Slope, beta: float | jax.Array) -> Reward:
    """f-DPO's reward ``r = β f′(π/π_ref)`` (arXiv 2309.16240), f′ written as a function of the log-ratio.

    Limiting cases: ``slope`` the identity is reverse KL, ``log_ratio(β)``; near 0 every slope here is the identity.
    ``divergence_reward(mean_log_prob(), alpha_slope(1 − α), β)`` is AlphaPO's reward ``β (1 − p^−α)/α`` (arXiv
    2501.03884).

    Args:
        reward: the slope's argument, ``log_ratio()`` for f-DPO, nats.
        slope: ``alpha_slope(α)``, ``forward_kl_slope``, ``jensen_shannon_slope``, or a function ``log_ratio → f′``.
        beta: temperature β > 0, reward per unit of slope.

    Returns:
        A reward ``(log_probs, ref_log_probs, mask) → [...]``.

    Raises:
        ValueError: for a β that is not positive.

    >>> reward = divergence_reward(log_ratio(), lambda x: x, 0.5)
    >>> reward(jnp.array([-1.0]), jnp.array([-2.0]), jnp.array([True])).tolist()
    0.5
    """
    checks.positive("divergence_reward", beta=beta)

    def of_slope(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
        return beta * slope(reward(log_probs, ref_log_probs, mask))

    return reads_like(of_slope, reward)


@check_arguments
def alpha_slope(alpha: float) -> Slope:
    """Slope of the α-divergence, ``f′(u) = (u^(α−1) − 1)/(α − 1)`` at ``u = exp(log_ratio)``.

    Limiting cases: α → 1 is reverse KL, the log-ratio itself; α = 0 is forward KL, ``1 − 1/u``; α = 2 is χ², ``u − 1``.
    Far out the exponential goes on as its tangent (``exponentials``), so that value and slope are finite.

    Args:
        alpha: α, dimensionless.

    Returns:
        A function ``log_ratio → f′``, elementwise.

    >>> alpha_slope(1.0)(jnp.array([3.0])).tolist(), alpha_slope(2.0)(jnp.array([0.0])).tolist()
    ([3.0], [0.0])
    """

    def slope(log_ratio: jax.Array) -> jax.Array:
        logarithm = jnp.abs(alpha - 1) < 1e-6
        power = jnp.where(logarithm, 1.0, alpha - 1)
        return jnp.where(logarithm, log_ratio, expm1_then_line(power * log_ratio) / power)

    return slope


@check_arguments
def forward_kl_slope(log_ratio: jax.Array) -> jax.Array:
    """Slope of forward KL, ``f′(u) = 1 − 1/u``: ``alpha_slope(0)``. Peers differ in the constant, which cancels.

    Limiting case: saturates at 1 for a response that the policy prefers.

    Args:
        log_ratio: any shape, nats.

    Returns:
        Same shape.

    >>> forward_kl_slope(jnp.array([0.0])).tolist()
    [0.0]
    """
    return alpha_slope(0.0)(log_ratio)


@check_arguments
def jensen_shannon_slope(log_ratio: jax.Array) -> jax.Array:
    """Slope of twice the Jensen-Shannon divergence, ``f′(u) = log(2u/(1 + u))``.

    Limiting cases: saturates at log 2 for a response that the policy prefers; ``log_ratio + log 2`` at the other end.

    Args:
        log_ratio: any shape, nats.

    Returns:
        Same shape.

    >>> jensen_shannon_slope(jnp.array([0.0])).tolist()
    [0.0]
    """
    return jnp.log(2.0) + jax.nn.log_sigmoid(log_ratio)


@reference_free
@check_arguments
def log_odds(log_probs: jax.Array, ref_log_probs: jax.Array | None, mask: jax.Array) -> jax.Array:
    """ORPO's reward ``log(p/(1 − p))`` with p the geometric mean of the tokens' probabilities (arXiv 2403.07691).

    Limiting case: ``mean_log_prob()`` for an unlikely response. A response that is certain would have infinite odds;
    its mean log-probability is cut at −1e-7.

    Args:
        log_probs: ``[..., T]``, nats.
        ref_log_probs: not read, may be None.
        mask: same shape as ``log_probs``, True on the tokens of the response.

    Returns:
        ``[...]``, nats.

    >>> round(float(log_odds(jnp.log(jnp.array([0.75])), None, jnp.array([True]))), 4)  # log 3
    1.0986
    """
    mean = mean_log_prob()(log_probs, ref_log_probs, mask)
    uncertain = mean < -SMALLEST_SURPRISE
    mean = jnp.where(uncertain, mean, -SMALLEST_SURPRISE)
    return jnp.where(mask.any(-1), mean - jax.nn.log1mexp(-mean), 0.0)
