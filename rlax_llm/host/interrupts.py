"""Signals that let the step finish: the first asks, the second insists."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

TERMINATION = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a program from elsewhere: a scheduler, a closed terminal."""


class Interrupted(KeyboardInterrupt):
    """A second signal, which ends the program at once.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"signal {number}")
        self.number = number


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except RuntimeError:
        # The signal came in the middle of another print to the same stream, which may not be entered twice.
        os.write(2, (text + "\n").encode())
    except OSError:
        pass  # the terminal has been closed, which is what the signal says


@contextlib.contextmanager
def handling(numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Within the block ``handle`` is called at the signals.

    What is ignored stays so, as SIGHUP under nohup; but SIGINT, which a shell's ``&`` ignores, is heard: whoever sends
    it means it. Outside the main thread, where Python allows no handlers, signals do what they did.

    Args:
        numbers: of the signals.
        handle: as ``signal.signal`` takes it.

    >>> with handling([signal.SIGINT], lambda number, frame: print("heard", number)):
    ...     signal.raise_signal(signal.SIGINT)
    heard 2
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [one for one in numbers if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class Stop:
    """Whether a signal has asked for the end; called, it answers.

    Attributes:
        number: of the first signal, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        """Whether one has."""
        return self.number is not None


@contextlib.contextmanager
def interruptible(tell: Callable[[str], None] = _tell) -> Iterator[Stop]:
    """Within the block the first SIGINT, SIGTERM or SIGHUP makes what is yielded answer true; the second raises.

    Outside the main thread, where Python allows no handlers, it stays false and signals do what they did.

    Args:
        tell: is given a line for the user at the first signal; by default it goes to stderr.

    Raises:
        Interrupted: at the second signal; it is a ``KeyboardInterrupt``.

    >>> with interruptible(tell=print) as stop:
    ...     for step in range(3):
    ...         signal.raise_signal(signal.SIGINT)
    ...         if stop():
    ...             break
    Interrupted: finishing this step; press Ctrl-C again to stop at once.
    >>> step, stop.number == signal.SIGINT
    (0, True)
    """
    stop = Stop()

    def handle(signal_number: int, frame: FrameType | None) -> None:
        if stop():
            raise Interrupted(signal_number)
        stop.number = signal_number
        tell("Interrupted: finishing this step; press Ctrl-C again to stop at once.")

    with handling((signal.SIGINT, *TERMINATION), handle):
        yield stop
