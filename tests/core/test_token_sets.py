from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.token_sets import EVERY, are_bits, members_of, to_bits, words


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 100, 257])
def test_bits_are_those_of_packbits_and_come_back(vocabulary):
    members = np.random.default_rng(vocabulary).random((3, 2, vocabulary)) < 0.4
    bits = jax.jit(to_bits)(members)
    assert are_bits(bits, (3, 2), vocabulary) and not are_bits(bits, (3,), vocabulary)
    expected = np.packbits(members, axis=-1, bitorder="little")
    found = np.asarray(bits).astype("<u4").view(np.uint8)
    np.testing.assert_array_equal(found[..., : expected.shape[-1]], expected)
    assert not found[..., expected.shape[-1] :].any()
    np.testing.assert_array_equal(members_of(bits, vocabulary), members)


def test_a_word_of_every_token():
    assert members_of(jnp.full((2, words(45)), EVERY), 45).all()
