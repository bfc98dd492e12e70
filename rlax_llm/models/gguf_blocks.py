"""The blocks of a GGUF file's quantized tensors as ``Blocks``, number for number what llama.cpp reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlax_llm.models.blocks import Blocks

_SIZE = 32  # weights of a block
_HALF = 2  # bytes of a float16
_ROWS_OF_SUPER = 8  # blocks of a superblock of 256
_TWICE_E2M1 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, -0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0)
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


def stacked(layers: Sequence[Blocks]) -> Blocks:
    """The same matrix of all layers, on a first axis.

    Args:
        layers: of one kind; ``alike`` makes them so.
    """
    return jax.tree.map(lambda *parts: np.stack(parts), *layers)


def alike(layers: Sequence[Blocks]) -> list[Blocks]:
    """Matrices of several kinds in one form, the same numbers: codes of 8 bits in the smallest of their blocks.

    Limiting case: of one kind they stay as they are.

    Args:
        layers: of one shape.

    >>> rows = np.zeros((1, 34), np.uint8), np.zeros((1, 18), np.uint8)
    >>> found = alike([blocks_of("Q8_0", rows[0]), blocks_of("Q4_0", rows[1])])
    >>> [(layer.bits, layer.levels, layer.codes[0, 0].item()) for layer in found]
    [(8, (), 0), (8, (), -8)]
    """
    if len({jax.tree.structure(layer) for layer in layers}) == 1:
        return list(layers)
    size = min(layer.block for layer in layers)
    scales = _scales_alike([layer.scales for layer in layers], [layer.block // size for layer in layers])
    offsets: list[Any] = [None] * len(layers)
    if any(layer.offsets is not None for layer in layers):
        none = [_zeros(layer.scales) if layer.offsets is None else layer.offsets for layer in layers]
        offsets = _scales_alike(none, [layer.block // size for layer in layers])
    codes = map(_codes_of_8_bits, layers)
    return [Blocks(*parts, block=size) for parts in zip(codes, scales, offsets)]


def _codes_of_8_bits(layer: Blocks) -> np.ndarray:
    codes = np.asarray(layer.codes)
    if layer.bits == 4:
        by_block = codes.reshape(-1, layer.block // 2, codes.shape[-1])
        codes = np.concatenate([by_block & 15, by_block >> 4], 1).reshape(-1, codes.shape[-1])
    return np.asarray(layer.levels, np.int8)[codes] if layer.levels else codes.astype(np.int8)


def _scales_alike(scales: Sequence[Any], times: Sequence[int]) -> list[Any]:
    """Scales in one form, each as often as its block has of the smaller ones."""
    if all(isinstance(each, Blocks) for each in scales):
        found = []
        for each, count in zip(scales, times):
            codes = np.repeat(np.asarray(each.codes).astype(np.int8), count, 0)
            found.append(Blocks(codes, each.scales, block=each.block * count))
        return found
    # A float16 times a code of at most 8 bits is a float32, exactly.
    wide = [np.asarray(each.wide() if isinstance(each, Blocks) else each) for each in scales]
    dtype = np.result_type(*wide)
    return [np.repeat(each.astype(dtype), count, 0) for each, count in zip(wide, times)]


def _zeros(scales: Any) -> Any:
    return jax.tree.map(np.zeros_like, scales)


def columns(blocks: Blocks, order: np.ndarray | slice) -> Blocks:
    """Some of the outputs, or in another order."""
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


def _mxfp4(data: np.ndarray) -> Blocks:
    """Twice the levels of E2M1, and half of a scale that is a power of 2; the one that is no number stays none."""
    exponents, codes = _split(data, 1, _SIZE // 2)
    powers = np.ldexp(np.float32(1), exponents[..., 0].astype(np.int32) - 128)
    scales = np.where(exponents[..., 0] == 255, np.float32(np.nan), powers)
    return Blocks(_transposed(codes), np.ascontiguousarray(scales.T), bits=4, block=_SIZE, levels=_TWICE_E2M1)


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


def _fifth_bits(high: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """A bit of each code of the blocks, ``[out, blocks, codes]``, as 16."""
    found = high[..., None, :] >> shifts[:, None] & 1
    return (found.reshape(*found.shape[:2], -1) << 4).astype(np.uint8)


def _five_bits(high: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Codes of blocks of 32: four bits, the low halves of bytes first, and a fifth apart."""
    words = np.ascontiguousarray(high).view(np.uint32)
    lower = codes[..., None, :] >> np.array([0, 4], np.uint8)[:, None] & 15
    return lower.reshape(*lower.shape[:2], -1) | _fifth_bits(words, np.arange(_SIZE, dtype=np.uint32))


def _q5_0(data: np.ndarray) -> Blocks:
    scales, high, codes = _split(data, _HALF, 4, _SIZE // 2)
    return Blocks(_transposed(_five_bits(high, codes)).astype(np.int8) - 16, _halves(scales), block=_SIZE)


def _q5_1(data: np.ndarray) -> Blocks:
    scales, lowest, high, codes = _split(data, _HALF, _HALF, 4, _SIZE // 2)
    found = _transposed(_five_bits(high, codes)).view(np.int8)
    return Blocks(found, _halves(scales), _halves(lowest), block=_SIZE)


def _q5_k(data: np.ndarray) -> Blocks:
    """Superblocks as Q4_K's with a fifth bit apart; codes take 8 bits here."""
    own, lowest, packed, high, codes = _split(data, _HALF, _HALF, 12, 32, 128)
    lower = codes.reshape(*codes.shape[:2], 4, 1, _SIZE) >> np.array([0, 4], np.uint8)[:, None] & 15
    found = lower.reshape(*codes.shape[:2], -1) | _fifth_bits(high, np.arange(8, dtype=np.uint8))
    scale_codes, lowest_codes = _six_bits(packed)
    scales = Blocks(_transposed(scale_codes), _halves(own), block=_ROWS_OF_SUPER)
    offsets = Blocks(_transposed(lowest_codes), -_halves(lowest), block=_ROWS_OF_SUPER)
    return Blocks(_transposed(found).view(np.int8), scales, offsets, block=_SIZE)


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
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "MXFP4": _mxfp4,
}
"""What makes blocks of each kind of tensor, by the name that the ``gguf`` package gives it."""
