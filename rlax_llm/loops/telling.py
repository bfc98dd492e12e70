"""What a step tells beside its means: of the advantages it learns from, to whoever looks at single tokens."""

from __future__ import annotations

from collections.abc import Callable

import jax

from rlax_llm.core.types import Metrics

Telling = Callable[[jax.Array], Metrics]
"""``advantages [B, T] → metrics``, which a step adds to its own; they may be arrays."""


def nothing_more(advantages: jax.Array) -> Metrics:
    """No further metrics.

    Args:
        advantages: ``[B, T]``, not read.

    >>> nothing_more(jax.numpy.ones((1, 2)))
    {}
    """
    del advantages
    return {}


def whole_advantages(advantages: jax.Array) -> Metrics:
    """The advantages themselves, as ``advantages``: an array ``[B, T]``, no number.

    Args:
        advantages: ``[B, T]``.

    >>> whole_advantages(jax.numpy.ones((1, 2)))["advantages"].shape
    (1, 2)
    """
    return {"advantages": advantages}
