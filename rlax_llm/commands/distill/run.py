"""The command ``distill`` as a function of its settings."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from rlax_llm.commands.distill.phase import DistillPhase, Source
from rlax_llm.commands.distill.settings import TOLD, DistillSettings
from rlax_llm.commands.distill.teachers import STORED_TOKENS, Teacher, check_positions, load_teacher, write_teacher
from rlax_llm.commands.distill.update import build_distillation
from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.examples import of_task
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.setup import build_model
from rlax_llm.commands.shared_settings import OF_ADAPTERS, TrainedModelSettings
from rlax_llm.commands.tasks import built_in_task, held_tables, prompts_of, told
from rlax_llm.core.wording import filled
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.data.integers import with_integer_answers
from rlax_llm.data.tasks import Held, Task, file_task
from rlax_llm.data.teacher_rows import TeacherRow, read_teacher_rows
from rlax_llm.host.outputs import check_file
from rlax_llm.host.progress import say
from rlax_llm.host.run_directory import RunDirectory, writing
from rlax_llm.models.loading import load_model
from rlax_llm.policy.distillation import Attempt, Distillation, Hints, demonstration, own_feedback
from rlax_llm.recipes.building import parameters
from rlax_llm.recipes.registry import find


@on_machine
def run_distill(settings: DistillSettings) -> RunDirectory | None:
    """Train a student to predict as its teacher does, and leave a run directory; or write what a teacher says.

    Args:
        settings: of the command.

    Returns:
        The run directory; None where a teacher was written.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    if settings.teacher.write_teacher is not None:
        return _write(settings, settings.teacher.write_teacher)
    distillation, seed = build_distillation(settings), settings.run.seed
    model = build_model("distill", settings.model, seed, settings.sampling)
    learner = language_learner(settings.model, model, seed)
    teacher = _teacher(settings, learner)
    check_positions(settings.sampling.row_tokens, teacher.config)
    task = _task(settings, learner)
    _check_hints(settings, distillation, task, learner)
    judge = Judge(task.rewards) if task.rewards else None
    drawing = build_drawing(settings.sampling, settings.rollout, learner)
    source = Source(task, judge, drawing, _given(settings, distillation, learner, task))
    phase = DistillPhase(settings, distillation, learner, teacher, source)
    return run_language(settings, phase, learner.params, recipe=settings.teacher.recipe)


def _teacher(settings: DistillSettings, learner: Learner) -> Teacher:
    """Who is asked: the student's own shape where nobody else is."""
    path = settings.teacher.teacher
    if path is None or settings.teacher.is_stored:
        return Teacher(learner.config)
    return load_teacher(path, settings.model, learner)


def _task(settings: DistillSettings, model: Learner) -> Task:
    """Prompts, their completions where there are any, and their rewards where there are any."""
    task, seed, use = settings.task, settings.run.seed, prompts_of(settings.sampling, model)
    if task.data is None:
        return built_in_task(task.task, task.split_size, seed, use, task.reward)
    file, split = held_tables(task) or (None, None)
    held = Held(task.eval_size, file, seed, task.split, split)
    read = (lambda rows: use(with_integer_answers(rows))) if task.integer_answers else use
    return told(file_task(task.data, task.reward, held, read))


def _check_hints(settings: DistillSettings, distillation: Distillation, task: Task, learner: Learner) -> None:
    """Raise where a teacher that is shown more could not read it, or there is nothing that it could be shown."""
    prompting = distillation.prompting
    if prompting is None:
        return
    takes = parameters(find("distill", settings.teacher.recipe, "distillation"))
    for name, text in (settings.teacher.texts() | {"": prompting.write("", "")}).items():
        try:
            learner.tokenizer.encode(filled(text, prompt="", hint=""))
        except ValueError as error:
            wanted = name or ("separator" if "separator" in takes else None)
            do = f"Give {wanted}, a text that it can write" if wanted else "Take another model"
            raise ValueError(
                "distill: the model has no tokens for what stands around an answer that a teacher is shown, "
                f"{error} {do}."
            ) from error
    if prompting.hints is demonstration and not _any(demonstration, task):
        raise ValueError(
            "distill: the teacher reads an answer that the student does not, and no row has one; give rows with a "
            "column hint, completion or answer."
        )
    if settings.teacher.recipe in TOLD and not task.rewards and not _any(own_feedback, task):
        raise ValueError(
            f"distill: recipe {settings.teacher.recipe} reads the scores of completions or feedback, and data has "
            "neither; give a reward, or rows with a column feedback."
        )


def _any(hints: Hints, task: Task) -> bool:
    """Whether a row says a hint by itself."""
    return any(hint for row in task.train for hint in hints([Attempt(row, "")]))


def _given(
    settings: DistillSettings, distillation: Distillation, learner: Learner, task: Task
) -> Sequence[DemonstrationTokens | TeacherRow]:
    """Completions to learn from; none where the student draws all."""
    path = settings.teacher.teacher
    if path is not None and settings.teacher.is_stored:
        return _said(path, settings, learner)
    if distillation.on_policy == 1:
        return ()
    return of_task(task, settings.sampling, learner).train


def _said(path: str, settings: DistillSettings, learner: Learner) -> list[TeacherRow]:
    """What a file holds, without the rows beyond the limits."""
    said, rows = read_teacher_rows(path, learner.tokenizer)
    limits = settings.sampling
    if limits.temperature != said.temperature:
        raise ValueError(
            f"distill: temperature is {limits.temperature}, and {path} was written at {said.temperature}; leave "
            "temperature out."
        )
    wanted = settings.teacher.teacher_top_k
    if wanted and wanted != said.k:
        raise ValueError(f"distill: teacher_top_k is {wanted}, and {path} holds {said.k} at each token; leave it out.")
    within = [
        row
        for row in rows
        if len(row.prompt) <= limits.max_prompt_tokens and len(row.completion) <= limits.max_new_tokens
    ]
    if len(within) < len(rows):
        say(f"{path}: {len(rows) - len(within)} of {len(rows)} rows are longer than the limits and are left out")
    if not within:
        raise ValueError(
            f"distill: no row of {path} is within max_prompt_tokens {limits.max_prompt_tokens} and max_new_tokens "
            f"{limits.max_new_tokens}; give more."
        )
    return within


def _write(settings: DistillSettings, path: str) -> None:
    """What the teacher says of the data's completions, in a file."""
    name = settings.teacher.teacher
    assert name is not None
    check_file(path, "--write-teacher")
    model = load_model(name, jnp.dtype(settings.model.dtype))
    learner = language_learner(TrainedModelSettings(model=name, remat=False, **OF_ADAPTERS), model, 0)
    rows = of_task(_task(settings, learner), settings.sampling, learner).train
    k = min(settings.teacher.teacher_top_k or STORED_TOKENS, model.config.vocab_size)
    with writing(path, "--write-teacher"):
        count = write_teacher(path, k, model, rows, settings.rollout.rows)
    say(f"{path}: the {k} likeliest tokens of {name} at every token of {count} completions")
