"""Tasks: rows to train on, rows held out, rewards, and what counts as solved."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlax_llm.core.names import did_you_mean
from rlax_llm.core.user_code import call_named, is_own
from rlax_llm.data import arithmetic, gym
from rlax_llm.data.jsonl import prompt_key, read_rows
from rlax_llm.data.rows import DataError, Row, batch_indices, held_out_share, split_rows
from rlax_llm.data.shapes import own_reward
from rlax_llm.data.sifting import Kept, Tables, number_rows
from rlax_llm.rewards.calling import Reward, check_columns
from rlax_llm.rewards.functions import exact_answer, integer_answer
from rlax_llm.rewards.loading import load_rewards
from rlax_llm.rewards.voting import votes_of

__all__ = [
    "DataError",
    "Held",
    "Row",
    "Task",
    "batch_indices",
    "file_task",
    "full_score",
    "load_task",
    "some_of",
]

Use = Callable[[Sequence[Row]], Sequence[Row]]
"""``rows → rows``, as ``Kept.then`` takes it: what a run makes of rows, or a ``DataError`` for one it cannot use."""

T = TypeVar("T")

_GYM = "reasoning-gym"
_KNOWN = ("arithmetic", "arithmetic-words", f"{_GYM}:NAME")


def full_score(score: float) -> bool:
    """Whether a score is 1 or more.

    >>> full_score(1.0), full_score(0.5), full_score(float("nan"))
    (True, False, False)
    """
    return score >= 1.0


@dataclass(frozen=True)
class Task:
    """What a run trains on.

    Attributes:
        name: the specification or the file it came from.
        train: rows to train on, with their places.
        held_out: rows to evaluate on, likewise. Where they were split off, no prompt of theirs is in ``train``.
        rewards: functions that score completions of these rows.
        solved: whether a score of the first reward counts as right, for accuracy.
        reports: lines on the rows that were left out.
        votes: ``(row, completions) → answers`` of completions of a row, equal ones for the same answer; None goes by
            the first reward.
    """

    name: str
    train: Kept[Row]
    held_out: Kept[Row]
    rewards: tuple[Reward, ...]
    solved: Callable[[float], bool] = full_score
    reports: tuple[str, ...] = ()
    votes: Callable[[Row, Sequence[str]], Sequence[Hashable | None]] | None = None

    def votes_of(self, row: Row, completions: Sequence[str]) -> Sequence[Hashable | None]:
        """The answer that each completion of a row gives, None where it gives none.

        Args:
            row: of the task.
            completions: its texts.
        """
        return votes_of(self.rewards[0].function)(completions) if self.votes is None else self.votes(row, completions)


def task_names(spec: str) -> list[str]:
    """The tasks of a name: itself, or those of a category of reasoning-gym, each with the settings that follow.

    Args:
        spec: as ``load_task`` takes it, or ``reasoning-gym:CATEGORY``, or ``reasoning-gym:all``.

    Raises:
        DataError: reasoning-gym is not installed.

    >>> task_names("arithmetic,largest=9"), task_names("reasoning-gym:geometry,size=9")[0]
    (['arithmetic,largest=9'], 'reasoning-gym:advanced_geometry,size=9')
    """
    name, comma, settings = spec.partition(",")
    family, _, member = name.strip().partition(":")
    members = gym.category(member) if family == _GYM else []
    return [f"{_GYM}:{one}{comma}{settings}" for one in members] or [spec]


def every_row(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, all of which can be used.

    >>> every_row([{"prompt": "1+1="}])
    [{'prompt': '1+1='}]
    """
    return rows


def load_task(
    spec: str,
    *,
    reward: str | None = None,
    held_out_size: int = 100,
    seed: int = 0,
    use: Use = every_row,
    trained: bool = True,
) -> Task:
    """Built-in task.

    Settings follow the name: ``arithmetic,smallest=0,largest=20`` (the attributes of ``arithmetic.Problems``; sums of
    two-digit numbers if not given, for prompts of one length; ``arithmetic-words`` sums and differences from 2 to 20),
    ``reasoning-gym:chain_sum,min_terms=2,size=500`` (the settings of the task, and the number of training rows).

    Args:
        spec: ``arithmetic``, ``arithmetic-words`` or ``reasoning-gym:NAME``, with settings; or one of your own as
            ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``, with settings: ``f(held_out_size, seed, **settings)`` returns
            rows to train on, rows held out and the reward function.
        reward: as ``load_rewards`` takes it, instead of the task's own: one, or a sum with weights.
        held_out_size: number of held-out rows, 0 for none.
        seed: chooses the rows and which are held out.
        use: what is made of the rows, before the run begins; rows that it refuses are left out.
        trained: whether rows to train on are wanted; where not, reasoning-gym, which may take long, generates none.

    Raises:
        DataError: an unknown task (with the closest known), settings that do not fit, no row that can be used.
        RewardError: no such reward function, or one that does not accept the columns.

    >>> task = load_task("arithmetic,largest=9", held_out_size=10)
    >>> len(task.held_out), task.rewards[0].name
    (10, 'exact_answer')
    """
    if seed < 0:
        raise DataError(f"load_task: seed is {seed}, wanted 0 or more.")
    rewards = () if reward is None else load_rewards(reward)  # first, for it fails fast
    task = _built_in(spec, held_out_size, seed, trained)
    if rewards:
        task = Task(task.name, task.train, task.held_out, rewards)
    for function in task.rewards:
        check_columns(function, list([*task.train, *task.held_out][0]))
    train = task.train.then(use)
    held_out = task.held_out.then(use)
    return replace(task, train=train, held_out=held_out, reports=_reports([train, held_out]))


def _check_rewards(rewards: Sequence[Reward], files: Sequence[Kept[Row]]) -> None:
    for rows in files:
        for function in rewards:
            check_columns(function, list(rows[0]))


class Held(NamedTuple):
    """Which rows of a file are held out.

    Attributes:
        size: how many; None is all of ``file``, or without one a row for each ten prompts, at most 128.
        file: they are those of another file, or None.
        seed: chooses them.
        split: of the data set, where it has several.
        file_split: of ``file``; None is ``split``.
    """

    size: int | None
    file: Tables | None = None
    seed: int = 0
    split: str = "train"
    file_split: str | None = None


def file_task(data: Tables, reward: str | None, held: Held, use: Use = every_row) -> Task:
    """Rows of a JSON Lines file or another table, or of several in order, with a reward function.

    Args:
        data: as ``read_table`` takes it, or several.
        reward: as ``load_rewards`` takes it. None needs a column ``completion`` to imitate where no reward model
            scores; the task then has no rewards.
        held: which rows are held out.
        use: what is made of the rows, before the run begins; rows that it refuses are left out.

    Raises:
        DataError: a file that cannot be used, or not split.
        RewardError: no such reward function, or one that does not accept the columns.
    """
    rewards = () if reward is None else load_rewards(reward)  # first, for it fails fast
    files = [read_rows(data, held.split).then(use)]
    if held.file is not None:
        files.append(read_rows(held.file, held.file_split or held.split).then(use))
    _check_rewards(rewards, files)
    placed = [list(zip(rows, rows.places, strict=True)) for rows in files]
    reports = _reports(files)
    if held.file is None:
        keys = [prompt_key(row) for row in files[0]]
        size, line = held_out_share(files[0].name, keys, held.size)
        reports = (*reports, *([line] if line else []))
        train, held_out = split_rows(files[0].name, placed[0], keys, size, held.seed)
    else:
        train = placed[0]
        held_out = some_of(placed[1], held.size, held.seed)
    name = files[0].name
    return Task(name, _part(name, train), _part(name, held_out), rewards, reports=reports)


def measured_task(data: str | Path, reward: str | None, held: Held, use: Use = every_row) -> Task:
    """Rows of a file to measure on, and none to train on.

    Args:
        data: as ``read_table`` takes it.
        reward: as ``load_rewards`` takes it; None is that of the file's columns.
        held: how many rows at most, and what chooses them; ``file`` is not read.
        use: what is made of the rows; rows that it refuses are left out.

    Raises:
        DataError: a file that cannot be used.
        RewardError: no such reward function, or one that does not accept the columns.
    """
    if reward is None and (reward := own_reward(data, held.split)) is None:
        raise DataError(
            f"data is given without reward, and {data} has none of its own, as files in the columns of GSM8K or MATH "
            "have; give both."
        )
    task = file_task(data, reward, Held(0, split=held.split), use)
    rows = list(zip(task.train, task.train.places, strict=True))
    return replace(task, train=_part(data, []), held_out=_part(data, some_of(rows, held.size, held.seed)))


def _part(name: str | Path, rows: Sequence[tuple[Row, str]]) -> Kept[Row]:
    return Kept(str(name), [row for row, _ in rows], [place for _, place in rows])


def some_of(rows: Sequence[T], size: int | None, seed: int) -> list[T]:
    """As many rows as asked for, at random, in their order; all where there are no more.

    Args:
        rows: any number.
        size: how many, or None for all.
        seed: chooses them.

    >>> some_of("abc", None, 0), len(some_of("abc", 2, 0))
    (['a', 'b', 'c'], 2)
    """
    if size is None or size >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(np.random.default_rng(seed).permutation(len(rows))[:size].tolist())]


def _reports(parts: Sequence[Kept[Any]]) -> tuple[str, ...]:
    return tuple(report for part in parts if (report := part.report()))


def check_known(spec: str) -> None:
    """Raise for a task that there is not, before anything is made of it.

    Args:
        spec: as ``load_task`` takes it.

    Raises:
        DataError: naming the tasks that there are; or settings that are no ``key=value``.

    >>> check_known("arithmetic,largest=20")
    >>> check_known("arithmetics")
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: task is 'arithmetics', which is unknown; the tasks are arithmetic, ...
    """
    name, _ = _parsed(spec)
    family, _, member = name.partition(":")
    if not (name in _TASKS or (family == _GYM and member) or is_own(name)):
        hint = did_you_mean(name, _KNOWN)
        raise DataError(f"task is {spec!r}, which is unknown; the tasks are {', '.join(_KNOWN)}{hint}")


def _built_in(spec: str, held_out_size: int, seed: int, trained: bool) -> Task:
    check_known(spec)
    name, settings = _parsed(spec)
    family, _, member = name.partition(":")
    if name in _TASKS:
        return _TASKS[name](spec, held_out_size, seed, settings)
    if family == _GYM:
        return _gym_task(spec, member, held_out_size, seed, settings if trained else settings | {"size": None})
    return _own_task(spec, name, held_out_size, seed, settings)


def _sums(spec: str, held_out_size: int, seed: int, settings: dict[str, Any]) -> Task:
    # Prompts of one length are the easier ones to learn; a range that ends before two digits begins at 0.
    short = isinstance(settings.get("largest"), int) and settings["largest"] <= 10
    problems = _problems(spec, {"smallest": 0 if short else 10, "largest": 99} | settings)
    parts = arithmetic.digit_rows(problems, held_out_size, seed)
    return _task(spec, parts, Reward("exact_answer", exact_answer))


def _word_sums(spec: str, held_out_size: int, seed: int, settings: dict[str, Any]) -> Task:
    problems = _problems(spec, {"smallest": 2, "largest": 20, "operators": "+-"} | settings)
    parts = arithmetic.word_rows(problems, held_out_size, seed)
    return _task(spec, parts, Reward("integer_answer", integer_answer))


_TASKS = {"arithmetic": _sums, "arithmetic-words": _word_sums}


def _gym_task(spec: str, member: str, held_out_size: int, seed: int, settings: dict[str, Any]) -> Task:
    if "seed" in settings:
        raise DataError(f"task {spec!r}: seed is not a setting; it is the run's own seed.")
    size = settings.pop("size", 1000)
    train, held_out, reward = gym.load(member, held_out_size, seed, size=size, config=settings)
    return replace(_task(spec, (train, held_out), reward), solved=_nearly_full_score, votes=gym.votes)


def _own_task(spec: str, name: str, held_out_size: int, seed: int, settings: dict[str, Any]) -> Task:
    """A user's own: a function that returns rows to train on, rows held out, and the reward function."""
    wanted = {"a tuple of rows to train on, rows held out and a reward function": tuple}
    given = {"held_out_size": held_out_size, "seed": seed}
    taken = [setting for setting in settings if setting in given]
    if taken:
        raise DataError(f"task {spec!r}: {taken[0]} is not a setting; it is the run's own.")
    made = call_named("task", name, wanted, failure=DataError, **given, **settings)
    if len(made) != 3 or not callable(made[2]):
        raise DataError(f"task {name!r} returned a tuple of {len(made)}, wanted {next(iter(wanted))}.")
    train, held_out, reward = made
    for part in (train, held_out):
        if not all(isinstance(row, dict) and isinstance(row.get("prompt"), str | list) for row in part):
            raise DataError(f"task {name!r}: a row is not a dict with a 'prompt' of text or messages; write it so.")
    if not train:
        raise DataError(f"task {name!r} returned no row to train on; return at least one.")
    return _task(spec, (train, held_out), Reward(getattr(reward, "__name__", "reward"), reward))


def _task(spec: str, parts: tuple[Sequence[Row], Sequence[Row]], reward: Reward) -> Task:
    train = number_rows(f"{spec}, training", parts[0])
    held_out = number_rows(f"{spec}, held-out", parts[1])
    return Task(spec, train, held_out, (reward,))


def _nearly_full_score(score: float) -> bool:
    """Whether a reasoning-gym score, some of which are sums of parts, is full."""
    return score >= 0.99


def _problems(spec: str, settings: dict[str, Any]) -> arithmetic.Problems:
    known = [field.name for field in fields(arithmetic.Problems)]
    for name in settings:
        if name not in known:
            raise DataError(
                f"task {spec!r}: no setting {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}"
            )
    return arithmetic.Problems(**settings)


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of ``NAME,key=value,...``; a value may hold commas within brackets."""
    name, *pairs = re.split(r",(?![^\[({]*[\])}])", spec)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise DataError(f"task {spec!r}: {pair!r} after a comma, wanted key=value.")
        if key in settings:
            raise DataError(f"task {spec!r}: {key} is set twice.")
        settings[key] = _literal(value)
    return name.strip(), settings


def _literal(text: str) -> Any:
    """Python value that ``text`` writes, or ``text`` itself."""
    try:
        return {"true": True, "false": False}[text] if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
