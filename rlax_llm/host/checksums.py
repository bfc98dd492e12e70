"""A checksum of an array that does not depend on how the array lies over devices."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 2**16  # words
_WORDS = {1: "uint8", 2: "uint16", 4: "uint32"}


def checksum(array: np.ndarray | jax.Array) -> Any:
    """Σ over elements of a hash of the element's bits and its place, modulo 2³².

    The hash is a bijection of the bits at each place, so a change of one element is always found, and any other misses
    one time in 2³². As a sum, it may be taken over the parts of an array in any order: arrays on devices are summed
    there, each part where it lies.

    Args:
        array: any; on devices with elements of at most 4 bytes.

    Returns:
        A whole number; of an array on devices, one there.

    >>> a = np.arange(6, dtype=np.float32).reshape(2, 3)
    >>> checksum(a) == int(checksum(jnp.array(a))), checksum(a) == checksum(a[::-1])
    (True, False)
    """
    if isinstance(array, jax.Array):
        return _on_devices(array)
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view(_WORDS.get(flat.dtype.itemsize, "uint32"))
    total = 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32)
        places = np.arange(start, start + block.size, dtype=np.uint64).astype(np.uint32)
        total += int(_mixed(block, places).sum(dtype=np.uint64))
    return total % 2**32


@jax.jit
def _on_devices(array: jax.Array) -> jax.Array:
    places = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        places += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * np.uint32(stride)
    words = array.astype(jnp.uint8) if array.dtype == bool else array
    words = jax.lax.bitcast_convert_type(words, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    return _mixed(words, places).sum(dtype=jnp.uint32)


def _mixed(words: Any, places: Any) -> Any:
    """MurmurHash3's finalizer of the bits, moved by a multiple of the place."""
    mixed = words ^ (places * np.uint32(0x9E3779B1))
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
