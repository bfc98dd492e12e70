"""The host layer around a loop: a run directory that is always complete, whatever ends the run.

A session numbers its steps from 1 without a gap, over the warm start and what follows it, so that one number says
where a run is. Metrics show the warm start at steps up to 0.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlax_llm.host import checkpoints
from rlax_llm.host.closing import closing, done_all
from rlax_llm.host.interrupts import Stop
from rlax_llm.host.phase import Phase
from rlax_llm.host.run_directory import RunDirectory

_REFERENCE = "reference"
_SECONDS_BETWEEN_SAVES = 60.0


class _Saved(NamedTuple):
    """What the last checkpoint is of.

    Attributes:
        phase: the one that it is a state of.
        like: structure, shapes and dtypes.
    """

    phase: Phase
    like: Any


class Session:
    """One process's part in a run.

    Args:
        command: its name.
        settings: what ``config.yaml`` is to hold.
        out: the directory; ``runs/COMMAND-DATE-TIME`` if None.
        resume: the directory of a run to go on with, instead of a new one.
        save_every: steps between checkpoints; 0 is only at the end, None one a minute.
        warm_start_steps: of a phase before the run's own.

    Attributes:
        directory: the run's files.
        position: steps done, over all phases and all processes.
        state: after those steps; None until the run has begun.
        phase: whose state it is.
        failed: what the error says that is ending the run, or None.
    """

    state: Any = None
    phase: Phase | None = None
    failed: str | None = None
    _saved: _Saved | None = None

    def __init__(
        self,
        command: str,
        settings: Mapping[str, Any],
        *,
        out: str | None = None,
        resume: str | None = None,
        save_every: int | None = 0,
        warm_start_steps: int = 0,
    ):
        self.started = self.saved_at = time.perf_counter()
        self.command, self.resumed, self.save_every = command, resume is not None, save_every
        self.warm_start_steps = warm_start_steps
        self.position, self.earlier_seconds = 0, 0.0
        if resume is None:
            place = out or f"runs/{command}-{time.strftime('%Y%m%d-%H%M%S')}"
            self.directory = RunDirectory.create(place, settings)
        else:
            self.directory = RunDirectory.reopen(resume)
            self.directory.hold()
            self._go_on()

    def _go_on(self) -> None:
        """Take the position of the last checkpoint, and drop what was logged after it."""
        self.position = checkpoints.latest(self.directory.checkpoints_path) or 0
        # Without a checkpoint the run is begun anew, with what is measured before its first step.
        self.directory.truncate_to(self.step if self.position else self.step - 1)
        seconds = [row.get("wall_seconds") for row in self.directory.metrics()]
        self.earlier_seconds = next((float(x) for x in reversed(seconds) if isinstance(x, (int, float))), 0.0)

    @property
    def step(self) -> int:
        """The number that metrics have for the last step: 0 at the end of the warm start."""
        return self.position - self.warm_start_steps

    def wall_seconds(self) -> float:
        """Seconds that the run took so far, over all its processes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def begin(self, phase: Phase, params: Any) -> None:
        """Take the phase's state at the last checkpoint, or its first at the start of a run."""
        self.phase, self.state = phase, phase.init(params)
        if self.position:
            self.state = checkpoints.restore(self.directory.checkpoints_path, self.position, self.state)
            self._saved = _Saved(phase, jax.tree.map(_shape, self.state))

    def left(self) -> str:
        """What there is after an error in a step."""
        if self.phase is None or not self.phase.exports:
            return f"What was written is in {self.directory.path}."
        kept = checkpoints.latest(self.directory.checkpoints_path)
        if kept is None:
            return "There was no checkpoint yet."
        after = f"step {kept - self.warm_start_steps}" if kept > self.warm_start_steps else f"warm-start step {kept}"
        return f"{self.directory.model_path} is the model after {after}, the last checkpoint."

    def advance(self, phase: Phase, state: Any, metrics: Mapping[str, Any], steps: int = 1) -> None:
        """Steps of a phase were done: keep the state, log the metrics, and checkpoint where one is due.

        Args:
            phase: did them.
            state: after them.
            metrics: of them.
            steps: how many.
        """
        before = self.position
        self.phase, self.state, self.position = phase, state, before + steps
        self.log(metrics)
        if self._checkpoint_is_due(before):
            self.save()

    def _checkpoint_is_due(self, before: int) -> bool:
        if self.save_every is None:
            return time.perf_counter() - self.saved_at >= _SECONDS_BETWEEN_SAVES
        return reached(before, self.position, self.save_every)

    def save(self) -> None:
        """Checkpoint the state, after what its phase keeps of itself."""
        if self.phase is not None:
            self.phase.keep(self.directory.checkpoints_path, self.position)
        checkpoints.save(self.directory.checkpoints_path, self.position, self.state)
        if self.phase is not None:
            self._saved = _Saved(self.phase, jax.tree.map(_shape, self.state))
        self.saved_at = time.perf_counter()

    def reference(self, params: Any, every: int = 0) -> Any:
        """The frozen reference: ``params`` as they were at the last multiple of ``every`` steps; of 0, at the first.

        It is kept on disk as long as a checkpoint could be resumed that wants it, and the same ever after.

        Raises:
            FileNotFoundError: it is not there, and ``params`` are those of a later step.
        """
        place = self.directory.checkpoints_path / _REFERENCE
        # Without a checkpoint a run is begun anew.
        resumable = checkpoints.steps(self.directory.checkpoints_path) or [self.warm_start_steps]
        needed = {_multiple(position - self.warm_start_steps, every) for position in resumable}
        wanted = _multiple(self.step, every)
        if wanted in checkpoints.steps(place):
            return checkpoints.restore(place, wanted, params)
        if max(self.step, 0) != wanted:
            raise FileNotFoundError(
                f"there is no checkpoint {place / str(wanted)}: the reference that this run is measured against, the "
                f"policy of step {wanted}; put it back, or begin a new run."
            )
        checkpoints.save(place, wanted, params, needed)
        return jax.tree.map(lambda x: x.copy(), params)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of the step that ended."""
        self.directory.log_metrics(self.step, {**metrics, "wall_seconds": self.wall_seconds()})

    def log_completions(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Write records of a step's completions, if there are any."""
        if rows:
            self.directory.log_completions([{"step": step, **row} for row in rows])

    def running(
        self,
        summary: Callable[[], Mapping[str, Any]],
        draw: Callable[[Path, Sequence[Mapping[str, Any]]], None],
    ) -> AbstractContextManager[Stop]:
        """A block that yields what a signal makes true, at whose end checkpoint, model, figure and summary are written.

        So they are where an error ends it (see ``closing``): the model is then that of the last checkpoint where the
        state is lost.

        Args:
            summary: what ``summary.json`` is to hold.
            draw: ``(path, metrics)``, writes the figure.
        """

        def finish(failed: str | None) -> None:
            self.failed = failed
            done_all(
                self._write_state,
                lambda: draw(self.directory.curves_path, self.directory.metrics()),
                lambda: self._write_summary(summary()),
            )

        return closing(self.directory, not self.resumed, finish)

    def _write_state(self) -> None:
        """Write the last checkpoint and the model."""
        phase, state = self.phase, self.state
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            # An error inside an update leaves nothing of the donated state; the last checkpoint is what there is then.
            phase, state = self._last_saved()
        elif self.position and checkpoints.latest(self.directory.checkpoints_path) != self.position:
            self.save()
        if phase is not None and state is not None:
            phase.export(state, self.directory.model_path)

    def _last_saved(self) -> tuple[Phase | None, Any]:
        step = checkpoints.latest(self.directory.checkpoints_path)
        if step is None or self._saved is None or not self._saved.phase.exports:
            return None, None
        return self._saved.phase, checkpoints.restore(self.directory.checkpoints_path, step, self._saved.like)

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        ending = {"wall_seconds": round(self.wall_seconds(), 1), "versions": versions()}
        self.directory.write_summary({**summary, **ending})


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _multiple(step: int, every: int) -> int:
    return max(step - step % every, 0) if every else 0


def versions() -> dict[str, str]:
    """What a result depends on."""
    packages = ("rlax-llm", "jax", "jaxlib", "flax", "optax", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def first_and_last(metrics: list[dict[str, Any]], key: str) -> tuple[float | None, float | None]:
    """First and last value that a metric had.

    >>> first_and_last([{"reward": None}, {"reward": 0.25}, {"reward": 0.5}, {}], "reward")
    (0.25, 0.5)
    """
    values = [row[key] for row in metrics if row.get(key) is not None]
    return (values[0], values[-1]) if values else (None, None)


def median(metrics: list[dict[str, Any]], key: str) -> float | None:
    """Median of a metric over the steps that have it: the first steps' compilations do not move it."""
    values = sorted(row[key] for row in metrics if row.get(key) is not None)
    return values[len(values) // 2] if values else None


def reached(before: int, after: int, every: int) -> bool:
    """Whether a multiple of ``every`` lies behind one number and up to another; of 0 none does.

    >>> reached(3, 4, 2), reached(4, 5, 2), reached(3, 6, 5), reached(1, 2, 0)
    (True, False, True, False)
    """
    return bool(every) and before // every != after // every
