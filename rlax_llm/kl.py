"""Estimators of KL(π‖π_ref) from samples of π, one token or action at a time.

Write ``r = log π − log π_ref`` at the sampled action. As *values*, ``k1`` and ``k3`` are unbiased for KL(π‖π_ref); as
*losses* on on-policy samples, the expected gradients are: ``k1``: zero; ``k2``: that of KL(π‖π_ref); ``k3``: that of
KL(π_ref‖π). Reference: Schulman, "Approximating KL Divergence" (2020).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm import checks

KlEstimator = Callable[[jax.Array, jax.Array], jax.Array]


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


def k3(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
    """Bregman estimator ``exp(d) − 1 − d`` with ``d = log π_ref − log π``: unbiased, low variance, non-negative.

    As an on-policy loss its expected gradient is that of KL(π_ref‖π). Used by GRPO (arXiv 2402.03300, eq. 4).

    Limiting cases: 0 where the two agree; equals ``k2`` to second order; ``k3 = k1 + expm1(−k1)``.

    Args:
        log_probs: any shape, nats.
        ref_log_probs: same shape, nats.

    Returns:
        Same shape, nats.

    >>> float(k3(jnp.log(0.5), jnp.log(0.5)))
    0.0
    """
    difference = k1(log_probs, ref_log_probs)
    return jnp.expm1(-difference) + difference


def kl_penalty(estimator: KlEstimator, kl_coef: float) -> KlEstimator:
    """Loss term ``kl_coef · estimator(log π, log π_ref)`` for an ``Objective``.

    Args:
        estimator: ``k2`` or ``k3`` (or a function of the same signature).
        kl_coef: weight β ≥ 0, per nat; may be traced, so that it can be vmapped over.

    Returns:
        A function ``(log_probs, ref_log_probs) → loss`` of the arguments' shape.

    Raises:
        ValueError: for ``k1``, whose gradient as a loss averages to zero.

    >>> kl_penalty(k1, 0.1)
    Traceback (most recent call last):
    ValueError: kl_penalty: k1 as a loss has an expected gradient of zero, so it would only add noise; use k2 ...
    """
    if estimator is k1:
        raise ValueError(
            "kl_penalty: k1 as a loss has an expected gradient of zero, so it would only add noise; "
            "use k2 (gradient of KL(π‖ref)) or k3 (of KL(ref‖π)), or put k1 in the reward."
        )

    def penalty(log_probs: jax.Array, ref_log_probs: jax.Array) -> jax.Array:
        return kl_coef * estimator(log_probs, ref_log_probs)

    return penalty
