"""Rotary position embeddings: what turns with a token's position, and how fast.

A scaling is a function of the plain frequencies. One that also makes queries and keys larger says so by its
``magnitude``; of others that is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlax_llm.core.checks import at_least_one, positive

RopeScaling = Callable[[np.ndarray], np.ndarray]


def magnitude_of(scaling: RopeScaling | None) -> float:
    """By what queries and keys are multiplied as they are rotated.

    >>> magnitude_of(None), magnitude_of(LinearRope(2.0))
    (1.0, 1.0)
    """
    return float(getattr(scaling, "magnitude", 1.0))


class Rope(NamedTuple):
    """A rotary embedding.

    Attributes:
        theta: base of the wavelengths.
        scaling: of the frequencies, or None.
    """

    theta: float
    scaling: RopeScaling | None = None

    def frequencies(self, rotated: int) -> np.ndarray:
        """``[rotated / 2]``, radians per token: ``theta^(−2i / rotated)``, scaled.

        Args:
            rotated: numbers of a head that turn.

        >>> Rope(100.0, LinearRope(2.0)).frequencies(4).tolist()
        [0.5, 0.05]
        """
        plain = self.theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
        return plain if self.scaling is None else self.scaling(plain)


@dataclass(frozen=True)
class LinearRope:
    """Position interpolation: every rotary frequency divided by ``factor`` (arXiv 2306.15595).

    >>> LinearRope(2.0)(np.array([1.0, 0.5])).tolist()
    [0.5, 0.25]
    """

    factor: float

    def __post_init__(self) -> None:
        positive("LinearRope", factor=self.factor)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's scaling: long wavelengths divided by ``factor``, short ones kept, a linear blend between.

    >>> scale = Llama3Rope(8.0, 1.0, 4.0, 8192)
    >>> scale(np.array([1.0, 1e-5])).tolist()
    [1.0, 1.25e-06]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        positive("Llama3Rope", factor=self.factor, low_freq_factor=self.low_freq_factor)
        at_least_one("Llama3Rope", original_max_positions=self.original_max_positions)
        if not self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"Llama3Rope: high_freq_factor is {self.high_freq_factor}, wanted more than low_freq_factor "
                f"{self.low_freq_factor}."
            )

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        blend = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return frequencies * (blend + (1.0 - blend) / self.factor)


@dataclass(frozen=True)
class DynamicRope:
    """Dynamic NTK scaling: the base grows with the sequence, by ``factor`` beyond the length that was trained.

    Up to that length, which is a config's ``max_positions``, it is the plain embedding, and longer sequences are
    refused: a base that grows would turn keys that are already there.

    >>> DynamicRope(4.0)(np.array([1.0, 0.5])).tolist()
    [1.0, 0.5]
    """

    factor: float

    def __post_init__(self) -> None:
        positive("DynamicRope", factor=self.factor)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """The frequencies as they are."""
        return frequencies


@dataclass(frozen=True)
class YarnRope:
    """YaRN (arXiv 2309.00071): slow frequencies divided by ``factor``, fast ones kept, a ramp over their index between.

    A frequency is fast where it turns more than ``fast_turns`` times within the original length, and slow where less
    than ``slow_turns`` times. Limiting case: a factor of 1 is the plain embedding.

    Attributes:
        factor: at least 1, of the length.
        original_max_positions: tokens that were trained on before.
        fast_turns: turns from which a frequency stays.
        slow_turns: turns below which it is divided.
        magnitude: that of queries and keys; ``0.1 · ln(factor) + 1`` in the paper.
        whole: the ramp begins and ends at a whole index.

    >>> YarnRope(1.0, 16)(np.array([1.0, 0.1])).tolist()
    [1.0, 0.1]
    """

    factor: float
    original_max_positions: int
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    magnitude: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        positive("YarnRope", factor=self.factor, fast_turns=self.fast_turns, slow_turns=self.slow_turns)
        positive("YarnRope", magnitude=self.magnitude)
        at_least_one("YarnRope", original_max_positions=self.original_max_positions)

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        count = len(frequencies)
        # Plain frequencies fall by one ratio from each to the next: -ln of it, times their number, is ln theta.
        step = -math.log(frequencies[1]) if count > 1 else math.inf

        def index(turns: float) -> float:
            """Where a frequency turns so often within the original length."""
            return math.log(self.original_max_positions / (turns * 2 * math.pi)) / step

        low, high = index(self.fast_turns), index(self.slow_turns)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * count - 1)
        ramp = np.clip((np.arange(count) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
        return frequencies * (1.0 - ramp + ramp / self.factor)


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753): each frequency divided by a number of its own that a search has found.

    The paper has two lists, one for sequences up to the original length and one for longer ones. A model has one of
    them for all its sequences, or keys would turn as a sequence grows: the short one where ``max_positions`` is the
    original length, as files are read, and the long one where it is more.

    Attributes:
        short: ``[head_dim / 2]`` divisors.
        long: ``[head_dim / 2]`` divisors.
        original_max_positions: tokens that were trained on before.
        max_positions: the longest sequence.
        magnitude: that of queries and keys.

    >>> LongRope((1.0, 2.0), (4.0, 8.0), 16, 16)(np.array([1.0, 0.5])).tolist()
    [1.0, 0.25]
    >>> LongRope((1.0, 2.0), (4.0, 8.0), 16, 64)(np.array([1.0, 0.5])).tolist()
    [0.25, 0.0625]
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_positions: int
    max_positions: int
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        positive("LongRope", magnitude=self.magnitude)
        at_least_one("LongRope", original_max_positions=self.original_max_positions, max_positions=self.max_positions)
        for name in ("short", "long"):
            positive("LongRope", **{f"{name}[{i}]": value for i, value in enumerate(getattr(self, name))})

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        """Scale ``[head_dim / 2]`` frequencies, radians per token."""
        divisors = self.long if self.max_positions > self.original_max_positions else self.short
        if len(divisors) != len(frequencies):
            raise ValueError(
                f"LongRope: it has {len(divisors)} divisors, wanted {len(frequencies)}, one for each frequency of a "
                "head."
            )
        return frequencies / np.asarray(divisors)
