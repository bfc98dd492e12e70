"""MXFP4 (OCP Microscaling Formats, version 1.0): numbers of 4 bits, and one scale for each 32 of them.

gpt-oss keeps its experts in it. They are made wide as they are read: nothing is computed in it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlax_llm.models.tensors import Held, Tensor

BLOCK = 32  # numbers that share a scale
_BYTES = BLOCK // 2
_BIAS, _NONE = 127, 255  # of a scale's exponent, and the scale that is no number
_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_CODES = np.concatenate([_LEVELS, -_LEVELS])
_PAIRS = np.stack([np.tile(_CODES, 16), np.repeat(_CODES, 16)], -1)  # of each byte: the lower half is first
_NAMES = ("_blocks", "_scales")


def mxfp4_numbers(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """``level · 2^(scale − 127)``, where a level has one bit of sign, two of exponent and one of fraction (E2M1).

    Limiting case: with scales of 127 the levels 0, ½, 1, 1½, 2, 3, 4 and 6 and their negatives.

    Args:
        codes: ``[…, N, 16]`` uint8, two levels each, the first one in the lower half.
        scales: ``[…, N]`` uint8 (E8M0); 255 is no number.

    Returns:
        ``[…, 32 · N]`` float32.

    >>> mxfp4_numbers(np.full((1, 16), 0xF1, np.uint8), np.array([128], np.uint8))[:4].tolist()
    [1.0, -12.0, 1.0, -12.0]
    """
    levels = _PAIRS[codes].reshape(*codes.shape[:-1], BLOCK)
    with np.errstate(over="ignore"):  # what is too large is infinite, and refused where numbers are checked
        powers = np.ldexp(np.float32(1), scales.astype(np.int32) - _BIAS)
        wide = levels * np.where(scales == _NONE, np.float32(np.nan), powers)[..., None]
    return wide.reshape(*scales.shape[:-1], -1)


class Mxfp4(NamedTuple):
    """A tensor in two: codes and scales of ``[…, out, in]``. What is read of it is wide, and ``[…, in, out]``.

    Attributes:
        name: without what the two have behind it.
        blocks: ``[…, out, N, 16]``.
        scales: ``[…, out, N]``.
    """

    name: str
    blocks: Tensor
    scales: Tensor

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.blocks.path

    @property
    def dtype(self) -> str:
        """As safetensors would call it."""
        return "MXFP4"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the numbers."""
        *front, out, count, _ = self.blocks.shape
        return (*front, count * BLOCK, out)

    def part(self, bounds: tuple[slice, ...]) -> np.ndarray:
        """A part of the numbers; no more blocks are read than hold it."""
        *front, into, out = bounds
        first, last = into.start // BLOCK, -(-into.stop // BLOCK)
        held = (*front, out, slice(first, last))
        wide = mxfp4_numbers(self.blocks.part((*held, slice(0, _BYTES))), self.scales.part(held))
        return wide[..., into.start - first * BLOCK : into.stop - first * BLOCK].swapaxes(-1, -2)


def with_mxfp4(tensors: Mapping[str, Tensor]) -> dict[str, Held]:
    """The tensors of a model, each pair of codes and scales as one.

    Raises:
        ValueError: where one of a pair is missing, or they do not belong together.

    >>> with_mxfp4({})
    {}
    """
    found: dict[str, Held] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in _NAMES if name.endswith(f"_proj{ending}")), None)
        if ending is None:
            found[name] = tensor
            continue
        own = name.removesuffix(ending)
        pair = [tensors.get(own + each) for each in _NAMES]
        blocks, scales = pair
        if blocks is None or scales is None:
            absent = own + _NAMES[pair.index(None)]
            raise ValueError(
                f"{tensor.path}: tensor {name} is there and {absent} is not, wanted both; download the model again."
            )
        _check_pair(blocks, scales)
        found[own] = Mxfp4(own, blocks, scales)
    return found


def _check_pair(blocks: Tensor, scales: Tensor) -> None:
    for tensor in (blocks, scales):
        if tensor.dtype != "U8":
            raise ValueError(
                f"{tensor.path}: tensor {tensor.name} has dtype {tensor.dtype}, wanted U8 (MXFP4); download the model "
                "again."
            )
    if blocks.shape != (*scales.shape, _BYTES):
        raise ValueError(
            f"{blocks.path}: tensor {blocks.name} has shape {blocks.shape}, wanted {(*scales.shape, _BYTES)}, as its "
            "scales have it; download the model again."
        )
