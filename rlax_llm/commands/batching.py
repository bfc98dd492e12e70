"""Rows of steps: they follow from the seed and the step's number, so a run that goes on draws what it would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rlax_llm.data.rows import batch_indices


class Batching(NamedTuple):
    """How rows are drawn.

    Attributes:
        size: rows per step.
        seed: draws them.
        micro_batches: parts that a step takes them in.
    """

    size: int
    seed: int
    micro_batches: int = 1

    def rows(self, rows: Sequence[Any], index: int) -> list[Any]:
        """Those of step ``index`` (from 0).

        >>> sorted(Batching(2, seed=0).rows("abcd", 0) + Batching(2, seed=0).rows("abcd", 1))
        ['a', 'b', 'c', 'd']
        """
        return [rows[place] for place in batch_indices(len(rows), self.size, self.seed, index)]
