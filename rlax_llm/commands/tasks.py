"""From settings to a task: its rows, those that the model can read, and which of them are held out."""

from __future__ import annotations

import dataclasses
import sys

from rlax_llm.commands.eval.settings import MeasuredTaskSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.task_settings import HeldOutSettings, TaskSettings
from rlax_llm.core.processes import check_alike
from rlax_llm.data.integers import with_integer_answers
from rlax_llm.data.limits import Limits, keep_prompts_within
from rlax_llm.data.rows import DataError
from rlax_llm.data.sifting import Tables
from rlax_llm.data.tables import check_splits
from rlax_llm.data.tasks import Held, Task, Use, file_task, load_task, measured_task
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.tokenizer import Tokenizer
from rlax_llm.rewards.loading import unread_answers

_ANSWERS_READ = 1000  # rows whose answers are looked at before a run; a formula takes a hundredth of a second


def tell(report: str) -> None:
    """Say on standard error what was left out of a table, if anything was."""
    if report:
        print(report, file=sys.stderr)


def held_tables(settings: HeldOutSettings) -> tuple[Tables, str] | None:
    """Tables that held-out rows are taken from, and the split of theirs; None where they are rows of the data itself.

    Args:
        settings: of the data.

    Raises:
        DataError: another split is wanted of data that has none.
    """
    if settings.eval_data is not None:
        return settings.eval_data, settings.eval_split or settings.split
    if settings.eval_split is None or settings.data is None:
        return None
    for path in settings.data:
        check_splits(path, settings.eval_split)
    return settings.data, settings.eval_split


def build_task(settings: TaskSettings, limits: LimitSettings, seed: int, model: LanguageModel | Learner) -> Task:
    """The task or data file, split by the seed; rows that the model cannot read are left out, and reported.

    Args:
        settings: of the task.
        limits: of its prompts.
        seed: splits it.
        model: reads the prompts.
    """
    use = _use(settings.integer_answers, limits, model)
    if settings.data is None:
        return built_in_task(settings.task, settings.split_size, seed, use, settings.reward)
    file, split = held_tables(settings) or (None, None)
    held = Held(settings.eval_size, file, seed, settings.split, split)
    return told(file_task(settings.data, settings.reward, held, use))


def built_in_task(
    name: str, held_out: int, seed: int, use: Use, reward: str | None = None, trained: bool = True
) -> Task:
    """A task that comes with its prompts.

    Args:
        name: with its own settings, as ``load_task`` takes them.
        held_out: prompts to hold out.
        seed: splits it.
        use: of ``prompts_of``.
        reward: instead of the task's own.
        trained: whether rows to train on are wanted.
    """
    return told(load_task(name, reward=reward, held_out_size=held_out, seed=seed, use=use, trained=trained))


def judged_task(settings: TaskSettings, limits: LimitSettings, seed: int, model: LanguageModel | Learner) -> Task:
    """``build_task``; where something else judges only with the Python rewards that were asked for."""
    task = build_task(settings, limits, seed, model)
    if not settings.is_judged or settings.reward is not None:
        return task
    return dataclasses.replace(task, rewards=())


def measured_file(
    path: str, settings: MeasuredTaskSettings, limits: LimitSettings, seed: int, model: LanguageModel
) -> Task:
    """A file to measure on: all of its rows, or as many as were asked for.

    Args:
        path: of the file.
        settings: how it is read.
        limits: of its prompts.
        seed: draws the rows.
        model: reads the prompts.
    """
    use = _use(settings.integer_answers, limits, model)
    return told(measured_task(path, settings.reward, Held(settings.size, None, seed, settings.split), use))


def arithmetic_for(tokenizer: Tokenizer) -> str:
    """The arithmetic task in the form that a model reads: in words where it has a chat template.

    >>> arithmetic_for(Tokenizer.characters("0123456789+="))
    'arithmetic'
    """
    return "arithmetic-words" if tokenizer.has_chat_template else "arithmetic"


def prompts_of(limits: LimitSettings, model: LanguageModel | Learner) -> Use:
    """What a run makes of rows: only prompts within the limits.

    Args:
        limits: of the prompts.
        model: reads them.
    """
    return keep_prompts_within(model.tokenizer, Limits(limits.max_prompt_tokens, None, model.config.vocab_size))


def _use(integer_answers: bool, limits: LimitSettings, model: LanguageModel | Learner) -> Use:
    """``prompts_of``, after questions for integers where they are wanted."""
    check = prompts_of(limits, model)
    return (lambda rows: check(with_integer_answers(rows))) if integer_answers else check


def told(task: Task) -> Task:
    """The task, after its reports were said, and what its rewards cannot read.

    Args:
        task: as loaded.

    Raises:
        DataError: a reward that counts can read no answer.
    """
    check_alike(task.name, [list(task.train), list(task.held_out)])
    for report in task.reports:
        tell(report)
    return _told_of_answers(task)


def _told_of_answers(task: Task) -> Task:
    """The task, after a sentence for each reward that cannot read some of the first right answers.

    Raises:
        DataError: a reward that counts can read none.
    """
    answers = [row.get("answer") for row in [*task.held_out, *task.train][:_ANSWERS_READ]]
    for reward in task.rewards:
        unread = unread_answers(reward, answers)
        if len(unread) == len(answers) and reward.weight:
            raise DataError(
                f"{task.name}: {reward.name} can read none of the {len(answers)} answers, wanted what it documents; "
                f"the first is {unread[0]!r}. Correct the column 'answer', or give another reward."
            )
        if unread:
            tell(
                f"{task.name}: {reward.name} cannot read the answer of {len(unread)} of {len(answers)} rows; it gives "
                f"them no score. The first is {unread[0]!r}."
            )
    return task
