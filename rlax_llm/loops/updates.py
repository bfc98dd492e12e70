"""What a control algorithm does with a rollout: gradient steps over minibatches, or one natural-gradient step.

An ``Update`` is a pair of pure functions. ``gradient_update`` takes any ``Objective`` (REINFORCE, actor-critic, PPO and
every other trust region), ``natural_update`` a direction and a search (TRPO).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.kl import KlControl
from rlax_llm.core.masked import whiten
from rlax_llm.core.types import Metrics, PolicyBatch, Trajectory
from rlax_llm.credit.streams import Credit, lambda_return
from rlax_llm.credit.values import ClippedValueLoss, squared_value_loss
from rlax_llm.loops.minibatches import Passes, epochs, optimizer_step, take_rows
from rlax_llm.models.actor_critic import ActorCritic, Params
from rlax_llm.natural.fisher import DirectionRule
from rlax_llm.natural.trpo import SearchRule, policy_problem, trpo_step
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.weightings import token_mean

Normalize = Callable[[jax.Array, jax.Array], jax.Array]


class ControlBatch(NamedTuple):
    """What an update learns from, ``[T, B, …]`` each.

    Attributes:
        observations: as the policy takes them.
        starts: bool, True at an episode's first observation.
        actions: as drawn.
        parameters: of the distributions that acted.
        log_probs: of the actions under these, nats.
        trajectory: rewards and values, each ``[T, B]``.
        carry: ``[B, …]``, the policy's memory before the first step.
    """

    observations: jax.Array
    starts: jax.Array
    actions: jax.Array
    parameters: Any
    log_probs: jax.Array
    trajectory: Trajectory
    carry: Any


class Update(NamedTuple):
    """How a rollout changes a policy.

    Attributes:
        init: ``params → state``.
        step: ``(params, state, rollout, key) → (params, state, metrics)``.
    """

    init: Callable[[Params], Any]
    step: Callable[[Params, Any, ControlBatch, jax.Array], tuple[Params, Any, Metrics]]


def plain_value_loss(values: jax.Array, old_values: jax.Array, targets: jax.Array) -> jax.Array:
    """``squared_value_loss``, whatever the old values: the limit of ``clipped_value_loss`` for a wide interval.

    Args:
        values: any shape.
        old_values: not read.
        targets: like ``values``.

    >>> plain_value_loss(jnp.array([1.0]), jnp.array([9.0]), jnp.array([3.0])).tolist()
    [2.0]
    """
    del old_values
    return squared_value_loss(values, targets)


def no_normalization(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """The advantages as they are; ``masked.whiten`` in its place gives a minibatch mean 0 and variance 1.

    Args:
        advantages: any shape.
        mask: not read.

    >>> no_normalization(jnp.array([2.0]), jnp.array([True])).tolist()
    [2.0]
    """
    del mask
    return advantages


class Learning(NamedTuple):
    """How often and on what critic; floats may be traced, so ``vmap`` runs over them.

    Attributes:
        epochs: times that each step is learned from.
        minibatches: optimizer steps in an epoch.
        target: of the critic, one stream.
        value_loss: ``(values, old_values, targets) → loss``.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the entropy, per nat.
        normalize: ``(advantages, mask) → advantages``, of a minibatch.
        kl_limit: k3 of KL(π_old‖π) on a minibatch, nats, from which on the update ignores what is left of it.
    """

    epochs: int = 4
    minibatches: int = 4
    target: Credit = lambda_return(0.95)
    value_loss: ClippedValueLoss = plain_value_loss
    value_coef: float | jax.Array = 0.5
    entropy_coef: float | jax.Array = 0.0
    normalize: Normalize = whiten
    kl_limit: float | jax.Array | None = None


class Penalty(NamedTuple):
    """A KL term ``β · KL(π_old‖π)``, exact, whose coefficient follows the KL of the last update.

    Attributes:
        control: ``(coef, kl) → coef``, such as ``kl.doubling_coef(target)``.
        initial: β at the start, per nat.
    """

    control: KlControl
    initial: float | jax.Array = 1.0


class ControlRows(NamedTuple):
    """Part of a rollout as streams ``[L, R, …]``: what one gradient reads."""

    observations: jax.Array
    starts: jax.Array
    actions: jax.Array
    parameters: Any
    log_probs: jax.Array
    advantages: jax.Array
    targets: jax.Array
    values: jax.Array


class GradientState(NamedTuple):
    """State of ``gradient_update``: the optimizer's, and the coefficient of its penalty."""

    opt_state: optax.OptState
    kl_coef: jax.Array


def along_streams(credit: Credit, trajectory: Trajectory) -> jax.Array:
    """A credit of each of the streams of ``[T, B]``.

    Args:
        credit: of one stream.
        trajectory: ``[T, B]`` each.
    """
    return jax.lax.stop_gradient(jax.vmap(credit, 1, 1)(trajectory))


def _rows(policy: ActorCritic, rollout: ControlBatch, advantage: Credit, target: Credit) -> tuple[ControlRows, Any]:
    """ControlRows and their memories: steps on their own without memory, whole streams with it."""
    advantages, targets = (along_streams(credit, rollout.trajectory) for credit in (advantage, target))
    rows = ControlRows(
        observations=rollout.observations,
        starts=rollout.starts,
        actions=rollout.actions,
        parameters=rollout.parameters,
        log_probs=rollout.log_probs,
        advantages=advantages,
        targets=targets,
        values=rollout.trajectory.values,
    )
    if jax.tree.leaves(policy.carry):
        return rows, rollout.carry
    return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), rows), rollout.carry


def _take(batch: tuple[ControlRows, Any], order: jax.Array) -> tuple[ControlRows, Any]:
    """Some rows, which are on axis 1, and their memories, which are on axis 0."""
    rows, carry = batch
    taken = jax.tree.map(lambda x: x[:, order], rows), take_rows(carry, order)
    return jax.lax.optimization_barrier(taken)  # gathered once, not again in each operation that reads them


def _epochs(
    learning: Learning, batch: tuple[ControlRows, Any], minibatch: Callable, start: Any, key: jax.Array
) -> tuple:
    """``minibatch`` over every minibatch of every epoch, and the means of what it reports."""
    rows, carry = batch
    count = rows.starts.shape[1]
    if count % learning.minibatches:
        raise ValueError(
            f"Learning.minibatches is {learning.minibatches}, wanted a divisor of the {count} rows of a rollout "
            f"({'its environments' if jax.tree.leaves(carry) else 'its steps'}); change one of them."
        )
    passes = Passes(learning.epochs, learning.minibatches)
    end, reports = epochs(minibatch, start, batch, count, passes, key, _take)
    return end, jax.tree.map(jnp.mean, reports)


def _control_loss(policy: ActorCritic, objective: Objective, learning: Learning, penalized: bool) -> Callable:
    """The loss of ``gradient_update`` on some rows, and its metrics."""

    def loss(params: Params, rows: ControlRows, carry: Any, kl_coef: jax.Array) -> tuple[jax.Array, Metrics]:
        parameters, values = policy.evaluate(params, carry, rows.observations, rows.starts)
        mask = jnp.ones(rows.starts.shape, bool)
        weights = objective.weighting(mask)
        log_probs = policy.distribution.log_prob(parameters, rows.actions)
        advantages = learning.normalize(rows.advantages, mask)
        total, metrics = policy_loss(objective, PolicyBatch(log_probs, rows.log_probs, advantages, mask, weights))
        value_losses = learning.value_loss(values, rows.values, rows.targets)
        entropies = policy.distribution.entropy(parameters)
        total = total + (weights * (learning.value_coef * value_losses - learning.entropy_coef * entropies)).sum()
        if penalized:
            total = total + kl_coef * (weights * policy.distribution.kl(rows.parameters, parameters)).sum()
        means = {"value_loss": value_losses.mean(), "entropy": entropies.mean()}
        return total, metrics | jax.lax.stop_gradient(means)

    return loss


def gradient_update(
    policy: ActorCritic,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning: Learning = Learning(),
    penalty: Penalty | None = None,
) -> Update:
    """Gradient steps on ``policy_loss + value_coef · value loss − entropy_coef · entropy [+ β · KL(π_old‖π)]``.

    Limiting cases: one epoch of one minibatch with ``score_function`` is REINFORCE or A2C, whatever the ratio.

    Args:
        policy: its ``evaluate`` is differentiated.
        objective: its ``advantage`` is a ``credits.Credit`` and its ``kl`` None (a control run has no reference).
        optimizer: any Optax transformation.
        learning: epochs, minibatches and the critic.
        penalty: PPO-penalty's, or None.

    Returns:
        The update. Metrics, means over the optimizer steps: those of ``policy_loss``, ``value_loss`` and ``entropy``
        (nats); with a penalty ``kl`` (exact, after the update, nats) and ``kl_coef``.

    Raises:
        ValueError: for an objective with a KL term; at trace time, for minibatches that do not divide the rows.
    """
    if objective.kl is not None:
        raise ValueError("gradient_update: objective.kl needs a reference, which control has not; give a penalty.")
    checks.at_least_one("gradient_update", epochs=learning.epochs, minibatches=learning.minibatches)
    gradient_of = jax.grad(_control_loss(policy, objective, learning, penalty is not None), has_aux=True)

    def init(params: Params) -> GradientState:
        return GradientState(optimizer.init(params), jnp.float32(0 if penalty is None else penalty.initial))

    def step(params: Params, state: GradientState, rollout: ControlBatch, key: jax.Array) -> tuple:
        def minibatch(now: tuple, part: tuple[ControlRows, Any]) -> tuple[tuple, Metrics]:
            params, opt_state, stopped = now
            gradient, metrics = gradient_of(params, *part, state.kl_coef)
            new = optimizer_step(optimizer, gradient, params, opt_state)
            if learning.kl_limit is not None:
                stopped = stopped | (metrics["kl_old"] > learning.kl_limit)
                new = jax.tree.map(lambda x, old: jnp.where(stopped, old, x), new, (params, opt_state))
                metrics |= {"stopped": stopped.astype(jnp.float32)}
            return (*new, stopped), metrics

        rows, carry = _rows(policy, rollout, objective.advantage, learning.target)
        start = (params, state.opt_state, jnp.array(False))
        (params, opt_state, _), metrics = _epochs(learning, (rows, carry), minibatch, start, key)
        kl_coef = state.kl_coef
        if penalty is not None:
            parameters = policy.evaluate(params, rollout.carry, rollout.observations, rollout.starts)[0]
            kl = policy.distribution.kl(rollout.parameters, parameters).mean()
            metrics |= {"kl": kl, "kl_coef": kl_coef}
            kl_coef = penalty.control(kl_coef, kl)
        return params, GradientState(opt_state, kl_coef), metrics

    return Update(init, step)


def _own_critic(params: Params) -> Params:
    """The critic's parameters, which are no others'."""
    if set(params) != {"actor", "critic"}:
        raise ValueError(
            f"natural_update: the policy's parameters have the entries {sorted(params)}, wanted actor and critic "
            "alone; a critic that shares parameters would move the policy out of its trust region."
        )
    return params["critic"]


def natural_update(
    policy: ActorCritic,
    advantage: Credit,
    direction: DirectionRule,
    search: SearchRule,
    optimizer: optax.GradientTransformation,
    learning: Learning = Learning(epochs=10),
) -> Update:
    """TRPO: one natural-gradient step of the actor on the whole rollout, then the critic by minibatches.

    Args:
        policy: actor and critic share nothing.
        advantage: credit of one stream.
        direction: such as ``natural_direction(kl_radius)``.
        search: such as ``backtracking_search(improves_within(kl_radius))``.
        optimizer: of the critic.
        learning: of the critic; its ``entropy_coef`` and ``kl_limit`` are not read.

    Returns:
        The update. Metrics: those of ``trpo_step``, ``entropy`` before it (nats) and ``value_loss``, the mean over the
        critic's optimizer steps.

    Raises:
        ValueError: by ``init``, for a policy that shares parameters with its critic.
    """
    checks.at_least_one("natural_update", epochs=learning.epochs, minibatches=learning.minibatches)

    def init(params: Params) -> optax.OptState:
        return optimizer.init(_own_critic(params))

    def actor_step(params: Params, rows: ControlRows, carry: Any) -> tuple[Params, Metrics]:
        def acting(actor: Params) -> Any:
            return policy.evaluate(params | {"actor": actor}, carry, rows.observations, rows.starts)[0]

        mask = jnp.ones(rows.starts.shape, bool)
        advantages, weights = learning.normalize(rows.advantages, mask), token_mean(mask)
        problem = policy_problem(acting, policy.distribution, params["actor"], rows.actions, advantages, weights)
        actor, metrics = trpo_step(params["actor"], problem, direction, search)
        return actor, metrics | {"entropy": policy.distribution.entropy(rows.parameters).mean()}

    def value_loss(critic: Params, params: Params, rows: ControlRows, carry: Any) -> jax.Array:
        values = policy.evaluate(params | {"critic": critic}, carry, rows.observations, rows.starts)[1]
        return learning.value_loss(values, rows.values, rows.targets).mean()

    def step(params: Params, opt_state: optax.OptState, rollout: ControlBatch, key: jax.Array) -> tuple:
        def minibatch(now: tuple, part: tuple[ControlRows, Any]) -> tuple[tuple, jax.Array]:
            critic, opt_state = now
            loss, gradient = jax.value_and_grad(value_loss)(critic, params, *part)
            return optimizer_step(optimizer, gradient, critic, opt_state), loss

        rows, carry = _rows(policy, rollout, advantage, learning.target)
        actor, metrics = actor_step(params, rows, carry)
        (critic, opt_state), loss = _epochs(learning, (rows, carry), minibatch, (params["critic"], opt_state), key)
        return {"actor": actor, "critic": critic}, opt_state, metrics | {"value_loss": loss}

    return Update(init, step)
