"""From settings to a program: recipes by name, and ``build``.

settings = ControlSettings.of(env="Pendulum-v1", recipe="trpo")
program = build(settings)
state, metrics = jax.lax.scan(program.step, program.init(key), jax.random.split(other_key, program.iterations))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.commands.control.settings import (
    RECIPE_SETTINGS,
    ControlSettings,
    LearningSettings,
    NetworkSettings,
    ObjectiveSettings,
)
from rlax_llm.core.masked import whiten
from rlax_llm.credit import streams as credits
from rlax_llm.credit.values import clipped_value_loss
from rlax_llm.envs.environment import Environment
from rlax_llm.envs.registry import make
from rlax_llm.loops.control import Collecting, ControlState, control_loop
from rlax_llm.loops.scaling import no_scaling, standardization, unit_return
from rlax_llm.loops.updates import (
    Learning,
    Metrics,
    Penalty,
    Update,
    gradient_update,
    natural_update,
    no_normalization,
    plain_value_loss,
)
from rlax_llm.models.actor_critic import ActorCritic, perceptron, recurrent
from rlax_llm.natural.trpo import NaturalStep
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes.building import build as build_recipe
from rlax_llm.recipes.control import Penalized
from rlax_llm.recipes.registry import find

__all__ = ["ControlProgram", "ControlSettings", "build", "build_update"]

_MADE = {"an Objective": Objective, "a Penalized": Penalized, "a NaturalStep": NaturalStep}
_ADAM_EPS = 1e-5
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class ControlProgram(NamedTuple):
    """A training run as pure functions.

    Attributes:
        environment: one.
        policy: acts and evaluates.
        collecting: environments, horizon, discount, scalings.
        init: ``key → state``.
        step: ``(state, key) → (state, metrics)``, one rollout and one update.
        iterations: how many steps the run takes.
    """

    environment: Environment
    policy: ActorCritic
    collecting: Collecting
    init: Callable[[jax.Array], ControlState]
    step: Callable[[ControlState, jax.Array], tuple[ControlState, Metrics]]
    iterations: int


def _credits(gae_lambda: Any) -> dict[str, credits.Credit]:
    """What weighs the policy gradient in reinforce, by the setting's name."""
    return {
        "total_return": credits.total_return,
        "return_to_go": credits.return_to_go,
        "return_minus_baseline": credits.return_minus_baseline,
        "q_value": credits.q_value,
        "gae": credits.gae(gae_lambda),
        "td_residual": credits.td_residual,
    }


def _learning(objective: ObjectiveSettings, settings: LearningSettings) -> Learning:
    plain = _is_off(objective.value_eps)
    limit = objective.kl_limit
    return Learning(
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        target=credits.lambda_return(objective.gae_lambda),
        value_loss=plain_value_loss if plain else clipped_value_loss(objective.value_eps),
        value_coef=0.0 if objective.value_coef is None else objective.value_coef,
        entropy_coef=0.0 if objective.entropy_coef is None else objective.entropy_coef,
        normalize=whiten if objective.normalize_advantages else no_normalization,
        kl_limit=None if limit is None or _is_off(limit) else limit,
    )


def build_update(
    settings: ObjectiveSettings, policy: ActorCritic, optimizer: optax.GradientTransformation, learning: Learning
) -> Update:
    """The recipe of the settings as an update of a policy.

    Args:
        settings: the recipe, and what of it is set otherwise.
        policy: that is updated.
        optimizer: of the gradient steps.
        learning: how often, and on what critic.

    Raises:
        ValueError: for an unknown recipe; as ``recipes.building.build`` for a user's own.
    """
    named = find("control", settings.recipe, "control")
    credit = None if settings.weight is None else _credits(settings.gae_lambda)[settings.weight]
    given = {name: getattr(settings, setting) for name, setting in RECIPE_SETTINGS.items()} | {"credit": credit}
    made = build_recipe("control", named, given, _MADE)
    if isinstance(made, NaturalStep):
        return natural_update(policy, made.advantage, made.direction, made.search, optimizer, learning)
    if isinstance(made, Penalized):
        return gradient_update(policy, made.objective, optimizer, learning, Penalty(made.control))
    return gradient_update(policy, made, optimizer, learning)


def _is_off(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _policy(settings: NetworkSettings, environment: Environment) -> ActorCritic:
    if settings.memory:
        return recurrent(environment, settings.hidden[0], settings.memory)
    return perceptron(environment, settings.hidden, _ACTIVATIONS[settings.activation], settings.shared)


def _optimizer(settings: LearningSettings, iterations: int) -> optax.GradientTransformation:
    steps = iterations * settings.epochs * settings.minibatches
    falling = settings.schedule == "linear"
    schedule = optax.linear_schedule(settings.learning_rate, 0.0, steps) if falling else settings.learning_rate
    adam = optax.adam(schedule, eps=_ADAM_EPS)
    if _is_off(settings.max_grad_norm):
        return adam
    return optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), adam)


def build(settings: ControlSettings) -> ControlProgram:
    """The program of one seed that settings describe; ``vmap`` its functions over keys for several.

    Args:
        settings: floats may be traced.

    Returns:
        The program: ``jax.lax.scan(step, init(key), jax.random.split(other_key, iterations))`` is the run.

    Raises:
        ImportError: where the environment's package is missing.
        ValueError: for an unknown environment.

    >>> program = build(ControlSettings.of(env="probe:constant_reward", steps=2048))
    >>> program.environment.actions, program.iterations
    (Discrete(n=2), 4)
    """
    rollout = settings.environment
    environment = make(rollout.env)
    policy = _policy(settings.network, environment)
    iterations = settings.run.steps // rollout.rollout_steps
    collecting = Collecting(
        rollout.environments,
        rollout.horizon_steps,
        rollout.discount,
        standardization() if rollout.normalize_observations else no_scaling,
        unit_return() if rollout.normalize_rewards else no_scaling,
    )
    learning = _learning(settings.objective, settings.learning)
    update = build_update(settings.objective, policy, _optimizer(settings.learning, iterations), learning)
    init, step = control_loop(environment, policy, update, collecting)
    return ControlProgram(environment, policy, collecting, init, step, iterations)
