"""Whether a learner takes rows by length, or with the prompts that groups share: what computes fewer columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rlax_llm.core.mesh import ROWS, devices_along
from rlax_llm.generation.rollout import weights_of
from rlax_llm.models.config import DecoderConfig

MOST = 8  # parts of a minibatch that are of like length
FEWEST = 4  # rows of a part on each device
FRACTIONS = (1 / 4, 3 / 8, 5 / 8)  # of a batch's columns, which a part may be computed in
WORTH = 0.85  # of the columns with shared prompts: what rows by length may have, to be taken so
LEAST = 1e10  # weights times columns, below which a part costs more to begin than its columns do


class Tiles(NamedTuple):
    """Parts of like length.

    Attributes:
        parts: of a minibatch.
        widths: columns that a part may be computed in, but for all.
    """

    parts: int
    widths: tuple[int, ...]


def widths_below(columns: int) -> tuple[int, ...]:
    """Few numbers of columns below all of them, since each is compiled.

    >>> widths_below(1280), widths_below(20)
    ((320, 480, 800), (8, 16))
    """
    sizes = {-(-int(columns * part) // 8) * 8 for part in FRACTIONS}
    return tuple(sorted(size for size in sizes if size < columns))


def tiles(config: DecoderConfig, completions: Any, layout: tuple[int, int], taken: tuple[int, int]) -> Tiles | None:
    """How to take rows by length; None where shared prompts are as good.

    Args:
        config: shapes.
        completions: ``valid [B, T]``.
        layout: ``(group_size, prompt_width)``.
        taken: minibatches, and micro-batches of each.
    """
    valid = np.asarray(completions.valid)
    rows, columns = valid.shape
    minibatches, micro_batches = taken
    parts = _parts(rows // minibatches, micro_batches)
    if parts < 2 * micro_batches:  # which takes no more memory than what was planned for
        return None
    sizes = widths_below(columns)
    longest = np.sort(valid.sum(1)).reshape(parts, -1).max(1)
    chosen = [min(size for size in (*sizes, columns) if size >= length) for length in longest]
    by_length = sum(chosen) * rows // parts
    group_size, width = layout
    shared = rows // group_size * width + rows * (columns - width)
    if by_length > WORTH * shared or by_length * weights_of(config) < LEAST:
        return None
    return Tiles(parts, sizes)


def _parts(rows: int, micro_batches: int) -> int:
    """The most parts that are made of micro-batches, and of which each device has rows enough; 0 without any."""
    devices = devices_along(*ROWS)
    most = max(MOST, 2 * micro_batches)
    counts = range(micro_batches, most + 1, micro_batches)
    return max((n for n in counts if rows % (n * devices) == 0 and rows // (n * devices) >= FEWEST), default=0)
