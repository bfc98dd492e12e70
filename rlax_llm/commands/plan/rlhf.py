"""The programs of ``ppo``, from its settings alone."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp

from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.plan.models import abstract_learner, abstract_model, abstract_scalar, array, judges_of, key
from rlax_llm.commands.plan.programs import Machine, Program
from rlax_llm.commands.plan.sampling import Sampler, prompts_of, scoring
from rlax_llm.commands.plan.work import Work, bytes_of, forward, grouped, learning, moving
from rlax_llm.commands.ppo.phase import Models, PpoPhase
from rlax_llm.commands.ppo.run import value_learner
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.core.types import ScoredCompletions
from rlax_llm.data.tasks import Task
from rlax_llm.models.blocks import dequantized
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.shared_prompts import part_of_group


def ppo_programs(settings: PpoSettings, machine: Machine) -> list[Program]:
    """What a step of ``ppo`` runs: its sampler, its reward model, and its update with reference and value model in it.

    Args:
        settings: of the command.
        machine: the devices.
    """
    models = _models(settings)
    phase = _phase(settings, models)
    state = machine.put(jax.eval_shape(lambda *params: _state(settings, models, params), *_trained(models)))
    reference = machine.put(models.policy.params) if phase.needs_reference else None
    frozen = machine.put(phase.frozen)
    resident = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "base": frozen,
        "reference": reference,
    }
    judges = judges_of(settings.task, settings.model)
    judging = {name: machine.put(judge.params) for name, judge in judges.items()}
    prompts = prompts_of(settings.rollout, settings.sampling)
    sampler = Sampler(machine, models.policy, phase.drawing, prompts)
    with machine.entered():
        rows = sampler.drawn()
        work = _work(settings, models, machine, phase.needs_reference)
    work += moving(bytes_of((state.params, state.opt_state))).times(settings.learning.updates)
    batch = ScoredCompletions(rows, array((settings.rollout.rows,), jnp.float32))
    if settings.task.judges_steps:
        batch = batch._replace(step_rewards=array(rows.tokens.shape, jnp.float32))

    def lower(earlier: Any) -> Any:
        del earlier
        program = phase.update(settings.sampling.max_prompt_tokens)
        return program.lower(state, machine.whole(batch), key=key(), reference=reference, frozen=frozen)

    learned = Program("update", lower, resident, judging, work)
    layout = settings.rollout.group_size, settings.sampling.max_prompt_tokens
    judged = scoring(machine, judges, layout, rows, resident)
    return [*sampler.programs(resident | judging), *judged, learned]


def _phase(settings: PpoSettings, models: Models) -> PpoPhase:
    nothing = cast(Any, ())
    return PpoPhase(settings, models, Task("plan", nothing, nothing, ()))


def _trained(models: Models) -> tuple[Any, Any]:
    return models.policy.params, models.value.params


def _state(settings: PpoSettings, models: Models, params: tuple[Any, Any]) -> Any:
    """The state before the first step, of parameters that are traced."""
    value = models.value._replace(params=params[1])
    return _phase(settings, models._replace(value=value)).init(params[0])


def _work(settings: PpoSettings, models: Models, machine: Machine, needs_reference: bool) -> Work:
    """The products of the epochs of both models, and of what is taken before them."""
    rollout, sampling, taught = settings.rollout, settings.sampling, settings.learning
    turns = taught.minibatches * taught.micro_batches(rollout)
    part = part_of_group(rollout.rows // turns, rollout.group_size)
    work = Work()
    for learner, scored, before in ((models.policy, True, needs_reference), (models.value, False, True)):
        rows = grouped(rollout.rows, part, sampling.max_prompt_tokens, sampling.max_new_tokens, scored)
        through = rows, machine.grid, turns
        once = learning(learner.config, learner.params, *through, settings.model.remat)
        work += once.times(taught.epochs) + forward(learner.config, *through).times(before)
    return work


def _models(settings: PpoSettings) -> Models:
    """Policy, value model and reward model, abstract."""
    path, seed = settings.task.reward_model, settings.run.seed
    model = abstract_model(settings.command, settings.model, settings.sampling)
    reward = None if path is None else abstract_scalar(path, settings.model)
    policy = abstract_learner(lambda model: language_learner(settings.model, model, seed), model)
    name, origin = _origin(settings, model, reward)
    value = abstract_learner(lambda model: value_learner(settings.model, seed + 1, (name, model)), origin)
    return Models(policy, value, reward, settings.model.value_model == "policy")


def _origin(settings: PpoSettings, model: LanguageModel, reward: LanguageModel | None) -> tuple[str, LanguageModel]:
    """What the value model starts from, with its name."""
    name = settings.model.value_model
    if name == "reward" and reward is not None:
        return str(settings.task.reward_model), reward
    if name == "policy":
        return settings.model.model, model
    if name == "scratch":
        params = jax.eval_shape(dequantized, model.params)
        wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params)
        return name, model._replace(params=wide)
    return name, abstract_scalar(name, settings.model)
