"""Sizes of a generation: few ways from one to another, whatever the lengths, and always room for what goes on."""

from __future__ import annotations

from collections import Counter

import pytest

from rlax_llm.generation.ladders import Ladder, Size, ladder
from rlax_llm.models.config import DecoderConfig

CONFIG = DecoderConfig(50_000, 576, 1536, 30, 9, 3, 64)


def ways_of(found: Ladder, prompts: int) -> set[tuple[Size, Size]]:
    """Those that some rows of some lengths may take, from all rows with the first columns on."""
    begins = (found.rows, found.rooms[0])
    taken: set[tuple[Size, Size]] = set()
    known, left = {begins}, [begins]
    while left:
        now = left.pop()
        shared = prompts if now[0] == found.rows else now[0]
        for going in range(1, now[0] + 1):
            for longest in {1, now[1], min(now[1] + 1, found.rooms[-1])}:
                after = found.after(now, going, longest, shared)
                assert after[0] >= going and after[1] >= longest, (now, going, longest)
                taken |= {(now, after)} - {(now, now)}
                left += {after} - known
                known.add(after)
    return taken


@pytest.mark.parametrize("width", [8, 64, 512, 4096])
@pytest.mark.parametrize("rows", [4, 8, 17, 32, 48, 49, 64, 100, 256, 1000])
@pytest.mark.parametrize("limit", [16, 64, 100, 150, 256, 1000, 8192])
def test_few_ways_whatever_the_lengths(rows, limit, width):
    """Each is a program: at most eight of few rows and thirteen of many."""
    found = ladder(CONFIG, rows, width, limit)
    ways = ways_of(found, max(rows // 8, 1))
    assert len(ways) <= (8 if rows <= 48 else 13), sorted(ways, reverse=True)
    fewer = Counter(now for now, after in ways if after[0] < now[0])
    longer = Counter(now for now, after in ways if after[0] == now[0])
    assert max((fewer | longer).values(), default=1) == 1, sorted(ways, reverse=True)


def test_rows_leave_one_size_after_another():
    found = ladder(CONFIG, 64, 64, 1024)
    assert found.after((64, 256), 41, 200, 8) == (64, 256)
    assert found.after((64, 256), 40, 200, 8) == (40, 384)
    assert found.after((64, 256), 5, 200, 8) == (40, 384)
    assert found.after((64, 256), 41, 257, 8) == (64, 512)
    assert found.after((40, 384), 25, 385, 40) == (40, 1024)
    assert found.after((40, 1024), 16, 600, 40) == (16, 1024)
    assert found.after((4, 1024), 1, 1024, 4) == (4, 1024)


def test_long_prompts_are_not_copied_for_little():
    """A group shares its prompt until so many rows have ended that a copy for each of the others is worth it."""

    def fewer(width: int) -> list[int]:
        found = ladder(CONFIG, 800, width, 2000)
        size, prompts, seen = (800, 2000), 100, []
        while (after := found.fewer(size, prompts)) is not None:
            size, prompts = after, after[0]
            seen.append(size[0])
        return seen

    assert fewer(8) == [500, 200, 100, 50]
    assert fewer(10_000) == [200, 100, 50]
    assert fewer(30_000) == [100, 50]
