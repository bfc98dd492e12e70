"""Calling reward functions on a batch, with errors that name the function and the row."""

from __future__ import annotations

import inspect
import math
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from rlax_llm.core.names import did_you_mean
from rlax_llm.core.user_code import told

_NOT_FORWARDED = ("prompt", "completion", "prompts", "completions")
_LARGEST = float(np.finfo(np.float32).max)
FAILED: Any = type("Failed", (), {"__repr__": lambda _: "FAILED"})()
"""In place of a score: the function was to give one and could not. A row without one counts for nothing, while one
that a function abstains from (``None``) has the other functions' scores."""


class RewardError(ValueError):
    """A reward function that cannot be found, cannot be called, or returned something that is not a score."""


class NoRowScored(RewardError):
    """A reward function failed on every row that it was given.

    Args:
        reward: its name.
        reason: the sentence.
    """

    def __init__(self, reward: str, reason: str):
        super().__init__(reason)
        self.reward = reward


def end(error: NoRowScored) -> NoReturn:
    """Raise it: where no row can be scored, nothing is learned.

    Args:
        error: of a reward.
    """
    raise error


def refuse(reason: str) -> NoReturn:
    """Raise a ``RewardError`` that says ``reason``, chained to the exception that is being handled.

    Args:
        reason: one sentence on a row that could not be scored.

    >>> refuse("reward 'f' raised KeyError on row 0.")
    Traceback (most recent call last):
    rlax_llm.rewards.calling.RewardError: reward 'f' raised KeyError on row 0.
    """
    raise RewardError(reason) from sys.exception()


class Reward(NamedTuple):
    """A named reward function and its weight in the total.

    Attributes:
        name: what metrics and errors call it.
        function: ``f(prompts, completions, **columns) -> [N]`` numbers, ``None`` where it does not apply; with feedback
            ``(number, text)`` or ``{"score": number, "feedback": text}``.
        weight: factor of its scores in the total; 0 only logs them.
        spec: what ``load_reward`` finds the function by, in any process; ``None`` for a function that was handed over.
    """

    name: str
    function: Callable[..., Any]
    weight: float = 1.0
    spec: str | None = None


class Verdict(NamedTuple):
    """What a reward function says of one completion.

    Attributes:
        score: NaN where the function abstains, ∞ where it failed.
        feedback: a text; None for nothing.
    """

    score: float
    feedback: str | None = None


class Scores(NamedTuple):
    """Scores of N completions.

    Attributes:
        total: float32 ``[N]``, weighted sum over the functions that apply; NaN where none of those whose weight is not
            0 does, or any of them failed.
        by_name: for each reward its own float32 ``[N]``, without weight; NaN where it does not apply or failed.
        failed: bool ``[N]``, where a function whose weight is not 0 failed.
        steps: float32 ``[N, S]``, what of the total the steps of each completion earned, over the columns behind the
            prompts: at the last token of each step, NaN elsewhere; None where nobody scored steps.
        feedback: ``[N]``, what functions said of each completion beside its score, one text after the other on lines of
            their own; None for nothing. None where nothing was said of any.
    """

    total: np.ndarray
    by_name: dict[str, np.ndarray]
    failed: np.ndarray
    steps: np.ndarray | None = None
    feedback: tuple[str | None, ...] | None = None

    @property
    def first(self) -> np.ndarray:
        """The first reward's own scores, which tell right from wrong; the total where no reward has a name."""
        return next(iter(self.by_name.values()), self.total)

    def rows(self, index: Any) -> Scores:
        """Those of some rows.

        Args:
            index: of one axis, as NumPy takes it.
        """
        picked = {name: values[index] for name, values in self.by_name.items()}
        steps = None if self.steps is None else self.steps[index]
        said = None if self.feedback is None else tuple(np.array(self.feedback, object)[index])
        return Scores(self.total[index], picked, self.failed[index], steps, said)

    @classmethod
    def together(cls, parts: Sequence[Scores]) -> Scores:
        """Those of several parts as one; of steps all have as many columns.

        Args:
            parts: with the same names of rewards.

        >>> one = np.zeros(1, np.float32)
        >>> Scores.together([Scores(one, {}, one > 0), Scores(one, {}, one > 0, feedback=("short",))]).feedback
        (None, 'short')
        """
        names, steps = parts[0].by_name, [part.steps for part in parts]
        said = [text for part in parts for text in part.feedback or [None] * len(part.total)]
        return cls(
            np.concatenate([part.total for part in parts]),
            {name: np.concatenate([part.by_name[name] for part in parts]) for name in names},
            np.concatenate([part.failed for part in parts]),
            None if steps[0] is None else np.concatenate([x for x in steps if x is not None]),
            tuple(said) if any(said) else None,
        )

    def plus(self, name: str, values: np.ndarray) -> Scores:
        """With one more reward of weight 1, which applies to every row.

        Args:
            name: of the reward.
            values: its scores ``[N]``.
        """
        return self._replace(total=self.total + values, by_name=self.by_name | {name: values})

    def plus_steps(self, name: str, steps: np.ndarray, failed: np.ndarray) -> Scores:
        """With what the steps earned, all of it together as one more reward of weight 1.

        Args:
            name: of the reward.
            steps: ``[N, S]``, NaN where no step ends, or where it has no reward.
            failed: bool ``[N]``, the rows whose steps could not be scored: they have no score.

        >>> one, nan = np.zeros(1, np.float32), np.nan
        >>> Scores(one, {}, one > 0).plus_steps("steps", np.array([[0.5, nan, 1.0]]), one > 0).total
        array([1.5], dtype=float32)
        """
        sums = np.where(np.isnan(steps).all(-1), np.nan, np.nansum(steps, -1, dtype=np.float64)).astype(np.float32)
        total = np.where(np.isnan(sums), self.total, np.nan_to_num(self.total) + np.nan_to_num(sums))
        failed = self.failed | failed
        total = np.where(failed, np.nan, total).astype(np.float32)
        return Scores(total, self.by_name | {name: sums}, failed, steps, self.feedback)


class Batch(NamedTuple):
    """What a reward function is called with.

    Attributes:
        prompts: ``[N]``, strings or messages.
        completions: ``[N]``, in the form of the prompts.
        columns: the other columns of the rows, ``[N]`` each.
    """

    prompts: list[Any]
    completions: list[Any]
    columns: dict[str, list[Any]]

    def row(self, index: int) -> Batch:
        """The batch of row ``index`` alone.

        Args:
            index: from 0.
        """
        pick = slice(index, index + 1)
        columns = {name: values[pick] for name, values in self.columns.items()}
        return Batch(self.prompts[pick], self.completions[pick], columns)

    def passed_to(self, function: Callable[..., Any]) -> Any:
        """What ``function`` returns for this batch, called with lists that it may change.

        Args:
            function: ``f(prompts, completions, **columns)``.
        """
        columns = {name: list(values) for name, values in self.columns.items()}
        return function(prompts=list(self.prompts), completions=list(self.completions), **columns)


def score(
    rewards: Sequence[Reward],
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[str],
    failed: Callable[[str], None] = refuse,
    first: int = 0,
    none_scored: Callable[[NoRowScored], None] = end,
) -> Scores:
    """Score completions with every reward and add the scores up by weight.

    A function gets each completion as a string where the prompt is a string, and as
    ``[{"role": "assistant", "content": ...}]`` where it is a list of messages; every column of the rows but ``prompt``
    and ``completion`` is passed on as a list. A function that raises is called again on each row alone; the rows on
    which it raises are reported to ``failed`` and, if that returns, have no score.

    Args:
        rewards: at least one, names all different.
        rows: N rows with a ``prompt`` and one set of columns.
        completions: N generated texts, one for each row.
        failed: called with one sentence that names the reward, the exception and the row; raises a ``RewardError``
            if not given.
        first: what errors call the first row, where these are a part of a batch.
        none_scored: called where a reward failed on every row; where it returns, no row has a score of that reward.

    Raises:
        RewardError: naming the function and, where there is one, the row: an exception inside the function (chained)
            if ``failed`` raises it or, unless ``none_scored`` returns, if every row raises; a wrong number of scores, a
            score that is not a finite number, or columns it does not accept. A function's own ``RewardError`` passes as
            it is.

    >>> def length(prompts, completions, **_): return [len(text) for text in completions]
    >>> score([Reward("length", length, weight=0.5)], [{"prompt": "a"}, {"prompt": "b"}], ["xx", "xxxx"]).total
    array([1., 2.], dtype=float32)
    """
    _check_rewards(rewards)
    batch = _batch(rows, completions)
    said = {reward.name: _verdicts_or_none(reward, batch, failed, first, none_scored) for reward in rewards}
    return _added_up(rewards, said)


def _added_up(rewards: Sequence[Reward], said: Mapping[str, Sequence[Verdict]]) -> Scores:
    """The scores of what each function said of each row."""
    by_name = {name: np.array([each.score for each in verdicts], np.float32) for name, verdicts in said.items()}
    stacked = np.stack([by_name[reward.name] for reward in rewards]).astype(np.float64)  # [rewards, N]
    weights = np.array([reward.weight for reward in rewards])
    missing = ~np.isfinite(stacked)
    counts = weights != 0
    # A reward of weight 0 is only logged, so it does not decide whether a row has a score either.
    broken = np.asarray(np.isinf(stacked)[counts].any(axis=0))
    unscored = missing[counts].all(axis=0) | broken
    total = np.where(unscored, np.nan, weights @ np.where(missing, 0.0, stacked))
    by_name = {name: np.where(np.isinf(values), np.nan, values) for name, values in by_name.items()}
    return Scores(total.astype(np.float32), by_name, broken, feedback=_together(list(said.values())))


def _together(said: Sequence[Sequence[Verdict]]) -> tuple[str | None, ...] | None:
    """The feedback of all functions on each row."""
    texts = [[each.feedback for each in verdicts if each.feedback] for verdicts in zip(*said, strict=True)]
    if not any(texts):
        return None
    return tuple("\n".join(row) if row else None for row in texts)


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
        wanted = [name for name, taken in signature.parameters.items() if taken.default is taken.empty]
        absent = next((name for name in wanted if name not in ("prompts", "completions", *names)), "")
        raise RewardError(
            f"reward {reward.name!r} does not accept the columns of the data ({', '.join(names) or 'none'}): {error}; "
            f"it is called as f(prompts, completions, **columns){did_you_mean(absent, names)}"
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


def _batch(rows: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> Batch:
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
    return Batch(prompts, given, columns)


def _verdicts_or_none(
    reward: Reward,
    batch: Batch,
    failed: Callable[[str], None],
    first: int,
    none_scored: Callable[[NoRowScored], None],
) -> list[Verdict]:
    try:
        return _verdicts(reward, batch, failed, first)
    except NoRowScored as error:
        none_scored(error)
        return [Verdict(math.inf)] * len(batch.prompts)


def _verdicts(reward: Reward, batch: Batch, failed: Callable[[str], None], first: int) -> list[Verdict]:
    wanted = len(batch.prompts)
    if wanted == 0:
        return []
    check_columns(reward, list(batch.columns))
    try:
        returned = batch.passed_to(reward.function)
    except RewardError:  # the reward says itself that it cannot be used, so other rows are no way out
        raise
    except (Exception, SystemExit) as error:
        return _row_by_row(reward, batch, error, failed, first)
    return _said_of(reward, returned, range(first, first + wanted))


def _said_of(reward: Reward, returned: Any, rows: range) -> list[Verdict]:
    """What a function returned for rows, each with its feedback where there is one."""
    places = [f"row {index}" for index in rows]
    listed = _listed(reward, returned, len(places), "completions")
    parts = [_parted(reward, place, value) for place, value in zip(places, listed)]
    scores = numbers_of(reward, [score for score, _ in parts], places, "completions")
    return [Verdict(score, said) for score, (_, said) in zip(scores, parts)]


def _parted(reward: Reward, place: str, returned: Any) -> tuple[Any, str | None]:
    """Score and feedback of what a function returned for one row."""
    if isinstance(returned, Mapping) and set(returned) <= {"score", "feedback"}:
        score, said = returned.get("score"), returned.get("feedback")
    elif isinstance(returned, tuple) and len(returned) == 2:
        score, said = returned
    elif isinstance(returned, tuple | Mapping):
        raise RewardError(
            f"reward {reward.name!r} returned {returned!r} for {place}, wanted a number, None, (number, text), or "
            "{'score': number, 'feedback': text}."
        )
    else:
        return returned, None
    if said is not None and not isinstance(said, str):
        raise RewardError(
            f"reward {reward.name!r} returned feedback of type {type(said).__name__} for {place}, "
            "wanted a text or None."
        )
    return score, said


def _row_by_row(
    reward: Reward, batch: Batch, error: BaseException, failed: Callable[[str], None], first: int
) -> list[Verdict]:
    """Verdicts of a batch on which the function raised ``error``, ∞ for the rows on which it raises too."""
    wanted = len(batch.prompts)
    scores = []
    raised = 0
    for index in range(wanted):
        try:
            scores.append(row_verdict(reward, batch.row(index), first + index))
        except RewardError:
            raise
        except (Exception, SystemExit) as single:
            raised += 1
            scores.append(Verdict(math.inf))
            failed(f"reward {reward.name!r} raised {told(single)} on row {first + index}.")
    if raised == wanted:
        raise NoRowScored(reward.name, scored_none(reward.name, told(error), wanted)) from error
    if not raised:
        failed(f"reward {reward.name!r} raised {told(error)} on the whole batch, but on no single row of it.")
    return scores


def row_verdict(reward: Reward, row: Batch, index: int) -> Verdict:
    """What a function says of one row.

    Args:
        reward: the function to call.
        row: a batch of one.
        index: what errors call the row.

    Raises:
        RewardError: what it returned is not one score. Exceptions inside the function pass as they are.

    >>> size = Reward("size", lambda prompts, completions: [(len(completions[0]), "short")])
    >>> row_verdict(size, Batch(["a"], ["bcd"], {}), 0)
    Verdict(score=3.0, feedback='short')
    """
    return _said_of(reward, row.passed_to(reward.function), range(index, index + 1))[0]


def scored_none(name: str, exception: str, rows: int) -> str:
    """The sentence on a function that raised on every row.

    Args:
        name: of the reward.
        exception: what it raised.
        rows: number of rows.

    >>> scored_none("f", "KeyError: 'unit'", 3)
    "reward 'f' raised KeyError: 'unit' and scored none of the rows (3)."
    """
    return f"reward {name!r} raised {exception} and scored none of the rows ({rows})."


def numbers_of(reward: Reward, returned: Any, places: Sequence[str], things: str) -> list[float]:
    """What a function returned as numbers, NaN where it abstains, ∞ where it is ``FAILED``.

    Args:
        reward: the function, for errors.
        returned: by it.
        places: what errors call each of what it was asked of.
        things: what errors call all of them.

    Raises:
        RewardError: it is not one finite number, or None, for each.

    >>> numbers_of(Reward("f", len), [1, None], ["row 0", "row 1"], "completions")
    [1.0, nan]
    """
    values = _listed(reward, returned, len(places), things)
    return [_number(reward, place, value) for place, value in zip(places, values)]


def _listed(reward: Reward, returned: Any, wanted: int, things: str) -> list[Any]:
    try:
        values = list(returned)
    except TypeError as error:
        kind = type(returned).__name__
        raise RewardError(f"reward {reward.name!r} returned a {kind}, wanted a list of {wanted} scores.") from error
    if len(values) != wanted:
        raise RewardError(f"reward {reward.name!r} returned {len(values)} scores for {wanted} {things}.")
    return values


def _number(reward: Reward, place: str, returned: Any) -> float:
    if returned is None or returned is FAILED:
        return math.nan if returned is None else math.inf
    value: Any = returned.item() if getattr(returned, "ndim", None) == 0 else returned
    where = f"reward {reward.name!r} returned {value!r} for {place}"
    if not isinstance(value, numbers.Real):
        raise RewardError(f"{where}, wanted a number or None.")
    if not _in_range(value):
        raise RewardError(f"{where}, wanted a finite number, or None to abstain.")
    return float(value)


def _in_range(value: Any) -> bool:
    """Whether a real number is finite in float32; an integer of any size is compared exactly."""
    return -_LARGEST <= value <= _LARGEST
