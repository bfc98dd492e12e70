"""Adapters of projections that files join into one matrix: PEFT has one A and B for all, we have one for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Update(NamedTuple):
    """What adapts one matrix of all layers: ``x·A·B``.

    Attributes:
        a: ``[L, in, r]``.
        b: ``[L, r, out]``.
        m: ``[L, out]``, the columns' lengths of DoRA; None where it is none.
    """

    a: Any
    b: Any
    m: Any = None


def joined(parts: Mapping[str, Update], widths: Mapping[str, int]) -> Update:
    """The adapter of the joined matrix: ``A = [A₁ A₂ …]``, B block-diagonal, of the ranks' sum.

    Limiting cases: where all have one A it stays the one; of one part alone the part. It is exact: products with 0 add
    nothing.

    Args:
        parts: by name; a part without an adapter has zeros.
        widths: outputs of each part, in their order in the matrix.

    Raises:
        ValueError: a part lacks an adapter, and the others have DoRA's lengths: those that are missing are the base's.

    >>> one = Update(np.ones((1, 2, 1)), np.full((1, 1, 1), 3.0))
    >>> other = Update(np.zeros((1, 2, 1)), np.full((1, 1, 2), 4.0))
    >>> joined({"gate": one, "up": other}, {"gate": 1, "up": 2}).b.tolist()
    [[[3.0, 0.0, 0.0], [0.0, 4.0, 4.0]]]
    """
    first = next(iter(parts.values()))
    absent = [name for name in widths if name not in parts]
    if first.m is not None and absent:
        raise ValueError(
            f"joined: {', '.join(parts)} have DoRA's lengths and {absent[0]} has no adapter, and the files of this "
            f"family join them in one matrix; take all of {', '.join(widths)}, or none, as targets."
        )
    lengths = None if first.m is None else np.concatenate([parts[name].m for name in widths], -1)
    if all(np.array_equal(part.a, first.a) for part in parts.values()):
        absent_b = {name: np.zeros((*first.b.shape[:2], widths[name]), first.b.dtype) for name in absent}
        columns = absent_b | {name: part.b for name, part in parts.items()}
        return Update(first.a, np.concatenate([columns[name] for name in widths], -1), lengths)
    return Update(np.concatenate([part.a for part in parts.values()], -1), _block_diagonal(parts, widths), lengths)


def _block_diagonal(parts: Mapping[str, Update], widths: Mapping[str, int]) -> np.ndarray:
    """Each part's B in rows and columns of its own."""
    ends = dict(zip(widths, np.cumsum(list(widths.values()))))
    blocks = []
    for name, part in parts.items():
        before = ends[name] - widths[name]
        blocks.append(np.pad(part.b, [(0, 0), (0, 0), (before, sum(widths.values()) - ends[name])]))
    return np.concatenate(blocks, 1)


def parted(update: Update, widths: Mapping[str, int]) -> dict[str, Update]:
    """The adapters of the parts of a joined matrix: B by its columns, A for each; the other way of ``joined``.

    A part whose B is 0 where another's is not was not trained and is left out. Where B is block-diagonal each part
    keeps its own block's rank.

    Args:
        update: of the joined matrix.
        widths: outputs of each part, in their order in the matrix.

    >>> found = parted(Update(np.ones((1, 2, 1)), np.array([[[3.0, 0.0, 0.0]]])), {"gate": 1, "up": 2})
    >>> list(found), found["gate"].b.tolist()
    (['gate'], [[[3.0]]])
    """
    columns = _split(update.b, widths)
    lengths = dict.fromkeys(widths) if update.m is None else _split(update.m, widths)
    used = {name: (b != 0).any((0, 2)) for name, b in columns.items()}
    trained = [name for name in widths if used[name].any()]
    kept = trained if trained and update.m is None else list(widths)
    blocks = _blocks({name: used[name] for name in kept})
    return {
        name: Update(update.a[..., block], columns[name][:, block], lengths[name]) for name, block in blocks.items()
    }


def _split(whole: Any, widths: Mapping[str, int]) -> dict[str, Any]:
    """The parts of the last axis by name."""
    return dict(zip(widths, np.split(whole, np.cumsum(list(widths.values()))[:-1], -1)))


def _blocks(used: Mapping[str, np.ndarray]) -> dict[str, slice]:
    """Which of the ranks are each part's: its own equal share where none uses another's, else all of them."""
    rank = len(next(iter(used.values())))
    size = rank // len(used)
    shares = {name: slice(place * size, (place + 1) * size) for place, name in enumerate(used)}
    apart = len(used) > 1 and size * len(used) == rank and all(each.any() for each in used.values())
    if apart and not any(np.delete(used[name], share).any() for name, share in shares.items()):
        return shares
    return dict.fromkeys(used, slice(None))


def padded(update: Update, rank: int) -> Update:
    """The same adapter in a higher rank: columns of A and rows of B that are 0, whose gradients are 0 too.

    Args:
        update: of at most that rank.
        rank: that is wanted.

    >>> padded(Update(np.ones((1, 2, 1)), np.ones((1, 1, 3))), 2).a.tolist()
    [[[1.0, 0.0], [1.0, 0.0]]]
    """
    more = rank - update.a.shape[-1]
    if not more:
        return update
    a = np.pad(update.a, [(0, 0), (0, 0), (0, more)])
    return Update(a, np.pad(update.b, [(0, 0), (0, more), (0, 0)]), update.m)
