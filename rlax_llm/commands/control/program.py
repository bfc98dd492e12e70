"""From settings to a program: recipes by name, and ``build``.

config = ControlSettings(env="Pendulum-v1", recipe="trpo")
program = build(config)
state, metrics = jax.lax.scan(program.step, program.init(key), jax.random.split(other_key, program.iterations))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.commands.control.settings import RECIPE_SETTINGS, ControlSettings, resolve
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

__all__ = ["ControlProgram", "ControlSettings", "build", "build_update", "resolve"]

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


def _weights(config: Any) -> dict[str, credits.Credit]:
    return {
        "total_return": credits.total_return,
        "return_to_go": credits.return_to_go,
        "return_minus_baseline": credits.return_minus_baseline,
        "q_value": credits.q_value,
        "gae": credits.gae(config.gae_lambda),
        "td_residual": credits.td_residual,
    }


def _learning(config: Any) -> Learning:
    plain = _is_off(config.value_eps)
    return Learning(
        epochs=config.epochs,
        minibatches=config.minibatches,
        target=credits.lambda_return(config.gae_lambda),
        value_loss=plain_value_loss if plain else clipped_value_loss(config.value_eps),
        value_coef=0.0 if config.value_coef is None else config.value_coef,
        entropy_coef=0.0 if config.entropy_coef is None else config.entropy_coef,
        normalize=whiten if config.normalize_advantages else no_normalization,
        kl_limit=None if config.kl_limit is None or _is_off(config.kl_limit) else config.kl_limit,
    )


def build_update(
    config: ControlSettings, policy: ActorCritic, optimizer: optax.GradientTransformation, learning: Learning
) -> Update:
    """The recipe of the settings as an update of a policy.

    Args:
        config: in full.
        policy: that is updated.
        optimizer: of the gradient steps.
        learning: how often, and on what critic.

    Raises:
        ValueError: for an unknown recipe; as ``recipes.building.build`` for a user's own.
    """
    named = find("control", config.recipe, "control")
    credit = None if config.weight is None else _weights(config)[config.weight]
    settings = {name: getattr(config, setting) for name, setting in RECIPE_SETTINGS.items()} | {"credit": credit}
    made = build_recipe("control", named, settings, _MADE)
    if isinstance(made, NaturalStep):
        return natural_update(policy, made.advantage, made.direction, made.search, optimizer, learning)
    if isinstance(made, Penalized):
        return gradient_update(policy, made.objective, optimizer, learning, Penalty(made.control))
    return gradient_update(policy, made, optimizer, learning)


def _is_off(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _policy(config: Any, environment: Environment) -> ActorCritic:
    if config.memory:
        return recurrent(environment, config.hidden[0], config.memory)
    return perceptron(environment, config.hidden, _ACTIVATIONS[config.activation], config.shared)


def _optimizer(config: Any, iterations: int) -> optax.GradientTransformation:
    rate, steps = config.learning_rate, iterations * config.epochs * config.minibatches
    schedule = optax.linear_schedule(rate, 0.0, steps) if config.schedule == "linear" else rate
    adam = optax.adam(schedule, eps=_ADAM_EPS)
    return adam if _is_off(config.max_grad_norm) else optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)


def build(config: ControlSettings) -> ControlProgram:
    """The program of one seed that settings describe; ``vmap`` its functions over keys for several.

    Args:
        config: the settings, ``resolve``d or not; floats may be traced.

    Returns:
        The program: ``jax.lax.scan(step, init(key), jax.random.split(other_key, iterations))`` is the run.

    Raises:
        ImportError: where the environment's package is missing.
        ValueError: for an unknown environment, and for settings that contradict each other.

    >>> program = build(ControlSettings(env="probe:constant_reward", steps=2048))
    >>> program.environment.actions, program.iterations
    (Discrete(n=2), 4)
    """
    full: Any = resolve(config)
    environment = make(full.env)
    policy = _policy(full, environment)
    iterations = full.steps // (full.environments * full.horizon_steps)
    collecting = Collecting(
        full.environments,
        full.horizon_steps,
        full.discount,
        standardization() if full.normalize_observations else no_scaling,
        unit_return() if full.normalize_rewards else no_scaling,
    )
    update = build_update(full, policy, _optimizer(full, iterations), _learning(full))
    init, step = control_loop(environment, policy, update, collecting)
    return ControlProgram(environment, policy, collecting, init, step, iterations)
