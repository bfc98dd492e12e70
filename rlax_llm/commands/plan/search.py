"""The largest micro-batch that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending sizes that fits, where every smaller one does too; None where none does.

    Args:
        sizes: ascending.
        fits: asked of few of them, as each answer is a compilation.

    >>> largest_that_fits([1, 2, 4, 8, 16], lambda size: size < 7)
    4
    """
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def micro_batches_below(size: int, total: int, lanes: int) -> list[int]:
    """Divisors of ``total`` below ``size`` that lanes of devices divide, ascending.

    >>> micro_batches_below(64, 64, 8)
    [8, 16, 32]
    """
    return [part for part in range(lanes, size, lanes) if total % part == 0]
