"""What a tracker is, and what it is told of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard

PROJECT = "rlax_llm"
"""What trackers that sort runs into projects call ours, unless their environment variable says otherwise."""
_LONGEST = 4000  # characters of a cell of a table
_INTERVAL = "_interval"


class TrackedRun(NamedTuple):
    """A run as a tracker knows it.

    Attributes:
        path: of its directory.
        command: its name.
        settings: of ``config.yaml``.
        warm_start_steps: how many of its steps have a number of 0 or less.
        identity: that the tracker gave it in an earlier process, or None for a run that is new to it.
    """

    path: Path
    command: str
    settings: Mapping[str, Any]
    warm_start_steps: int = 0
    identity: str | None = None

    @property
    def name(self) -> str:
        """What a person calls it: its directory."""
        return self.path.resolve().name


class Ended(NamedTuple):
    """A run that has ended.

    Attributes:
        failed: what the error said that ended it, or None.
        summary: of ``summary.json``.
        curves: the figure, where there is one.
        card: the model card, where there is one.
    """

    failed: str | None
    summary: Mapping[str, Any]
    curves: Path | None
    card: Path | None


class Tracker(Protocol):
    """A run as one tracker shows it; it begins where it is made.

    What any of these raises is told in one line, and the tracker hears nothing more; the run goes on.

    Attributes:
        identity: finds it again in a later process.
        where: how a person looks at it.
    """

    identity: str
    where: str

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the numbers of a step.

        Args:
            step: as ``metrics.jsonl`` counts; those of a warm start are 0 and below.
            scalars: finite ones, by their names in ``metrics.jsonl``.
        """
        ...

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take some completions of a step.

        Args:
            step: that they were sampled at.
            rows: of ``completions.jsonl``.
        """
        ...

    def end(self, ended: Ended) -> None:
        """Take what stays of the run, and close.

        Args:
            ended: how it did.
        """
        ...


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of ``metrics.jsonl``; of an interval, its two ends. Lists over seeds are left out.

    >>> scalars({"step": 3, "reward": 0.5, "kl": None, "loss": float("nan"), "seeds": [1.0, 2.0, 3.0]})
    {'reward': 0.5}
    >>> scalars({"return_interval": [1.0, 2.0]})
    {'return_low': 1.0, 'return_high': 2.0}
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        if name.endswith(_INTERVAL) and isinstance(value, Sequence) and len(value) == 2:
            short = name.removesuffix(_INTERVAL)
            found |= {f"{short}_{end}": x for end, x in zip(("low", "high"), value, strict=True) if _finite(x)}
        elif name != "step" and _finite(value):
            found[name] = float(value)
    return found


def not_finite(metrics: Mapping[str, Any]) -> list[str]:
    """The names, as ``scalars`` has them, of a line's numbers that are not finite; a file has null for these.

    >>> not_finite({"step": 3, "reward": 0.5, "kl": None, "loss": float("nan"), "return_interval": [None, 1.0]})
    ['kl', 'loss', 'return_low']
    """
    given = {name: 0.0 if _not_finite(value) else value for name, value in metrics.items()}
    for name, value in metrics.items():
        if name.endswith(_INTERVAL) and isinstance(value, Sequence):
            given[name] = [0.0 if _not_finite(x) else x for x in value]
    there = scalars(metrics)
    return [name for name in scalars(given) if name not in there]


def _not_finite(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: Any) -> TypeGuard[float]:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def as_table(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns, and a cell for each row and column: text, numbers and None; all else, such as a conversation, as JSON.

    >>> as_table([{"prompt": "1+2=", "reward": 1.0}, {"prompt": [{"role": "user"}], "length": 3}])
    (['prompt', 'reward', 'length'], [['1+2=', 1.0, None], ['[{"role": "user"}]', None, 3]])
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[_cell(row.get(name)) for name in columns] for row in rows]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters)"


def as_markdown(columns: Sequence[str], cells: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown.

    >>> print(as_markdown(["completion", "reward"], [["3|4\\n5", 1.0]]))
    | completion | reward |
    |---|---|
    | 3\\|4 ⏎ 5 | 1.0 |
    """
    lines = [columns, ["---"] * len(columns)]
    head, line = ("| " + " | ".join(lines[0]) + " |", "|" + "|".join(lines[1]) + "|")
    return "\n".join([head, line, *("| " + " | ".join(map(_inline, row)) + " |" for row in cells)])


def _inline(cell: Any) -> str:
    return "" if cell is None else str(cell).replace("|", "\\|").replace("\r", "").replace("\n", " ⏎ ")
