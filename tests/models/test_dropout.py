"""LoRA dropout: the formula with the same masks, its limits, and that only a gradient's rows are dropped from."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.loops.parts import fixed_log_probs
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import Block, init_decoder
from rlax_llm.models.dropout import dropping, layer_seeds, with_dropout
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.scoring import group_log_probs, row_log_probs

RATE = 0.3
CONFIG = DecoderConfig(13, 16, 24, 2, 4, 2, 4, lora=Lora(3, 5.0, ("v", "down"), dropout=RATE))
SEEDS = jnp.array([3, 8], jnp.uint32)
PLACES = jnp.broadcast_to(jnp.arange(5), (2, 5))


def with_rate(rate: float, **kind) -> DecoderConfig:
    assert CONFIG.lora is not None
    return replace(CONFIG, lora=replace(CONFIG.lora, dropout=rate, **kind))


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_reads_what_is_left_of_its_inputs(dora):
    """x·W + s·(x·m / (1 − p))·A·B; DoRA as PEFT 0.21 has it, W once more of what is left."""
    config = with_rate(RATE, dora=dora)
    block, x = Block(config, nnx.Rngs(0)), np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    block.drop = dropping(config, SEEDS, PLACES)
    mask = np.asarray(block.drop("v", jnp.ones(x.shape))) > 0
    assert 0.6 < mask.mean() < 0.8
    w, a, b = (np.asarray(getattr(block, f"v{part}")[...]) for part in ("", "_lora_a", "_lora_b"))
    left = x * mask / (1 - RATE)
    wanted = x @ w + 5 / 3 * (left @ a @ b)
    if dora:
        share = np.asarray(block.v_lora_m[...]) / np.linalg.norm(w + 5 / 3 * (a @ b), axis=0)
        wanted = x @ w + (share - 1) * (left @ w) + share * 5 / 3 * (left @ a @ b)
    np.testing.assert_allclose(block.adapted("v", jnp.asarray(x)), wanted, rtol=0, atol=1e-4)


def rows() -> Completions:
    random = np.random.default_rng(1)
    tokens = jnp.asarray(random.integers(0, 13, (4, 7)))
    valid = jnp.ones((4, 7), bool).at[1, :2].set(False).at[2, -1].set(False)
    return Completions(tokens, valid, valid.at[:, :3].set(False), jnp.zeros((4, 7)), jnp.zeros(4, bool))


def model(config: DecoderConfig) -> tuple[dict, dict]:
    """A base, and an adapter far from zero."""
    adapter = init_adapter(config, jax.random.key(1))
    return init_decoder(config, jax.random.key(0)), jax.tree.map(lambda x: x + 0.1, adapter)


def test_a_rate_of_zero_and_rows_without_numbers_are_the_plain_adapter_bit_for_bit():
    base, adapter = model(CONFIG)
    params, dropped = join_trees(adapter, base), with_dropout(rows(), jax.random.key(2))
    plain = row_log_probs(with_rate(0.0))(params, rows())[0]
    np.testing.assert_array_equal(row_log_probs(with_rate(0.0))(params, dropped)[0], plain)
    np.testing.assert_array_equal(row_log_probs(CONFIG)(params, rows())[0], plain)
    np.testing.assert_array_equal(fixed_log_probs(row_log_probs(CONFIG), params, dropped, 2), plain)
    assert np.abs(row_log_probs(CONFIG)(params, dropped)[0] - plain).max() > 0.01


def test_the_mean_over_many_masks_is_the_input_and_no_two_masks_are_alike():
    count, x = 20_000, jnp.array([[[1.0, -2.0, 3.0]]])
    seeds = layer_seeds(CONFIG, jnp.arange(count, dtype=jnp.uint32))
    assert seeds is not None
    many = jnp.broadcast_to(x, (count, 2, 3))
    places = jnp.broadcast_to(jnp.arange(2), (count, 2))
    found = [dropping(CONFIG, seeds[layer], places)(name, many) for layer in (0, 1) for name in ("q", "k")]
    error = np.abs(x[0, 0]) * np.sqrt(RATE / (1 - RATE) / count)
    for each in found:
        assert (np.abs(each.mean(0) - x[0]) < 5 * error).all()
    # Of layers, projections, places and numbers: uncorrelated.
    flat = np.concatenate([np.asarray(each != 0).reshape(count, -1) for each in found], 1)
    assert np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1])).max() < 5 / np.sqrt(count)


def test_what_is_dropped_depends_on_the_row_alone():
    """Not on padding, on groups of one, on remat, or on micro-batches; values and a step."""
    base, adapter = model(CONFIG)
    params, dropped = join_trees(adapter, base), with_dropout(rows(), jax.random.key(2))
    wanted = row_log_probs(CONFIG)(params, dropped)[0]
    grouped = group_log_probs(CONFIG, (1, 3), remat=True)(params, dropped)[0]
    np.testing.assert_allclose(grouped, wanted, rtol=0, atol=1e-5)
    wide = {
        name: jnp.pad(getattr(dropped, name), ((0, 0), (2, 1))) for name in ("tokens", "valid", "mask", "log_probs")
    }
    padded = row_log_probs(CONFIG)(params, dropped._replace(**wide))[0]
    np.testing.assert_allclose(padded[:, 2:-1], wanted, rtol=0, atol=1e-5)

    def stepped(micro_batches: int, key):
        init, step = supervised_loop(row_log_probs(CONFIG), optax.sgd(1.0), micro_batches)
        return step(init(adapter), rows(), key=key, frozen=base)[0].params

    whole, parts = stepped(1, jax.random.key(2)), stepped(2, jax.random.key(2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5), parts, whole)


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"^Lora: dropout is 1\.0, wanted at least 0 and below 1\.$"):
        with_rate(1.0)
