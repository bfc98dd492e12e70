"""Which steps of a run are looked at closely: of a short run all, of a long one fewer and fewer."""

from __future__ import annotations

import math


def due(step: int, per_tenfold: int = 25) -> bool:
    """Whether a step is one of at most ``per_tenfold`` of each power of ten, evenly spaced in the logarithm.

    Args:
        step: its number; of a warm start, whose are 0 and below, 0 alone is looked at.
        per_tenfold: how many from 10 to 100, from 100 to 1,000 and so on.

    >>> [step for step in range(-1, 24) if due(step)]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 18, 20, 21, 23]
    >>> sum(map(due, range(1001)))
    61
    """

    def place(number: int) -> int:
        return math.floor(per_tenfold * math.log10(number) + 1e-9)

    return step in (0, 1) or (step > 1 and place(step) != place(step - 1))
