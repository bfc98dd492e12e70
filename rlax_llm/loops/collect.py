"""Steps in environments, many at once: the rollout that every control algorithm learns from.

Everything random is drawn for the whole rollout before its first step, in bulk: actions' noise, the environments' keys
and the states that follow an episode's end. What is left in the loop over steps is arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.envs.environment import Environment, Step
from rlax_llm.models.actor_critic import ActorCritic, Params


class Runner(NamedTuple):
    """Environments between two rollouts, ``[B, …]`` each.

    Attributes:
        states: the environments'.
        observations: of these states.
        starts: bool, True where the observation is the first of its episode.
        carry: the policy's memory.
        returns: undiscounted, of the running episodes.
        lengths: of the running episodes, steps.
    """

    states: Any
    observations: jax.Array
    starts: jax.Array
    carry: Any
    returns: jax.Array
    lengths: jax.Array


class Steps(NamedTuple):
    """What happened, ``[T, B, …]`` each; ``carry`` is the memory after the step, ``reached`` what it led to.

    Attributes:
        observations: in which the actions were taken.
        starts: bool, True at an episode's first observation.
        parameters: of the distributions that acted.
        actions: as drawn; an environment cuts them to its box by itself.
        rewards: float32.
        terminated: bool, nothing follows.
        truncated: bool, cut off: what would have followed has a value.
        reached: the observation after the step, also where the episode ended there.
        carry: the policy's memory after the step.
        returns: undiscounted, of the episode so far.
        lengths: of the episode so far, steps.
    """

    observations: jax.Array
    starts: jax.Array
    parameters: Any
    actions: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    reached: jax.Array
    carry: Any
    returns: jax.Array
    lengths: jax.Array


def _choose(condition: jax.Array, new: Any, old: Any) -> Any:
    """Rows of two pytrees ``[B, …]`` by a condition ``[B]``."""

    def pick(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(y) - 1)), x, y)

    return jax.tree.map(pick, new, old)


def _tiled(leaf: jax.Array, environments: int) -> jax.Array:
    return jnp.broadcast_to(leaf, (environments, *jnp.shape(leaf)))


def start_runner(environment: Environment, policy: ActorCritic, environments: int, key: jax.Array) -> Runner:
    """Fresh episodes.

    Args:
        environment: one.
        policy: gives the memory at the start.
        environments: B, how many run at once.
        key: randomness.
    """
    states, observations = jax.vmap(environment.reset)(jax.random.split(key, environments))
    carry = jax.tree.map(lambda leaf: _tiled(leaf, environments), policy.carry)
    zeros = jnp.zeros(environments)
    return Runner(states, observations, zeros == 0, carry, zeros, jnp.zeros(environments, jnp.int32))


def _drawn(environment: Environment, policy: ActorCritic, parameters: Any, key: jax.Array, shape: tuple) -> tuple:
    """Everything random of a rollout ``[T, B]``: fresh episodes, the actions' noise, the environments' keys."""
    reset_key, noise_key, step_key = jax.random.split(key, 3)
    fresh = jax.vmap(jax.vmap(environment.reset))(jax.random.split(reset_key, shape))
    all_steps = jax.tree.map(lambda x: jax.ShapeDtypeStruct((shape[0], *x.shape), x.dtype), parameters)
    return fresh, policy.distribution.noise(noise_key, all_steps), jax.random.split(step_key, shape)


def rollout(
    environment: Environment,
    policy: ActorCritic,
    see: Callable[[jax.Array], jax.Array],
    params: Params,
    runner: Runner,
    key: jax.Array,
    horizon_steps: int,
) -> tuple[Runner, Steps]:
    """``horizon_steps`` steps in each of the runner's environments; an episode that ends is followed by a fresh one.

    Args:
        environment: one.
        policy: acts.
        see: ``observations → observations`` as the policy takes them, such as a scaling.
        params: the policy's.
        runner: ``[B, …]``.
        key: randomness.
        horizon_steps: T.

    Returns:
        The runner after the last step, and the steps ``[T, B, …]``.
    """
    environments = runner.starts.shape[0]

    def one(runner: Runner, given: tuple) -> tuple[Runner, Steps]:
        (fresh_states, fresh_observations), noise, keys = given
        start = jax.tree.map(lambda leaf: _tiled(leaf, environments), policy.carry)
        carry = _choose(runner.starts, start, runner.carry)
        parameters, carry = policy.act(params, carry, see(runner.observations))
        actions = policy.distribution.transform(noise, parameters)
        step: Step = jax.vmap(environment.step)(keys, runner.states, actions)
        truncated = step.truncated & ~step.terminated
        ended = step.terminated | truncated
        returns = runner.returns + step.reward
        lengths = runner.lengths + 1
        taken = Steps(
            observations=runner.observations,
            starts=runner.starts,
            parameters=parameters,
            actions=actions,
            rewards=step.reward,
            terminated=step.terminated,
            truncated=truncated,
            reached=step.observation,
            carry=carry,
            returns=returns,
            lengths=lengths,
        )
        after = Runner(
            states=_choose(ended, fresh_states, step.state),
            observations=_choose(ended, fresh_observations, step.observation),
            starts=ended,
            carry=carry,
            returns=jnp.where(ended, 0, returns),
            lengths=jnp.where(ended, 0, lengths),
        )
        return after, taken

    parameters = jax.eval_shape(lambda: policy.act(params, runner.carry, see(runner.observations))[0])
    return jax.lax.scan(one, runner, _drawn(environment, policy, parameters, key, (horizon_steps, environments)))
