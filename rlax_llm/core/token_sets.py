"""Sets of tokens as bits, 32 per word: what a sampler kept of its vocabulary, in V/8 bytes per token.

Bit ``v % 32`` of word ``v // 32`` is the token v. Bits beyond the vocabulary are not read.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32  # bits
EVERY = np.uint32(0xFFFFFFFF)
"""A word of a set that holds every token: what stands where nothing was drawn."""


def words(vocabulary: int) -> int:
    """Words of a set.

    >>> words(32), words(33)
    (1, 2)
    """
    return -(-vocabulary // WORD)


def to_bits(members: Any) -> jax.Array:
    """Sets ``[…, V]`` bool as words ``[…, ceil(V/32)]`` uint32; ``members_of`` is the way back.

    Args:
        members: True for the tokens of the set.

    >>> to_bits(jnp.array([True, False, True])).tolist()
    [5]
    """
    members = jnp.asarray(members)
    vocabulary = members.shape[-1]
    beyond = [(0, 0)] * (members.ndim - 1) + [(0, -vocabulary % WORD)]
    parts = jnp.pad(members, beyond).reshape(*members.shape[:-1], words(vocabulary), WORD)
    weights = np.left_shift(np.uint32(1), np.arange(WORD, dtype=np.uint32))
    return jnp.where(parts, weights, np.uint32(0)).sum(-1, dtype=jnp.uint32)


def members_of(bits: jax.Array, vocabulary: int) -> jax.Array:
    """Words ``[…, ceil(V/32)]`` uint32 as sets ``[…, V]`` bool.

    Args:
        bits: of ``to_bits``.
        vocabulary: V.

    >>> members_of(jnp.array([5], jnp.uint32), 3).tolist()
    [True, False, True]
    """
    found = (bits[..., None] >> np.arange(WORD, dtype=np.uint32)) & np.uint32(1)
    return found.reshape(*bits.shape[:-1], -1)[..., :vocabulary] != 0


def are_bits(array: Any, shape: tuple[int, ...], vocabulary: int) -> bool:
    """Whether an array (or what is known of one) holds sets of tokens, one for each place of ``shape``.

    >>> are_bits(jnp.zeros((4, 2), jnp.uint32), (4,), 33), are_bits(jnp.zeros((4, 33), bool), (4,), 33)
    (True, False)
    """
    return array.dtype == jnp.uint32 and array.shape == (*shape, words(vocabulary))
