"""Keys that are found on the host are JAX's own."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rlax_llm.core.keys import folded, seeded, threefry
from rlax_llm.host.compiled import compiled

SEEDS = (0, 7, 2**31, 2**32 - 1)
NUMBERS = np.array([0, 1, 511, 2**31 - 1, 2**31, 2**32 - 1])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_those_of_jax(impl):
    """A literal of the generator, against JAX's live; of another one JAX's programs are called."""
    before = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_default_prng_impl", impl)
    try:
        for seed in SEEDS:
            key = jax.random.key(np.uint32(seed))
            assert seeded(seed) == key
            rows = folded(key, NUMBERS)
            assert rows.shape == NUMBERS.shape
            for number, row in zip(NUMBERS, rows, strict=True):
                wanted = jax.random.fold_in(key, np.uint32(number))
                assert row == wanted
                assert folded(key, int(number)) == wanted
                assert jax.jit(folded, static_argnums=1)(key, int(number)) == wanted
    finally:
        jax.config.update("jax_default_prng_impl", before)


def test_the_words_are_those_of_the_paper():
    """The known answers that its authors publish with the generator, of 20 rounds."""
    ones = 2**32 - 1
    assert [int(word) for word in threefry((0, 0), (0, 0))] == [0x6B200159, 0x99BA4EFE]
    assert [int(word) for word in threefry((ones, ones), (ones, ones))] == [0x1CB996FC, 0xBB002BE7]
    of_pi = threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3))
    assert [int(word) for word in of_pi] == [0xC4923A9C, 0x483DF7A0]


def test_no_program_is_compiled():
    jax.clear_caches()
    before = compiled()
    folded(folded(seeded(3), 5), np.arange(4))
    assert not compiled().since(before).programs
