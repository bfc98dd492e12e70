"""Ctrl-C that lets the step finish: the first asks, the second insists."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except RuntimeError:
        # The signal came in the middle of another print to the same stream, which may not be entered twice.
        os.write(2, (text + "\n").encode())


@contextlib.contextmanager
def interruptible(tell: Callable[[str], None] = _tell) -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM makes the yielded function true; the second raises.

    Outside the main thread, where Python allows no handlers, the function stays false and signals do what they did.

    Args:
        tell: is given a line for the user at the first signal; by default it goes to stderr.

    Raises:
        KeyboardInterrupt: at the second signal.

    >>> with interruptible(tell=print) as stop:
    ...     for step in range(3):
    ...         signal.raise_signal(signal.SIGINT)
    ...         if stop():
    ...             break
    Interrupted: finishing this step; press Ctrl-C again to stop at once.
    >>> step
    0
    """
    asked = False

    def handle(signal_number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        tell("Interrupted: finishing this step; press Ctrl-C again to stop at once.")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
