"""Trackio: Hugging Face's tracker, whose store is local unless ``TRACKIO_SPACE_ID`` names a Space."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from rlax_llm.host.tracking.tracker import PROJECT, Ended, TrackedRun, as_table


class Trackio:
    """A run in Trackio's own store, which holds all runs: ``TRACKIO_DIR`` says where.

    Args:
        run: to be tracked.
    """

    def __init__(self, run: TrackedRun):
        import trackio

        self._trackio = trackio
        self._project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # A name is all that a run of Trackio is found by, and directories of one name there are many.
        self.identity = run.identity or f"{run.name}-{secrets.token_hex(3)}"
        self._last = 0
        with _quiet():
            self._run = trackio.init(
                project=self._project,
                name=self.identity,
                space_id=os.environ.get("TRACKIO_SPACE_ID"),
                config=dict(run.settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.where = f"trackio show --project {self._project}"

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The numbers of a step."""
        self._last = step
        self._run.log(dict(scalars), step=step)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of its own for each step."""
        columns, cells = as_table(rows)
        self._run.log({"completions": self._trackio.Table(columns=columns, data=cells)}, step=step)

    def end(self, ended: Ended) -> None:
        """The figure, and the card as a text."""
        with _quiet():
            if ended.curves is not None:
                self._run.log({"curves": self._trackio.Image(str(ended.curves))}, step=self._last)
            if ended.card is not None:
                text = self._trackio.Markdown(ended.card.read_text(encoding="utf-8"))
                self._run.log({"model_card": text}, step=self._last)
            self._trackio.finish()


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """What Trackio prints of itself is not shown; the run says where to look."""
    return contextlib.redirect_stdout(io.StringIO())
