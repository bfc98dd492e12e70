"""Numbers bent so that none is beyond a cap."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def soft_cap(x: jax.Array, cap: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """``cap · tanh(x / cap)``, as attention and heads cap their logits (arXiv 2408.00118), and its slope in x.

    Limiting case: x itself, with a slope of 1, for a large cap.

    Args:
        x: any shape.
        cap: > 0, in x's units.

    >>> values, slope = soft_cap(jnp.array([0.0, 1e9]), 30.0)
    >>> values.tolist(), slope.tolist()
    ([0.0, 30.0], [1.0, 0.0])
    """
    bent = jnp.tanh(x / cap)
    return cap * bent, 1 - jnp.square(bent)
