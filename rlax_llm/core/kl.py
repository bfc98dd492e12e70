"""Estimators of KL(π‖π_ref) from samples of π, one token or action at a time, and the coefficients in front of them.

As *values*, ``k1`` and ``k3`` are unbiased for KL(π‖π_ref). As *losses* on samples of π, the expected gradients are:
``k1``: zero; ``k2``: that of KL(π‖π_ref); ``k3``: that of KL(π_ref‖π); ``absolute``: that of Σ|π − π_ref|.
``straight_through`` chooses value and gradient apart. Reference: Schulman, "Approximating KL Divergence" (2020).
A clamped estimator is a composition, ``lambda p, q: jnp.clip(k3(p, q), 0, 10)``, and has no gradient where it clamps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import expm1_then_line
from rlax_llm.core.masked import at_least_float32

KlEstimator = Callable[[jax.Array, jax.Array], jax.Array]
KlControl = Callable[[jax.Array, jax.Array], jax.Array]


@check_arguments
def k1(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Naive estimator ``log π − log π_ref``: unbiased, high variance, may be negative.

    As a loss its gradient averages to zero, so it belongs in the reward, never in the loss.

    Limiting cases: 0 where the two agree; minus itself when the two are exchanged.

    Args:
        log_probs: any shape, nats.
        ref_log_probs: same shape, nats.

    Returns:
        Same shape, nats.

    >>> float(k1(jnp.log(0.5), jnp.log(0.25))) == float(jnp.log(2.0))
    True
    """
    checks.same_shape("k1", log_probs=log_probs, ref_log_probs=ref_log_probs)
    return log_probs - ref_log_probs


@check_arguments
def k2(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Squared estimator ``½ (log π − log π_ref)²``: biased, low variance, non-negative.

    As an on-policy loss its expected gradient is that of KL(π‖π_ref).

    Limiting cases: ``½ k1²``; equals ``k3`` to second order in ``k1``.

    Args:
        log_probs: any shape, nats.
        ref_log_probs: same shape, nats.

    Returns:
        Same shape, nats.

    >>> float(k2(jnp.array(-1.0), jnp.array(-3.0)))
    2.0
    """
    return 0.5 * jnp.square(k1(log_probs, ref_log_probs))


@check_arguments
def k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Bregman estimator ``exp(d) − 1 − d`` with ``d = log π_ref − log π``: unbiased, low variance, non-negative.

    As an on-policy loss its expected gradient is that of KL(π_ref‖π). Used by GRPO (arXiv 2402.03300, eq. 4).

    Limiting cases: 0 where the two agree; equals ``k2`` to second order; ``k3 = k1 + expm1(−k1)``. Where π has fallen
    by more than ``exponentials.straight_from`` nats it goes on as its tangent, so that value and slope stay finite.

    Args:
        log_probs: any shape, nats.
        ref_log_probs: same shape, nats.

    Returns:
        Same shape, nats.

    >>> float(k3(jnp.log(0.5), jnp.log(0.5)))
    0.0
    """
    difference = k1(log_probs, ref_log_probs)
    return expm1_then_line(-difference) + difference


@check_arguments
def absolute(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Distance ``|log π − log π_ref|``: a penalty, not an estimate of the divergence.

    As an on-policy loss its expected gradient is that of ``Σ|π − π_ref|``, twice the total variation.

    Limiting cases: ``√(2 k2)``; its gradient where the two agree is 0.

    Args:
        log_probs: any shape, nats.
        ref_log_probs: same shape, nats.

    Returns:
        Same shape, nats.

    >>> float(absolute(jnp.array(-3.0), jnp.array(-1.0)))
    2.0
    """
    return jnp.abs(k1(log_probs, ref_log_probs))


def _refuse_k1(where: str, estimator: Callable) -> None:
    if estimator is k1:
        raise ValueError(
            f"{where}: k1 as a loss has an expected gradient of zero, so it would only add noise; "
            "use k2 (gradient of KL(π‖ref)) or k3 (of KL(ref‖π)), or put k1 in the reward."
        )


@check_arguments
def straight_through(value: Callable[..., jax.Array], gradient: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """One function's value with another's gradient, ``sg(value) + gradient − sg(gradient)`` (sg stops the gradient).

    ``straight_through(k3, k2)`` reports an unbiased, non-negative KL and, on samples of π, follows the gradient of
    KL(π‖π_ref). Limiting case: ``straight_through(f, f)`` is ``f``.

    Args:
        value: function of any arrays.
        gradient: function of the same arrays and of a shape that broadcasts with the value's.

    Returns:
        A function of those arrays.

    Raises:
        ValueError: for ``k1`` as the gradient, which averages to zero.

    >>> float(jax.grad(straight_through(jnp.sin, jnp.square))(3.0))
    6.0
    """
    _refuse_k1("straight_through", gradient)

    def combined(*arrays: jax.Array) -> jax.Array:
        slope = gradient(*arrays)
        return jax.lax.stop_gradient(value(*arrays)) + (slope - jax.lax.stop_gradient(slope))

    return combined


def _with_tail(log_probs: jax.Array) -> jax.Array:
    """Append the log-probability of everything else, no smaller than the format can tell from 0."""
    wide = at_least_float32(log_probs)
    total = jnp.minimum(jax.nn.logsumexp(wide, -1, keepdims=True), -jnp.finfo(wide.dtype).eps)
    return jnp.concatenate([wide, jnp.log(-jnp.expm1(total))], -1)


@check_arguments
def top_k_kl(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """KL over K given tokens and one bucket for the rest, ``Σ_k p_k log(p_k/q_k) + p_tail log(p_tail/q_tail)``.

    A lower bound of the exact divergence that grows with K, without sampling noise; differentiable in both arguments.
    Limiting cases: the exact divergence where the K tokens are the whole vocabulary or all others have one ratio; the
    divergence of two coins for K = 1.

    Args:
        log_probs: ``[..., K]``, the policy's, nats; as a rule of its own K likeliest tokens.
        ref_log_probs: ``[..., K]``, the reference's of the same tokens, nats.

    Returns:
        ``[...]`` nats, in at least float32. A token with probability 0 under the policy adds 0; a tail that the format
        cannot tell from 0 counts as its resolution.

    >>> print(f"{top_k_kl(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))):.4f}")
    0.1438
    """
    checks.same_shape("top_k_kl", log_probs=log_probs, ref_log_probs=ref_log_probs)
    log_p = _with_tail(log_probs)
    log_q = _with_tail(ref_log_probs)
    possible = log_p > -jnp.inf
    difference = k1(jnp.where(possible, log_p, 0.0), jnp.where(possible, log_q, 0.0))
    return (jnp.exp(log_p) * difference).sum(-1)


@check_arguments
def kl_penalty(estimator: KlEstimator, kl_coef: float) -> KlEstimator:
    """Loss term ``kl_coef · estimator(log π, log π_ref)`` for an ``Objective``.

    Args:
        estimator: ``k2``, ``k3``, ``absolute``, a ``straight_through`` or any function of the same signature.
        kl_coef: weight β ≥ 0, per nat; may be traced, so that it can be vmapped over.

    Returns:
        A function ``(log_probs, ref_log_probs) → loss`` of the arguments' shape.

    Raises:
        ValueError: for ``k1``, whose gradient as a loss averages to zero, and for a coefficient below 0.

    >>> kl_penalty(k1, 0.1)
    Traceback (most recent call last):
    ValueError: kl_penalty: k1 as a loss has an expected gradient of zero, so it would only add noise; use k2 ...
    """
    _refuse_k1("kl_penalty", estimator)
    checks.not_negative("kl_penalty", kl_coef=kl_coef)

    def penalty(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
        return kl_coef * estimator(log_probs, ref_log_probs)

    return penalty


@check_arguments
def fixed_coef(coef: jax.Array, kl: jax.Array) -> jax.Array:
    """The coefficient as it is, whatever the measured KL.

    Args:
        coef: β, per nat.
        kl: measured over the last update, nats; not read.

    Returns:
        The next coefficient.

    >>> fixed_coef(0.5, 3.0)
    0.5
    """
    del kl
    return coef


@check_arguments
def proportional_coef(target: float, gain: float = 0.1, limit: float = 0.2) -> KlControl:
    """Ziegler's controller ``β ← β · (1 + gain · clip(KL/target − 1, −limit, limit))`` (arXiv 1909.08593).

    Limiting cases: ``fixed_coef`` for ``gain = 0`` and where the KL is at its target. Peers write the gain as the
    samples of one step over a horizon in samples.

    Args:
        target: wanted KL, nats.
        gain: share of the clipped relative error by which β changes in one update.
        limit: half-width of the clip of the relative error.

    Returns:
        A control ``(coef, kl) → coef``; both may be traced.

    Raises:
        ValueError: for a target or a limit that is not positive.

    >>> float(proportional_coef(target=2.0, gain=0.5, limit=0.5)(jnp.array(1.0), jnp.array(8.0)))
    1.25
    """
    checks.positive("proportional_coef", target=target, limit=limit)
    return lambda coef, kl: coef * (1 + gain * jnp.clip(kl / target - 1, -limit, limit))


@check_arguments
def doubling_coef(target: float, tolerance: float = 1.5, factor: float = 2.0) -> KlControl:
    """PPO-penalty's rule: β halves below ``target/1.5``, doubles above ``1.5 · target`` (arXiv 1707.06347, section 4).

    Limiting case: ``fixed_coef`` between the two.

    Args:
        target: wanted KL, nats.
        tolerance: > 1, the factor around the target inside which β stays.
        factor: > 1, by which β is multiplied or divided.

    Returns:
        A control ``(coef, kl) → coef``; both may be traced.

    Raises:
        ValueError: for a target that is not positive, or a tolerance or factor that does not exceed 1.

    >>> [float(doubling_coef(1.0)(jnp.array(0.5), kl)) for kl in (0.5, 1.25, 2.0)]
    [0.25, 0.5, 1.0]
    """
    checks.positive("doubling_coef", target=target, **{"tolerance − 1": tolerance - 1, "factor − 1": factor - 1})

    def control(coef: jax.Array, kl: jax.Array) -> jax.Array:
        return coef * jnp.where(kl > target * tolerance, factor, jnp.where(kl < target / tolerance, 1 / factor, 1.0))

    return control
