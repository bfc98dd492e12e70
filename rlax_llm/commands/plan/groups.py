"""The programs of ``grpo``, from its settings alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.commands.drawing import Drawing, build_drawing
from rlax_llm.commands.grpo.anchoring import TURNS
from rlax_llm.commands.grpo.knowing import reads
from rlax_llm.commands.grpo.objective import Counts
from rlax_llm.commands.grpo.settings import TRPO, GrpoSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.plan.models import abstract_learner, abstract_model, array, judges_of, key
from rlax_llm.commands.plan.programs import Machine, Program
from rlax_llm.commands.plan.sampling import Sampler, prompts_of, scoring
from rlax_llm.commands.plan.work import Work, bytes_of, forward, grouped, learning, moving
from rlax_llm.core.types import Groups, Known
from rlax_llm.generation.cache import whole
from rlax_llm.generation.histories import holds
from rlax_llm.models.shared_prompts import part_of_group
from rlax_llm.recipes.registry import find


def group_programs(settings: GrpoSettings, machine: Machine) -> list[Program]:
    """What a step of ``grpo`` runs: its sampler, and its update with the reference's log-probabilities in it.

    Args:
        settings: of the command.
        machine: the devices.
    """
    model = abstract_model(settings.command, settings.model, settings.sampling)
    learner = abstract_learner(lambda model: language_learner(settings.model, model, settings.run.seed), model)
    update = GroupUpdate(settings, learner, (1.0,), Counts(settings.rollout.group_size))
    state = machine.put(jax.eval_shape(update.init, learner.params))
    reference = machine.put(learner.params) if update.reads_reference and not update.follows else None
    judges = judges_of(settings.task, settings.model)
    judging = {name: machine.put(judge.params) for name, judge in judges.items()}
    resident = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "base": machine.put(learner.frozen),
        "reference": state.reference if update.follows else reference,
    }
    drawing = over_turns(settings, machine, build_drawing(settings.sampling, settings.rollout, learner))
    sampler = Sampler(machine, learner, drawing, prompts_of(settings.rollout, settings.sampling))
    drawn = sampler.programs(resident | judging)
    with machine.entered():
        rows = _learned(settings, sampler.drawn())
        aged = array(rows.tokens.shape, jnp.float32) if update.dated else None
        batch = Groups(rows, _scores(settings), known=_known(settings, rows.tokens.shape[1]), staleness=aged)
        work = None if settings.objective.recipe == TRPO else _work(settings, learner, machine, update, state)
    layout = settings.rollout.group_size, settings.sampling.max_prompt_tokens

    def lower(earlier: Any) -> Any:
        del earlier
        program = update.program(layout)
        return program.lower(state, machine.whole(batch), key=key(), reference=reference, frozen=resident["base"])

    twice = settings.rollout.ahead and settings.rollout.dynamic_rounds
    beside = judging | {"parameters before": state.params if twice else None}
    learned = Program("update", lower, resident, beside, work)
    return [*drawn, *scoring(machine, judges, layout, rows, resident), learned]


def over_turns(settings: GrpoSettings, machine: Machine, drawing: Drawing) -> Drawing:
    """With a tool all layers keep all keys, where these are held from turn to turn.

    Args:
        settings: of the command.
        machine: the devices.
        drawing: of the settings.
    """
    rollout, request = settings.rollout, drawing.request
    guesses = request.speculation is not None and request.speculation.always
    with machine.entered():
        held = holds(request._replace(speculation=None), rollout.batch_size * rollout.drawn_size, rollout.slots)
    if rollout.tool is None or guesses or not held:
        return drawing
    return drawing._replace(request=request._replace(keeps=whole))


def _learned(settings: GrpoSettings, drawn: Any) -> Any:
    """Completions as they are learned from, abstract: with the demonstrations of groups, and what else is given."""
    rows = jax.tree.map(lambda x: array((settings.rollout.rows, *x.shape[1:]), x.dtype), drawn)
    named = find("grpo", settings.objective.recipe, "group")
    given = named.given or (named.is_own and (settings.rollout.demonstrations or settings.rollout.tool))
    return rows._replace(given=array(rows.mask.shape, jnp.bool_)) if given else rows


def _scores(settings: GrpoSettings) -> Any:
    return array((settings.rollout.batch_size, settings.rollout.group_size), jnp.float32)


def _known(settings: GrpoSettings, columns: int) -> Known:
    """What the recipe reads beside the scores; what it takes to make it is not counted."""
    prompts, size = settings.rollout.batch_size, settings.rollout.group_size
    shapes = {
        "baselines": array((prompts,), jnp.float32),
        "prompts": array((prompts,), jnp.int32),
        "roles": array((prompts, size), jnp.int32),
        "collisions": array((prompts, size, columns), jnp.float32),
        "step_rewards": array((prompts, size, columns), jnp.float32),
        "turns": array((prompts, size, columns), jnp.int32),
        "anchors": array((prompts, size, TURNS), jnp.int32),
        "turn_returns": array((prompts, size, TURNS), jnp.float32),
    }
    return Known(**{name: shapes[name] for name in reads(settings)})


def _work(settings: GrpoSettings, learner: Learner, machine: Machine, update: GroupUpdate, state: Any) -> Work:
    """The products of an update, and of the log-probabilities that it takes before."""
    rollout, sampling, taught = settings.rollout, settings.sampling, settings.learning
    turns = taught.minibatches * taught.micro_batches(rollout)
    part = part_of_group(rollout.rows // turns, rollout.group_size)
    rows = grouped(rollout.rows, part, sampling.max_prompt_tokens, sampling.max_new_tokens)
    once = forward(learner.config, rows, machine.grid, turns)
    through = learner.config, learner.params, rows, machine.grid, turns
    work = learning(*through, settings.model.remat).times(taught.epochs)
    work += moving(bytes_of((state.params, state.opt_state))).times(taught.updates)
    before = taught.correction not in ("none", "log_linear") or taught.top_entropy != 1
    fixed = update.reads_reference + before
    return work + once.times(fixed)
