"""Ragged token lists as arrays, in few widths, so that few programs are compiled."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def bucket(length: int) -> int:
    """Smallest of 8, 12, 16, 24, 32, 48, 64, 96, … that is at least ``length``: at most half a prompt of padding.

    >>> [bucket(n) for n in (1, 9, 13, 17, 100)]
    [8, 12, 16, 24, 128]
    """
    width = 8
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return width


def longest(rows: Sequence[Sequence[object]]) -> int:
    """Length of the longest row; 0 without rows.

    >>> longest([[1], [2, 3]]), longest([])
    (2, 0)
    """
    return max(map(len, rows), default=0)


def pad_left(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows at the right end of ``[B, width]``, and where they are.

    Args:
        rows: B token lists, none longer than ``width``.
        width: columns.
        pad_id: what the others hold.

    Returns:
        ``tokens [B, width]`` int32 and ``valid [B, width]`` bool.

    >>> pad_left([[5, 6], [7]], 3, 0)[0].tolist()
    [[0, 5, 6], [0, 0, 7]]
    """
    return _filled(rows, np.arange(width)[::-1], pad_id)


def pad_right(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows at the left end of ``[B, width]``, and where they are.

    Args:
        rows: B token lists, none longer than ``width``.
        width: columns.
        pad_id: what the others hold.

    Returns:
        ``tokens [B, width]`` int32 and ``valid [B, width]`` bool.

    >>> pad_right([[5, 6], [7]], 3, 0)[0].tolist()
    [[5, 6, 0], [7, 0, 0]]
    """
    return _filled(rows, np.arange(width), pad_id)


def _filled(rows: Sequence[Sequence[int]], places: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Fill each row's cells whose place is below its length, in the order of the columns."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    valid = places < lengths[:, None]
    tokens = np.full(valid.shape, pad_id, np.int32)
    tokens[valid] = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
    return tokens, valid
