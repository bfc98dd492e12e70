"""The blocks of a GGUF file's quantized tensors as ``Blocks``, number for number what llama.cpp reads."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from rlax_llm.models.blocks import Blocks

_SIZE = 32  # weights of a block
_HALF = 2  # bytes of a float16
_ROWS_OF_SUPER = 8  # blocks of a superblock of 256
_SIGNED = tuple(map(float, range(-8, 8)))


def blocks_of(kind: str, data: np.ndarray) -> Blocks:
    """The matrix ``[in, out]`` of a tensor, its numbers as they are in the file.

    Args:
        kind: one of ``KINDS``.
        data: ``[out, bytes of a row]`` uint8, as the ``gguf`` package has it.

    >>> row = np.concatenate([np.float16([0.5]).view(np.uint8), np.arange(32, dtype=np.uint8)])
    >>> blocks_of("Q8_0", row[None]).wide()[:3, 0].tolist()
    [0.0, 0.5, 1.0]
    """
    return KINDS[kind](data)


def stacked(layers: list[Blocks]) -> Blocks:
    """The same matrix of all layers, on a first axis.

    Args:
        layers: of one kind.
    """
    return jax.tree.map(lambda *parts: np.stack(parts), *layers)


def columns(blocks: Blocks, order: np.ndarray) -> Blocks:
    """The outputs in another order."""
    return jax.tree.map(lambda part: part[..., order], blocks)


def _split(data: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """The parts of each block, ``[out, blocks, size]``; the last one has the given number of bytes too."""
    by_block = np.ascontiguousarray(data).reshape(len(data), -1, sum(sizes))
    return np.split(by_block, np.cumsum(sizes)[:-1], -1)


def _halves(part: np.ndarray) -> np.ndarray:
    """Two bytes of each block as a float16, ``[blocks, out]``."""
    return np.ascontiguousarray(part).view(np.float16)[..., 0].T


def _transposed(codes: np.ndarray) -> np.ndarray:
    """``[out, blocks, n]`` as ``[blocks · n, out]``."""
    return np.ascontiguousarray(codes.reshape(len(codes), -1).T)


def _q8_0(data: np.ndarray) -> Blocks:
    scales, codes = _split(data, _HALF, _SIZE)
    return Blocks(_transposed(codes).view(np.int8), _halves(scales), block=_SIZE)


def _q4_0(data: np.ndarray) -> Blocks:
    scales, codes = _split(data, _HALF, _SIZE // 2)
    return Blocks(_transposed(codes), _halves(scales), bits=4, block=_SIZE, levels=_SIGNED)


def _q4_1(data: np.ndarray) -> Blocks:
    scales, lowest, codes = _split(data, _HALF, _HALF, _SIZE // 2)
    return Blocks(_transposed(codes), _halves(scales), _halves(lowest), bits=4, block=_SIZE)


def _q4_k(data: np.ndarray) -> Blocks:
    """Superblocks of eight blocks, whose scales and lowest numbers have 6 bits and share a float16."""
    own, lowest, packed, codes = _split(data, _HALF, _HALF, 12, 128)
    scale_codes, lowest_codes = _six_bits(packed)
    # Bytes hold two neighboring blocks; here the two halves of one.
    by_pair = codes.reshape(*codes.shape[:2], 4, 1, _SIZE) >> np.array([0, 4], np.uint8)[:, None] & 15
    by_half = by_pair.reshape(len(codes), -1, 2, _SIZE // 2)
    scales = Blocks(_transposed(scale_codes), _halves(own), block=_ROWS_OF_SUPER)
    lowest = Blocks(_transposed(lowest_codes), -_halves(lowest), block=_ROWS_OF_SUPER)
    return Blocks(_transposed(by_half[..., 0, :] | by_half[..., 1, :] << 4), scales, lowest, bits=4, block=_SIZE)


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight lowest numbers: four of each in whole bytes, whose upper bits are those of the others."""
    scales, lowest, rest = np.split(packed, 3, -1)
    return (
        np.concatenate([scales & 63, rest & 15 | scales >> 2 & 48], -1),
        np.concatenate([lowest & 63, rest >> 4 | lowest >> 2 & 48], -1),
    )


def _q6_k(data: np.ndarray) -> Blocks:
    """Superblocks of sixteen blocks of 16, whose scales are int8 and share a float16; codes take 8 bits here."""
    low, high, scales, own = _split(data, 128, 64, 16, _HALF)
    upper = high.reshape(*high.shape[:2], 2, 1, _SIZE) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    lower = low.reshape(*low.shape[:2], 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    codes = (lower.reshape(upper.shape) | upper << 4).view(np.int8) - 32
    own_scales = Blocks(_transposed(scales).view(np.int8), _halves(own), block=16)
    return Blocks(_transposed(codes.reshape(len(codes), -1, 16)), own_scales, block=16)


KINDS: dict[str, Callable[[np.ndarray], Blocks]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
"""What makes blocks of each kind of tensor, by the name that the ``gguf`` package gives it."""
