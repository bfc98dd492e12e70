"""Tasks: rows to train on, rows held out, rewards, and what counts as solved."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rlax_llm.data import arithmetic, gym, jsonl
from rlax_llm.data.rows import DataError, Row, batch_indices
from rlax_llm.naming import closest
from rlax_llm.rewards.calling import Reward, check_columns
from rlax_llm.rewards.functions import exact_answer, integer_answer
from rlax_llm.rewards.loading import load_rewards

__all__ = ["DataError", "Row", "Task", "batch_indices", "full_score", "load_task"]

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
        train: rows to train on.
        held_out: rows to evaluate on; no prompt of theirs is in ``train``.
        rewards: functions that score completions of these rows.
        solved: whether a score of the first reward counts as right, for accuracy.
    """

    name: str
    train: Sequence[Row]
    held_out: Sequence[Row]
    rewards: tuple[Reward, ...]
    solved: Callable[[float], bool] = full_score


def load_task(
    spec: str,
    *,
    data: str | Path | None = None,
    reward: str | None = None,
    held_out_size: int = 100,
    seed: int = 0,
) -> Task:
    """Built-in task, or a JSON Lines file with a reward function.

    Settings follow the name: ``arithmetic,smallest=0,largest=20`` (the attributes of ``arithmetic.Problems``; sums of
    two-digit numbers if not given, for prompts of one length; ``arithmetic-words`` sums and differences from 2 to 20),
    ``reasoning-gym:chain_sum,min_terms=2,size=500`` (the settings of the task, and the number of training rows).

    Args:
        spec: ``arithmetic``, ``arithmetic-words`` or ``reasoning-gym:NAME``, with settings.
        data: JSON Lines file to take instead; ``spec`` is then not used.
        reward: as ``load_rewards`` takes it, instead of the task's own: one, or a sum with weights. A data file has
            none of its own, and needs one unless it has a column ``completion`` to imitate; its task then has no
            rewards.
        held_out_size: number of held-out rows.
        seed: chooses the rows and which are held out.

    Raises:
        DataError: an unknown task (with the closest known), settings that do not fit, a file that cannot be used.
        RewardError: no such reward function, or one that does not accept the columns.

    >>> task = load_task("arithmetic,largest=9", held_out_size=10)
    >>> len(task.held_out), task.rewards[0].name
    (10, 'exact_answer')
    """
    if seed < 0:
        raise DataError(f"load_task: seed is {seed}, wanted 0 or more.")
    rewards = () if reward is None else load_rewards(reward)  # first, for it fails fast
    task = _built_in(spec, held_out_size, seed) if data is None else _file_task(data, held_out_size, seed)
    if rewards:
        task = Task(task.name, task.train, task.held_out, rewards)
    if not task.rewards and "completion" not in task.train[0]:
        raise DataError(f"{data}: neither a reward function is given nor a column 'completion'; give one of them.")
    for function in task.rewards:
        check_columns(function, list(task.train[0]))
    return task


def _file_task(data: str | Path, held_out_size: int, seed: int) -> Task:
    train, held_out = jsonl.load(data, held_out_size, seed)
    return Task(str(data), train, held_out, rewards=())


def _built_in(spec: str, held_out_size: int, seed: int) -> Task:
    name, settings = _parsed(spec)
    if name == "arithmetic":
        # Prompts of one length are the easier ones to learn; a range that ends before two digits begins at 0.
        short = isinstance(settings.get("largest"), int) and settings["largest"] <= 10
        problems = _problems(spec, {"smallest": 0 if short else 10, "largest": 99} | settings)
        train, held_out = arithmetic.digit_rows(problems, held_out_size, seed)
        return Task(spec, train, held_out, (Reward("exact_answer", exact_answer),))
    if name == "arithmetic-words":
        problems = _problems(spec, {"smallest": 2, "largest": 20, "operators": "+-"} | settings)
        train, held_out = arithmetic.word_rows(problems, held_out_size, seed)
        return Task(spec, train, held_out, (Reward("integer_answer", integer_answer),))
    family, _, member = name.partition(":")
    if family == _GYM and member:
        if "seed" in settings:
            raise DataError(f"task {spec!r}: seed is not a setting; it is the run's own seed.")
        size = settings.pop("size", 1000)
        train, held_out, reward = gym.load(member, held_out_size, seed, size=size, config=settings)
        return Task(spec, train, held_out, (reward,), solved=_nearly_full_score)
    raise DataError(f"task {spec!r}: unknown; the tasks are {', '.join(_KNOWN)}{closest(name, _KNOWN)}")


def _nearly_full_score(score: float) -> bool:
    """Whether a reasoning-gym score, some of which are sums of parts, is full."""
    return score >= 0.99


def _problems(spec: str, settings: dict[str, Any]) -> arithmetic.Problems:
    known = [field.name for field in fields(arithmetic.Problems)]
    for name in settings:
        if name not in known:
            raise DataError(f"task {spec!r}: no setting {name!r}; there are {', '.join(known)}{closest(name, known)}")
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
