"""Probe environments: so small that every value is known exactly, and that a wrong value says what is wrong.

A critic that is linear in the observation can hold each probe's values exactly. Run a loop on one, read off its values
at ``probe.observations`` and give them to ``diagnosis``. Every factory takes γ (``discount``, in [0, 1), a ValueError
where a value would not be finite) and returns a ``Probe``. One without a
choice still has two actions, which do the same.

| probe | a failure says |
|---|---|
| ``constant_reward`` | the critic does not learn, or an end is not one |
| ``two_steps`` | the discount is lost |
| ``observed_reward`` | the critic does not see its observation, or that of another step |
| ``delayed_reward`` | credit does not reach the action that earned it |
| ``time_limit`` | a truncation is a death, or is bootstrapped from a wrong observation |
| ``termination`` | a termination is bootstrapped |
| ``termination_at_limit`` | as ``termination``, where the time limit falls on the same step |
| ``two_arms`` | the policy does not learn, or learns the opposite |
| ``matching`` | the policy does not see its observation |
| ``continuous_matching`` | as ``matching``, for an action in a box |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.envs.environment import Box, Discrete, Environment, Step


class Probe(NamedTuple):
    """An environment whose values are known.

    Attributes:
        environment: named ``probe:`` and the factory's name.
        discount: γ of ``values``.
        observations: ``[S, D]``, all those in which an action is taken.
        values: ``[S]``, V of the best policy; of every policy where ``best_actions`` is None.
        best_actions: ``[S]`` int or ``[S, D]`` float; None where no action matters.
        best_return: expected undiscounted sum of an episode's rewards under the best policy.
        mistakes: what ``values`` would be if something was wrong: ``[S]`` by a name for it.
    """

    environment: Environment
    discount: float
    observations: np.ndarray
    values: np.ndarray
    best_actions: np.ndarray | None
    best_return: float
    mistakes: Mapping[str, np.ndarray]


def diagnosis(probe: Probe, values: jax.Array | np.ndarray) -> str:
    """Which of a probe's values, right or mistaken, are nearest to those of a critic (by the largest difference).

    Args:
        probe: where the critic learned.
        values: ``[S]``, the critic's at ``probe.observations``.

    Returns:
        ``"right"`` or a name in ``probe.mistakes``.

    Raises:
        ValueError: for another shape.

    >>> diagnosis(time_limit(discount=0.9), np.array([0.79, 0.92, 1.03]))
    'truncation is a death'
    """
    checks.same_shape("diagnosis", **{"probe.values": probe.values, "values": values})
    candidates = {"right": probe.values, **probe.mistakes}
    return min(candidates, key=lambda name: float(np.abs(candidates[name] - np.asarray(values)).max()))


def constant_reward(discount: float = 0.5) -> Probe:
    """One step, a reward of 1: V = 1.

    >>> constant_reward().values.tolist()
    [1.0]
    """
    environment = _tabular("constant_reward", [[0]], [[1.0]], terminates=[True])
    mistakes = {"termination is no end": np.array([_forever("constant_reward", discount)])}
    return Probe(environment, discount, np.eye(1), np.ones(1), None, 1.0, mistakes)


def two_steps(discount: float = 0.5) -> Probe:
    """A reward of 0, then one of 1: V = (γ, 1).

    >>> two_steps(0.5).values.tolist()
    [0.5, 1.0]
    """
    environment = _tabular("two_steps", [[1], [1]], [[0.0], [1.0]], terminates=[False, True])
    values = np.array([discount, 1.0])
    mistakes = {"the discount is lost": np.ones(2)}
    return Probe(environment, discount, np.eye(2), values, None, 1.0, mistakes)


def observed_reward(discount: float = 0.5) -> Probe:
    """One step, the observation −1 or 1 at random, the reward what is observed: V(o) = o.

    >>> probe = observed_reward()
    >>> probe.observations.ravel().tolist(), probe.values.tolist()
    ([-1.0, 1.0], [-1.0, 1.0])
    """
    signs = np.array([-1.0, 1.0])
    environment = _tabular(
        "observed_reward", [[0], [1]], signs[:, None], terminates=[True, True], starts=2, observations=signs[:, None]
    )
    mistakes = {"the observation is not seen": np.zeros(2)}
    return Probe(environment, discount, signs[:, None], signs, None, 0.0, mistakes)


def delayed_reward(discount: float = 0.9, delay_steps: int = 5) -> Probe:
    """The first action decides the last reward, ``delay_steps`` later; no other action matters and all else is 0.

    State 0 is the start; ``2t − 1`` and ``2t`` are step t after action 0 or 1. V is ``γ^delay_steps`` at the start,
    ``γ^(delay_steps − t)`` on the way after action 1 and 0 after action 0. ``best_actions`` is right at the start and
    arbitrary elsewhere.

    >>> delayed_reward(0.5, 2).values.tolist()
    [0.25, 0.0, 0.5, 0.0, 1.0]
    """
    checks.at_least_one("delayed_reward", delay_steps=delay_steps)
    number = 2 * delay_steps + 1
    following = [[1, 2]] + [[s + 2 if s + 2 < number else s] * 2 for s in range(1, number)]
    rewards = np.zeros((number, 2))
    ends = np.arange(number) >= number - 2
    rewards[number - 1] = 1.0
    environment = _tabular("delayed_reward", following, rewards, terminates=ends)
    times = (np.arange(number) + 1) // 2
    choices = (np.arange(number) + 1) % 2
    values = np.where(choices, discount ** (delay_steps - times.astype(float)), 0.0)
    best = np.ones(number, int)
    mistakes = {
        "the action has not learned": np.where(times == 0, values / 2, values),
        "the action has learned the opposite": np.where(times == 0, 0.0, values),
    }
    return Probe(environment, discount, np.eye(number), values, best, 1.0, mistakes)


def time_limit(discount: float = 0.8) -> Probe:
    """Rewards 0, 0, 1, 0, 1, 0, 1 … for ever, cut off after the third: V = (γ², γ, 1) / (1 − γ²), as if it was not.

    The observation after the cut is the second one again, neither the one before it nor an episode's first. So a loop
    learns (γ², γ, 1) times 1 where the limit is a death, 1/(1 − γ) where it bootstraps from the observation before
    the cut and 1/(1 − γ³) where it bootstraps from the next episode's first.

    >>> time_limit(0.5).values.round(3).tolist()
    [0.333, 0.667, 1.333]
    """
    return _chain("time_limit", "truncation", discount, terminates=False, truncates=True)


def termination(discount: float = 0.8) -> Probe:
    """The twin of ``time_limit`` that terminates where that is cut off: V = (γ², γ, 1).

    >>> termination(0.5).values.tolist()
    [0.25, 0.5, 1.0]
    """
    return _chain("termination", "termination", discount, terminates=True, truncates=False)


def termination_at_limit(discount: float = 0.8) -> Probe:
    """``termination`` that falls on the time limit's step, so that both are reported: V = (γ², γ, 1).

    >>> termination_at_limit(0.5).values.tolist()
    [0.25, 0.5, 1.0]
    """
    return _chain("termination_at_limit", "termination", discount, terminates=True, truncates=True)


def two_arms(discount: float = 0.5) -> Probe:
    """One step; action 1 earns 1, action 0 nothing: V = 1.

    >>> two_arms().best_actions.tolist()
    [1]
    """
    environment = _tabular("two_arms", [[0, 0]], [[0.0, 1.0]], terminates=[True])
    mistakes = {
        "the action has not learned": np.array([0.5]),
        "the action has learned the opposite": np.zeros(1),
    }
    return Probe(environment, discount, np.eye(1), np.ones(1), np.ones(1, int), 1.0, mistakes)


def matching(discount: float = 0.5) -> Probe:
    """One step; the action earns 1 where it is the number of the observation, −1 otherwise: V = (1, 1).

    >>> matching().best_actions.tolist()
    [0, 1]
    """
    environment = _tabular("matching", [[0, 0], [1, 1]], 2 * np.eye(2) - 1, terminates=[True, True], starts=2)
    mistakes = {
        "the action has not learned": np.zeros(2),
        "the policy does not see its observation": np.array([1.0, -1.0]),
        "the policy sees the other observation": -np.ones(2),
    }
    return Probe(environment, discount, np.eye(2), np.ones(2), np.arange(2), 1.0, mistakes)


def continuous_matching(discount: float = 0.5) -> Probe:
    """One step, the observation −1 or 1, the reward −(action − observation)², the action in [−4, 4]: V = (0, 0).

    A Gaussian policy with mean m and deviation σ has V = −(m − o)² − σ², up to the box.

    >>> continuous_matching().best_actions.tolist()
    [[-1.0], [1.0]]
    """
    signs = np.array([[-1.0], [1.0]])

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = jax.random.rademacher(key, (1,), jnp.float32)
        return observation, observation

    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> Step:
        reward = -jnp.square(jnp.clip(action, -4.0, 4.0) - state).sum().astype(jnp.float32)
        return Step(state, state, reward, jnp.ones((), bool), jnp.zeros((), bool))

    spec = jax.ShapeDtypeStruct((1,), jnp.float32)
    environment = Environment("probe:continuous_matching", reset, step, spec, Box((-4.0,), (4.0,)))
    mistakes = {"the policy does not see its observation": -np.ones(2)}
    return Probe(environment, discount, signs, np.zeros(2), signs, 0.0, mistakes)


PROBES: dict[str, Callable[..., Probe]] = {
    factory.__name__: factory
    for factory in (
        constant_reward,
        two_steps,
        observed_reward,
        delayed_reward,
        time_limit,
        termination,
        termination_at_limit,
        two_arms,
        matching,
        continuous_matching,
    )
}
"""All of them, by name."""


def _forever(name: str, discount: float) -> float:
    """The value of a reward of 1 at every step, ``1 / (1 − γ)``."""
    if not 0 <= discount < 1:
        raise ValueError(f"probe:{name}: discount is {discount}, wanted a number in [0, 1).")
    return 1 / (1 - discount)


def _chain(name: str, end: str, discount: float, terminates: bool, truncates: bool) -> Probe:
    """Three states, the last one left with a reward of 1 to the second; its values by what is bootstrapped there."""
    only_last = np.arange(3) == 2
    rewards = only_last[:, None].astype(float)
    environment = _tabular(name, [[1], [2], [1]], rewards, only_last & terminates, only_last & truncates)
    start = np.array([discount**2, discount, 1.0])
    learned = {
        f"{end} is a death": start,
        f"{end} is bootstrapped from the observation after it": start * _forever(name, discount**2),
        f"{end} is bootstrapped from the observation before it": start * _forever(name, discount),
        f"{end} is bootstrapped from the next episode": start * _forever(name, discount**3),
    }
    values = learned.pop(f"{end} is a death" if terminates else f"{end} is bootstrapped from the observation after it")
    return Probe(environment, discount, np.eye(3), values, None, 1.0, learned)


def _tabular(
    name: str,
    following: list | np.ndarray,
    rewards: list | np.ndarray,
    terminates: list[bool] | np.ndarray | None = None,
    truncates: list[bool] | np.ndarray | None = None,
    starts: int = 1,
    observations: np.ndarray | None = None,
) -> Environment:
    """An environment from tables: ``following`` and ``rewards`` ``[S, A]``, the ends by the state that is left."""
    number = len(following)
    states = _with_choice(np.array(following, np.int32))
    paid = _with_choice(np.array(rewards, np.float32))
    seen = np.array(np.eye(number) if observations is None else observations, np.float32)
    ends = np.stack([_flags(terminates, number), _flags(truncates, number)])

    def reset(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = jax.random.randint(key, (), 0, starts, jnp.int32)
        return state, jnp.asarray(seen)[state]

    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> Step:
        after = jnp.asarray(states)[state, action]
        reward = jnp.asarray(paid)[state, action]
        ended = jnp.asarray(ends)[:, state]
        return Step(after, jnp.asarray(seen)[after], reward, terminated=ended[0], truncated=ended[1])

    spec = jax.ShapeDtypeStruct(seen.shape[1:], seen.dtype)
    return Environment(f"probe:{name}", reset, step, spec, Discrete(states.shape[1]))


def _flags(given: list[bool] | np.ndarray | None, number: int) -> np.ndarray:
    return np.zeros(number, bool) if given is None else np.array(given)


def _with_choice(table: np.ndarray) -> np.ndarray:
    """One action is no choice, and a policy needs one: a second does the same."""
    return np.repeat(table, 2, 1) if table.shape[1] == 1 else table
