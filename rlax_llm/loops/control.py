"""Whole on-policy runs in environments as a pure ``(init, step)`` pair: ``scan`` for a run, ``vmap`` for seeds.

init, step = control_loop(environment, policy, update)
state, metrics = jax.lax.scan(step, init(key), jax.random.split(other_key, iterations))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.recurrence import reverse_affine_scan
from rlax_llm.core.trees import check_trainable
from rlax_llm.core.types import Metrics, Trajectory
from rlax_llm.credit.values import explained_variance
from rlax_llm.envs.environment import Environment
from rlax_llm.loops.collect import Runner, Steps, rollout, start_runner
from rlax_llm.loops.scaling import Scaling, no_scaling
from rlax_llm.loops.updates import ControlBatch, Update
from rlax_llm.models.actor_critic import ActorCritic, Params


class Collecting(NamedTuple):
    """How experience is gathered; floats may be traced.

    Attributes:
        environments: B, how many run side by side.
        horizon_steps: T, steps of each between two updates.
        discount: γ.
        observation_scaling: of what the policy sees.
        reward_scaling: of what it learns from; samples are the running discounted returns.
    """

    environments: int = 8
    horizon_steps: int = 128
    discount: float | jax.Array = 0.99
    observation_scaling: Scaling = no_scaling
    reward_scaling: Scaling = no_scaling


class ControlState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        params: the policy's.
        update: the update's state.
        runner: the environments.
        observation_scale: state of the observations' scaling.
        reward_scale: state of the rewards' scaling.
        discounted: ``[B]``, running discounted returns.
        steps: scalar int32, environment steps taken.
    """

    params: Params
    update: Any
    runner: Runner
    observation_scale: Any
    reward_scale: Any
    discounted: jax.Array
    steps: jax.Array


def _running_returns(steps: Steps, discount: float | jax.Array, before: jax.Array) -> jax.Array:
    """``R[t] = γ R[t−1] + r[t]`` within an episode: the recurrence of the returns, run from the other end."""
    decay = jnp.where(steps.starts, 0.0, discount)
    return reverse_affine_scan(steps.rewards[::-1], decay[::-1], before)[::-1]


def trajectory(policy: ActorCritic, see: Callable, params: Params, carry: Any, steps: Steps) -> Trajectory:
    """What credits read of collected steps: values of all states, and of all that steps led to, each in one batch.

    Args:
        policy: its critic is asked.
        see: ``observations → observations`` as the policy sees them, such as standardized ones.
        params: the policy's.
        carry: its memory ``[B, …]`` before the first step, ``()`` without one.
        steps: ``[T, B]``.

    Returns:
        ``[T, B]``, for credits along axis 0, undiscounted: 0 only after a terminal step; traces end where a step was
        truncated, and at the last.
    """
    values = policy.evaluate(params, carry, see(steps.observations), steps.starts)[1]
    flat_carry, reached = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (steps.carry, steps.reached))
    rows = reached.shape[0]
    following = policy.evaluate(params, flat_carry, see(reached)[None], jnp.zeros((1, rows), bool))[1]
    traces = 1.0 - steps.truncated.at[-1].set(True)
    discounts = 1.0 - steps.terminated
    return Trajectory(steps.rewards, discounts, traces, values, following.reshape(values.shape))


def _learned(policy: ActorCritic, see: Callable, steps: Steps, stream: Trajectory, carry: Any) -> ControlBatch:
    """What an update reads of the steps."""
    log_probs = policy.distribution.log_prob(steps.parameters, steps.actions)
    return ControlBatch(
        observations=see(steps.observations),
        starts=steps.starts,
        actions=steps.actions,
        parameters=steps.parameters,
        log_probs=log_probs,
        trajectory=stream,
        carry=carry,
    )


def _episodes(steps: Steps) -> Metrics:
    """Statistics of the episodes that ended in a rollout; NaN where none did."""
    ended = steps.terminated | steps.truncated
    count = ended.sum()

    def mean(x: jax.Array) -> jax.Array:
        return jnp.where(count > 0, jnp.where(ended, x, 0).sum() / jnp.maximum(count, 1), jnp.nan)

    return {"episodes": count, "episode_return": mean(steps.returns), "episode_length": mean(steps.lengths)}


def control_loop(
    environment: Environment,
    policy: ActorCritic,
    update: Update,
    collecting: Collecting = Collecting(),
) -> tuple[Callable[[jax.Array], ControlState], Callable[[ControlState, jax.Array], tuple[ControlState, Metrics]]]:
    """``init(key)`` and ``step(state, key)``: a rollout and an update. Both trace under ``jit``, ``scan`` and ``vmap``.

    After a truncation, and after the rollout's last step, the return goes on with the critic's value of the state
    that was reached, never with the next episode's. The scaling of observations is brought up
    to date after the update, so that a rollout and what is learned from it see the same; that of rewards before it.

    Args:
        environment: one.
        policy: acts and evaluates.
        update: ``gradient_update`` or ``natural_update``.
        collecting: environments, horizon, discount, scalings.

    Returns:
        The pair. Metrics are scalars: the update's, ``episodes`` that ended, their ``episode_return`` (undiscounted,
        unscaled) and ``episode_length`` (NaN where none ended), and ``explained_variance`` of the critic.

    Raises:
        ValueError: for fewer than one environment or step.

    >>> import optax
    >>> from rlax_llm.recipes.control import ppo
    >>> from rlax_llm.envs.probes import constant_reward
    >>> from rlax_llm.models.actor_critic import perceptron
    >>> from rlax_llm.loops.updates import gradient_update
    >>> environment = constant_reward().environment
    >>> policy = perceptron(environment, hidden=(8,))
    >>> init, step = control_loop(environment, policy, gradient_update(policy, ppo(), optax.adam(1e-2)))
    >>> state, metrics = jax.lax.scan(step, init(jax.random.key(0)), jax.random.split(jax.random.key(1), 2))
    >>> metrics["episode_return"].tolist(), int(state.steps)
    ([1.0, 1.0], 2048)
    """
    checks.at_least_one("control_loop", environments=collecting.environments, horizon_steps=collecting.horizon_steps)
    observing, rewarding = collecting.observation_scaling, collecting.reward_scaling

    def init(key: jax.Array) -> ControlState:
        params_key, runner_key = jax.random.split(key)
        params = policy.init(params_key)
        check_trainable("control_loop", params)
        runner = start_runner(environment, policy, collecting.environments, runner_key)
        return ControlState(
            params=params,
            update=update.init(params),
            runner=runner,
            observation_scale=observing.init(environment.observation.shape),
            reward_scale=rewarding.init(()),
            discounted=jnp.zeros_like(runner.returns),
            steps=jnp.int32(0),
        )

    def step(state: ControlState, key: jax.Array) -> tuple[ControlState, Metrics]:
        rollout_key, update_key = jax.random.split(key)

        def see(observations: jax.Array) -> jax.Array:
            return observing.apply(state.observation_scale, observations)

        horizon = collecting.horizon_steps
        runner, steps = rollout(environment, policy, see, state.params, state.runner, rollout_key, horizon)
        returns = _running_returns(steps, collecting.discount, state.discounted)
        reward_scale = rewarding.update(state.reward_scale, returns.reshape(-1))
        stream = trajectory(policy, see, state.params, state.runner.carry, steps)
        scaled = rewarding.apply(reward_scale, steps.rewards)
        stream = stream._replace(rewards=scaled, discounts=collecting.discount * stream.discounts)
        learned = _learned(policy, see, steps, stream, state.runner.carry)
        params, update_state, metrics = update.step(state.params, state.update, learned, update_key)
        samples = steps.observations.reshape(-1, *environment.observation.shape)
        metrics |= _episodes(steps) | {"explained_variance": _explained(stream)}
        after = ControlState(
            params=params,
            update=update_state,
            runner=runner,
            observation_scale=observing.update(state.observation_scale, samples),
            reward_scale=reward_scale,
            discounted=returns[-1],
            steps=state.steps + steps.rewards.size,
        )
        return after, metrics

    return init, step


def _explained(stream: Trajectory) -> jax.Array:
    targets = stream.rewards + stream.discounts * stream.next_values
    return explained_variance(stream.values, targets, jnp.ones(targets.shape, bool))


def evaluate_greedily(
    environment: Environment,
    policy: ActorCritic,
    collecting: Collecting = Collecting(),
    limit_steps: int = 1000,
) -> Callable[[ControlState, jax.Array], tuple[jax.Array, Any]]:
    """Episodes by the distribution's mode: ``(state, key) → (returns [B], states [limit_steps, B])``.

    Args:
        environment: one.
        policy: acts.
        collecting: the run's; gives B and the scaling of observations.
        limit_steps: an episode is cut there.

    Returns:
        A function to the undiscounted return of one episode of each environment, and the environments' states (after
        an episode's end the last one stays), from which a picture can be drawn.
    """

    def evaluate(state: ControlState, key: jax.Array) -> tuple[jax.Array, Any]:
        start_key, step_key = jax.random.split(key)
        runner = start_runner(environment, policy, collecting.environments, start_key)

        def one(now: tuple, key: jax.Array) -> tuple[tuple, Any]:
            runner, over = now
            seen = collecting.observation_scaling.apply(state.observation_scale, runner.observations)
            parameters, carry = policy.act(state.params, runner.carry, seen)
            actions = policy.distribution.mode(parameters)
            keys = jax.random.split(key, collecting.environments)
            step = jax.vmap(environment.step)(keys, runner.states, actions)
            returns = runner.returns + jnp.where(over, 0.0, step.reward)
            moved = Runner(step.state, step.observation, runner.starts, carry, returns, runner.lengths)
            states = jax.tree.map(
                lambda new, old: jnp.where(over.reshape(over.shape + (1,) * (new.ndim - 1)), old, new),
                step.state,
                runner.states,
            )
            return (moved._replace(states=states), over | step.terminated | step.truncated), states

        start = (runner, jnp.zeros(collecting.environments, bool))
        (runner, _), states = jax.lax.scan(one, start, jax.random.split(step_key, limit_steps))
        return runner.returns, states

    return evaluate
