"""Reward functions in worker processes: several rows at a time, each within a time limit."""

from __future__ import annotations

import contextlib
import inspect
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rlax_llm.core.user_code import told
from rlax_llm.rewards.calling import FAILED, Batch, NoRowScored, Reward, RewardError, refuse, row_verdict, scored_none
from rlax_llm.rewards.loading import load_reward

_LOADING = 120.0  # seconds for a worker to start and import its reward
_GRACE = 1.0  # seconds for an idle worker to end by itself


class _Outcome(NamedTuple):
    """What became of a row: a score and feedback, or the exception, loss or misuse that kept it from having one."""

    score: float = math.nan
    feedback: str | None = None
    raised: str = ""
    lost: str = ""
    refused: str = ""

    @property
    def answer(self) -> Any:
        """What a reward function would return."""
        if self.raised or self.lost:
            return FAILED
        score = None if math.isnan(self.score) else self.score
        return score if self.feedback is None else (score, self.feedback)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    deadline: float  # when what it is at, loading or a row, has taken too long
    loading: bool = True
    row: int | None = None

    @property
    def idle(self) -> bool:
        return not self.loading and self.row is None

    def end(self) -> int | None:
        """Kill the process and those that it started, and say how it ended."""
        assert self.process.pid is not None
        # As long as its exit status has not been read, its number cannot be that of another process.
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        self.process.close()
        return code


class RewardPool:
    """A reward function that is called in worker processes, row by row, with a time limit for each row.

    A row that takes too long, or whose process ends, is reported to ``failed`` and, if that returns, is ``FAILED``; the
    worker is replaced. So is a row on which the function raises, unless no row is left that did not fail.
    Workers import the reward by its name and nothing else of the main program. They start with the ``with`` block and
    end with it, with all that they started: a function may run programs (``subprocess``), but not
    ``multiprocessing``'s processes. One call at a time.

    Attributes:
        reward: the reward with this pool for its function, for ``score``.

    Args:
        reward: what ``load_reward`` takes, or a reward whose function an import finds.
        workers: number of processes.
        timeout: seconds for one row; starting a process and importing the reward do not count.
        failed: called with one sentence that names the reward and the row; raises a ``RewardError`` if not given.

    Raises:
        RewardError: as ``load_reward``, a function that no import finds, settings that do not fit; and, when called, as
            ``score``.

    >>> with RewardPool("integer_answer", workers=1, timeout=10.0) as pool:
    ...     pool(["1+1=", "1+2="], ["2", "2"], answer=[2, 3])
    [1.0, 0.0]
    """

    def __init__(
        self, reward: str | Reward, workers: int, timeout: float, failed: Callable[[str], None] = refuse
    ) -> None:
        loaded = load_reward(reward) if isinstance(reward, str) else reward
        if workers < 1:
            raise RewardError(f"reward {loaded.name!r}: a pool of {workers} workers, wanted at least 1.")
        if not 0 < timeout < math.inf:
            raise RewardError(
                f"reward {loaded.name!r}: a timeout of {timeout} seconds, wanted a finite number above 0."
            )
        self.reward: Reward = loaded._replace(function=self, spec=_importable(loaded))
        self._folder = Path.cwd()  # where a spec is looked up, also by workers that start later
        with contextlib.suppress(TypeError, ValueError):  # what check_columns reads
            self.__signature__: inspect.Signature = inspect.signature(loaded.function)
        self._size = workers
        self._timeout = timeout
        self._failed = failed
        self._workers: list[_Worker] = []
        self._open = False

    def __enter__(self) -> RewardPool:
        self._open = True
        try:
            self._fill()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._open = False
        ended = self._workers
        self._workers = []
        for worker in ended:
            worker.connection.close()
        for worker in ended:
            wait([worker.process.sentinel], _GRACE if worker.idle else 0.0)
            worker.end()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        """Scores in the order of the rows, ``None`` where the function abstains, ``FAILED`` where a row failed."""
        if not self._open:
            raise RewardError(f"reward {self.reward.name!r}: its pool is not open; call it within a with block.")
        try:
            outcomes = self._outcomes(Batch(list(prompts), list(completions), columns))
        except BaseException:
            # What is under way belongs to no call any more.
            for worker in [worker for worker in self._workers if worker.row is not None]:
                self._end(worker)
            raise
        self._report(outcomes)
        return [outcome.answer for outcome in outcomes]

    def _outcomes(self, batch: Batch) -> list[_Outcome]:
        count = len(batch.prompts)
        waiting = deque(range(count))
        found = dict[int, _Outcome]()
        while len(found) < count:
            self._fill()
            for worker in self._workers:
                if worker.idle and waiting:
                    self._give(worker, waiting.popleft(), batch)
            at_work = [worker for worker in self._workers if not worker.idle]
            soonest = min(worker.deadline for worker in at_work)
            heard = wait([worker.connection for worker in at_work], max(0.0, soonest - time.monotonic()))
            for worker in at_work:
                if worker.connection in heard:
                    self._hear(worker, found)
                elif time.monotonic() >= worker.deadline:
                    self._give_up(worker, found)
        return [found[index] for index in range(count)]

    def _fill(self) -> None:
        while len(self._workers) < self._size:
            self._workers.append(_started(self.reward, self._folder))

    def _give(self, worker: _Worker, index: int, batch: Batch) -> None:
        worker.row = index
        worker.deadline = time.monotonic() + self._timeout
        with contextlib.suppress(ConnectionError):  # that it has ended is heard of later
            worker.connection.send((index, batch.row(index)))

    def _hear(self, worker: _Worker, found: dict[int, _Outcome]) -> None:
        try:
            outcome = worker.connection.recv()
        except (EOFError, OSError):
            row = worker.row
            code = self._end(worker)
            name = f"reward {self.reward.name!r}"
            if row is None:
                raise RewardError(f"{name}: a worker process ended with exit code {code} while it loaded.") from None
            found[row] = _Outcome(lost=f"{name} ended its process with exit code {code} on row {row}.")
            return
        if outcome.refused:
            raise RewardError(outcome.refused)
        if worker.row is not None:
            found[worker.row] = outcome
        worker.loading = False
        worker.row = None

    def _give_up(self, worker: _Worker, found: dict[int, _Outcome]) -> None:
        row = worker.row
        name = f"reward {self.reward.name!r}"
        self._end(worker)
        if row is None:
            raise RewardError(f"{name}: a worker process took longer than {_LOADING:g} seconds to load.")
        found[row] = _Outcome(lost=f"{name} took longer than {self._timeout:g} seconds on row {row}.")

    def _end(self, worker: _Worker) -> int | None:
        self._workers.remove(worker)
        return worker.end()

    def _report(self, outcomes: Sequence[_Outcome]) -> None:
        for index, outcome in enumerate(outcomes):
            if outcome.lost:
                self._failed(outcome.lost)
            if outcome.raised:
                self._failed(f"reward {self.reward.name!r} raised {outcome.raised} on row {index}.")
        if outcomes and all(outcome.answer is FAILED for outcome in outcomes):
            first = outcomes[0]
            sentence = scored_none(self.reward.name, first.raised, len(outcomes))
            lost = f"{first.lost[:-1]}, and no other row has a score either."
            raise NoRowScored(self.reward.name, sentence if first.raised else lost)


def _importable(reward: Reward) -> str:
    """Name by which another process finds the function."""
    if reward.spec is not None:
        return reward.spec
    module, name = (getattr(reward.function, at, "") for at in ("__module__", "__qualname__"))
    with contextlib.suppress(RewardError):
        if module != "__main__" and load_reward(f"{module}:{name}").function is reward.function:
            return f"{module}:{name}"
    raise RewardError(
        f"reward {reward.name!r}: no import finds its function in another process; give RewardPool its name, "
        "MODULE:FUNCTION or FILE.py:FUNCTION (a task's own reward may have none: then leave the workers out)."
    )


def _started(reward: Reward, folder: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a process with JAX's threads does not survive fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, reward.name, reward.spec, folder), daemon=True)
    with _without_main():
        process.start()
    theirs.close()  # so that the end of the process ends the connection
    return _Worker(process, ours, time.monotonic() + _LOADING)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Have a spawned process not run the main program again: it would import JAX, or start without end."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(connection: Connection, name: str, spec: str, folder: Path) -> None:
    """Load the reward, then score rows until the connection ends."""
    _end_with_main_program()
    os.chdir(folder)
    try:
        reward = load_reward(spec)._replace(name=name)
    except RewardError as error:
        connection.send(_Outcome(refused=str(error)))
        return
    connection.send(_Outcome())
    with contextlib.suppress(EOFError, OSError):
        while True:
            index, row = connection.recv()
            connection.send(_outcome(reward, index, row))


def _end_with_main_program() -> None:
    """Have this process, and those that it will start, end when the main program does, however it ends.

    Another process waits for that and kills their group: a thread could not, where a function never lets one
    run. Its parent has ended, so that no function that waits for its own processes meets it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not hasattr(os, "fork"):
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
        return
    os.setpgrp()  # out of reach of Ctrl-C, which is for the main program, and a group to be killed as one
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    # Only the sentinel stays open, which reports the parent's end: no end of a pipe may stay open here.
    for descriptor in {int(name) for name in os.listdir("/dev/fd")} - {parent.sentinel}:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)


def _outcome(reward: Reward, index: int, row: Batch) -> _Outcome:
    try:
        return _Outcome(*row_verdict(reward, row, index))
    except RewardError as error:
        return _Outcome(refused=str(error))
    except (Exception, SystemExit) as error:
        return _Outcome(raised=told(error))
