"""The programs of ``distill``, from its settings alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.distill.teachers import STORED_TOKENS, Teacher, adapters_over, check_positions, shares_base
from rlax_llm.commands.distill.update import DistillUpdate, build_distillation
from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.plan.given import rows_of
from rlax_llm.commands.plan.models import abstract_asked, abstract_learner, abstract_model, array, key
from rlax_llm.commands.plan.programs import UPDATE, Machine, Program
from rlax_llm.commands.plan.sampling import Sampler, prompts_of
from rlax_llm.commands.plan.work import Work, bytes_of, forward, grouped, learning, moving
from rlax_llm.core.buckets import TopTokens
from rlax_llm.core.types import Groups
from rlax_llm.models.distilling import Reading
from rlax_llm.models.padding import bucket
from rlax_llm.models.shared_prompts import part_of_group


class Lesson(NamedTuple):
    """What an update reads, abstract.

    Attributes:
        name: of its program.
        batch: completions, with scores.
        group_size: completions of a prompt.
        asked: columns of the prompts that the teacher reads; None where it is not asked.
    """

    name: str
    batch: Groups
    group_size: int
    asked: int | None


def distill_programs(settings: DistillSettings, machine: Machine) -> list[Program]:
    """What a step of ``distill`` runs: the student's sampler, and its update with the teacher in it.

    A teacher's weights lie on the devices that the student's do; adapters over the student's base lie there once with
    it, and a file of what a teacher said holds no weights.

    Args:
        settings: of the command.
        machine: the devices.
    """
    update = _update(settings, machine)
    state = machine.put(jax.eval_shape(update.init, update.learner.params))
    resident = {
        "parameters": state.params,
        "optimizer": state.learner.opt_state,
        "base": machine.put(update.learner.frozen),
        "teacher": state.teacher if update.teacher.params is None else update.teacher.params,
    }
    programs, lessons = [], []
    if update.distillation.on_policy > 0:
        drawing = build_drawing(settings.sampling, settings.rollout, update.learner)
        sampler = Sampler(machine, update.learner, drawing, prompts_of(settings.rollout, settings.sampling))
        programs = sampler.programs(resident)
        with machine.entered():
            lessons.append(_drawn(settings, update, sampler))
    if update.distillation.on_policy < 1:
        lessons.append(_given(settings, UPDATE if not lessons else f"{UPDATE} of given rows"))
    return programs + [_learned(machine, update, (state, resident), lesson) for lesson in lessons]


def _update(settings: DistillSettings, machine: Machine) -> DistillUpdate:
    """The command's own, of a student and a teacher without their weights."""
    model = abstract_model(settings.command, settings.model, settings.sampling)
    learner = abstract_learner(lambda model: language_learner(settings.model, model, settings.run.seed), model)
    teacher = abstract_teacher(settings, learner)
    check_positions(settings.sampling.row_tokens, teacher.config)
    teacher = teacher._replace(params=machine.put(teacher.params))
    return DistillUpdate(settings, build_distillation(settings), learner, teacher)


def abstract_teacher(settings: DistillSettings, learner: Learner) -> Teacher:
    """The teacher of the settings without its weights, in the dtype that it is held in.

    Args:
        settings: of the command.
        learner: the student, abstract.

    Raises:
        ValueError: for a teacher that is not known.
    """
    path = settings.teacher.teacher
    if path is None or settings.teacher.is_stored:
        return Teacher(learner.config)
    if shares_base(path, settings.model, learner):
        teacher = adapters_over(path, learner)
        return teacher._replace(params=jax.eval_shape(lambda: teacher.params))
    model = abstract_asked(path, settings.model)
    return Teacher(model.config, model.params)


def _learned(machine: Machine, update: DistillUpdate, kept: tuple[Any, dict[str, Any]], lesson: Lesson) -> Program:
    """The program of an update on such completions."""
    state, resident = kept
    with machine.entered():
        work = _work(update, machine, lesson)
    work += moving(bytes_of((state.params, state.learner.opt_state))).times(update.updates)
    layout = lesson.group_size, update.settings.sampling.max_prompt_tokens

    def lower(earlier: Any) -> Any:
        del earlier
        taken = machine.whole(lesson.batch)
        fixed = {"reference": update.teacher.params, "frozen": resident["base"]}
        return update.program(layout).lower(state, taken, key=key(), **fixed)

    return Program(lesson.name, lower, resident, {}, work)


def _drawn(settings: DistillSettings, update: DistillUpdate, sampler: Sampler) -> Lesson:
    """Completions of the student; a teacher that is shown more reads prompts that are longer by what it is shown."""
    rows, limits = sampler.drawn(), settings.sampling
    asked = limits.max_prompt_tokens
    if update.distillation.prompting is not None:
        asked = _asked(settings, update.teacher.config.max_positions)
        shape = (settings.rollout.rows, asked + limits.max_new_tokens)
        check_positions(shape[1], update.teacher.config)
        read = array(shape, jnp.int32), array(shape, jnp.bool_), array(shape[:1], jnp.bool_)
        rows = rows._replace(teacher=Reading(*read))
    scores = array((settings.rollout.batch_size, settings.rollout.group_size), jnp.float32)
    return Lesson(UPDATE, Groups(rows, scores), settings.rollout.group_size, asked)


def _asked(settings: DistillSettings, positions: int) -> int:
    """Columns of what a teacher that is shown more is asked, with feedback of full length where it has the room."""
    limits, teacher = settings.sampling, settings.teacher
    least = limits.max_prompt_tokens + limits.max_new_tokens
    wider = bucket(least + teacher.max_feedback_tokens * teacher.shows_feedback)
    return max(bucket(least), min(wider, positions - limits.max_new_tokens))


def _given(settings: DistillSettings, name: str) -> Lesson:
    """Completions of the data, with what a stored teacher said of them."""
    count, limits, teacher = settings.rollout.rows, settings.sampling, settings.teacher
    rows, asked = rows_of(count, limits.row_tokens), limits.max_prompt_tokens
    if teacher.is_stored:
        k, shape = teacher.teacher_top_k or STORED_TOKENS, rows.tokens.shape
        said = TopTokens(array((*shape, k), jnp.int32), array((*shape, k + 1), jnp.float32))
        rows = rows._replace(teacher=said)
    scores = array((count, 1), jnp.float32)
    return Lesson(name, Groups(rows, scores), 1, None if teacher.is_stored else asked)


def _work(update: DistillUpdate, machine: Machine, lesson: Lesson) -> Work:
    """The products of an update, and of the teacher's answers."""
    settings, learner = update.settings, update.learner
    limits, taught, count = settings.sampling, settings.learning, settings.rollout.rows
    turns = taught.minibatches * taught.micro_batches(settings.rollout)
    part = part_of_group(count // turns, lesson.group_size)
    rows = grouped(count, part, limits.max_prompt_tokens, limits.max_new_tokens)
    once = learning(learner.config, learner.params, rows, machine.grid, turns, settings.model.remat)
    work = once.times(taught.epochs)
    if lesson.asked is None:
        return work
    shared = part if update.distillation.prompting is None else 1
    read = grouped(count, shared, lesson.asked, limits.max_new_tokens)
    compared = update.distillation.divergence is not None
    times = update.distillation.reads_log_probs + taught.epochs * compared
    return work + forward(update.teacher.config, read, machine.grid, turns).times(times)
