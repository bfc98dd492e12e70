"""The directory of a run that another process writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlax_llm.core.processes import done_by_all, first_says, is_first
from rlax_llm.host.run_directory import RunDirectory, plain


class Followed(RunDirectory):
    """A run's directory as a process sees it that does not write it: what it measures it remembers.

    The files may be seen later here than where they are written; a process asks none of them for its own rows.

    Attributes:
        rows: of ``metrics.jsonl``: those that were there, and its own.
    """

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self.rows: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Take the rows that are there."""
        self.rows = super().metrics()

    def hold(self) -> None:
        """Nothing: another process does."""

    def release(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Remember a row."""
        self.rows.append({"step": int(step), **plain(metrics)})

    def log_completions(self, completions: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def log_details(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def metrics(self) -> list[dict[str, Any]]:
        """What is remembered."""
        return list(self.rows)

    def truncate_to(self, step: int, completions_step: int | None = None) -> None:
        """Forget the rows of later steps."""
        self.rows = [row for row in self.rows if row["step"] <= step]

    def write_text(self, name: str, text: str) -> None:
        """Nothing."""

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


def shared(path: str | os.PathLike[str], open_it: Callable[[], RunDirectory]) -> RunDirectory:
    """A run's directory on every process: the first one's to write.

    Args:
        path: of the directory.
        open_it: makes or reopens it, and holds it; called by the first process.

    Raises:
        ValueError: a process sees another directory, or none, at that path.
        OSError: as ``open_it``.
        RuntimeError: as ``open_it``.
    """
    found: RunDirectory = Followed(path)

    def opened() -> None:
        nonlocal found
        found = open_it() if is_first() else found

    done_by_all(opened, ValueError, OSError, RuntimeError)
    holder = first_says(found.holder())

    def seen() -> None:
        if isinstance(found, Followed):
            if found.holder() != holder:
                raise ValueError(
                    f"{path} is not the same directory on all processes; give one that all machines share."
                )
            found.begin()

    done_by_all(seen, ValueError)
    return found
