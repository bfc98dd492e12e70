"""The programs of ``grpo``, from its settings alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.grpo.settings import TRPO, GrpoSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.plan.models import abstract_learner, abstract_model, abstract_scalar, array, key
from rlax_llm.commands.plan.programs import Machine, Program
from rlax_llm.commands.plan.sampling import Sampler, prompts_of, scoring
from rlax_llm.commands.plan.work import Work, bytes_of, forward, grouped, learning, moving
from rlax_llm.core.types import Groups
from rlax_llm.models.decoder import part_of_group


def group_programs(settings: GrpoSettings, machine: Machine) -> list[Program]:
    """What a step of ``grpo`` runs: its sampler, and its update with the reference's log-probabilities in it.

    Args:
        settings: of the command.
        machine: the devices.
    """
    model = abstract_model(settings.command, settings.model, settings.sampling)
    learner = abstract_learner(lambda model: language_learner(settings.model, model, settings.run.seed), model)
    update = GroupUpdate(settings, learner, (1.0,))
    state = machine.put(jax.eval_shape(update.init, learner.params))
    reference = machine.put(learner.params) if update.reads_reference else None
    judge = None
    if settings.task.reward_model is not None:
        judge = abstract_scalar(settings.task.reward_model, model, settings.model)
    resident = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "base": machine.put(learner.frozen),
        "reference": reference,
        "reward model": None if judge is None else machine.put(judge.params),
    }
    drawing = build_drawing(settings.sampling, settings.rollout, learner)
    sampler = Sampler(machine, learner, drawing, prompts_of(settings.rollout, settings.sampling))
    with machine.entered():
        rows = sampler.drawn()
        batch = Groups(rows, _scores(settings))
        work = None if settings.objective.recipe == TRPO else _work(settings, learner, machine, update, state)
    layout = settings.rollout.group_size, settings.sampling.max_prompt_tokens

    def lower(earlier: Any) -> Any:
        del earlier
        program = update.program(layout)
        return program.lower(state, machine.whole(batch), key=key(), reference=reference, frozen=resident["base"])

    parts = {name: tree for name, tree in resident.items() if name != "reward model"}
    judged = [] if judge is None else [scoring(machine, judge, layout, rows, parts)]
    twice = settings.rollout.ahead and settings.rollout.dynamic_rounds
    beside = {"reward model": resident["reward model"], "parameters before": state.params if twice else None}
    learned = Program("update", lower, parts, beside, work)
    return [*sampler.programs(resident), *judged, learned]


def _scores(settings: GrpoSettings) -> Any:
    return array((settings.rollout.batch_size, settings.rollout.group_size), jnp.float32)


def _work(settings: GrpoSettings, learner: Learner, machine: Machine, update: GroupUpdate, state: Any) -> Work:
    """The products of an update, and of the log-probabilities that it takes before."""
    rollout, sampling, taught = settings.rollout, settings.sampling, settings.learning
    turns = taught.minibatches * taught.micro_batches(rollout)
    part = part_of_group(rollout.rows // turns, rollout.group_size)
    rows = grouped(rollout.rows, part, sampling.max_prompt_tokens, sampling.max_new_tokens)
    once = forward(learner.config, rows, machine.grid, turns)
    work = learning(learner.config, rows, machine.grid, turns, settings.model.remat).times(taught.epochs)
    work += moving(bytes_of((state.params, state.opt_state))).times(taught.updates)
    fixed = update.reads_reference + (taught.correction != "none")
    return work + once.times(fixed)
