"""The programs of the commands that learn from given rows, ``sft``, ``reward``, ``dpo`` and ``kto``, from settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import Split
from rlax_llm.commands.learner import Learner, language_learner, scalar_learner
from rlax_llm.commands.optimizers import build_averaging, build_optimizer
from rlax_llm.commands.plan.models import abstract_learner, abstract_model, array
from rlax_llm.commands.plan.programs import Machine, Program
from rlax_llm.commands.plan.work import Rows, Work, bytes_of, forward, grouped, learning, moving
from rlax_llm.commands.preference.objective import build_preference, build_unpaired
from rlax_llm.commands.preference.phase import Method, PreferencePhase
from rlax_llm.commands.preference.run import dpo_method, kto_method, process_method, reward_method
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.setup import build_schedule
from rlax_llm.commands.sft.phase import SupervisedPhase
from rlax_llm.commands.sft.run import form_of, paid_by
from rlax_llm.commands.sft.settings import PackedBatchSettings, SftSettings
from rlax_llm.commands.shared_settings import AveragedOptimizerSettings
from rlax_llm.core.types import Completions, LabeledCompletions, PairedCompletions, SteppedCompletions
from rlax_llm.loops.labels import reference_point_of_mismatched
from rlax_llm.loops.preference import rows_of_pair
from rlax_llm.models.packing import Packed
from rlax_llm.models.shared_prompts import part_of_group

Given = RewardSettings | DpoSettings | KtoSettings


def rows_of(count: int, width: int) -> Completions:
    """Completions in ``count`` rows of ``width`` tokens, abstract, as the host collates them."""
    kinds = (jnp.int32, jnp.bool_, jnp.bool_, jnp.float32)
    tokens, valid, mask, log_probs = (array((count, width), kind) for kind in kinds)
    return Completions(tokens, valid, mask, log_probs, array((count,), jnp.bool_))


def _optimizer(settings: Given | SftSettings) -> Any:
    peak = settings.optimizer.learning_rate
    schedule = build_schedule(settings.optimizer, peak, settings.run.steps)
    if isinstance(settings.optimizer, AveragedOptimizerSettings):
        return build_averaging(settings.optimizer, schedule)
    return build_optimizer(settings.optimizer, schedule)


def _update(machine: Machine, phase: Any, program: Any, batch: Any, work: Work, **fixed: Any) -> list[Program]:
    """The one program of a step, whose state the phase says."""
    learner = phase.learner
    state = machine.put(jax.eval_shape(phase.init, learner.params))
    given = {name: machine.put(tree) for name, tree in fixed.items()}
    dropout = machine.whole(jax.eval_shape(lambda: learner.dropout_key(0, 0)))
    parts: Mapping[str, Any] = {
        "parameters": state.params,
        "optimizer": state.opt_state,
        "base": given.get("frozen"),
        "reference": given.get("reference"),
    }

    def lower(earlier: Any) -> Any:
        del earlier
        return program.lower(state, machine.whole(batch), key=dropout, **given)

    moved = moving(bytes_of((state.params, state.opt_state)))
    return [Program("update", lower, parts, {}, work + moved)]


def preference_programs(settings: Given, machine: Machine) -> list[Program]:
    """What a step of ``reward``, ``dpo`` or ``kto`` runs.

    Args:
        settings: of the command.
        machine: the devices.
    """
    make = scalar_learner if isinstance(settings, RewardSettings) else language_learner
    model = abstract_model(settings.command, settings.model, settings.batch)
    learner = abstract_learner(lambda model: make(settings.model, model, settings.run.seed), model)
    method = _method(settings, learner)
    batching = Batching(settings.batch.batch_size, settings.run.seed, settings.batch.micro_batches)
    phase = PreferencePhase(settings.command, learner, method, Split([], []), _optimizer(settings), batching)
    fixed = {"frozen": learner.frozen} | ({"reference": learner.params} if method.reads_reference else {})
    with machine.entered():
        moves = isinstance(settings, DpoSettings) and settings.objective.reference_every > 0
        work = _preference_work(settings, learner, machine, method.reads_reference or moves)
    program = phase.update(settings.batch.max_prompt_tokens)
    return _update(machine, phase, program, _batch(settings), work, **fixed)


def _method(settings: Given, learner: Learner) -> Method:
    if isinstance(settings, RewardSettings):
        return (process_method if settings.objective.process else reward_method)(settings, learner)
    if isinstance(settings, KtoSettings):
        return kto_method(settings, learner)
    return dpo_method(settings, learner, build_preference(settings.objective))


def _mismatched(settings: Given) -> bool:
    return isinstance(settings, KtoSettings) and build_unpaired(settings.objective)[1] is reference_point_of_mismatched


def _together(settings: Given) -> int:
    """Rows of one prompt."""
    if isinstance(settings, DpoSettings):
        return rows_of_pair(build_preference(settings.objective))
    return 1 if isinstance(settings, KtoSettings) or settings.objective.process else 2


def _batch(settings: Given) -> Any:
    size, width = settings.batch.batch_size, settings.batch.row_tokens
    if isinstance(settings, KtoSettings):
        rows = rows_of(size * (1 + _mismatched(settings)), width)
        return LabeledCompletions(rows, array((size,), jnp.bool_))
    rows = rows_of(_together(settings) * size, width)
    if isinstance(settings, RewardSettings) and settings.objective.process:
        return SteppedCompletions(rows, rows.mask, rows.mask)
    if isinstance(settings, DpoSettings) and settings.objective.precompute_reference:
        return PairedCompletions(rows, None, rows.log_probs)
    return PairedCompletions(rows)


def _preference_work(settings: Given, learner: Learner, machine: Machine, reads_reference: bool) -> Work:
    """The products of an update, and of log-probabilities without slopes."""
    batch, grid = settings.batch, machine.grid
    together = _together(settings)
    count = batch.batch_size * together
    part = part_of_group(count // batch.micro_batches, together)
    scored = not isinstance(settings, RewardSettings)
    rows = grouped(count, part, batch.max_prompt_tokens, batch.max_new_tokens, scored)
    work = learning(learner.config, learner.params, rows, grid, batch.micro_batches, settings.model.remat)
    once = forward(learner.config, rows, grid, batch.micro_batches)
    # The mismatched rows of kto go through both models, without slopes.
    return work + once.times((1 + _mismatched(settings)) * reads_reference + _mismatched(settings))


def supervised_programs(settings: SftSettings, machine: Machine) -> list[Program]:
    """What a step of ``sft`` runs.

    Args:
        settings: of the command.
        machine: the devices.
    """
    batch = settings.batch
    model = abstract_model(settings.command, settings.model, batch)
    learner = abstract_learner(lambda model: language_learner(settings.model, model, settings.run.seed), model)
    form = form_of(batch, learner, settings.model.remat)
    batching = Batching(batch.batch_size, settings.run.seed, batch.micro_batches)
    phase = SupervisedPhase(
        learner, Split([], []), form, _optimizer(settings), batching, paid=paid_by(settings.optimizer)
    )
    rows = _supervised_rows(batch)
    tokens = float(rows.tokens.size)
    through = Rows(tokens, tokens * (rows.tokens.shape[1] + 1) / 2, tokens)
    grid, turns = machine.grid, batch.micro_batches
    work = learning(learner.config, learner.params, through, grid, turns, settings.model.remat)
    fixed = {"frozen": learner.frozen}
    if phase.anchor is not None:
        work = work + forward(learner.config, through, grid, turns)
        fixed["reference"] = learner.params
    return _update(machine, phase, phase.update, rows, work, **fixed)


def _supervised_rows(batch: PackedBatchSettings) -> Any:
    """The rows of a step, abstract."""
    rows: Any = rows_of(batch.batch_size, batch.packed_tokens or batch.row_tokens)
    return Packed(*rows, segments=rows.tokens) if batch.packed_tokens else rows
