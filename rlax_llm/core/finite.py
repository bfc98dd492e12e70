"""The guard against numbers that are not: each step of a run is looked at before it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.trees import all_finite

NOT_FINITE = "not_finite"
"""The metric that says so."""
_LOOKED_AT = {
    "loss": ("loss", "policy_loss", "value_loss"),
    "gradient": ("grad_norm", "value_grad_norm", "cg_residual"),
}
"""Metrics of the loops, in the order in which one spoils the next; the parameters come last."""
_PARAMETERS = "parameters"


def watch_finite(
    step: Callable[..., tuple[Any, dict[str, jax.Array]]],
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """A loop's ``step`` with one metric more: ``not_finite``, 0 unless loss, gradient or parameters are not finite.

    It is computed with the step, one reduction per leaf. A step that took no optimizer step, having no token to learn
    from, has metrics that are NaN, and they count for nothing.

    Args:
        step: ``(state, …) → (state, metrics)``; a state has ``params`` and counts optimizer steps in ``step``.
    """

    def update(state: Any, *arguments: Any, **named: Any) -> tuple[Any, dict[str, jax.Array]]:
        after, metrics = step(state, *arguments, **named)
        learned = after.step > state.step
        good = [all_finite([metrics[name] for name in names if name in metrics]) for names in _LOOKED_AT.values()]
        wrong = [learned & ~each for each in good] + [~all_finite(after.params)]
        code = sum(2**place * each.astype(jnp.float32) for place, each in enumerate(wrong))
        return after, metrics | {NOT_FINITE: jnp.asarray(code)}

    return update


def not_finite_part(metrics: Mapping[str, float]) -> str | None:
    """What is not finite after a step: ``loss``, ``gradient`` or ``parameters``, the first of them; or None.

    Args:
        metrics: of a ``watch_finite`` step, as numbers.

    >>> [not_finite_part({NOT_FINITE: code}) for code in (0.0, 7.0, 4.0)]
    [None, 'loss', 'parameters']
    """
    code = int(metrics.get(NOT_FINITE, 0))
    names = (*_LOOKED_AT, _PARAMETERS)
    return next((name for place, name in enumerate(names) if code >> place & 1), None)
