"""Weights & Biases: a run that is kept offline in the run's directory, unless ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rlax_llm.host.tracking.tracker import PROJECT, Ended, TrackedRun, as_table


class Wandb:
    """A run of W&B; the steps are those of ``metrics.jsonl``.

    Args:
        run: to be tracked.
    """

    def __init__(self, run: TrackedRun):
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self.identity = run.identity or secrets.token_hex(4)
        # What W&B counts begins at 0 and never goes back; a warm start's steps are below 0.
        self._offset = run.warm_start_steps
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=self.identity,
            resume="allow",
            dir=str(run.path),
            mode=mode,
            job_type=run.command,
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self._run.define_metric("*", step_metric="step")
        online = None if mode == "offline" else self._run.url
        self.where = online or f"wandb sync {run.path}/wandb/offline-run-*-{self.identity}"

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The numbers of a step."""
        self._run.log({**scalars, "step": step}, step=step + self._offset)

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of its own for each step."""
        columns, cells = as_table(rows)
        table = self._wandb.Table(columns=[*columns], data=[*cells], allow_mixed_types=True)
        self._run.log({"completions": table, "step": step}, step=step + self._offset)

    def end(self, ended: Ended) -> None:
        """The figure, the card and the summary."""
        if ended.curves is not None:
            self._run.log({"curves": self._wandb.Image(str(ended.curves))})
        if ended.card is not None:
            # What lies in the run's own directory is taken along.
            shutil.copy(ended.card, os.path.join(self._run.dir, "model_card.md"))
        self._run.summary.update({f"summary/{name}": value for name, value in ended.summary.items()})
        self._run.finish(exit_code=0 if ended.failed is None else 1)
