"""The best step of a run by a metric: whose checkpoint is kept, and whose model is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_LOW = ("loss", "perplexity")


class Best(NamedTuple):
    """A step, and what it was worth.

    Attributes:
        step: as metrics number it.
        value: of the metric.
    """

    step: int
    value: float


class Measure(NamedTuple):
    """What steps are compared by.

    Attributes:
        name: of a metric.
        sign: 1 where the highest is best, −1 where the lowest is.
    """

    name: str
    sign: int

    @classmethod
    def of(cls, text: str) -> Measure:
        """A metric by its name: the highest is best, of a loss or a perplexity the lowest.

        ``min:NAME`` and ``max:NAME`` say it.

        >>> Measure.of("held_out_accuracy").sign, Measure.of("held_out_loss").sign, Measure.of("min:kl")
        (1, -1, Measure(name='kl', sign=-1))
        """
        before, _, name = text.rpartition(":")
        if before in ("min", "max"):
            return cls(name, 1 if before == "max" else -1)
        return cls(text, -1 if text.endswith(_LOW) else 1)

    def better(self, metrics: Mapping[str, Any], step: int, best: Best | None) -> Best | None:
        """The step where its metrics are better than the best so far, else that.

        A metric that was not measured, or is not finite, is never better; of two alike the earlier step stays.

        Args:
            metrics: of the step.
            step: its number; what was measured before step 1 does not count.
            best: so far.

        >>> Measure.of("reward").better({"reward": 0.5}, 3, Best(2, 0.25))
        Best(step=3, value=0.5)
        """
        value = metrics.get(self.name)
        if value is None or step < 1 or not math.isfinite(value):
            return best
        found = Best(step, float(value))
        return found if best is None or self.sign * found.value > self.sign * best.value else best
