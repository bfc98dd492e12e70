"""Rows in parts, each without its padding: the same numbers as the whole batch in all its columns."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.penalties import Penalties
from rlax_llm.core.token_sets import to_bits
from rlax_llm.core.types import Completions, Groups, LabeledCompletions, PairedCompletions, Room
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.labels import label_loop, zero_reference
from rlax_llm.loops.parts import fixed_log_probs, join, split, summed_gradient
from rlax_llm.loops.preference import preference_loop
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scalar import token_values
from rlax_llm.models.scoring import by_tokens, group_log_probs
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.preference.unpaired import kto
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes.preference import cpo

pytestmark = pytest.mark.usefixtures("float64")

CONFIG = DecoderConfig(
    vocab_size=23, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)
P, G, PROMPT, NEW = 4, 4, 7, 20
SHARES = (0.2, 0.3, 0.6)
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
    found = step_of(by_tokens(CONFIG, (G, PROMPT), SHARES, **SAMPLER), micro_batches)
    chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)


LEARNED = {
    "pairs": (2, lambda by, parts: preference_loop(by, cpo(), optax.sgd(0.5), parts), PairedCompletions),
    "labels": (
        1,
        lambda by, parts: label_loop(by, kto(0.1), optax.sgd(0.5), parts, reference_point=zero_reference),
        lambda rows: LabeledCompletions(rows, jnp.arange(P * G) % 3 == 0),
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_a_step_on_preferences_is_that_of_the_whole_batch(name):
    """In each room, whose number its function is told."""
    size, loop, batch = LEARNED[name]
    rooms = set()

    def step_with(shares, micro_batches):
        by = by_tokens(CONFIG, (size, PROMPT), shares)

        def score(params, rows):
            rooms.add(rows.room)
            return by.score(params, rows)

        init, step = loop(by._replace(score=score), micro_batches)
        reference = {"reference": model(1)} if name == "labels" else {}
        return jax.jit(step)(init(model(0)), batch(ragged()._replace(kept=None)), **reference)

    wanted = step_with((), 1)
    assert rooms == {None}
    chex.assert_trees_all_close(step_with(SHARES, 4), wanted, rtol=1e-9, atol=1e-12)
    assert rooms == {None, Room(16), Room(24), Room(48)}


def test_log_probs_come_back_in_their_places():
    rows = ragged()
    wanted = group_log_probs(CONFIG, (G, PROMPT))(model(0), rows)[0]
    found = fixed_log_probs(by_tokens(CONFIG, (G, PROMPT), SHARES), model(0), rows, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_each_part_is_computed_in_the_least_room_that_holds_it():
    rows = ragged()
    seen = []

    def loss(weight, part):
        cells = part.valid.shape[0] * NEW
        room = cells if part.room is None else part.room.tokens
        jax.debug.callback(lambda count: seen.append((int(count), room)), part.valid[:, PROMPT:].sum())
        return weight * part.valid.sum(), {}

    by = by_tokens(CONFIG, (G, PROMPT), SHARES)
    gradient, _ = summed_gradient(loss, 1.0, jax.tree.map(jnp.asarray, rows), P, by)
    jax.effects_barrier()
    rooms = (16, 24, 48, G * NEW)  # multiples of 8 that are no less than the shares of 80 columns
    counts = rows.valid[:, PROMPT:].reshape(P, -1).sum(1)
    assert sorted(seen) == sorted((count, min(x for x in rooms if x >= count)) for count in counts)
    assert len({room for _, room in seen}) > 1
    assert gradient == rows.valid.sum()


def test_the_smallest_room_that_holds_all_tokens_will_do():
    """Rows of nothing, a full one and the sets that tokens were drawn from, with not one place to spare."""
    rows = ragged()
    lengths = np.array([0, NEW, 3, 0] * P)
    valid = rows.valid & (np.arange(PROMPT + NEW) < PROMPT + lengths[:, None])
    rows = rows._replace(valid=valid, mask=valid & rows.mask)
    score, value = group_log_probs(CONFIG, (G, PROMPT), **SAMPLER), token_values(CONFIG, (G, PROMPT))

    def total(params, rows):
        log_probs, entropy = score(params, rows)
        values = value(params | {"score": jnp.arange(16.0)}, rows)
        return (log_probs * rows.log_probs + entropy + jnp.sin(values)).sum(), (log_probs, entropy, values)

    slope = jax.jit(jax.grad(total, has_aux=True))
    found = slope(model(0), rows._replace(room=Room(int(lengths.sum()))))
    chex.assert_trees_all_close(found, slope(model(0), rows), rtol=1e-9, atol=1e-12)


def test_parts_are_joined_again():
    rows = jnp.arange(24).reshape(12, 2)
    assert (join(split(rows, 3)) == rows).all()


def test_what_cannot_be_left_out_is_refused():
    with pytest.raises(ValueError, match=r"by_tokens: shares has 0, wanted parts of the columns, above 0"):
        by_tokens(CONFIG, (G, PROMPT), (0.5, 0))
    dropping = replace(CONFIG, lora=Lora(2, 4.0, dropout=0.1))
    with pytest.raises(ValueError, match=r"by_tokens: adapters drop inputs row by row"):
        by_tokens(dropping, (G, PROMPT))
