"""What JAX has compiled in this process: how many programs of which name, and their seconds."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_WORTH_TELLING = 0.05  # of all seconds


class Compiled(NamedTuple):
    """Programs by name.

    Attributes:
        programs: their number.
        seconds: of them together; few where they were read from a cache.
    """

    programs: Counter[str]
    seconds: Mapping[str, float]

    def since(self, before: Compiled) -> Compiled:
        """Those that came after another state.

        >>> Compiled(Counter(f=2), {"f": 3.0}).since(Compiled(Counter(f=2), {"f": 3.0}))
        Compiled(programs=Counter(), seconds={})
        """
        spent = {name: now - before.seconds.get(name, 0.0) for name, now in self.seconds.items()}
        return Compiled(self.programs - before.programs, {name: more for name, more in spent.items() if more})

    def lines(self) -> list[str]:
        """What took longest first, in lines of a report; none where all of it took less than a second.

        >>> Compiled(Counter(update=2, decode=3), {"update": 9.0, "decode": 1.2}).lines()
        ['Compiling took 10 s: update 2 × 4.5 s, decode 3 × 0.4 s']
        >>> Compiled(Counter(update=1), {"update": 0.5}).lines()
        []
        """
        total = sum(self.seconds.values())
        if total < 1:
            return []
        longest = [(name, spent) for name, spent in self._longest() if spent >= _WORTH_TELLING * total]
        return [f"Compiling took {total:.0f} s: {', '.join(self._one(name, spent) for name, spent in longest)}"]

    def _longest(self) -> list[tuple[str, float]]:
        return sorted(self.seconds.items(), key=lambda item: item[1], reverse=True)

    def _one(self, name: str, spent: float) -> str:
        count = self.programs[name]
        return f"{name} {spent:.1f} s" if count == 1 else f"{name} {count} × {spent / count:.1f} s"


@functools.cache
def _record() -> Compiled:
    """Filled from the first call on."""
    programs: Counter[str] = Counter()
    seconds: dict[str, float] = {}

    def listen(event: str, duration_secs: float, **named: Any) -> None:
        if event == _EVENT:
            name = str(named.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")").strip("_<>")
            programs[name] += 1
            seconds[name] = seconds.get(name, 0.0) + duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return Compiled(programs, seconds)


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
    return Compiled(Counter(found.programs), dict(found.seconds))
