"""Averages of weights along training, kept in the optimizer's state: what is evaluated and written in their place."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Params


class Bema(NamedTuple):
    """How weights are averaged; the defaults are the paper's (arXiv 2508.00180).

    Attributes:
        ema_power: κ ≥ 0, the average takes on ``(ρ + t)^−κ`` of the weights at step t; 0 is the last weights.
        bias_power: η ≥ 0, the distance from the start counts ``(ρ + t)^−η`` times beside it.
        lag: ρ ≥ 1.
    """

    ema_power: float = 0.5
    bias_power: float = 0.2
    lag: float = 10.0


class AveragedState(NamedTuple):
    """What an averaging optimizer remembers.

    Attributes:
        inner: of the optimizer inside.
        start: the weights before the first step, θ₀.
        mean: their moving average, EMA_t.
        taken: scalar int32, t.
    """

    inner: optax.OptState
    start: Params
    mean: Params
    taken: jax.Array


@check_arguments
def averaging(optimizer: optax.GradientTransformation, bema: Bema) -> optax.GradientTransformation:
    """An optimizer that moves as another does and keeps ``EMA_t = (1 − β_t) EMA_{t−1} + β_t θ_t`` beside its state.

    ``β_t = (ρ + t)^−κ`` (arXiv 2508.00180, algorithm 1). Training is not changed; ``averaged_params`` reads the result.

    Args:
        optimizer: any Optax transformation.
        bema: the powers and the lag.

    Raises:
        ValueError: for a negative power, or a lag below 1.

    >>> made = averaging(optax.sgd(1.0), Bema())
    >>> made.init(jnp.zeros(2)).mean.tolist()
    [0.0, 0.0]
    """
    checks.not_negative("averaging", ema_power=bema.ema_power, bias_power=bema.bias_power)
    checks.not_negative("averaging", **{"lag − 1": bema.lag - 1})

    def init(params: Params) -> AveragedState:
        start, mean = (jax.tree.map(jnp.copy, params) for _ in range(2))
        return AveragedState(optimizer.init(params), start, mean, jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AveragedState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        taken = state.taken + 1
        share = _falling(bema, taken, bema.ema_power)
        mean = optax.incremental_update(optax.apply_updates(params, updates), state.mean, share)
        return updates, AveragedState(inner, state.start, mean, taken)

    return optax.GradientTransformation(init, update)


def _falling(bema: Bema, taken: jax.Array, power: float) -> jax.Array:
    """``(ρ + t)^−power``."""
    return (bema.lag + taken) ** -power


PAPERS = Bema()


@check_arguments
def averaged_params(params: Params, opt_state: Any, bema: Bema = PAPERS) -> Params:
    """``EMA_t + α_t (θ_t − θ₀)`` with ``α_t = (ρ + t)^−η``, where the optimizer averages; else the weights themselves.

    Limiting cases: the weights before the first step; plain averaging for η → ∞.

    Args:
        params: θ_t.
        opt_state: of an optimizer.
        bema: as the optimizer has it.

    >>> averaged_params({"w": 1.0}, optax.sgd(1.0).init({"w": 1.0}))
    {'w': 1.0}
    """
    if not isinstance(opt_state, AveragedState):
        return params
    alpha = jnp.where(opt_state.taken > 0, _falling(bema, opt_state.taken, bema.bias_power), 0.0)

    def average(now: jax.Array, start: jax.Array, mean: jax.Array) -> jax.Array:
        return (mean + alpha * (now - start)).astype(now.dtype)

    return jax.tree.map(average, params, opt_state.start, opt_state.mean)
