"""Control of an entropy bonus, ``− coef · entropy`` in a loss; ``kl.fixed_coef`` leaves it as it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlControl


@check_arguments
def stepped_coef(target: float | jax.Array, step: float | jax.Array = 5e-3) -> KlControl:
    """``coef ← max(0, coef + step · sign(target − entropy))``: more of the bonus below the target, less above it.

    Limiting cases: ``fixed_coef`` for a step of 0, and at the target. (Skywork-OR1, arXiv 2505.22312, section 4.2.)

    Args:
        target: wanted entropy of a token, nats.
        step: ≥ 0, by which the coefficient changes in one update.

    Returns:
        A control ``(coef, entropy) → coef``; both may be traced.

    Raises:
        ValueError: for a negative target or step.

    >>> [round(float(stepped_coef(0.2, 0.25)(0.5, entropy)), 2) for entropy in (0.1, 0.2, 0.3)]
    [0.75, 0.5, 0.25]
    """
    checks.not_negative("stepped_coef", target=target, step=step)

    def control(coef: jax.Array, entropy: jax.Array) -> jax.Array:
        return jnp.maximum(coef + step * jnp.sign(target - entropy), 0.0)

    return control
