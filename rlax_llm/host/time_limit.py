"""A time limit: a run that ends, with a checkpoint, before the step that would go beyond it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class TimeLimit:
    """Asked before each step, says whether another one like the one before it would end behind the limit.

    Args:
        hours: from now; None is no limit.
        clock: gives seconds.
        tell: is given a line for the user when the limit is reached.

    >>> times = iter([0.0, 1.0, 1801.0, 3601.0])
    >>> limit = TimeLimit(1.0, lambda: next(times), print)
    >>> limit(), limit()
    Time limit: max_hours is 1.0, and the next step would end behind it; ending with a checkpoint.
    (False, True)
    """

    def __init__(
        self,
        hours: float | None,
        clock: Callable[[], float] = time.perf_counter,
        tell: Callable[[str], None] = _tell,
    ):
        self.hours, self.clock, self.tell = hours, clock, tell
        self.reached = False
        self._start = self._before = clock()

    def __call__(self) -> bool:
        """Whether the run is to end; once it is, it stays so."""
        if self.hours is None or self.reached:
            return self.reached
        now = self.clock()
        step, self._before = now - self._before, now
        self.reached = now + step - self._start >= 3600 * self.hours
        if self.reached:
            reason = f"max_hours is {self.hours}, and the next step would end behind it"
            self.tell(f"Time limit: {reason}; ending with a checkpoint.")
        return self.reached
