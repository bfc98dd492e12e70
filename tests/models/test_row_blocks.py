"""Blocks of rows that are sorted by expert: each row is in one, and experts are few blocks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models.row_blocks import Block, ladder_of, over_blocks

SIZES = [0, 1, 13, 5, 0, 3, 6, 25, 2]


def literal(ladder, sizes):
    """The blocks of each expert by hand: ``(expert, first row, rows, size)``, of all."""
    found = []
    for expert, count in enumerate(sizes):
        start, left = sum(sizes[:expert]), count
        while left > 0:
            size = min((size for size in ladder if size >= left), default=ladder[-1])
            found.append((expert, start, min(size, left), size))
            start, left = start + size, left - size
    return found


@pytest.mark.parametrize("ladder", [(4,), (2, 3, 6)])
def test_every_row_is_in_one_block_of_its_expert(ladder):
    def written(carry, block: Block):
        count, found = carry
        size = block.there.shape[0]
        row = jnp.stack([block.expert, block.start, block.there.sum(), jnp.int32(size)])
        return count + 1, found.at[count].set(row)

    room = jnp.zeros((40, 4), jnp.int32)
    count, found = over_blocks(ladder, 60, jnp.array(SIZES, jnp.int32), written, (jnp.int32(0), room))
    assert sorted(map(tuple, found[:count].tolist())) == literal(ladder, SIZES)


def test_most_experts_are_one_block_with_little_padding():
    random = np.random.default_rng(0)
    for mean in (64, 256):
        sizes = random.poisson(mean, 64)
        blocks = literal(ladder_of(64 * mean, 64), sizes.tolist())
        assert len(blocks) <= 64 + 2
        assert sum(size for *_, size in blocks) <= 1.1 * sizes.sum()


def test_sizes_are_few_and_cover_what_is_large():
    assert ladder_of(5, 64) == (1, 4, 8)
    assert ladder_of(10**6, 8) == ladder_of(256 * 8, 8)
    assert max(len(ladder_of(rows, 8)) for rows in range(1, 4_000, 37)) <= 8
