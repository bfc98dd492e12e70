"""The weights of the policy gradient ``Σ ψ[t] ∇ log π(a[t]|s[t])``, each ``Trajectory → [T]``.

The six forms of ψ (arXiv 1506.02438, section 2) have the same expected gradient without a discount, the last three
where the values are the policy's own; they differ in variance, and in bias where the values are learned. With a
discount the first weighs step t by γᵗ. An episode that began before the stream counts from the stream's start. A stream
that is cut, at a truncation or at its end, is completed by the critic's value of the state it was cut in.

Written for one stream; ``vmap`` over axis 1 gives ``[T, B]``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Trajectory
from rlax_llm.credit import returns

Credit = Callable[[Trajectory], jax.Array]


def _completed(trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Rewards and discounts of the same stream where every cut is an end with the critic's value in its reward."""
    cut = trajectory.discounts * (1 - trajectory.traces)
    return returns.td_targets(trajectory.rewards, cut, trajectory.next_values), trajectory.discounts * trajectory.traces


@check_arguments
def total_return(trajectory: Trajectory) -> jax.Array:
    """ψ = the return of the step's whole episode (form 1): rewards from before the action too.

    Args:
        trajectory: one stream.

    Returns:
        ``[T]`` in the rewards' units.

    >>> one = jax.numpy.ones(2)
    >>> total_return(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [2.0, 2.0]
    """
    return returns.total_return(*_completed(trajectory))


@check_arguments
def return_to_go(trajectory: Trajectory) -> jax.Array:
    """ψ = the discounted rewards from the action on (form 2), REINFORCE's.

    Args:
        trajectory: one stream.

    Returns:
        ``[T]`` in the rewards' units.

    >>> one = jax.numpy.ones(2)
    >>> return_to_go(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [2.0, 1.0]
    """
    return returns.discounted_returns(*_completed(trajectory))


@check_arguments
def return_minus_baseline(trajectory: Trajectory) -> jax.Array:
    """ψ = the return to go minus the state's value (form 3): ``gae(1)``.

    Args:
        trajectory: one stream.

    Returns:
        ``[T]`` in the rewards' units.

    >>> one = jax.numpy.ones(2)
    >>> return_minus_baseline(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [1.0, 0.0]
    """
    return gae(1.0)(trajectory)


@check_arguments
def q_value(trajectory: Trajectory) -> jax.Array:
    """ψ = Q(s, a) as the critic has it (form 4), ``r + γ V(s′)``: the first actor-critic's.

    Args:
        trajectory: one stream.

    Returns:
        ``[T]`` in the rewards' units.

    >>> one = jax.numpy.ones(2)
    >>> q_value(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [2.0, 1.0]
    """
    return returns.td_targets(trajectory.rewards, trajectory.discounts, trajectory.next_values)


@check_arguments
def gae(lambda_: float | jax.Array = 0.95) -> Credit:
    """ψ = the generalized advantage estimate (form 5, A = Q − V), ``returns.gae`` of the stream.

    Limiting cases: ``gae(1)`` is ``return_minus_baseline``, ``gae(0)`` is ``td_residual``.

    Args:
        lambda_: in [0, 1], dimensionless; may be traced.

    Returns:
        ``Trajectory → [T]`` in the rewards' units.

    Raises:
        ValueError: for a λ outside [0, 1].

    >>> one = jax.numpy.ones(2)
    >>> gae(0.5)(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [1.0, 0.0]
    """
    _in_unit_interval("gae", lambda_)

    def credit(trajectory: Trajectory) -> jax.Array:
        rewards, discounts, traces, values, next_values = trajectory
        return returns.gae(rewards, discounts, values, next_values, lambda_ * traces)

    return credit


@check_arguments
def td_residual(trajectory: Trajectory) -> jax.Array:
    """ψ = the TD residual ``r + γ V(s′) − V(s)`` (form 6): ``gae(0)``.

    Args:
        trajectory: one stream.

    Returns:
        ``[T]`` in the rewards' units.

    >>> one = jax.numpy.ones(2)
    >>> td_residual(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [1.0, 0.0]
    """
    return gae(0.0)(trajectory)


@check_arguments
def lambda_return(lambda_: float | jax.Array = 0.95) -> Credit:
    """The critic's target that belongs to ``gae(λ)``: the advantage plus the value.

    Limiting cases: λ = 1 is ``return_to_go``, λ = 0 is ``q_value``, the TD target.

    Args:
        lambda_: in [0, 1], dimensionless; may be traced.

    Returns:
        ``Trajectory → [T]`` in the rewards' units.

    Raises:
        ValueError: for a λ outside [0, 1].

    >>> one = jax.numpy.ones(2)
    >>> lambda_return(0.5)(Trajectory(one, jax.numpy.array([1.0, 0.0]), one, one, one)).tolist()
    [2.0, 1.0]
    """
    _in_unit_interval("lambda_return", lambda_)
    return lambda trajectory: gae(lambda_)(trajectory) + trajectory.values


def _in_unit_interval(where: str, lambda_: float | jax.Array) -> None:
    if isinstance(lambda_, (int, float)) and not 0 <= lambda_ <= 1:
        raise ValueError(f"{where}: lambda_ is {lambda_}, wanted a number from 0 to 1.")
