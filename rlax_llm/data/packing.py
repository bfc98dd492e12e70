"""Several demonstrations in one row, each seeing itself alone: the same loss with less padding."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from rlax_llm.data.batches import given_completions, learned_ids
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.data.rows import DataError
from rlax_llm.models.packing import Packed
from rlax_llm.models.padding import pad_right


def pack(rows: Sequence[DemonstrationTokens], pad_id: int, width: int) -> Packed:
    """Put demonstrations into as few rows of ``width`` tokens as best-fit decreasing finds.

    The longest first, each into the fullest row that still has room: about 11/9 of the fewest rows possible at most.
    By ``packed_log_probs`` each demonstration has the log-probabilities that it has in a row of its own, so a loss
    whose weights go by tokens (``token_mean``) is the same; weights that go by rows would count packed rows. Limiting
    case: demonstrations longer than half of ``width`` stay alone.

    Args:
        rows: demonstrations, at least one.
        pad_id: the padding's id; it is masked.
        width: tokens to a row, at least the longest demonstration's.

    Raises:
        DataError: no row, or one that is longer than ``width``.

    >>> packed = pack([DemonstrationTokens([5], [1]), DemonstrationTokens([6], [7, 1])], 0, width=6)
    >>> packed.tokens.tolist(), packed.segments.tolist()
    ([[6, 7, 1, 5, 1, 0]], [[1, 1, 1, 2, 2, 0]])
    """
    if not rows:
        raise DataError("pack: no rows, wanted at least one.")
    lengths = [length_of(row) for row in rows]
    for row, length in zip(rows, lengths):
        if length > width:
            raise DataError(f"pack: {row.where} has {length} tokens, width is {width}; raise it or leave the row out.")
    return packed_rows([[rows[index] for index in members] for members in best_fit(lengths, width)], pad_id, width)


def packed_rows(bins: Sequence[Sequence[DemonstrationTokens]], pad_id: int, width: int) -> Packed:
    """Demonstrations that share rows, side by side.

    Args:
        bins: for each row its demonstrations, together at most ``width`` tokens.
        pad_id: the padding's id; it is masked.
        width: tokens to a row.

    >>> packed_rows([[DemonstrationTokens([5], [1]), DemonstrationTokens([6], [1])]], 0, 5).segments.tolist()
    [[1, 1, 2, 2, 0]]
    """
    tokens, valid = pad_right([_flat([*row.prompt, *row.completion] for row in own) for own in bins], width, pad_id)
    learned = [
        _flat([False] * len(row.prompt) + learned_ids(row.completion, row.learned) for row in own) for own in bins
    ]
    mask, _ = pad_right(learned, width, 0)
    numbered = [_flat([number] * length_of(row) for number, row in enumerate(own, start=1)) for own in bins]
    segments, _ = pad_right(numbered, width, 0)
    return Packed(*given_completions(tokens, valid, mask.astype(bool)), segments=jnp.asarray(segments))


def length_of(row: DemonstrationTokens) -> int:
    """Tokens of prompt and completion.

    >>> length_of(DemonstrationTokens([5], [6, 1]))
    3
    """
    return len(row.prompt) + len(row.completion)


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which items share a bin: best-fit decreasing, in ``n log n`` steps.

    Args:
        lengths: of each item, at most ``width``.
        width: of each bin.

    Returns:
        Bins in the order in which they were opened, each with the indices of its items.

    >>> best_fit([2, 3, 4, 1], width=5)
    [[2, 3], [1, 0]]
    """
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left → bins
    rooms: list[int] = []  # the keys of with_room, in order
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[index]
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            chosen = len(bins)
            room = width
            bins.append([])
        else:
            room = rooms[place]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[chosen].append(index)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            bisect.insort(rooms, left)
        with_room[left].append(chosen)
    return bins


def _flat(parts: Iterable[Sequence[int]]) -> list[int]:
    return [item for part in parts for item in part]
