"""Rows in parts of like length: the same numbers as the whole batch in all its columns, and few columns computed."""

from __future__ import annotations

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.token_sets import to_bits
from rlax_llm.core.types import Completions, Groups
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.parts import fixed_log_probs, join, split, summed_gradient
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import by_length, group_log_probs
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.recipes import group as recipes

pytestmark = pytest.mark.usefixtures("float64")

CONFIG = DecoderConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
P, G, PROMPT, NEW = 4, 4, 7, 20
WIDTHS = (8, 12, 18)
SAMPLER = {"temperature": 0.7, "logit_bias": ((3, 0.5),), "penalties": Penalties(1.2, 0.3, 0.1)}


@cache
def model(seed: int):
    return jax.tree.map(lambda x: x.astype(jnp.float64), init_decoder(CONFIG, jax.random.key(seed)))


def ragged(seed: int = 0) -> Completions:
    """Prompts of 2 to 7 tokens on the right of their columns; completions of 1 to 20, and one row of nothing."""
    random = np.random.default_rng(seed)
    rows, columns = P * G, np.arange(PROMPT + NEW)
    begins = np.repeat(random.integers(0, PROMPT - 1, P), G)
    lengths = np.minimum(np.ceil(np.exp(random.normal(1.5, 1.0, rows))), NEW).astype(int)
    tokens = random.integers(0, CONFIG.vocab_size, (rows, PROMPT + NEW)).astype(np.int32)
    tokens[:, :PROMPT] = np.repeat(tokens[::G, :PROMPT], G, 0)
    valid = (columns >= begins[:, None]) & (columns < PROMPT + lengths[:, None])
    mask = valid & (columns >= PROMPT)
    mask[5] = False
    log_probs = np.where(mask, -3.0 + 0.2 * random.normal(size=mask.shape), 0.0)
    members = random.random((*tokens.shape, CONFIG.vocab_size)) < 0.7
    np.put_along_axis(members, tokens[..., None], True, -1)
    kept = np.asarray(to_bits(jnp.asarray(members)))
    return Completions(tokens, valid, mask, log_probs, lengths == NEW, kept)


def step_of(log_probs, micro_batches: int):
    learning = GroupLearning(micro_batches=micro_batches, correction=truncated_importance(ceiling=2.0))
    init, step = group_loop(log_probs, recipes.grpo(0.1), optax.sgd(0.5), learning)
    scores = np.random.default_rng(3).normal(size=(P, G))
    return jax.jit(step)(init(model(0)), Groups(ragged(), scores), reference=model(1))


@pytest.mark.parametrize("micro_batches", [1, 4, 8])
def test_a_step_is_that_of_the_whole_batch(micro_batches):
    wanted = step_of(group_log_probs(CONFIG, (G, PROMPT), **SAMPLER), 1)
    found = step_of(by_length(CONFIG, WIDTHS, **SAMPLER), micro_batches)
    chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_log_probs_come_back_in_their_places():
    rows = ragged()
    wanted = group_log_probs(CONFIG, (G, PROMPT))(model(0), rows)[0]
    found = fixed_log_probs(by_length(CONFIG, WIDTHS), model(0), rows, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_each_part_is_computed_in_the_fewest_columns_that_hold_it():
    rows = ragged()
    seen = []

    def loss(weight, part):
        _, valid = part
        jax.debug.callback(lambda own: seen.append(own.shape[1]), valid)
        return weight * valid.sum(), {}

    batch = (jnp.asarray(rows.tokens), jnp.asarray(rows.valid))
    gradient, _ = summed_gradient(loss, 1.0, batch, 8, jnp.asarray(rows.valid), WIDTHS)
    jax.effects_barrier()
    lengths = np.sort(rows.valid.sum(1)).reshape(8, -1).max(1)
    assert sorted(seen) == [min(x for x in (*WIDTHS, PROMPT + NEW) if x >= length) for length in lengths]
    assert sum(seen) < 0.6 * 8 * (PROMPT + NEW)
    assert gradient == rows.valid.sum()


def test_parts_are_joined_again():
    rows = jnp.arange(24).reshape(12, 2)
    assert (join(split(rows, 3)) == rows).all()


def test_a_width_is_a_number_of_columns():
    with pytest.raises(ValueError, match=r"by_length: widths\[1\] is 0"):
        by_length(CONFIG, (8, 0))
