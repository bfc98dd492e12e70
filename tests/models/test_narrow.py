"""Narrow weights, keys and values: a literal transcription of symmetric quantization, and what it may change."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.models import narrow
from rlax_llm.models.attention import attention
from rlax_llm.models.config import DecoderConfig, Experts, Lora
from rlax_llm.models.decoder import init_decoder, logits
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.narrow import Narrow, narrow_matrices, narrowed, product, rows_of, table_product, widened
from rlax_llm.models.segments import PLAIN, reach_of, segment

CONFIG = DecoderConfig(31, 16, 24, 2, 4, 2, 4, tie_embeddings=False, biases=("q", "k", "v"))
PARAMS = init_decoder(CONFIG, jax.random.key(0))
RNG = np.random.default_rng(0)


def literal(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Number by number: the largest of those that share a scale becomes 127."""
    moved = np.moveaxis(x, axis, -1)
    values, scales = np.zeros(moved.shape, np.int8), np.ones((*moved.shape[:-1], 1), x.dtype)
    for place in np.ndindex(moved.shape[:-1]):
        largest = max(abs(number) for number in moved[place])
        if largest > 0:
            scales[place] = largest / np.float32(127)
        for column, number in enumerate(moved[place]):
            values[place][column] = np.rint(number / scales[place][0])
    return np.moveaxis(values, -1, axis), np.moveaxis(scales, -1, axis)


@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_quantization_is_the_literal_one(axis):
    x = RNG.normal(size=(3, 5, 7)).astype(np.float32)
    x[1] = 0
    found = narrowed(jnp.asarray(x), "int8", axis)
    values, scales = literal(x, axis)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_allclose(found.scales, scales, rtol=1e-6)
    assert found.values.dtype == jnp.int8 and found.dtype == jnp.float32 and found.shape == x.shape and found.ndim == 3


@pytest.mark.parametrize(("dtype", "error"), [("int8", 0.5), ("bfloat16", None)])
def test_the_error_is_at_most_half_a_step(dtype, error):
    x = jnp.asarray(RNG.normal(size=(64, 48)).astype(np.float32))
    found = narrowed(x, dtype, 0)
    step = found.scales if error else jnp.abs(x) * 2**-8
    assert bool((jnp.abs(widened(found) - x) <= (error or 1) * step * (1 + 1e-5)).all())


def on_the_grid(*shape: int) -> np.ndarray:
    """Whole numbers with a 127 in each column: their scales are 1."""
    x = RNG.integers(-127, 128, shape).astype(np.float32)
    x[..., 0, :] = 127
    return x


@pytest.mark.parametrize("blocks", ["one", "several", "several and a rest"])
def test_weights_on_the_grid_give_the_products_of_float32(monkeypatch, blocks):
    if blocks != "one":
        monkeypatch.setattr(narrow, "SMALL", 1)
        monkeypatch.setattr(narrow, "CACHE", 180 if blocks == "several" else 100)
    x, weight = RNG.integers(-8, 9, (2, 3, 36)).astype(np.float32), on_the_grid(36, 11)
    if blocks == "several and a rest":
        x, weight = x[..., :-1], weight[:-1]
    flat = jnp.asarray(x.reshape(6, -1))
    by_output, by_row = narrowed(jnp.asarray(weight), "int8", 0), narrowed(jnp.asarray(weight.T), "int8", 1)
    np.testing.assert_array_equal(widened(by_output), weight)
    np.testing.assert_array_equal(jax.jit(product)(flat, by_output), np.asarray(flat) @ weight)
    np.testing.assert_array_equal(jax.jit(table_product)(jnp.asarray(x), by_row), x @ weight)
    np.testing.assert_array_equal(rows_of(by_row, jnp.array([[2, 0]])), weight.T[[[2, 0]]])


def test_a_scale_for_each_input_is_taken_before_the_sum():
    x, weight = RNG.normal(size=(2, 5)).astype(np.float32), RNG.normal(size=(5, 3)).astype(np.float32)
    found = narrowed(jnp.asarray(weight), "int8", 1)
    np.testing.assert_allclose(product(jnp.asarray(x), found), x @ np.asarray(widened(found)), rtol=1e-5)


MIXTURE = replace(CONFIG, experts=Experts(4, 4, 6))  # all experts, or a rounding could choose another


@pytest.mark.parametrize("config", [CONFIG, MIXTURE], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_a_narrow_model_is_the_model_of_the_widened_numbers(dtype, config):
    params = PARAMS if config is CONFIG else init_decoder(config, jax.random.key(0))
    small = narrow_matrices(replace(config, sampler_dtype=dtype), params)
    assert isinstance(small["layers"].get("expert_gate", small["embed"]), Narrow)
    wide = jax.tree.map(widened, small, is_leaf=lambda x: isinstance(x, Narrow))
    tokens = jnp.asarray(RNG.integers(0, 31, (3, 9)))
    found = logits(config, small, tokens)
    np.testing.assert_allclose(found, logits(config, wide, tokens), rtol=0, atol=2e-5)
    assert 1e-4 < float(jnp.abs(found - logits(config, params, tokens)).max()) < 0.5


def test_what_is_narrow_stays_and_what_is_no_matrix_is_not_touched():
    config = replace(CONFIG, sampler_dtype="int8", lora=Lora(2, 4.0))
    params = PARAMS | {"layers": PARAMS["layers"] | init_adapter(config, jax.random.key(1))["layers"]}
    once = narrow_matrices(config, params)
    kinds = {name: isinstance(leaf, Narrow) for name, leaf in {**once, **once["layers"]}.items() if name != "layers"}
    matrices = {"embed", "head", "q", "k", "v", "o", "gate", "up", "down"}
    assert {name for name, kind in kinds.items() if kind} == matrices
    assert once["layers"]["q"].scales.shape == (2, 1, 16) and once["embed"].scales.shape == (31, 1)
    again = narrow_matrices(config, once)
    assert all(x is y for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True))


@pytest.mark.parametrize("length", [1, 3])
def test_keys_on_the_grid_are_attended_to_as_in_float32(length):
    """Also block by block, as many queries are."""
    keys, values = (on_the_grid(2, 12, 4, 2).swapaxes(-1, -2) / 127 for _ in range(2))
    queries = jnp.asarray(RNG.normal(size=(2, length, 4, 4)).astype(np.float32))
    whole = segment(jnp.asarray(keys), jnp.asarray(values), jnp.broadcast_to(jnp.arange(12), (2, 12)))
    small = whole._replace(keys=narrowed(whole.keys, "int8", -2), values=narrowed(whole.values, "int8", -1))
    np.testing.assert_allclose(widened(small.keys), whole.keys, rtol=1e-6)
    reach = reach_of(jnp.broadcast_to(11 - jnp.arange(length)[::-1], (2, length)))
    for form in (PLAIN, PLAIN._replace(query_block=2, key_block=5)):
        np.testing.assert_allclose(
            attention(queries, reach, [small], form), attention(queries, reach, [whole], form), rtol=0, atol=1e-5
        )


def test_an_unknown_format_is_named():
    for name in ("sampler_dtype", "cache_dtype"):
        with pytest.raises(ValueError, match=f"{name} is 'int4', wanted bfloat16 or int8, or None"):
            replace(CONFIG, **{name: "int4"})
