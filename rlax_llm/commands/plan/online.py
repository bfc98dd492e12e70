"""The programs of ``online``, from its settings alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.online.update import OnlineUpdate, build_online
from rlax_llm.commands.plan.models import abstract_learner, abstract_model, array, judges_of, key
from rlax_llm.commands.plan.programs import UPDATE, Machine, Program
from rlax_llm.commands.plan.sampling import Sampler, prompts_of, scoring
from rlax_llm.commands.plan.work import Rows, Work, bytes_of, decoding, forward, grouped, learning, moving
from rlax_llm.core.types import Groups
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.shared_prompts import part_of_group
from rlax_llm.preference.marks import reads_reference
from rlax_llm.preference.ordering import OnlinePairs

RIVALS = "rivals' "


def online_programs(settings: OnlineSettings, machine: Machine) -> list[Program]:
    """What a step of ``online`` runs: the policy's sampler, its rival's, a reward model, and its update.

    Args:
        settings: of the command.
        machine: the devices.
    """
    model = abstract_model(settings.command, settings.model, settings.sampling)
    learner = abstract_learner(lambda model: language_learner(settings.model, model, settings.run.seed), model)
    update = OnlineUpdate(settings, build_online(settings), learner)
    state = machine.put(jax.eval_shape(update.init, learner.params))
    fixed = machine.put(learner.params) if update.reads_reference and not update.follows else None
    resident = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "base": machine.put(learner.frozen),
        "reference": state.reference if update.follows else fixed,
    }
    judges = judges_of(settings.task, settings.model)
    judging = {name: machine.put(judge.params) for name, judge in judges.items()}
    drawing = build_drawing(settings.sampling, settings.rollout, learner)
    own = Sampler(machine, learner, drawing, prompts_of(settings.rollout, settings.sampling))
    drawn = own.programs(resident | judging)
    with machine.entered():
        rows = own.drawn()
        rivals = _rivals(settings, update, own, resident | judging)
        batch = _batch(settings, rows)
        moved = moving(bytes_of((state.params, state.opt_state))).times(update.updates)
        work = _work(settings, learner, machine, update) + moved
    width = settings.sampling.max_prompt_tokens
    judged = scoring(machine, judges, (settings.rollout.group_size, width), rows, resident)
    judged += _rivals_scored(settings, machine, judges, (rows, resident))

    def lower(earlier: Any) -> Any:
        del earlier
        program = update.program(width)
        return program.lower(state, machine.whole(batch), key=key(), reference=fixed, frozen=resident["base"])

    return [*drawn, *rivals, *judged, Program(UPDATE, lower, resident, judging, work)]


def _rivals(settings: OnlineSettings, update: OnlineUpdate, own: Sampler, resident: Mapping[str, Any]) -> list[Program]:
    """The programs that draw a rival's completions, while what the policy's were drawn from is still there."""
    share, count = update.online.rivals, settings.rollout.rivals
    if share is None:
        return []
    drawing = own.drawing._replace(request=own.drawing.request._replace(group_size=count))
    prompts = prompts_of(settings.rollout, settings.sampling, count)
    rival = own._replace(drawing=drawing, prompts=prompts, whose=RIVALS)
    beside = dict(resident) | own.held()
    # The reference takes as much as the policy, so the one model's programs are the other's.
    return rival.programs(beside) if share in (0, 1) else [_mixture(rival, share, beside)]


def _rivals_scored(
    settings: OnlineSettings, machine: Machine, judges: Mapping[str, LanguageModel], given: tuple[Any, Any]
) -> list[Program]:
    """The programs of reward models over a rival's completions, which are scored by themselves."""
    (drawn, resident), rollout = given, settings.rollout
    if not rollout.rivals:
        return []
    rows = _resized(drawn, rollout.batch_size * rollout.rivals)
    found = scoring(machine, judges, (rollout.rivals, settings.sampling.max_prompt_tokens), rows, resident)
    return [program._replace(name=f"{RIVALS}{program.name}") for program in found]


def _resized(drawn: Any, count: int) -> Any:
    """So many completions, abstract."""
    return jax.tree.map(lambda x: array((count, *x.shape[1:]), x.dtype), drawn)


def _mixture(rival: Sampler, share: float, resident: Mapping[str, Any]) -> Program:
    """Completions of policy and reference together, all in one program."""
    machine, learner, request, config = rival.machine, rival.learner, rival.drawing.request, rival.shape
    count, width = rival.prompts.number, rival.prompts.width
    copies = {f"{RIVALS}samplers": Two(rival.sampled(), rival.sampled())} if not rival.shared else {}
    own = {name: resident[name] for name in ("parameters", "reference", "base")} if rival.shared else copies
    beside = {name: tree for name, tree in resident.items() if name not in own}

    def drawn(held: Mapping[str, Any], prompts: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
        if rival.shared:
            whole = learner._replace(frozen=held["base"]).sampled
            models = Two(whole(held["parameters"], config), whole(held["reference"], config))
        else:
            models = held[f"{RIVALS}samplers"]
        return generate_mixed(config, models, prompts, key, request, share)

    def lower(earlier: Any) -> Any:
        del earlier
        return jax.jit(drawn).lower(own, machine.whole(rival.prompts.arrays(count)), key())

    rows = Rows(count * width, count * width * (width + 1) / 2, count * request.group_size)
    once = forward(config, rows, machine.grid)
    once += decoding(config, count, request.group_size, width, request.max_new_tokens, machine.grid)
    return Program(f"{RIVALS}mixture", lower, own, beside, once.times(2), request.max_new_tokens - 1)


def _batch(settings: OnlineSettings, drawn: Any) -> Groups:
    """Completions as they are learned from, abstract: a rival's behind the policy's own."""
    prompts, size = settings.rollout.batch_size, settings.rollout.group_size + settings.rollout.rivals
    return Groups(_resized(drawn, prompts * size), array((prompts, size), jnp.float32))


def _work(settings: OnlineSettings, learner: Learner, machine: Machine, update: OnlineUpdate) -> Work:
    """The products of an update, and of the reference's log-probabilities before it."""
    sampling, learned, online = settings.sampling, settings.learned_rows, update.online
    pairs = isinstance(online, OnlinePairs)
    turns = settings.learning.minibatches * settings.micro_batches
    part = part_of_group(learned // turns, 2 if pairs else settings.rollout.group_size)
    rows = grouped(learned, part, sampling.max_prompt_tokens, sampling.max_new_tokens)
    through = rows, machine.grid, turns
    reads = reads_reference(online.preference.rewards) if pairs else update.reads_reference
    once = learning(learner.config, learner.params, *through, settings.model.remat)
    return once.times(settings.learning.epochs) + forward(learner.config, *through).times(reads)
