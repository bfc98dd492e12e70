"""How a run's directory is closed, whatever ends the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlax_llm.core.processes import first_says, several
from rlax_llm.host.failures import RunFailed, sentence
from rlax_llm.host.interrupts import Stop, interruptible
from rlax_llm.host.peers import PEERS
from rlax_llm.host.run_directory import RunDirectory


def _nothing() -> None:
    """Nothing is being written beside."""


@contextmanager
def closing(
    directory: RunDirectory,
    new: bool,
    finish: Callable[[str | None], None],
    settle: Callable[[], None] = _nothing,
) -> Iterator[Stop]:
    """Yield what a signal makes true, and have ``finish`` write what there is at the end of the block.

    An error has it written too, and is raised. A new run that fails before anything was measured leaves nothing. A
    second signal has nothing more begun: the last checkpoint and every line logged are there.

    Args:
        directory: held until then.
        new: the run is not one that is gone on with.
        finish: is given what the error says, or None.
        settle: waits for what is being written beside, before others may write there; it raises nothing.
    """
    with interruptible() as stop:
        try:
            try:
                yield stop
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                _end_after(error, directory, new, finish)
                raise
            finish(None)
        finally:
            directory.stopped_by = stop.number
            try:
                settle()
            finally:
                directory.release()


def _end_after(error: BaseException, directory: RunDirectory, new: bool, finish: Callable[[str | None], None]) -> None:
    """Write what there is after an error, and report that error rather than a later one."""
    if several() and not PEERS.all_fail(sentence(error)):
        # The others go on, or wait for this one: nothing can be written together any more.
        return
    failed = sentence(error)
    begun = first_says(directory.metrics_path.exists() or directory.completions_path.exists())
    if new and not begun and not isinstance(error, RunFailed):
        directory.abandon()
        return
    try:
        finish(failed)
    except Exception as another:
        if sentence(another) != failed:
            print(f"warning: {sentence(another)}", file=sys.stderr)


def done_all(*actions: Callable[[], None]) -> None:
    """Do all of them, whichever fails, and raise the first error.

    >>> def fail():
    ...     raise OSError("no room")
    >>> done_all(fail, lambda: print("written"))
    Traceback (most recent call last):
    OSError: no room
    """
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
