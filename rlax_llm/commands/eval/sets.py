"""What is measured on: the sets of prompts that the settings name, each as a model reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rlax_llm.commands.eval.settings import MeasuredTaskSettings
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.tasks import arithmetic_for, built_in_task, measured_file, prompts_of, tell
from rlax_llm.core.names import did_you_mean
from rlax_llm.data.rows import DataError
from rlax_llm.data.tasks import Task, task_names
from rlax_llm.models.loading import LanguageModel


class Source(NamedTuple):
    """A set of prompts that can be read.

    Attributes:
        name: what tables call it.
        read: makes its task for a model.
        member: whether it is one of a category's tasks, of which one that cannot be made is left out.
        is_file: whether it is a file.
    """

    name: str
    read: Callable[[LanguageModel], Task]
    member: bool = False
    is_file: bool = False


def sources(settings: MeasuredTaskSettings, limits: LimitSettings, seed: int, model: LanguageModel) -> list[Source]:
    """The sets that the settings name: files, then tasks; without either the sums that the model reads.

    Args:
        settings: of the sets.
        limits: of their prompts.
        seed: draws their rows.
        model: that is measured.

    Raises:
        DataError: two of one name.
    """

    def built_in(name: str) -> Callable[[LanguageModel], Task]:
        size, reward = settings.built_in_size, settings.reward
        return lambda reader: built_in_task(name, size, seed, prompts_of(limits, reader), reward, trained=False)

    def file(path: str) -> Callable[[LanguageModel], Task]:
        return lambda reader: measured_file(path, settings, limits, seed, reader)

    paths = settings.data or ()
    specs = settings.task or (() if paths else (arithmetic_for(model.tokenizer),))
    found = [Source(name, file(path), is_file=True) for path, name in zip(paths, _short(paths), strict=True)]
    for spec in specs:
        names = task_names(spec)
        found += [Source(name, built_in(name), names != [spec]) for name in names]
    twice = next((one.name for one in found if [other.name for other in found].count(one.name) > 1), None)
    if twice is not None:
        raise DataError(f"eval: {twice} is there twice; name it once.")
    return found


def read_source(source: Source, model: LanguageModel) -> Task | None:
    """The set's task; of a category's tasks None, after a sentence, where it cannot be made.

    Args:
        source: of the set.
        model: reads the prompts.

    Raises:
        DataError: it cannot be made.
    """
    try:
        return source.read(model)
    except DataError as error:
        if not source.member:
            raise
        tell(f"{source.name} is left out: {error}")
        return None


def check_column(column: str | None, files: Mapping[str, Task]) -> None:
    """Say which files lack a column that their prompts are to be divided by.

    Args:
        column: None is none.
        files: their tasks by name.

    Raises:
        DataError: all of them do.
    """
    if column is None:
        return
    lacking = [name for name, task in files.items() if not all(column in row for row in task.held_out)]
    if files and len(lacking) == len(files):
        known = dict.fromkeys(name for task in files.values() for row in task.held_out for name in row)
        raise DataError(
            f"eval: --by is {column!r}, and not all rows of {', '.join(lacking)} have such a column; there are "
            f"{', '.join(known)}{did_you_mean(column, known)}"
        )
    for name in lacking:
        tell(f"{name}: not all rows have the column {column!r}; they are not divided by it.")


def _short(paths: tuple[str, ...]) -> list[str]:
    """The files' own names, or where two have one name the whole paths."""
    names = [os.path.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
