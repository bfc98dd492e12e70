"""The host layer around a loop: a run directory that is always complete, whatever ends the run.

A session numbers its steps from 1 without a gap, over the warm start and what follows it, so that one number says
where a run is. Metrics show the warm start at steps up to 0.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from rlax_llm.core.finite import NOT_FINITE, not_finite_part
from rlax_llm.host import checkpoints
from rlax_llm.host.closing import closing, done_all
from rlax_llm.host.curves import BY_COMMAND, PANELS, draw_curves
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.interrupts import Stop
from rlax_llm.host.run_directory import RunDirectory

_REFERENCE = "reference"


class Session:
    """One process's part in a run.

    Args:
        command: its name.
        settings: what ``config.yaml`` is to hold.
        out: the directory; ``runs/COMMAND-DATE-TIME`` if None.
        resume: the directory of a run to go on with, instead of a new one.
        save_every: steps between checkpoints; 0 is only at the end.
        warm_start_steps: of a phase before the run's own.

    Attributes:
        directory: the run's files.
        position: steps done, over all phases and all processes.
        state: after those steps; None until the run has begun.
        failed: what the error says that is ending the run, or None.
        beside: ``(checkpoints' folder, position)``, writes what a state does not hold; before each checkpoint.
    """

    state: Any = None
    failed: str | None = None
    _kept: Any = None  # structure, shapes and dtypes of the last checkpoint's state
    beside: Callable[[Path, int], None] = staticmethod(lambda place, position: None)

    def __init__(
        self,
        command: str,
        settings: Mapping[str, Any],
        *,
        out: str | None = None,
        resume: str | None = None,
        save_every: int = 0,
        warm_start_steps: int = 0,
    ):
        self.started = time.perf_counter()
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
        # The completions of step 0 are drawn once the warm start has ended, and so again where that is the last step.
        last = self.step if self.position else self.step - 1
        self.directory.truncate_to(last, last if self.step > 0 else -1)
        seconds = [row.get("wall_seconds") for row in self.directory.metrics()]
        self.earlier_seconds = next((float(x) for x in reversed(seconds) if isinstance(x, (int, float))), 0.0)

    @property
    def step(self) -> int:
        """The number that metrics have for the last step: 0 at the end of the warm start."""
        return self.position - self.warm_start_steps

    def wall_seconds(self) -> float:
        """Seconds that the run took so far, over all its processes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def begin(self, like: Any) -> None:
        """Take the last checkpoint's state, or ``like`` at the start of a run."""
        self.state = like
        if self.position:
            self.state = checkpoints.restore(self.directory.checkpoints_path, self.position, like)
            self._kept = jax.tree.map(_shape, self.state)

    def accept(self, metrics: dict[str, Any], lower: str = "learning_rate") -> dict[str, Any]:
        """The metrics of a step whose numbers are finite, without the one that says so; before it is evaluated or kept.

        Args:
            metrics: of a step that was ``watched``.
            lower: the setting to lower where they are not.

        Raises:
            RunFailed: loss, gradient or parameters are not finite.
        """
        what = not_finite_part(metrics)
        if what is None:
            return {name: value for name, value in metrics.items() if name != NOT_FINITE}
        step = self.step + 1
        number = f"step {step}" if step > 0 else f"warm-start step {self.position + 1}"
        verb = "are" if what == "parameters" else "is"
        raise RunFailed(
            f"{self.command}: the {what} of {number} {verb} not finite, and nothing of that step is kept; begin "
            f"anew with a lower {lower}. {self._left()}"
        )

    def _left(self) -> str:
        """What there is after an error in an update."""
        kept = checkpoints.latest(self.directory.checkpoints_path)
        if kept is None:
            return "There was no checkpoint yet."
        after = f"step {kept - self.warm_start_steps}" if kept > self.warm_start_steps else f"warm-start step {kept}"
        return f"{self.directory.model_path} is the model after {after}, the last checkpoint."

    def advance(self, state: Any, metrics: dict[str, Any]) -> None:
        """One step was done: keep its state, log its metrics, and checkpoint where one is due."""
        self.state, self.position = state, self.position + 1
        self.log(metrics)
        if self.save_every and self.position % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """Checkpoint the state, after what is to be kept beside it."""
        self.beside(self.directory.checkpoints_path, self.position)
        checkpoints.save(self.directory.checkpoints_path, self.position, self.state)
        self._kept = jax.tree.map(_shape, self.state)

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

    def log(self, metrics: dict[str, Any]) -> None:
        """Write the metrics of the step that ended."""
        self.directory.log_metrics(self.step, metrics | {"wall_seconds": self.wall_seconds()})

    def running(
        self,
        export: Callable[[Any, Path], None],
        summary: Callable[[], dict[str, Any]],
        title: str,
    ) -> AbstractContextManager[Stop]:
        """A block that yields what a signal makes true, at whose end checkpoint, model, figure and summary are written.

        So they are where an error ends it (see ``closing``): the model is then that of the last checkpoint where the
        state is lost.

        Args:
            export: ``(params, path)``, writes the models.
            summary: what ``summary.json`` is to hold.
            title: of the figure.
        """

        def finish(failed: str | None) -> None:
            self.failed = failed
            done_all(
                lambda: self._write_model(export),
                lambda: self._draw(title),
                lambda: self._write_summary(summary()),
            )

        return closing(self.directory, not self.resumed, finish)

    def _write_model(self, export: Callable[[Any, Path], None]) -> None:
        state, place = self.state, self.directory.checkpoints_path
        if state is None:
            return
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            # An error inside an update leaves nothing of the donated state; the last checkpoint is what there is then.
            state = self._last_kept()
        elif self.position and checkpoints.latest(place) != self.position:
            self.save()
        if state is not None:
            export(state.params, self.directory.model_path)

    def _last_kept(self) -> Any:
        step = checkpoints.latest(self.directory.checkpoints_path)
        return None if step is None else checkpoints.restore(self.directory.checkpoints_path, step, self._kept)

    def _draw(self, title: str) -> None:
        panels = BY_COMMAND.get(self.command, PANELS)
        draw_curves(self.directory.curves_path, self.directory.metrics(), title, panels)

    def _write_summary(self, summary: dict[str, Any]) -> None:
        ending = {"wall_seconds": round(self.wall_seconds(), 1), "versions": versions()}
        self.directory.write_summary(summary | ending)


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


def due(step: int, every: int | None, last: int) -> bool:
    """Whether something done ``every`` so many steps, and at the last, is due after ``step``.

    >>> [due(step, 2, 5) for step in (1, 2, 5)], due(3, 0, 5)
    ([False, True, True], False)
    """
    return step == last or bool(every and step % every == 0)
