"""Bases in blocks of codes: literal transcriptions of NF4, limits, and what a product with one keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.trees import join_trees
from rlax_llm.models.blocks import (
    NF4_LEVELS,
    Blocks,
    blocks_product,
    dequantized,
    dynamic_levels,
    int8,
    is_quantized,
    nf4,
    quantized_base,
)
from rlax_llm.models.config import DecoderConfig, Experts, Lora
from rlax_llm.models.decoder import hidden_states, init_decoder, logits
from rlax_llm.models.lora import init_adapter, merge_adapter
from rlax_llm.models.narrow import EXPERTS, narrow_matrices, narrowed

CONFIG = DecoderConfig(31, 32, 48, 2, 4, 2, 8, biases=("q", "k", "v"))
MIXTURE = replace(CONFIG, experts=Experts(4, 2, 16), lora=Lora(2, 4.0, ("q", "o")))
RNG = np.random.default_rng(0)
MAKE = {"int8": int8, "nf4": nf4}
each = pytest.mark.parametrize("dtype", MAKE)


def nearest(levels, number: float) -> int:
    return int(np.argmin(np.abs(np.array(levels) - number)))


def literal(matrix: np.ndarray) -> np.ndarray:
    """Section 3 of the paper, output by output and block by block of 64: quantized twice, and back."""
    weights = matrix.T.ravel()
    count = len(weights) // 64
    scales = [max(abs(weights[64 * i : 64 * i + 64])) for i in range(count)]
    codes = [nearest(NF4_LEVELS, number) for number in (weights.reshape(-1, 64) / np.array(scales)[:, None]).ravel()]
    mean = sum(scales) / count
    levels = dynamic_levels()
    back = []
    for begin in range(0, count, 256):
        centered = [scale - mean for scale in scales[begin : begin + 256]]
        largest = max(map(abs, centered))
        back += [levels[nearest(levels, scale / largest)] * largest + mean for scale in centered]
    return np.array([NF4_LEVELS[code] * back[i // 64] for i, code in enumerate(codes)]).reshape(matrix.shape[::-1]).T


def test_nf4_is_the_literal_one_matrix_by_matrix():
    """Of 272 scales, which are a whole block of them and a part of one."""
    stack = RNG.normal(size=(2, 128, 136)).astype(np.float32) * np.float32([0.02, 3.0])[:, None, None]
    found = nf4(jnp.asarray(stack))
    for matrix, wide in zip(stack, found.wide(), strict=True):
        np.testing.assert_allclose(wide, literal(matrix), rtol=0, atol=2e-6 * abs(matrix).max())
    assert found.shape == stack.shape and found.codes.shape == (2, 64, 136) and found.scales.codes.shape == (2, 256, 2)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(nf4(jnp.ones((4_096, 1_024)))))
    assert stored * 8 / (4_096 * 1_024) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-3)


def test_the_levels_are_those_of_the_normal_distribution():
    """Equation 4 of the paper: midpoints of quantiles, of 8 on one side and 9 on the other, over the largest."""
    from statistics import NormalDist

    last = (1 - 1 / 32 + 1 - 1 / 30) / 2

    def side(count: int) -> list[float]:
        return [NormalDist().inv_cdf(p) for p in np.linspace(last, 0.5, count)[:-1]]

    levels = sorted([*side(9), 0.0, *(-number for number in side(8))])
    np.testing.assert_allclose(NF4_LEVELS, np.array(levels) / max(levels), atol=1e-6)


@each
@pytest.mark.parametrize("rows", [64, 96, 6])
def test_what_is_on_the_levels_stays(dtype, rows):
    levels = np.arange(-127, 128) if dtype == "int8" else np.array(NF4_LEVELS)
    matrix = RNG.choice(levels, (rows, 5)).astype(np.float32)
    matrix[:: math.gcd(rows, 64)] = levels[-1]
    found = MAKE[dtype](jnp.asarray(matrix))
    np.testing.assert_array_equal(found.wide(), matrix)
    np.testing.assert_array_equal(MAKE[dtype](jnp.zeros((rows, 5))).wide(), 0)


def test_int8_of_one_block_is_narrow():
    matrix = jnp.asarray(RNG.normal(size=(2, 10, 3)).astype(np.float32))
    found, narrow = int8(matrix), narrowed(matrix, "int8", -2)
    np.testing.assert_array_equal(found.codes, narrow.values)
    np.testing.assert_array_equal(found.scales, narrow.scales)
    assert (found.shape, found.ndim, found.dtype) == (narrow.shape, narrow.ndim, narrow.dtype)


def test_the_slope_is_that_of_the_wide_matrix():
    weight = nf4(jnp.asarray(RNG.normal(size=(96, 5))))
    with jax.enable_x64(True):
        x, slope = jnp.asarray(RNG.normal(size=(7, 96))), jnp.asarray(RNG.normal(size=(7, 5)))
        found, back = jax.vjp(lambda x: blocks_product(x, weight), x)
        wide, wide_back = jax.vjp(lambda x: x @ weight.wide().astype(x.dtype), x)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, wide, rtol=1e-12)
        np.testing.assert_allclose(back(slope)[0], wide_back(slope)[0], rtol=1e-12)
    ones = jnp.ones((3, 5))
    slopes = jax.grad(lambda scales: blocks_product(jnp.ones((7, 96)), replace(weight, scales=scales)).sum())(ones)
    assert not slopes.any()


@each
@pytest.mark.parametrize("name", ["dense", "experts"])
def test_a_base_in_blocks_with_adapters_is_the_wide_base_with_them(dtype, name):
    config = {"dense": replace(CONFIG, lora=Lora(2, 4.0)), "experts": MIXTURE}[name]
    plain = replace(config, lora=None)
    base = quantized_base(init_decoder(plain, jax.random.key(0)), dtype)
    assert {isinstance(leaf, Blocks) for leaf_name, leaf in base["layers"].items() if leaf_name in EXPERTS} <= {True}
    wide = dequantized(base)
    assert is_quantized(base) and not is_quantized(wide)
    adapter = jax.tree.map(lambda x: x + 0.1, init_adapter(config, jax.random.key(1)))
    tokens = jnp.asarray(RNG.integers(0, 31, (3, 9)))

    @jax.jit
    @jax.value_and_grad
    def loss(adapter, base):
        return jnp.square(hidden_states(config, join_trees(adapter, base), tokens, tokens >= 0, True)).sum()

    (found, slopes), (wanted, wide_slopes) = loss(adapter, base), loss(adapter, wide)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), slopes, wide_slopes)
    merged = merge_adapter(config, base, adapter)
    whole = logits(config, join_trees(adapter, base), tokens)
    np.testing.assert_allclose(logits(plain, merged, tokens), whole, rtol=0, atol=1e-4)
    sampled = narrow_matrices(replace(plain, sampler_dtype="int8"), base)
    assert sampled["layers"]["q"] is base["layers"]["q"]


def test_no_layer_stays_wide():
    """Of a program that goes forth and back through 24 layers, the memory beside its arguments."""
    config = replace(CONFIG, hidden_size=64, intermediate_size=256, num_layers=24, biases=(), lora=Lora(1, 1.0))
    base = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))
    adapter = jax.eval_shape(lambda: init_adapter(config, jax.random.key(1)))
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)

    def loss(adapter, base, tokens):
        return jnp.square(hidden_states(config, join_trees(adapter, base), tokens, tokens >= 0)).sum()

    def memory(base):
        found = jax.jit(jax.grad(loss)).lower(adapter, base, tokens).compile().memory_analysis()
        assert found is not None
        return found

    small, whole = memory(jax.eval_shape(lambda params: quantized_base(params, "nf4"), base)), memory(base)
    layer = sum(math.prod(shape[1:]) for name, shape in config.parameter_shapes["layers"].items() if "norm" not in name)
    assert small.temp_size_in_bytes < whole.temp_size_in_bytes + 2 * 4 * layer
    assert small.argument_size_in_bytes < 0.2 * whole.argument_size_in_bytes


@each
def test_no_expert_but_one_is_wide(dtype):
    """Of a program that goes forth and back through 32 experts: beside a layer's codes a few of them, never all."""
    experts = Experts(32, 2, 128, False)
    config = replace(MIXTURE, hidden_size=128, num_heads=8, head_dim=16, biases=(), experts=experts)
    base = jax.eval_shape(lambda: init_decoder(replace(config, lora=None), jax.random.key(0)))
    small = jax.eval_shape(lambda params: quantized_base(params, dtype), base)
    adapter = jax.eval_shape(lambda: init_adapter(config, jax.random.key(1)))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def loss(adapter, base, tokens):
        return jnp.square(hidden_states(config, join_trees(adapter, base), tokens, tokens >= 0)).sum()

    compiled = jax.jit(jax.grad(loss)).lower(adapter, small, tokens).compile()
    found = compiled.memory_analysis()
    assert found is not None
    of_layer = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves([small["layers"][x] for x in EXPERTS])) / 2
    )
    assert found.temp_size_in_bytes < of_layer + 12 * 4 * 128 * 128
    assert "f32[32,128,128]" not in str(compiled.as_text())


def test_what_cannot_be_in_blocks_is_named():
    with pytest.raises(ValueError, match="a matrix has 5 inputs, wanted an even number; take int8"):
        nf4(jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="dtype is 'int4', wanted int8 or nf4"):
        quantized_base({"layers": {}}, "int4")
    assert Blocks(jnp.ones((2, 3), jnp.int8), jnp.ones((1, 3)), block=2).wide().tolist() == [[1.0] * 3] * 2
