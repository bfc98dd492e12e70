"""What completions of many prompts say of a model: best of k, the majority's answer, intervals, a paired test."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

_Z = 1.959963984540054  # 97.5 % of a standard normal lie below


class Interval(NamedTuple):
    """An estimate with its interval of 95 %.

    Attributes:
        mean: the estimate.
        low: lower end, −inf where one value says nothing of it.
        high: upper end, likewise.
    """

    mean: float
    low: float
    high: float


def best_of_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The expected best of k of n completions, without bias: ``Σ_i C(i−1, k−1) / C(n, k) · s_(i)``, scores ascending.

    Of scores that are 0 or 1, c of them 1, this is pass@k, ``1 − C(n−c, k) / C(n, k)`` (Chen and others 2021,
    arXiv 2107.03374). Limiting cases: the mean for k = 1, the maximum for k = n.

    Args:
        scores: ``[..., n]``, finite.
        k: from 1 to n.

    Returns:
        ``[...]``, in the scores' units.

    Raises:
        ValueError: k is out of its range.

    >>> best_of_k(np.array([0.0, 0.0, 1.0, 0.0]), 2), 1 - math.comb(3, 2) / math.comb(4, 2)
    (np.float64(0.5), 0.5)
    """
    count = scores.shape[-1]
    if not 1 <= k <= count:
        raise ValueError(f"best_of_k: k is {k}, wanted a whole number from 1 to the {count} scores of a prompt.")
    # Whole numbers of Python: no factorial leaves its range.
    weights = [math.comb(rank, k - 1) / math.comb(count, k) for rank in range(count)]
    return np.sort(scores, axis=-1) @ np.array(weights)


def majority(votes: Sequence[Hashable | None], solved: Sequence[bool] | np.ndarray) -> float:
    """The chance that the answer most completions give is right: maj@n, self-consistency (arXiv 2203.11171).

    Among several answers with equally many votes one is drawn. Limiting cases: whether it is right for one completion;
    0 where none gives an answer.

    Args:
        votes: the answer of each of n completions; equal ones are one answer, ``None`` is none.
        solved: ``[n]``, whether it is right; the mean of equal answers counts.

    >>> majority(["4", "5", "4"], [True, False, True]), majority(["4", "5", None], [True, False, False])
    (1.0, 0.5)
    """
    found: dict[Hashable, list[bool]] = {}
    for vote, right in zip(votes, solved, strict=True):
        if vote is not None:
            found.setdefault(vote, []).append(bool(right))
    most = max(map(len, found.values()), default=0)
    leading = [np.mean(rights) for rights in found.values() if len(rights) == most]
    return float(np.mean(leading)) if leading else 0.0


def share_interval(shares: np.ndarray, draws: int = 1) -> Interval:
    """Mean of shares with Wilson's interval (1927): the p for which ``|p̂ − p| ≤ z √(p (1 − p) / m)``.

    m is the effective number of prompts, ``n p̂ (1 − p̂) / var(shares)``, between n and ``n · draws``: completions of one
    prompt are no independent evidence (Franco and others 2019, Survey Methodology 45). Limiting case: of shares that
    are 0 or 1, Wilson's own with m = n. It holds for few prompts, and has a width where all are solved.

    Args:
        shares: ``[n]`` from 0 to 1, of each prompt.
        draws: independent completions that each share is made of.

    Raises:
        ValueError: no share, or one out of its range.

    >>> [round(x, 3) for x in share_interval(np.ones(10))]
    [1.0, 0.722, 1.0]
    """
    if not shares.size or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("share_interval: shares are empty or not all from 0 to 1; give at least one share.")
    mean, count, variance = float(shares.mean()), shares.size, float(shares.var())
    spread = mean * (1 - mean)
    effective = float(np.clip(count * spread / variance, count, count * draws)) if variance > 0 else count
    squared = _Z**2 / effective
    middle = (mean + squared / 2) / (1 + squared)
    half = math.sqrt(squared * (spread + squared / 4)) / (1 + squared)
    return Interval(mean, min(max(middle - half, 0.0), mean), max(min(middle + half, 1.0), mean))


def mean_interval(values: np.ndarray) -> Interval:
    """Mean with its interval ``x̄ ± z s / √n``, for numbers of any range, as rewards.

    Limiting case: one value has no end to its interval.

    Args:
        values: ``[n]``, at least one.

    >>> [round(x, 3) for x in mean_interval(np.array([1.0, 2.0, 3.0]))]
    [2.0, 0.868, 3.132]
    """
    mean = float(values.mean())
    half = _Z * float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.inf
    return Interval(mean, mean - half, mean + half)


def difference_interval(differences: np.ndarray) -> Interval:
    """Mean of paired differences of shares, with the interval of Agresti and Min (2005, Statistics in Medicine 24).

    Two prompts are added, one that both models solve or neither, and one that half of the time this one alone solves
    and half of the time the other: ``m ± z √((Σd² + 1)/N − m²) / √N`` with ``N = n + 2`` and ``m = Σd / N``, within −1
    and 1. Prompts are equally hard for both, so it is narrower than that of two means apart (arXiv 2411.00640).
    Limiting cases: it has a width where all differences are equal; for many prompts ``mean_interval``'s.

    Args:
        differences: ``[n]`` from −1 to 1, at least one.

    >>> [round(x, 3) for x in difference_interval(np.zeros(16))]
    [0.0, -0.109, 0.109]
    """
    mean, count = float(differences.mean()), differences.size + 2
    middle = float(differences.sum()) / count
    half = _Z * math.sqrt((float((differences**2).sum()) + 1) / count - middle**2) / math.sqrt(count)
    return Interval(mean, min(max(middle - half, -1.0), mean), max(min(middle + half, 1.0), mean))


def sign_flip_test(differences: Sequence[int] | np.ndarray) -> float:
    """Two-sided p-value of paired differences, exact: the share of all 2ⁿ signs whose sum is as far from 0.

    Where two models do equally well on each prompt, either might have been the other. The sums' distribution is
    convolved, not drawn. Limiting cases: McNemar's exact test for differences of −1, 0 and 1, where only prompts that
    one of the two solves count; 1 where all are 0.

    Args:
        differences: ``[n]`` whole numbers, as of completions solved.

    Raises:
        ValueError: they are not whole numbers.

    >>> sign_flip_test([1, 1, 1, 1, 0, 0]), sign_flip_test([2, -1])
    (0.125, 1.0)
    """
    given = np.asarray(differences)
    if not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"sign_flip_test: differences are {given.dtype}, wanted whole numbers; count, do not divide.")
    sizes = np.sort(np.abs(given[given != 0]))
    if not sizes.size:
        return 1.0
    unit = int(np.gcd.reduce(sizes))
    total = int(sizes.sum()) // unit
    chances = np.zeros(total + 1)  # of the sum of those that are positive, in units
    chances[0] = 1.0
    reached = 0
    for size in (sizes // unit).tolist():
        reached += size
        shifted = chances[: reached + 1 - size].copy()
        chances[: reached + 1] *= 0.5
        chances[size : reached + 1] += 0.5 * shifted
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(float(chances[sums >= abs(int(given.sum())) // unit].sum()), 1.0)
