"""Sizes that a generation may come to have: ladders of a few numbers of rows and of columns, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from rlax_llm.core.mesh import ROWS, devices_along
from rlax_llm.generation.cache import windowed
from rlax_llm.models.config import DecoderConfig

FIRST_ROOM = 64  # completion tokens; no cache is smaller
ROOMS = (1 / 4, 1 / 2, 1)  # of the limit
LARGER = 1.5  # times a room, what the next one is at least
FEWER = (
    (5 / 8, 3 / 8),
    (5 / 8, 1),
    (3 / 8, 1 / 2),
    (1 / 4, 1),
    (1 / 8, 1),
    (1 / 16, 1),
)  # shares of the rows and of the limit
FEWER_OF_FEW = ((5 / 8, 1), (3 / 8, 1), (1 / 4, 1), (1 / 8, 1))  # of few rows, which take little memory
FEW = 48  # rows of a device at first
FEWER_ROWS = 0.8  # of the rows of another size with as many columns: what one may have, to be worth a program
FEWEST = 4  # rows of a device; fewer cost as much, where the weights are read at every token
ENTERING = 1 / 8  # of the slots: that many must be free before others enter
PRODUCTS = 8  # products with a weight that cost as much as a number of a key that is read
LEAST = 2e9  # numbers of weights that a generation reads: below it deciding on steps costs more than they do
LEAVING = 1 / 4  # of it, keys counted in: below that rows that leave save too little for the programs that they take
WORTH = 0.95  # of what a step costs: what one with fewer rows may cost, for them to be moved


def room_of(limit: int, share: float) -> int:
    """Columns that the cache has for a share of a completion of at most ``limit`` tokens.

    >>> room_of(1024, 1 / 4), room_of(100, 1 / 4), room_of(20, 1 / 4)
    (256, 64, 20)
    """
    return min(limit, max(FIRST_ROOM, math.ceil(limit * share)))


def rooms(limit: int) -> list[int]:
    """Columns that the cache of completions of at most ``limit`` tokens has, one after the other, with all rows.

    >>> rooms(1024), rooms(100)
    ([256, 512, 1024], [64, 100])
    """
    found: list[int] = []
    for share in ROOMS:
        if not found or room_of(limit, share) >= LARGER * found[-1]:
            found.append(room_of(limit, share))
    return sorted({*found, limit})


Size = tuple[int, int]
"""Rows, and columns of completions."""


class Ladder(NamedTuple):
    """Sizes that a generation's state may come to have, and what a step of each costs.

    Each way from one size to another is a program, so there are few, whatever the lengths: each size has one way to
    fewer rows and one to more columns. While rows leave, the others' columns grow, so that the cache keeps about its
    size; of few rows those that stay have all columns.

    Attributes:
        rows: at first.
        rooms: columns with all rows, one after the other; the last are the limit's.
        sizes: those with fewer rows, most rows first, and of as many rows the fewest columns first.
        weights: what one row's products with the weights cost, in keys that are read.
        width: columns of a prompt.
    """

    rows: int
    rooms: tuple[int, ...]
    sizes: tuple[Size, ...]
    weights: float
    width: int

    def after(self, size: Size, going: int, longest: int, prompts: int) -> Size:
        """The size to go on with.

        Args:
            size: the present one.
            going: rows that go on.
            longest: tokens of the longest of them, with the next one.
            prompts: that the rows share.
        """
        fewer = self.fewer(size, prompts)
        if fewer is not None and fewer[0] >= going and fewer[1] >= longest:
            return fewer
        rows, room = size
        if longest <= room:
            return size
        return rows, self.longer(longest) if rows == self.rows else self.rooms[-1]

    def longer(self, longest: int) -> int:
        """The fewest columns with all rows that hold so many tokens."""
        return next(room for room in self.rooms if room >= longest)

    def fewer(self, size: Size, prompts: int) -> Size | None:
        """The next size with fewer rows, each of them with its prompt to itself, that is worth moving to; or None.

        Args:
            size: the present one.
            prompts: that its rows share.
        """
        rows, room = size
        now = rows * (self.weights + room) + prompts * self.width
        worth = (one for one in self.sizes if one[0] < rows and one[1] >= room and self.cost(one) <= WORTH * now)
        return next(worth, None)

    def cost(self, size: Size) -> float:
        """What a step of so many rows and columns costs, in keys that are read."""
        rows, room = size
        return rows * (self.weights + room + self.width)


Sizes = Callable[[DecoderConfig, int, int, int], Ladder]
"""``(config, rows, columns of a prompt, limit) → Ladder``."""


def one_size(config: DecoderConfig, rows: int, width: int, limit: int) -> Ladder:
    """All rows with all columns, from the first token to the last: one program, whatever the lengths.

    Args:
        config: shapes.
        rows: at first.
        width: columns of a prompt.
        limit: tokens of the longest completion.
    """
    return Ladder(rows, (limit,), (), _products(config) / _keys(config), width)


def ladder(config: DecoderConfig, rows: int, width: int, limit: int) -> Ladder:
    """The sizes of a generation whose rows leave.

    None has fewer rows where it is so little work that it would not pay, or where devices do not divide the rows.

    Args:
        config: shapes.
        rows: at first.
        width: columns of a prompt.
        limit: tokens of the longest completion.

    >>> small, large = DecoderConfig(64, 16, 32, 2, 2, 1, 8), DecoderConfig(50_000, 576, 1536, 30, 9, 3, 64)
    >>> ladder(small, 64, 8, 99).sizes, ladder(large, 64, 8, 256).sizes
    ((), ((40, 96), (40, 256), (24, 128), (16, 256), (8, 256), (4, 256)))
    >>> ladder(large, 32, 8, 256).sizes
    ((20, 256), (12, 256), (8, 256), (4, 256))
    """
    devices = devices_along(*ROWS)
    shares = FEWER_OF_FEW if rows <= FEW * devices else FEWER
    sizes = {
        (max(FEWEST, math.ceil(rows * part / devices)) * devices, _enough(config, room_of(limit, share), limit))
        for part, share in shares
    }
    read = rows * limit * (_products(config) + _keys(config) * limit / 2)
    if rows % devices or read < LEAVING * LEAST:
        sizes = set()
    whole = one_size(config, rows, width, limit)
    return whole._replace(rooms=tuple(rooms(limit)), sizes=tuple(_apart(sizes)))


def _apart(sizes: set[Size]) -> list[Size]:
    """Of sizes with as many columns those whose rows differ by enough; most rows first, then fewest columns.

    >>> _apart({(48, 64), (40, 96), (40, 64), (24, 64)})
    [(48, 64), (40, 96), (24, 64)]
    """
    found: list[Size] = []
    for rows, room in sorted(sizes, key=lambda size: (-size[0], size[1])):
        if not any(room == other and rows > FEWER_ROWS * more for more, other in found):
            found.append((rows, room))
    return found


def _enough(config: DecoderConfig, room: int, limit: int) -> int:
    """The room, or the limit where all layers keep their windows alone, which are the same columns."""
    return limit if windowed(config, room) == windowed(config, limit) else room


def is_work(config: DecoderConfig, rows: int, limit: int) -> bool:
    """Whether steps of so many rows and tokens cost more than deciding on them does."""
    return rows * _products(config) * limit >= LEAST


def _products(config: DecoderConfig) -> float:
    """What the products of a row with the weights cost, in numbers that are read."""
    return weights_of(config) / PRODUCTS


def _keys(config: DecoderConfig) -> int:
    """The numbers of a token's keys and values."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim


def weights_of(config: DecoderConfig) -> int:
    """The number of a model's weights.

    >>> weights_of(DecoderConfig(5, 2, 3, 1, 1, 1, 2))
    50
    """
    shapes = jax.tree.leaves(config.parameter_shapes, is_leaf=lambda x: isinstance(x, tuple))
    return sum(map(math.prod, shapes))


def entering_prompts(slots: int, group_size: int, devices: int = 1) -> int:
    """Prompts that enter together: a part of the slots, equally many on each device.

    >>> entering_prompts(64, 4), entering_prompts(8, 8)
    (2, 1)
    """
    return max(round(slots * ENTERING / group_size / devices), 1) * devices
