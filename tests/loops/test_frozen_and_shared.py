"""What every loop shares: frozen parameters beside trained ones, and a decoder that computes each prompt once."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preference_tables import (
    BETA,
    PAIRS,
    PARAMS,
    QUICKLY,
    TOKENS,
    VOCABULARY,
    assert_same,
    completions_of,
    one_step,
    padded,
    table,
)

from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, CreditedCompletions, Groups, LabeledCompletions, PairedCompletions
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.labels import label_loop
from rlax_llm.loops.policy import policy_loop, supervised_loop
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs, group_log_probs_with_collisions, group_logits, row_log_probs
from rlax_llm.preference import links
from rlax_llm.preference.pairs import log_collision_probability
from rlax_llm.preference.unpaired import kto
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes.preference import dpo

pytestmark = pytest.mark.usefixtures("float64")

LABELS = np.array([True, False, False, True])
# What is trained, and what is frozen


def adapted(params, completions: Completions):
    return table({"logits": params["base"]["logits"] + params["adapter"] @ params["base"]["mix"]}, completions)


BASE = {"base": PARAMS | {"mix": np.random.default_rng(5).normal(size=(2, VOCABULARY))}}
ADAPTER = {"adapter": np.random.default_rng(6).normal(size=(TOKENS, 2))}
START = {"adapter": np.zeros((TOKENS, 2))}

FROZEN_LOOPS = {
    "preference": (
        lambda model: preference_loop(model, dpo(BETA), optax.sgd(1.0), 2),
        lambda: PairedCompletions(completions_of(7)),
        True,
    ),
    "label": (
        lambda model: label_loop(model, kto(BETA), optax.sgd(1.0), 2),
        lambda: LabeledCompletions(completions_of(7), LABELS),
        True,
    ),
    "reward": (
        lambda model: reward_loop(lambda *given: model(*given)[0].sum(-1), links.logistic, optax.sgd(1.0), 2),
        lambda: PairedCompletions(completions_of(7)),
        False,
    ),
    "policy": (
        lambda model: policy_loop(model, recipes.dapo(), optax.sgd(1.0), 2),
        lambda: CreditedCompletions(completions_of(7), jnp.ones((2 * PAIRS, TOKENS))),
        False,
    ),
    "group": (
        lambda model: group_loop(model, recipes.grpo(0.1), optax.sgd(1.0), GroupLearning(micro_batches=2)),
        lambda: Groups(completions_of(7), jnp.arange(2.0 * PAIRS).reshape(2, PAIRS)),
        True,
    ),
    "supervised": (
        lambda model: supervised_loop(model, optax.sgd(1.0), 2),
        lambda: completions_of(7),
        False,
    ),
}


@pytest.mark.parametrize("name", FROZEN_LOOPS)
def test_the_gradient_of_what_is_trained_is_a_part_of_the_whole(name):
    build, data, referred = FROZEN_LOOPS[name]
    reference = {"reference": START} if referred else {}
    gradient, metrics = one_step(build(adapted), ADAPTER, data(), frozen=BASE, **reference)
    assert set(gradient) == {"adapter"}
    reference = {"reference": START | BASE} if referred else {}
    whole, expected = one_step(build(adapted), ADAPTER | BASE, data(), **reference)
    np.testing.assert_allclose(gradient["adapter"], whole["adapter"], rtol=0, atol=1e-12)
    assert np.abs(gradient["adapter"]).max() > 1e-3
    np.testing.assert_allclose(metrics.pop("grad_norm"), np.linalg.norm(gradient["adapter"]), rtol=1e-9)
    expected.pop("grad_norm")
    assert_same(metrics, expected)


def test_trees_that_share_a_leaf_are_refused():
    assert join_trees({"layers": {"q": 1}}, {"layers": {"k": 2}, "norm": 3}) == {"layers": {"q": 1, "k": 2}, "norm": 3}
    assert join_trees(None, BASE) is join_trees(BASE, None) is BASE
    for other in ({"layers": {"q": 2}}, {"layers": 3}):
        with pytest.raises(ValueError, match=r"joined: both trees have a leaf 'layers(/q)?'; leave it out of one"):
            join_trees({"layers": {"q": 1}}, other)


# A decoder

CONFIG = DecoderConfig(7, 16, 24, 2, 4, 2, 4)
WIDTH, LENGTH = 3, 4


def decoder_rows(seed: int, pairs: int) -> Completions:
    """Pairs that share a prompt of one to three tokens, padded on the left."""
    random = np.random.default_rng(seed)
    prompts = np.repeat(random.integers(0, 7, (pairs, WIDTH)), 2, 0)
    tokens = np.concatenate([prompts, random.integers(0, 7, (2 * pairs, LENGTH))], 1).astype(np.int32)
    there = np.repeat(np.arange(WIDTH) >= random.integers(0, WIDTH, (pairs, 1)), 2, 0)
    written = np.arange(LENGTH) < random.integers(1, LENGTH + 1, (2 * pairs, 1))
    mask = jnp.asarray(np.concatenate([np.zeros_like(there), written], 1))
    zeros = jnp.zeros(tokens.shape)
    valid = jnp.asarray(np.concatenate([there, written], 1))
    return Completions(jnp.asarray(tokens), valid, mask, zeros, jnp.zeros(2 * pairs, bool))


@pytest.fixture(scope="module")
def decoders() -> list:
    """Parameters of a policy and of its reference."""
    initial = jax.jit(lambda seed: decoder.init_decoder(CONFIG, jax.random.key(seed), jnp.float64))
    with jax.enable_x64(True):
        return [initial(seed) for seed in (0, 1)]


def test_a_decoder_that_shares_prompts_takes_the_same_steps(decoders):
    (params, reference), completions = decoders, decoder_rows(0, PAIRS)
    models = [(row_log_probs(CONFIG), 1), (group_log_probs(CONFIG, (2, WIDTH)), 2)]
    results = []
    for model, micro_batches in models:
        init, step = preference_loop(model, dpo(BETA), optax.adam(1e-2), micro_batches)
        scan = partial(
            jax.lax.scan, lambda state, rows, step=step: step(state, PairedCompletions(rows), reference=reference)
        )
        run = jax.jit(scan, compiler_options=QUICKLY)
        results.append(run(init(params), jax.tree.map(lambda x: jnp.stack([x] * 4), completions)))
    assert_same(*results, rtol=1e-6, atol=1e-9)
    losses = results[0][1]["loss"]
    assert np.all(np.diff(losses) < 0)
    assert results[0][1]["accuracy"][-1] > results[0][1]["accuracy"][0]


def test_a_decoder_reads_nothing_of_padding(decoders):
    (params, reference), completions = decoders, decoder_rows(0, PAIRS)
    loop = preference_loop(group_log_probs(CONFIG, (2, WIDTH)), dpo(BETA), optax.sgd(1.0))
    expected = one_step(loop, params, PairedCompletions(completions), reference=reference)
    more = PairedCompletions(padded(completions, 2, 0))
    assert_same(one_step(loop, params, more, reference=reference), expected, rtol=1e-6, atol=1e-9)


def test_how_likely_two_draws_agree_is_read_beside_the_log_probabilities(decoders):
    completions, layout = decoder_rows(0, 2), (2, WIDTH)

    @jax.jit
    def both(params):
        found = group_log_probs_with_collisions(CONFIG, layout)(params, completions)
        logits = jnp.pad(group_logits(CONFIG, layout)(params, completions), ((0, 0), (WIDTH, 0), (0, 0)))
        return found, group_log_probs(CONFIG, layout)(params, completions), log_collision_probability(logits)

    found, plain, agreeing = both(decoders[0])
    assert_same(found[:2], plain)
    np.testing.assert_allclose(found[2], np.where(completions.mask, agreeing, 0.0), rtol=1e-6)


def test_a_decoder_as_its_own_reference(decoders):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), decoders[0])
    loop = preference_loop(group_log_probs(CONFIG, (2, WIDTH)), dpo(), optax.sgd(1.0), 4)
    metrics = one_step(loop, params, PairedCompletions(decoder_rows(0, PAIRS)), reference=params)[1]
    np.testing.assert_allclose(metrics["loss"], math.log(2), rtol=0, atol=1e-6)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        np.testing.assert_allclose(metrics[name], 0, rtol=0, atol=1e-6)
