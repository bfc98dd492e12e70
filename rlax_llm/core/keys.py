"""Keys of random numbers from whole numbers, found on the host: they are few numbers, and no program is compiled.

That is so of Threefry, JAX's own generator; the keys of another one are made by a program each.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import Tracer

_THREEFRY = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, of the rounds by turns
_PARITY = np.uint32(0x1BD11BDA)
_BITS = 32
_FOURS = 5  # of rounds

_seeded = jax.jit(jax.random.key)


@jax.jit
def _folded(key: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers) if numbers.ndim else jax.random.fold_in(key, numbers)


def threefry(key: tuple[Any, Any], block: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 of 20 rounds, as JAX hashes with it (Salmon et al. 2011, "Parallel random numbers").

    A round is ``x ← x + y``, ``y ← rotated(y) ⊕ x``; behind every four of them the words of the key are added in turn.

    Args:
        key: its two words, uint32.
        block: two words ``[…]`` each, uint32.

    Returns:
        The two words of each.

    >>> [int(word) for word in threefry((0, 0), (0, 0))] == [0x6B200159, 0x99BA4EFE]
    True
    """
    words = [np.uint32(word) for word in key]
    words.append(words[0] ^ words[1] ^ _PARITY)
    x, y = (np.atleast_1d(np.asarray(word, np.uint32)) + own for word, own in zip(block, words[:2], strict=True))
    for four in range(_FOURS):
        for bits in _ROTATIONS[four % 2]:
            x = x + y
            y = (y << np.uint32(bits) | y >> np.uint32(_BITS - bits)) ^ x
        x = x + words[(four + 1) % 3]
        y = y + words[(four + 2) % 3] + np.uint32(four + 1)
    shape = np.shape(block[1])
    return x.reshape(shape), y.reshape(shape)


def seeded(seed: int) -> jax.Array:
    """``jax.random.key``, which compiles two programs.

    >>> bool(seeded(2**32 - 1) == jax.random.key(2**32 - 1))
    True
    """
    if jax.config.jax_default_prng_impl != _THREEFRY:  # pyright: ignore[reportAttributeAccessIssue]
        return _seeded(np.uint32(seed))
    return _wrapped(np.array([0, seed], np.uint32))


def folded(key: jax.Array, numbers: Any) -> jax.Array:
    """``jax.random.fold_in``, which compiles two programs, of one number or of each of several.

    Args:
        key: a typed PRNG key.
        numbers: a whole number, or ``[N]`` of them, from 0 to 2³² − 1.

    >>> bool(folded(seeded(0), 2**31) == jax.random.fold_in(jax.random.key(0), 2**31))
    True
    """
    numbers = np.asarray(numbers).astype(np.uint32)
    if not _is_at_hand(key):
        return _folded(key, numbers)
    words: Any = np.asarray(jax.random.key_data(key))
    return _wrapped(np.stack(threefry((words[0], words[1]), (np.zeros_like(numbers), numbers)), -1))


def _is_at_hand(key: jax.Array) -> bool:
    """Whether the words of the key are known, and what they are of is Threefry."""
    if isinstance(key, Tracer) or not key.is_fully_addressable:
        return False
    return str(jax.random.key_impl(key)) == _THREEFRY


def _wrapped(words: np.ndarray) -> jax.Array:
    return jax.random.wrap_key_data(words, impl=_THREEFRY)  # pyright: ignore[reportArgumentType]
