"""What a loop needs of an environment: two pure functions and the shapes of what goes in and out.

One environment, not a batch: the loop maps. It never resets itself: whoever runs it puts a fresh state in the place of
a finished one, so a reset is paid for where it can be drawn in bulk, and the observation an episode ended in is never
lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

State = Any


class Discrete(NamedTuple):
    """Actions ``0 … n − 1``, scalar int32.

    Attributes:
        n: number of actions.
    """

    n: int


class Box(NamedTuple):
    """Actions in a box, ``[D]`` float32.

    ``step`` clips an action to the box before anything sees it, the reward included: a policy may draw from a Gaussian,
    and its log-probability stays that of what it drew.

    Attributes:
        low: ``D`` lower bounds, in the environment's units.
        high: ``D`` upper bounds.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]


class Step(NamedTuple):
    """What one step of an environment gives back.

    Attributes:
        state: after the step.
        observation: of that state, also where the episode ends there.
        reward: scalar float32.
        terminated: scalar bool, nothing follows: the value after it is 0.
        truncated: scalar bool, cut off at a limit: what would follow has a value. Where both are True the episode
            terminated.
    """

    state: State
    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Environment(NamedTuple):
    """A Markov decision process as two pure functions.

    Attributes:
        name: as in ``envs.make``.
        reset: ``key → (state, observation)``.
        step: ``(key, state, action) → Step``; it does not reset.
        observation: shape and dtype of one observation.
        actions: ``Discrete`` or ``Box``.
    """

    name: str
    reset: Callable[[jax.Array], tuple[State, jax.Array]]
    step: Callable[[jax.Array, State, jax.Array], Step]
    observation: jax.ShapeDtypeStruct
    actions: Discrete | Box
