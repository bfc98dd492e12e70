"""What a run has left in its directory to judge it by, read once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlax_llm.host.run_directory import RunDirectory

_MOST_BYTES = 2**24
"""Of ``completions.jsonl``, read from its end: thousands of completions, and no more than a moment."""


class Evidence(NamedTuple):
    """A run's files as records.

    Attributes:
        path: of the directory.
        settings: of ``config.yaml``.
        rows: of ``metrics.jsonl``, those of training: a warm start's and the beginning's are ``before``.
        before: the rows of steps up to 0.
        completions: of ``completions.jsonl``, those that were trained on; of a long file the last.
        summary: of ``summary.json``.
        missing: names of files that are not there.
    """

    path: Path
    settings: Mapping[str, Any] = {}
    rows: Sequence[Mapping[str, Any]] = ()
    before: Sequence[Mapping[str, Any]] = ()
    completions: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = {}
    missing: Sequence[str] = ()

    @property
    def command(self) -> str:
        """Its name; empty where ``config.yaml`` does not say."""
        return str(self.settings.get("command", ""))

    def values(self, name: str) -> list[float]:
        """A metric at the training steps that have it.

        >>> Evidence(Path("a"), rows=[{"kl": 0.5}, {"kl": None}, {"kl": 1}]).values("kl")
        [0.5, 1.0]
        """
        return known(row.get(name) for row in self.rows)

    def measured(self, name: str) -> list[float]:
        """A metric of evaluations, those before the first step among them."""
        return known(row.get(name) for row in (*self.before, *self.rows))

    def early(self, name: str) -> float:
        """Mean of a metric over the first quarter of its steps; NaN where there is none."""
        return mean(quarter(self.values(name), first=True))

    def late(self, name: str) -> float:
        """Mean of a metric over the last quarter of its steps; NaN where there is none."""
        return mean(quarter(self.values(name), first=False))


def known(values: Any) -> list[float]:
    """Those of the values that are finite numbers.

    >>> known([1, None, "a", float("nan"), True])
    [1.0]
    """
    numbers = (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return [float(value) for value in numbers if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """Mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def quarter(values: Sequence[Any], first: bool) -> Sequence[Any]:
    """The first or the last quarter, at least one value where there is any.

    >>> quarter([1, 2, 3, 4, 5, 6, 7, 8], first=False), quarter([1], first=True)
    ([7, 8], [1])
    """
    count = max(len(values) // 4, min(len(values), 1))
    return values[:count] if first else values[len(values) - count :]


def read_evidence(path: str | Path) -> Evidence:
    """What is in a run's directory.

    Args:
        path: of the directory.

    Raises:
        FileNotFoundError: it holds no run.
        ValueError: a file in it is damaged; it is named.
    """
    run = RunDirectory.reopen(path)
    rows = run.metrics()
    files = (run.metrics_path, run.completions_path, run.summary_path)
    completions = run.completions(_MOST_BYTES)
    return Evidence(
        path=run.path,
        settings=run.config(),
        rows=[row for row in rows if row["step"] > 0],
        before=[row for row in rows if row["step"] <= 0],
        completions=[row for row in completions if row["step"] > 0 and not row.get("held_out")],
        summary=run.summary(),
        missing=[file.name for file in files if not file.is_file()],
    )
