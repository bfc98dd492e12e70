"""Brax's locomotion as ``Environment``s, without Brax's own wrappers for time limits and resets.

Brax is an optional dependency (``pip install "rlax-llm[brax]"``) and is imported where it is used.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.names import did_you_mean
from rlax_llm.envs.environment import Box, Environment, State, Step
from rlax_llm.envs.ids import BRAX_NAMES


class Timed(NamedTuple):
    """A state of Brax and its age.

    Attributes:
        inner: Brax's state.
        steps: int32, since the reset.
    """

    inner: Any
    steps: jax.Array


def brax(name: str, horizon_steps: int = 1000, **parameters: Any) -> Environment:
    """One of Brax's environments, truncated after ``horizon_steps``.

    Terminated is what Brax calls done: a robot that fell. Actions are clipped to [−1, 1], the range that Brax's
    environments are written for; Brax itself does not clip them.

    Args:
        name: Brax's name, such as ``ant``.
        horizon_steps: steps until an episode is cut off.
        parameters: of Brax's constructor: ``backend="spring"``, ``terminate_when_unhealthy=False``.

    Returns:
        The environment, named ``brax:`` and its name.

    Raises:
        ImportError: where Brax is missing.
        ValueError: for an unknown name or parameter, a horizon below one step, or observations that are not one array.
    """
    checks.at_least_one("brax", horizon_steps=horizon_steps)
    try:
        library = importlib.import_module("brax.envs")
    except ImportError as error:
        raise ImportError(f'brax: Brax can\'t be imported ({error}); pip install "rlax-llm[brax]".') from error
    source = _made(library, name, parameters)

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        inner = source.reset(key)
        return Timed(inner, jnp.zeros((), jnp.int32)), inner.obs

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
        inner = source.step(state.inner, jnp.clip(action, -1.0, 1.0))
        steps = state.steps + 1
        reward = jnp.asarray(inner.reward, jnp.float32)
        terminated = jnp.asarray(inner.done, bool)
        return Step(Timed(inner, steps), inner.obs, reward, terminated, steps >= horizon_steps)

    _, observation = jax.eval_shape(reset, jax.random.key(0))
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise ValueError(f"brax: {name} observes {jax.tree.structure(observation)}; wanted one array.")
    box = Box((-1.0,) * source.action_size, (1.0,) * source.action_size)
    return Environment(f"brax:{name}", reset, step, observation, box)


def _made(library: Any, name: str, parameters: dict[str, Any]) -> Any:
    try:
        return library.get_environment(name, **parameters)
    except KeyError as error:
        if error.args != (name,):
            raise
        raise ValueError(
            f"brax: there is no environment {name!r}{did_you_mean(name, BRAX_NAMES)} There are {', '.join(BRAX_NAMES)}."
        ) from error
    except TypeError as error:
        raise ValueError(f"brax: {name} can't be made with {parameters}: {error}.") from error
