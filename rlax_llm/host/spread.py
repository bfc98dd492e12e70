"""Mean and spread of a number over independent runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Of some numbers.

    Attributes:
        mean: NaN of none.
        std: with ``n − 1`` in the denominator; NaN below two numbers.
        interval: where the mean of many such sets lies with the asked-for confidence.
    """

    mean: float
    std: float
    interval: tuple[float, float]


def spread(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Spread:
    """``mean ± t · std / √n``, Student's interval; values that are NaN are passed over.

    Args:
        values: ``[n]``, one of each run.
        confidence: between 0 and 1.

    >>> spread([1.0, 2.0, 3.0, float("nan")])
    Spread(mean=2.0, std=1.0, interval=(-0.484..., 4.484...))
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if known.size == 0:
        return Spread(math.nan, math.nan, (math.nan, math.nan))
    mean = float(known.mean())
    if known.size == 1:
        return Spread(mean, math.nan, (math.nan, math.nan))
    std = float(known.std(ddof=1))
    half = student_quantile(known.size - 1, confidence) * std / math.sqrt(known.size)
    return Spread(mean, std, (mean - half, mean + half))


def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t that ``|T| ≤ t`` has this probability for, T of Student's distribution.

    With ``θ = atan(t/√ν)`` the probability is a finite sum of powers of ``cos θ`` (a textbook's; it is increasing in θ,
    so halving an interval finds it).

    Args:
        degrees: ν ≥ 1, whole.
        confidence: between 0 and 1.

    >>> [round(student_quantile(n), 3) for n in (1, 2, 7, 63)]
    [12.706, 4.303, 2.365, 1.998]
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(degrees, middle) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _probability(degrees: int, angle: float) -> float:
    cosine, sine = math.cos(angle), math.sin(angle)
    first = degrees % 2
    term, total = (cosine, 0.0) if first else (1.0, 0.0)
    for power in range(first, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return (angle + sine * total) * 2 / math.pi if first else sine * total
