"""Keys of random numbers from whole numbers, by one program each."""

from __future__ import annotations

import jax
import numpy as np

_seeded = jax.jit(jax.random.key)
_folded = jax.jit(jax.random.fold_in)


def seeded(seed: int) -> jax.Array:
    """``jax.random.key``, which compiles two programs.

    >>> bool(seeded(2**32 - 1) == jax.random.key(2**32 - 1))
    True
    """
    return _seeded(np.uint32(seed))


def folded(key: jax.Array, number: int) -> jax.Array:
    """``jax.random.fold_in``, which compiles two programs.

    >>> bool(folded(seeded(0), 2**31) == jax.random.fold_in(jax.random.key(0), 2**31))
    True
    """
    return _folded(key, np.uint32(number))
