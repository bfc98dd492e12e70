"""Gymnax's environments as ``Environment``s: one step of the dynamics, without the reset that Gymnax's own step adds.

Gymnax resets every environment at every step and then chooses; its ``step_env``, ``reset_env`` and ``is_truncated``
are the parts without that. What differs from Gymnax, in every environment alike:

- actions in a box are clipped to it *before* the dynamics. Gymnax clips only the force in Pendulum, PointRobot and
  MountainCarContinuous (whose reward counts the unclipped action) and nothing in Reacher and Swimmer;
- observations are float32: whole numbers are converted, and a *name* of a state (FrozenLake's tile) is one-hot;
- rewards are float32, and the leaves of a state have the same dtypes before and after a step.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.names import did_you_mean, unknown_parameter
from rlax_llm.envs.environment import Box, Discrete, Environment, State, Step


def gymnax(name: str, **parameters: Any) -> Environment:
    """One environment of Gymnax 1.x, or one registered with it (``gymnax.register``).

    Args:
        name: Gymnax's id, such as ``CartPole-v1``.
        parameters: overrides of the environment's parameters (``max_steps_in_episode=200``, ``gravity=1.6``) and
            arguments of its constructor (``size=20`` of DeepSea). Parameters that Gymnax derives from others are
            parameters of their own: give CartPole's ``total_mass`` with its ``masspole``.

    Returns:
        The environment. Its limit of steps truncates; only what ends in the dynamics terminates.

    Raises:
        ImportError: where Gymnax is missing or older than 1.0.
        ValueError: for an unknown id or parameter, a limit below one step, data that can't be downloaded
            (``MNISTBandit-bsuite``), and spaces that are neither discrete nor a box.

    >>> cartpole = gymnax("CartPole-v1", max_steps_in_episode=200)
    >>> cartpole.actions, cartpole.observation.shape
    (Discrete(n=2), (4,))
    """
    source, chosen = with_parameters(name, parameters)
    actions, to_gymnax = _actions(name, source.action_space(chosen))
    observe = _observer(source.observation_space(chosen))

    def reset(key: jax.Array) -> tuple[State, jax.Array]:
        observation, state = source.reset_env(key, chosen)
        return _strongly_typed(state), observe(observation)

    def step(key: jax.Array, state: State, action: jax.Array) -> Step:
        observation, state, reward, terminated, _ = source.step_env(key, state, to_gymnax(action), chosen)
        state = _strongly_typed(state)
        reward = jnp.asarray(reward, jnp.float32)
        truncated = source.is_truncated(state, chosen)
        return Step(state, observe(observation), reward, jnp.asarray(terminated, bool), jnp.asarray(truncated, bool))

    return Environment(name, reset, step, _observation(name, reset), actions)


def with_parameters(name: str, parameters: dict[str, Any]) -> tuple[Any, Any]:
    """Gymnax's own environment and parameters, with some of them replaced.

    Args:
        name: Gymnax's id.
        parameters: as those of ``gymnax``.

    Returns:
        The environment object and its parameters.

    Raises:
        ImportError: as ``gymnax``.
        ValueError: as ``gymnax``, but for the spaces.

    >>> with_parameters("Pendulum-v1", {"g": 9.81})[1].g
    9.81
    """
    library = _library()
    if name not in library.registered_envs:
        raise ValueError(
            f"gymnax: there is no environment {name!r}{did_you_mean(name, library.registered_envs)} "
            "gymnax.registered_envs lists them."
        )
    checks.at_least_one("gymnax", max_steps_in_episode=parameters.get("max_steps_in_episode"))
    source, defaults = _made(library, name, {})
    constructor = set(inspect.signature(type(source)).parameters)
    known = sorted(constructor | set(vars(defaults)))
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(unknown_parameter(f"gymnax: {name}", parameter, known))
    arguments = {key: value for key, value in parameters.items() if key in constructor}
    if arguments:
        source, defaults = _made(library, name, arguments)
    return source, defaults.replace(**{key: value for key, value in parameters.items() if key not in constructor})


def _library() -> Any:
    try:
        library = importlib.import_module("gymnax")
        version = importlib.metadata.version("gymnax")
    except ImportError as error:
        raise ImportError(f'gymnax: Gymnax can\'t be imported ({error}); pip install "gymnax>=1.0" six.') from error
    if int(version.split(".")[0]) < 1:
        raise ImportError(
            f"gymnax: Gymnax is {version}, which reports a time limit as an end; wanted 1.0 or later: "
            'pip install --upgrade "gymnax>=1.0".'
        )
    return library


def _made(library: Any, name: str, arguments: dict[str, Any]) -> tuple[Any, Any]:
    try:
        return library.make(name, **arguments)
    except OSError as error:
        raise ValueError(
            f"gymnax: {name} downloads its data when it is made, and that failed ({error}); "
            "make it once where there is a network, or choose another environment."
        ) from error


def _actions(name: str, space: Any) -> tuple[Discrete | Box, Callable[[jax.Array], jax.Array]]:
    """Our space, and the function from our actions to Gymnax's."""
    spaces = importlib.import_module("gymnax.environments.spaces")
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda action: jnp.asarray(action, space.dtype)
    if not isinstance(space, spaces.Box):
        raise ValueError(f"gymnax: the actions of {name} are {space!r}; wanted Discrete or Box.")
    low, high = (np.broadcast_to(np.asarray(x, np.float32), space.shape).ravel() for x in (space.low, space.high))
    box = Box(tuple(low.tolist()), tuple(high.tolist()))
    return box, lambda action: jnp.clip(action, low, high).reshape(space.shape).astype(space.dtype)


def _observer(space: Any) -> Callable[[jax.Array], jax.Array]:
    """A state's name is one-hot, everything else a number."""
    spaces = importlib.import_module("gymnax.environments.spaces")
    if isinstance(space, spaces.Discrete):
        return lambda observation: jax.nn.one_hot(observation, space.n, dtype=jnp.float32)
    return lambda observation: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), observation)


def _observation(name: str, reset: Callable[[jax.Array], tuple[State, jax.Array]]) -> jax.ShapeDtypeStruct:
    _, observation = jax.eval_shape(reset, jax.random.key(0))
    if not isinstance(observation, jax.ShapeDtypeStruct):
        raise ValueError(f"gymnax: {name} observes {jax.tree.structure(observation)}; wanted one array.")
    return jax.ShapeDtypeStruct(observation.shape, observation.dtype)


def _strongly_typed(state: State) -> State:
    # Gymnax starts its clocks with Python's 0, whose weak type a step may lose: a scan's carry would change type.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
