"""What JAX has compiled in this process or read from its cache: how many programs of which name, and their seconds."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # of what was read from the cache too
_WAS_READ = "/jax/compilation_cache/cache_hits"  # said before it, by the same thread
_WORTH_TELLING = 0.05  # of all seconds


class Compiled(NamedTuple):
    """Programs by name.

    Attributes:
        programs: their number, with those that were read from the cache on the disk.
        seconds: of those that were compiled.
        read: the number of those that were read.
        seconds_of_reading: of those that were read.
    """

    programs: Counter[str]
    seconds: Mapping[str, float]
    read: Counter[str]
    seconds_of_reading: Mapping[str, float]

    def since(self, before: Compiled) -> Compiled:
        """Those that came after another state.

        >>> two = Compiled(Counter(f=2), {"f": 3.0}, Counter(), {})
        >>> two.since(two)
        Compiled(programs=Counter(), seconds={}, read=Counter(), seconds_of_reading={})
        """
        return Compiled(
            self.programs - before.programs,
            _spent(self.seconds, before.seconds),
            self.read - before.read,
            _spent(self.seconds_of_reading, before.seconds_of_reading),
        )

    def lines(self) -> list[str]:
        """What took longest to compile first, or that all was read, in lines of a report.

        None where something was compiled, in less than a second.

        >>> Compiled(Counter(update=2, decode=3), {"update": 9.0, "decode": 1.2}, Counter(), {}).lines()
        ['Compiling took 10 s: update 2 × 4.5 s, decode 3 × 0.4 s']
        >>> Compiled(Counter(update=1), {"update": 0.5}, Counter(), {}).lines()
        []
        >>> Compiled(Counter(update=2), {}, Counter(update=2), {"update": 1.5}).lines()
        ['Nothing was compiled: 2 programs of earlier runs were read from the cache in 1.5 s']
        """
        if self.programs and self.programs == self.read:
            seconds = _total(self.seconds_of_reading)
            return [f"Nothing was compiled: {self._all_read()} from the cache in {seconds:.1f} s"]
        total = _total(self.seconds)
        if total < 1:
            return []
        longest = [(name, spent) for name, spent in self._longest() if spent >= _WORTH_TELLING * total]
        return [f"Compiling took {total:.0f} s: {', '.join(self._one(name, spent) for name, spent in longest)}"]

    def _all_read(self) -> str:
        count = sum(self.read.values())
        return "1 program of earlier runs was read" if count == 1 else f"{count} programs of earlier runs were read"

    def _longest(self) -> list[tuple[str, float]]:
        return sorted(self.seconds.items(), key=lambda item: item[1], reverse=True)

    def _one(self, name: str, spent: float) -> str:
        count = self.programs[name] - self.read[name]
        return f"{name} {spent:.1f} s" if count == 1 else f"{name} {count} × {spent / count:.1f} s"


def _total(seconds: Mapping[str, float]) -> float:
    return sum(seconds.values())


def _spent(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in now.items()}
    return {name: more for name, more in spent.items() if more}


@functools.cache
def _record() -> Compiled:
    """Filled from the first call on."""
    found = Compiled(Counter(), {}, Counter(), {})
    now = threading.local()

    def notice(event: str, **named: Any) -> None:
        if event == _WAS_READ:
            now.read = True

    def listen(event: str, duration_secs: float, **named: Any) -> None:
        if event != _EVENT:
            return
        name = str(named.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")").strip("_<>")
        read, now.read = getattr(now, "read", False), False
        seconds: Any = found.seconds_of_reading if read else found.seconds
        found.programs[name] += 1
        found.read[name] += read
        seconds[name] = seconds.get(name, 0.0) + duration_secs

    jax.monitoring.register_event_listener(notice)
    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def compiled() -> Compiled:
    """All since the first call.

    >>> before = compiled()
    >>> def doubled(x):
    ...     return 2 * x
    >>> jax.jit(doubled)(1.0).item()
    2.0
    >>> compiled().since(before).programs["doubled"]
    1
    """
    found = _record()
    return Compiled(Counter(found.programs), dict(found.seconds), Counter(found.read), dict(found.seconds_of_reading))
