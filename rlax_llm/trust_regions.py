"""Trust regions: ``(log_ratio, advantages) → loss``, elementwise over any layout.

A loss that writes log π (REINFORCE) differs from one that writes the log-ratio by a constant, so it has the same
gradient; hence one signature for all. Losses are minimised: they carry the minus sign.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm import checks

TrustRegion = Callable[[jax.Array, jax.Array], jax.Array]


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


def unclipped(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    """Importance-weighted surrogate ``−A · exp(log_ratio)`` (TRPO's objective, arXiv 1502.05477, eq. 14).

    Limiting cases: same gradient as ``score_function`` where the log-ratio is 0; ``clip`` with an infinite width.

    Args:
        log_ratio: any shape, nats.
        advantages: same shape.

    Returns:
        Same shape.

    >>> unclipped(jnp.array([0.0]), jnp.array([2.0])).tolist()
    [-2.0]
    """
    checks.same_shape("unclipped", log_ratio=log_ratio, advantages=advantages)
    return -advantages * jnp.exp(log_ratio)


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
    upper = eps_low if eps_high is None else eps_high
    checks.positive("clip", eps_low=eps_low, eps_high=upper)

    def loss(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
        checks.same_shape("clip", log_ratio=log_ratio, advantages=advantages)
        # Beyond 80 the exponential leaves float32, and inf · 0 would be NaN, also in the gradient of the other branch.
        ratio = jnp.exp(jnp.minimum(log_ratio, 80.0))
        return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - eps_low, 1 + upper) * advantages)

    return loss
