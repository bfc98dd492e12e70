"""A frozen base in 4 or 8 bits: blocks of codes with scales, which a product widens on its way and never keeps.

The QLoRA of arXiv 2305.14314: adapters are trained over a base that is only read. One layer's matrices are wide at a
time, on the way forth and again on the way back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.models.config import TARGETS
from rlax_llm.models.functional import Params
from rlax_llm.models.narrow import EXPERTS, narrowed

BLOCK = 64
"""Inputs that share a scale in NF4."""
SCALES_BLOCK = 256
"""Scales of NF4 that share a scale of their own."""
# Of the normal distribution, 0 among them: appendix E of the paper.
NF4_LEVELS = (
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453)
    + (-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0)
    + (0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
    + (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
)
FORMATS = ("int8", "nf4")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "offsets"),
    meta_fields=("bits", "block", "levels"),
)
@dataclass(frozen=True)
class Blocks:
    """A matrix ``[…, in, out]`` of ``levels[code] · scale + offset``: a scale for each block of inputs of each output.

    Limiting case: int8 with one block of all inputs is ``Narrow``. NF4 is one, and so are Q4_0, Q4_1, Q8_0, Q4_K and
    Q6_K of GGUF files; scales may be in blocks of codes themselves.

    Attributes:
        codes: ``[…, in, out]`` int8 or uint8; of 4 bits ``[…, in / 2, out]``, the low halves of a block's bytes before
            the high ones, as GGUF has them.
        scales: ``[…, in / block, out]``, an array or blocks; or blocks ``[…, 256, K]`` of them all, output by output,
            the last ones padded.
        offsets: as ``scales``, or of 1 along an axis; None is 0.
        bits: of a code, 4 or 8.
        block: inputs that share a scale.
        levels: that codes stand for; empty where they are numbers themselves.
    """

    codes: Any
    scales: Any
    offsets: Any = None
    bits: int = field(default=8, kw_only=True)
    block: int = field(default=BLOCK, kw_only=True)
    levels: tuple[float, ...] = field(default=(), kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix."""
        *outer, rows, columns = self.codes.shape
        return *outer, rows * 8 // self.bits, columns

    @property
    def ndim(self) -> int:
        """Its axes."""
        return self.codes.ndim

    @property
    def dtype(self) -> jnp.dtype:
        """What it is widened to: float32."""
        return jnp.dtype(jnp.float32)

    def wide(self) -> jax.Array:
        """The matrix itself, in float32."""
        *outer, rows, columns = self.shape
        codes = jnp.asarray(self.codes).reshape(*outer, rows // self.block, -1, columns)
        if self.bits == 4:
            codes = jnp.concatenate([codes & 15, codes >> 4], -2)
        found = _levels_of(codes, self.levels) * self._laid(self.scales)
        if self.offsets is not None:
            found = found + self._laid(self.offsets)
        return found.reshape(self.shape)

    def _laid(self, scales: Any) -> jax.Array:
        """Scales, or offsets, with an axis for the inputs of a block."""
        found = scales.wide() if isinstance(scales, Blocks) else jnp.asarray(scales, jnp.float32)
        *outer, rows, columns = self.shape
        size = (rows // self.block, columns)
        if isinstance(scales, Blocks) and found.shape[-2:] != size:
            # All of a matrix one after the other, output by output: the last ones fill up a block.
            in_order = found.swapaxes(-1, -2).reshape(*outer, -1)[..., : math.prod(size)]
            found = in_order.reshape(*outer, *size[::-1]).swapaxes(-1, -2)
        return found[..., None, :]


def _levels_of(codes: jax.Array, levels: tuple[float, ...]) -> jax.Array:
    """What codes stand for, in float32."""
    if not levels:
        return codes.astype(jnp.float32)
    return jnp.asarray(np.asarray(levels, np.float32))[codes]


@jax.custom_vjp
def blocks_product(x: jax.Array, weight: Blocks) -> jax.Array:
    """``x · weight``, whose slope is the product with the matrix that is widened once more; the weight has none.

    Limiting case: the product with ``weight.wide()``, rounded to x's dtype.

    Args:
        x: ``[N, in]``.
        weight: ``[in, out]``.

    Returns:
        ``[N, out]`` in x's dtype.

    >>> whole = Blocks(jnp.array([[1, 2], [3, 4]], jnp.int8), jnp.ones((1, 2)), block=2)
    >>> blocks_product(jnp.ones((1, 2)), whole).tolist()
    [[4.0, 6.0]]
    >>> jax.grad(lambda x: blocks_product(x, whole).sum())(jnp.ones((1, 2))).tolist()
    [[3.0, 7.0]]
    """
    x, matrix = _widened_at(x, weight)
    return x @ matrix


def _widened_at(x: jax.Array, weight: Blocks) -> tuple[jax.Array, jax.Array]:
    # Tied to x: a compiler would move the widening of what does not change out of a loop, and hold all layers wide.
    x, weight = jax.lax.optimization_barrier((x, weight))
    return x, weight.wide().astype(x.dtype)


def _forth(x: jax.Array, weight: Blocks) -> tuple[jax.Array, Blocks]:
    return blocks_product(x, weight), weight


def _back(weight: Blocks, slope: jax.Array) -> tuple[jax.Array, None]:
    slope, matrix = _widened_at(slope, weight)
    return slope @ matrix.T, None


blocks_product.defvjp(_forth, _back)


def dynamic_levels() -> tuple[float, ...]:
    """256 numbers from −1 to 1, as many in each power of ten as an exponent of 0 to 6 bits leaves a fraction
    (arXiv 1511.04561), which NF4's scales are kept in.

    >>> levels = dynamic_levels()
    >>> len(levels), levels[127], levels[-1], round(levels[-2], 4), round(levels[128], 10)
    (256, 0.0, 1.0, 0.993, 5.5e-07)
    """
    positive = []
    for power in range(7):
        bounds = np.linspace(0.1, 1.0, 2**power + 1, dtype=np.float32)
        positive += (np.float32(10.0 ** (power - 6)) * (bounds[:-1] + bounds[1:]) / 2).tolist()
    return tuple(sorted([*positive, *(-number for number in positive), 0.0, 1.0]))


def nf4(x: jax.Array) -> Blocks:
    """NF4 with its scales in 8 bits: 4.127 bits for each number (arXiv 2305.14314, section 3).

    ``s = max|x|`` of a block; a code is the level nearest to ``x / s``. The ``s`` of a matrix, less their mean, are in
    blocks of 256 of ``dynamic_levels``. As bitsandbytes has it where 64 divides the inputs; else a block has the
    largest power of two that does. Limiting case: what is on the levels of equal scales stays.

    Args:
        x: ``[…, in, out]`` floats; each matrix has a mean of its own.

    Raises:
        ValueError: for an odd number of inputs: two codes share a byte.

    >>> found = nf4(jnp.ones((64, 3)))
    >>> found.codes.shape, found.codes[0, 0].item(), found.scales.codes.shape, found.wide()[0].tolist()
    ((32, 3), 255, (256, 1), [1.0, 1.0, 1.0])
    """
    *outer, rows, columns = x.shape
    if rows % 2:
        raise ValueError(
            f"nf4: a matrix has {rows} inputs, wanted an even number; take int8 for this model (base_dtype)."
        )
    block = math.gcd(rows, BLOCK)
    codes, scales = _coded(x.reshape(*outer, rows // block, block, columns), NF4_LEVELS)
    packed = codes[..., : block // 2, :] | codes[..., block // 2 :, :] << 4
    packed = packed.reshape(*outer, rows // 2, columns)
    return Blocks(packed, _coded_scales(scales[..., 0, :]), bits=4, block=block, levels=NF4_LEVELS)


def _coded_scales(scales: jax.Array) -> Blocks:
    """Scales ``[…, in / block, out]`` in blocks of 256, output by output, about their mean."""
    *outer, rows, columns = scales.shape
    flat = scales.swapaxes(-1, -2).reshape(*outer, rows * columns)
    mean = flat.mean(-1, keepdims=True)
    padding = [(0, 0)] * len(outer) + [(0, -rows * columns % SCALES_BLOCK)]
    centered = jnp.pad(flat - mean, padding).reshape(*outer, -1, SCALES_BLOCK).swapaxes(-1, -2)
    codes, own = _coded(centered, dynamic_levels())
    return Blocks(codes, own, mean[..., None], block=SCALES_BLOCK, levels=dynamic_levels())


def _coded(x: jax.Array, levels: tuple[float, ...]) -> tuple[jax.Array, jax.Array]:
    """The nearest levels of ``x / s``, with ``s = max|x|`` over the axis before the last."""
    x = x.astype(jnp.float32)
    scales = jnp.abs(x).max(-2, keepdims=True)
    table = np.asarray(levels, np.float32)
    between = jnp.asarray((table[:-1] + table[1:]) / 2)
    codes = jnp.searchsorted(between, x / jnp.where(scales == 0, 1, scales), method="compare_all")
    return codes.astype(jnp.uint8), scales


def int8(x: jax.Array) -> Blocks:
    """int8 with a scale for each output, as a sampler's ``narrowed`` has it.

    >>> int8(jnp.array([[1.0, -0.5], [-127.0, 254.0]])).codes.tolist()
    [[1, 0], [-127, 127]]
    """
    values, scales = narrowed(x.astype(jnp.float32), "int8", -2)
    return Blocks(values, scales, block=x.shape[-2])


def _by_layer(quantized: Callable[[jax.Array], Blocks]) -> Callable[[jax.Array], Blocks]:
    """A layer at a time: what is wide on the way is of one layer's experts, not of all."""
    return jax.jit(lambda stack: jax.lax.map(quantized, stack))


_QUANTIZED = {"int8": _by_layer(int8), "nf4": _by_layer(nf4)}


def quantized_base(params: Params, dtype: str) -> Params:
    """A base with the matrices of its layers in blocks, those of experts too; embeddings, norms and routers stay.

    Args:
        params: of ``config.parameter_shapes``; a matrix whose blocks are there is needed no more.
        dtype: ``"int8"`` or ``"nf4"``.

    Raises:
        ValueError: for a format or a matrix that cannot be.
    """
    if dtype not in _QUANTIZED:
        raise ValueError(f"quantized_base: dtype is {dtype!r}, wanted {' or '.join(FORMATS)}.")
    layers = dict(params["layers"])
    for name in (*TARGETS, *EXPERTS):
        if name in layers and not isinstance(layers[name], Blocks):
            layers[name] = _QUANTIZED[dtype](layers[name])
    return params | {"layers": layers}


def dequantized(params: Params) -> Params:
    """The same parameters with every matrix wide, as arrays: for a merge or an export.

    Limiting case: without blocks nothing changes.

    >>> dequantized({"layers": {"q": int8(jnp.full((2, 1), 127.0))}})["layers"]["q"].tolist()
    [[127.0], [127.0]]
    """
    return jax.tree.map(_wide, params, is_leaf=_is_blocks)


def is_quantized(params: Params) -> bool:
    """Whether any matrix is in blocks."""
    return any(map(_is_blocks, jax.tree.leaves(params, is_leaf=_is_blocks)))


def _is_blocks(leaf: Any) -> bool:
    return isinstance(leaf, Blocks)


def _wide(leaf: Any) -> Any:
    return leaf.wide() if isinstance(leaf, Blocks) else leaf
