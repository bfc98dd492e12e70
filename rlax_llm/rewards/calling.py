"""Calling reward functions on a batch, with errors that name the function and the row."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_NOT_FORWARDED = ("prompt", "completion", "prompts", "completions")
_LARGEST = float(np.finfo(np.float32).max)


class RewardError(ValueError):
    """A reward function that cannot be found, cannot be called, or returned something that is not a score."""


class Reward(NamedTuple):
    """A named reward function and its weight in the total.

    Attributes:
        name: what metrics and errors call it.
        function: ``f(prompts, completions, **columns) -> [N]`` numbers, ``None`` where it does not apply.
        weight: factor of its scores in the total.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0


class Scores(NamedTuple):
    """Scores of N completions.

    Attributes:
        total: float32 ``[N]``, weighted sum over the functions that apply; NaN where none does.
        by_name: for each reward its own float32 ``[N]``, without weight; NaN where it does not apply.
    """

    total: np.ndarray
    by_name: dict[str, np.ndarray]


class _Batch(NamedTuple):
    prompts: list[Any]
    completions: list[Any]
    columns: dict[str, list[Any]]

    def row(self, index: int) -> _Batch:
        pick = slice(index, index + 1)
        columns = {name: values[pick] for name, values in self.columns.items()}
        return _Batch(self.prompts[pick], self.completions[pick], columns)

    def passed_to(self, function: Callable[..., Any]) -> Any:
        columns = {name: list(values) for name, values in self.columns.items()}
        return function(prompts=list(self.prompts), completions=list(self.completions), **columns)


def score(rewards: Sequence[Reward], rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> Scores:
    """Score completions with every reward and add the scores up by weight.

    A function gets each completion as a string where the prompt is a string, and as
    ``[{"role": "assistant", "content": ...}]`` where it is a list of messages; every column of the rows but ``prompt``
    and ``completion`` is passed on as a list.

    Args:
        rewards: at least one, names all different.
        rows: N rows with a ``prompt`` and one set of columns.
        completions: N generated texts, one for each row.

    Raises:
        RewardError: naming the function and, where there is one, the row: an exception inside the function (chained),
            a wrong number of scores, a score that is not a finite number, or columns it does not accept.

    >>> def length(prompts, completions, **_): return [len(text) for text in completions]
    >>> score([Reward("length", length, weight=0.5)], [{"prompt": "a"}, {"prompt": "b"}], ["xx", "xxxx"]).total
    array([1., 2.], dtype=float32)
    """
    _check_rewards(rewards)
    batch = _batch(rows, completions)
    by_name = {reward.name: _scores(reward, batch) for reward in rewards}
    stacked = np.stack([by_name[reward.name] for reward in rewards]).astype(np.float64)  # [rewards, N]
    weights = np.array([reward.weight for reward in rewards])
    missing = np.isnan(stacked)
    total = np.where(missing.all(axis=0), np.nan, weights @ np.where(missing, 0.0, stacked))
    return Scores(total.astype(np.float32), by_name)


def check_columns(reward: Reward, columns: Sequence[str]) -> None:
    """Raise unless the function can be called with these columns of a data set.

    Args:
        reward: the function to check; one without a readable signature passes.
        columns: names of the columns; ``prompt`` and ``completion`` are not forwarded.

    Raises:
        RewardError: naming the function, the columns and what does not fit.

    >>> def graded(prompts, completions, solution): return [0.0 for _ in completions]
    >>> check_columns(Reward("graded", graded), ["prompt", "answer"])
    Traceback (most recent call last):
    rlax_llm.rewards.calling.RewardError: reward 'graded' does not accept the columns of the data (answer): missing a
    required argument: 'solution'; it is called as f(prompts, completions, **columns).
    """
    names = [name for name in columns if name not in _NOT_FORWARDED]
    try:
        signature = inspect.signature(reward.function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(prompts=[], completions=[], **{name: [] for name in names})
    except TypeError as error:
        raise RewardError(
            f"reward {reward.name!r} does not accept the columns of the data ({', '.join(names) or 'none'}): {error}; "
            "it is called as f(prompts, completions, **columns)."
        ) from error


def _check_rewards(rewards: Sequence[Reward]) -> None:
    if not rewards:
        raise RewardError("score: no reward was given; give at least one.")
    names = [reward.name for reward in rewards]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RewardError(f"score: two rewards are named {twice!r}; give each a name of its own.")
    for reward in rewards:
        if not math.isfinite(reward.weight):
            raise RewardError(f"reward {reward.name!r} has weight {reward.weight}, wanted a finite number.")


def _batch(rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> _Batch:
    if len(rows) != len(completions):
        raise RewardError(f"score: {len(completions)} completions for {len(rows)} rows; give one for each row.")
    names = list(rows[0]) if rows else ["prompt"]
    for index, row in enumerate(rows):
        odd = sorted(set(names) ^ set(row))
        if "prompt" not in row:
            raise RewardError(f"score: row {index} has no column 'prompt'.")
        if odd:
            raise RewardError(f"score: row {index} differs from row 0 in column {odd[0]!r}; all rows need the same.")
    prompts = [row["prompt"] for row in rows]
    given = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions)
    ]
    columns = {name: [row[name] for row in rows] for name in names if name not in _NOT_FORWARDED}
    return _Batch(prompts, given, columns)


def _scores(reward: Reward, batch: _Batch) -> np.ndarray:
    wanted = len(batch.prompts)
    if wanted == 0:
        return np.zeros(0, np.float32)
    check_columns(reward, list(batch.columns))
    try:
        returned = batch.passed_to(reward.function)
    except Exception as error:
        raise RewardError(_raised(reward, batch, error)) from error
    try:
        values = list(returned)
    except TypeError as error:
        kind = type(returned).__name__
        raise RewardError(f"reward {reward.name!r} returned a {kind}, wanted a list of {wanted} scores.") from error
    if len(values) != wanted:
        raise RewardError(f"reward {reward.name!r} returned {len(values)} scores for {wanted} completions.")
    return np.array([_number(reward, index, value) for index, value in enumerate(values)], np.float32)


def _raised(reward: Reward, batch: _Batch, error: Exception) -> str:
    """Say what the function raised, and on which row if calling it on single rows finds one."""
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    for index in range(len(batch.prompts)):
        try:
            batch.row(index).passed_to(reward.function)
        except Exception as single:
            if type(single) is type(error):
                return f"reward {reward.name!r} raised {detail} on row {index}."
    return f"reward {reward.name!r} raised {detail} on the whole batch, but on no single row of it."


def _number(reward: Reward, index: int, returned: Any) -> float:
    if returned is None:
        return math.nan
    value: Any = returned.item() if getattr(returned, "ndim", None) == 0 else returned
    where = f"reward {reward.name!r} returned {value!r} for row {index}"
    if not isinstance(value, numbers.Real):
        raise RewardError(f"{where}, wanted a number or None.")
    if not _in_range(value):
        raise RewardError(f"{where}, wanted a finite number, or None to abstain.")
    return float(value)


def _in_range(value: Any) -> bool:
    """Whether a real number is finite in float32; an integer of any size is compared exactly."""
    return -_LARGEST <= value <= _LARGEST
