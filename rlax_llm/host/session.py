"""The host layer around a loop: a run directory that is always complete, whatever ends the run.

A session numbers its steps from 1 without a gap, over the warm start and what follows it, so that one number says
where a run is. Metrics show the warm start at steps up to 0.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rlax_llm.core.mesh import copied
from rlax_llm.core.names import did_you_mean
from rlax_llm.core.processes import first_says, gathered, is_first
from rlax_llm.host import checkpoints
from rlax_llm.host.best import Best, Measure
from rlax_llm.host.closing import closing, done_all
from rlax_llm.host.compiled import compiled
from rlax_llm.host.devices import device_metrics
from rlax_llm.host.followed import shared
from rlax_llm.host.interrupts import Stop
from rlax_llm.host.model_card import CARD, write_card
from rlax_llm.host.phase import Phase
from rlax_llm.host.profile import Profile
from rlax_llm.host.progress import say
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.time_limit import TimeLimit
from rlax_llm.host.tracking.tracker import Ended, TrackedRun
from rlax_llm.host.tracking.trackers import Trackers

_REFERENCE = "reference"
_HELD_OUT = "held_out_"  # begins the names of metrics that are measured before the first step too
_SECONDS_BETWEEN_SAVES = 60.0


class _Saved(NamedTuple):
    """What the last checkpoint is of.

    Attributes:
        phase: the one that it is a state of.
        like: structure, shapes and dtypes.
    """

    phase: Phase
    like: Any


class Keeping(NamedTuple):
    """Which checkpoints are kept, when a run ends before its last step, what is traced of it, and where it is seen.

    Attributes:
        checkpoints: how many of the last ones.
        best: what the best step is chosen by, whose checkpoint is kept too and whose model is written; None is none.
        max_hours: of this process; None is no limit.
        profile: the step whose trace is written; None is none.
        track: names of trackers.
    """

    checkpoints: int = 2
    best: Measure | None = None
    max_hours: float | None = None
    profile: int | None = None
    track: tuple[str, ...] = ()


KEEPING = Keeping()


class Session:
    """One process's part in a run.

    Args:
        command: its name.
        settings: what ``config.yaml`` is to hold.
        out: the directory; ``runs/COMMAND-DATE-TIME`` if None.
        resume: the directory of a run to go on with, instead of a new one.
        save_every: steps between checkpoints; 0 is only at the end, None one a minute.
        warm_start_steps: of a phase before the run's own.
        keeping: which checkpoints are kept, when the run ends early, what is traced of it, and where it is seen.

    Attributes:
        directory: the run's files.
        position: steps done, over all phases and all processes.
        state: after those steps; None until the run has begun.
        phase: whose state it is.
        best: the best step so far, by the metric of ``keeping``.
        profile: traces the step that ``keeping`` says.
        trackers: are told of steps and completions.
        failed: what the error says that is ending the run, or None.
    """

    state: Any = None
    phase: Phase | None = None
    best: Best | None = None
    failed: str | None = None
    _saved: _Saved | None = None
    _told: int | None = None  # the last step that was logged by a process before
    _named = False  # whether a metric is known to have the name that the best step is chosen by

    def __init__(
        self,
        command: str,
        settings: Mapping[str, Any],
        *,
        out: str | None = None,
        resume: str | None = None,
        save_every: int | None = 0,
        warm_start_steps: int = 0,
        keeping: Keeping = KEEPING,
    ):
        self.started = self.saved_at = time.perf_counter()
        self.compiled_before = compiled()
        self.command, self.resumed, self.save_every = command, resume is not None, save_every
        self.warm_start_steps, self.keeping = warm_start_steps, keeping
        # Clocks differ: of several processes the first one's counts.
        self.time_limit = TimeLimit(keeping.max_hours if is_first() else None)
        self.position, self.earlier_seconds = 0, 0.0
        if resume is None:
            place = out or first_says(f"runs/{command}-{time.strftime('%Y%m%d-%H%M%S')}")
            self.directory = shared(place, lambda: RunDirectory.create(place, settings))
        else:
            self.directory = shared(resume, lambda: _reopened(resume))
            self._go_on()
        run = TrackedRun(self.directory.path, command, settings, warm_start_steps)
        self.trackers = Trackers(keeping.track, run, self.directory, self._told)
        self.profile = Profile(self.directory.path / "profile", keeping.profile)
        self._writer = checkpoints.Writer(self.directory.checkpoints_path)

    def _go_on(self) -> None:
        """Take the position of the last checkpoint, and drop what was logged after it."""
        self._told = max((row["step"] for row in self.directory.metrics()), default=None)
        self.position = checkpoints.latest(self.directory.checkpoints_path) or 0
        if not self.position:
            say(f"{self.directory.path} has no whole checkpoint yet: the run begins anew.")
        # Without a checkpoint the run is begun anew, with what is measured before its first step.
        self.directory.truncate_to(self.step if self.position else self.step - 1)
        rows = self.directory.metrics()
        if self.keeping.best is not None:
            there = {
                position - self.warm_start_steps for position in checkpoints.steps(self.directory.checkpoints_path)
            }
            for row in rows:
                if row["step"] in there:
                    self.best = self.keeping.best.better(row, row["step"], self.best)
        seconds = [row.get("wall_seconds") for row in rows]
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
        self._settle()
        if self.best is not None:
            return f"{self.directory.model_path} is the model after step {self.best.step}, the best so far."
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

        Raises:
            OSError: a checkpoint that was begun could not be written.
            ValueError: nothing has the name that the best step is chosen by.
        """
        self._writer.check()
        before = self.position
        self.phase, self.state, self.position = phase, state, before + steps
        self.log(metrics)
        if self._is_the_best(metrics) or self._checkpoint_is_due(before):
            self.save()

    def _is_the_best(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the step is better than all before; it is the best from now on."""
        measure = self.keeping.best
        if self.step < 1:
            self._check_held_out(metrics)
            return False
        if measure is None:
            return False
        if not self._named:
            self._check_measured(measure.name)
        better = measure.better(metrics, self.step, self.best)
        if first_says(better == self.best):
            return False
        better = Best(*first_says(better))
        # The best before it is kept until this one is whole: what is being written is ended first.
        self._writer.wait()
        self.best = better
        return True

    def _check_measured(self, name: str) -> None:
        known = sorted({name for row in self.directory.metrics() for name in row} - {"step"})
        self._named = name in known
        if not self._named:
            hint = did_you_mean(name, known, f"; there are {', '.join(known)}.")
            raise ValueError(f"{self.command}: best is {name!r}, and no metric of this run is called so{hint}")

    def _checkpoint_is_due(self, before: int) -> bool:
        if self.save_every is None:
            return first_says(time.perf_counter() - self.saved_at >= _SECONDS_BETWEEN_SAVES)
        return reached(before, self.position, self.save_every)

    def save(self) -> None:
        """Begin to write a checkpoint of the state, after what its phase keeps of itself."""
        self._writer.wait()
        if self.phase is not None and is_first():
            self.phase.keep(self.directory.checkpoints_path, self.position)
        self._writer.save(self.position, self.state, self._kept)
        if self.phase is not None:
            self._saved = _Saved(self.phase, jax.tree.map(_shape, self.state))
        self.saved_at = time.perf_counter()

    def _kept(self, there: list[int]) -> set[int]:
        """The last checkpoints, and the best."""
        best = set() if self.best is None else {self.best.step + self.warm_start_steps}
        return {*there[-self.keeping.checkpoints :], *(best & {*there})}

    def _settle(self) -> None:
        """Wait for what is being written; what goes wrong with it is told where the state is written next."""
        with contextlib.suppress(Exception):
            self._writer.wait()

    def reference(self, params: Any, every: int = 0) -> Any:
        """The frozen reference: ``params`` as they were at the last multiple of ``every`` steps; of 0, at the first.

        It is kept on disk as long as a checkpoint could be resumed that wants it, and the same ever after.

        Raises:
            FileNotFoundError: it is not there, and ``params`` are those of a later step.
        """
        self._writer.wait()
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
        checkpoints.save(place, wanted, params, lambda there: {wanted, *needed})
        return copied(params)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of the step that ended."""
        row = {**metrics, **device_metrics(metrics), "wall_seconds": self.wall_seconds()}
        self.directory.log_metrics(self.step, row)
        self.trackers.log(self.step, row)

    def log_beginning(self, metrics: Mapping[str, Any]) -> None:
        """Write what was measured before the first step.

        Raises:
            ValueError: the best step is chosen by something held out, which these are not named as.
        """
        self.log(metrics)
        self._check_held_out(metrics)

    def _check_held_out(self, metrics: Mapping[str, Any]) -> None:
        """Raise where the best step is chosen by something held out, and what was held out has no such name."""
        measure = self.keeping.best
        if measure is None or not measure.name.startswith(_HELD_OUT):
            return
        if any(name.startswith(_HELD_OUT) for name in metrics):
            self._check_measured(measure.name)

    def log_completions(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Write records of a step's completions, if there are any."""
        if rows:
            self.directory.log_completions([{"step": step, **row} for row in rows])
            self.trackers.table(step, rows)

    def log_details(self, details: Mapping[str, Sequence[Mapping[str, Any]]], step: int) -> None:
        """Write further records of a step, by the name of their file."""
        for name, rows in details.items():
            self.directory.log_details(name, [{"step": step, **row} for row in rows])

    @contextlib.contextmanager
    def running(
        self,
        summary: Callable[[], Mapping[str, Any]],
        draw: Callable[[Path, Sequence[Mapping[str, Any]]], None],
    ) -> Iterator[Callable[[], bool]]:
        """A block that yields what a signal or the time limit makes true, at whose end checkpoint, model, figure and
        summary are written.

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
                lambda: draw(self.directory.curves_path, self.directory.metrics()) if is_first() else None,
                lambda: self._write_summary(summary()),
                lambda: self.trackers.end(lambda: self._ended(summary())),
            )

        with closing(self.directory, not self.resumed, finish, self._settle) as signal:
            yield lambda: self._ends(signal)

    def _ends(self, signal: Stop) -> bool:
        """Whether a signal to any process, or the time limit, ends the run on all."""
        signals, limits = zip(*gathered([signal.number or 0, self.time_limit()]), strict=True)
        signal.number = max(signals) or None
        return signal() or any(limits)

    def _write_state(self) -> None:
        """Write the last checkpoint and the model."""
        lost = any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state) if isinstance(leaf, jax.Array))
        self._settle()
        # An error inside an update leaves nothing of the donated state; the last checkpoint is what there is then.
        if not lost and self.position and checkpoints.latest(self.directory.checkpoints_path) != self.position:
            self.save()
            self._writer.wait()
        phase, state = self._exported(lost)
        if phase is not None and state is not None:
            phase.export(state, self.directory.model_path)

    def _exported(self, lost: bool) -> tuple[Phase | None, Any]:
        """What the model is written of: the best step, or the last one, or that of the last checkpoint."""
        place = self.directory.checkpoints_path
        if self.best is not None and self.best.step != self.step:
            # The last state is on the disk, and a device need not hold two.
            self.state = jax.tree.map(_shape, self.state)
            return self.phase, checkpoints.restore(place, self.best.step + self.warm_start_steps, self.state)
        if not lost:
            return self.phase, self.state
        step = checkpoints.latest(place)
        if step is None or self._saved is None or not self._saved.phase.exports:
            return None, None
        return self._saved.phase, checkpoints.restore(place, step, self._saved.like)

    def _ended(self, summary: Mapping[str, Any]) -> Ended:
        """What trackers are told at the end."""
        files = (self.directory.curves_path, self.directory.model_path / CARD)
        curves, card = (path if path.is_file() else None for path in files)
        return Ended(self.failed, summary, curves, card)

    def _write_summary(self, summary: Mapping[str, Any]) -> None:
        if is_first() and self.directory.model_path.is_dir():
            write_card(self.directory, summary)
        made = compiled().since(self.compiled_before)
        compiling = {
            "programs": made.programs.total(),
            "read": made.read.total(),
            "seconds": round(sum(made.seconds.values()), 1),
        }
        ending = {"wall_seconds": round(self.wall_seconds(), 1), "compiled": compiling, "versions": versions()}
        self.directory.write_summary({**summary, **ending})


def _reopened(path: str) -> RunDirectory:
    directory = RunDirectory.reopen(path)
    directory.hold()
    return directory


def _shape(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None)


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
