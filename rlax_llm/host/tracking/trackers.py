"""All trackers of a run as one: what one of them cannot do is said in a line, and the run goes on."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlax_llm.core.processes import is_first
from rlax_llm.host.failures import sentence
from rlax_llm.host.run_directory import RunDirectory, plain
from rlax_llm.host.thinning import due
from rlax_llm.host.tracking.registry import TRACKERS
from rlax_llm.host.tracking.tracker import Ended, TrackedRun, Tracker, scalars


class Trackers:
    """The trackers of a run, in the process that writes it.

    They begin at the first line that is logged, so a run that fails before leaves nothing in them. Which run of each
    tracker is this one stands in ``tracking.json``: a resumed run goes on in it. One that is new to a run, or failed in
    an earlier process or was left out of it, is told all lines from the first.

    Args:
        names: of trackers.
        run: that they are to track.
        directory: of the run.
        told: the step that trackers of earlier processes were told of last; None is none.

    Attributes:
        lines: how to look at each, of those that did not fail, once the run has ended.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, directory: RunDirectory, told: int | None = None):
        self._run, self._directory = run, directory
        self._told = -math.inf if told is None else told
        self._waiting: tuple[str, ...] | None = tuple(names) if is_first() else None
        self._open: dict[str, Tracker] = {}
        self._identities: dict[str, str] = {}
        self._new: set[str] = set()
        self._untold: tuple[int, Sequence[Mapping[str, Any]]] | None = None
        self.lines: list[str] = []

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Tell of a step.

        Args:
            step: its number.
            metrics: of the step.
        """
        self._begin(step)
        numbers = scalars(plain(metrics))
        self._each(lambda name, tracker: self._knows(name, step) or tracker.log(step, numbers))

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell of completions, of fewer and fewer steps as the run gets longer, and of the last.

        Args:
            step: that they were sampled at.
            rows: of ``completions.jsonl``.
        """
        self._begin(step)
        if not due(step):
            self._untold = (step, rows)
            return
        self._untold = None
        self._tabulate(step, rows)

    def _tabulate(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        records = plain(rows)
        self._each(lambda name, tracker: self._knows(name, step) or tracker.table(step, records))

    def end(self, ended: Callable[[], Ended]) -> None:
        """Tell what stays of the run, and close them; of a run that logged nothing they know nothing.

        Args:
            ended: says how it did.
        """
        if self._untold is not None:
            self._tabulate(*self._untold)
        if self._open:
            how = ended()
            self._each(lambda name, tracker: tracker.end(how._replace(summary=plain(how.summary))))
        self.lines = [f"{name}: {tracker.where}" for name, tracker in self._open.items()]
        self._open = {}

    def _knows(self, name: str, step: int) -> bool:
        """Whether an earlier process told this tracker of the step."""
        return name not in self._new and step <= self._told

    def _begin(self, step: int) -> None:
        """Open what is not open yet, and tell what is new of all steps before this one."""
        if self._waiting is None:
            return
        names, self._waiting = self._waiting, None
        kept = self._kept()
        self._identities = {name: kept[name] for name in names if name in kept}
        self._new = {name for name in names if name not in self._identities}
        for name in names:
            self._try(name, lambda name=name: self._opened(name, step))
        if names or kept:
            self._keep()

    def _opened(self, name: str, step: int) -> None:
        tracker = TRACKERS[name].open(self._run._replace(identity=self._identities.get(name)))
        self._open[name] = tracker
        self._identities[name] = tracker.identity
        for row in self._directory.metrics() if name in self._new else ():
            if row["step"] < step:
                tracker.log(row["step"], scalars(row))

    def _each(self, tell: Callable[[str, Tracker], Any]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda name=name, tracker=tracker: tell(name, tracker))

    def _try(self, name: str, tell: Callable[[], Any]) -> None:
        """Do what a tracker is asked for; one that fails is left out from here on."""
        try:
            tell()
        except (Exception, SystemExit) as error:
            warning = f"warning: the tracker {name} failed ({sentence(error)}); the run goes on without it."
            print(warning, file=sys.stderr)
            self._open.pop(name, None)
            if self._identities.pop(name, None) is not None:
                self._keep()

    def _kept(self) -> dict[str, str]:
        """What ``tracking.json`` says; where it is damaged nothing, so that all trackers begin anew."""
        path = self._directory.tracking_path
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): str(identity) for name, identity in found.items()}
        except (OSError, ValueError, AttributeError):
            print(f"warning: {path} cannot be read; the trackers begin anew, with all steps.", file=sys.stderr)
            return {}

    def _keep(self) -> None:
        with contextlib.suppress(OSError):
            self._directory.write_text(self._directory.tracking_path.name, json.dumps(self._identities) + "\n")
