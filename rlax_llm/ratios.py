"""The log-ratio that a trust region reads, from the current and the behaviour policy's log-probabilities."""

from __future__ import annotations

from collections.abc import Callable

import jax

from rlax_llm import checks

Ratio = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def token_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Per-token log-ratio ``log π(a_t|s_t) − log π_old(a_t|s_t)`` (PPO, arXiv 1707.06347).

    Limiting case: 0 everywhere on the first update after a rollout.

    Args:
        log_probs: the current policy's, any shape, nats.
        old_log_probs: the behaviour policy's, same shape, nats.
        mask: same shape, True where the policy chose; sequence-level ratios need it, this one does not.

    Returns:
        Same shape, nats.

    >>> import jax.numpy as jnp
    >>> token_ratio(jnp.array([-1.0]), jnp.array([-1.5]), jnp.array([True])).tolist()
    [0.5]
    """
    checks.same_shape("token_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return log_probs - old_log_probs
