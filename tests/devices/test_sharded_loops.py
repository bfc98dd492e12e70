"""Each loop that learns from completions, on one device and over a mesh: the same state and the same metrics.

Their models are an embedding and a head: what a loop itself does with rows is the same for a decoder, which
``test_sharded_scoring.py`` is about.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm import recipes
from rlax_llm.core.kl import proportional_coef
from rlax_llm.core.log_probs import token_log_probs
from rlax_llm.core.masked import unit_variance
from rlax_llm.core.mesh import ROWS, spread
from rlax_llm.core.token_sets import to_bits
from rlax_llm.core.types import CreditedCompletions, Groups, LabeledCompletions, PairedCompletions, ScoredCompletions
from rlax_llm.loops.group import GroupLearning, group_loop, group_trpo_loop
from rlax_llm.loops.labels import label_loop, running_mean_reward
from rlax_llm.loops.policy import policy_loop, supervised_loop
from rlax_llm.loops.preference import preference_loop, reward_loop
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, bootstrapped_at_limit
from rlax_llm.models.decoder import embedding, vocabulary_logits
from rlax_llm.models.scoring import ByTokens
from rlax_llm.models.token_rows import head
from rlax_llm.policy import weightings
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.preference import links, unpaired
from rlax_llm.recipes import control as control_recipes

sys.path.insert(0, str(Path(__file__).parent))
from sharded import CONFIG, GROUP_SIZE, GROUPS, MESHES, NEW, PROMPT, check_same_everywhere, completions

COUNT = GROUPS * GROUP_SIZE
PAIRS = COUNT // 2
SGD = optax.sgd(0.5)
RANDOM = np.random.default_rng(1)
SCORES = RANDOM.normal(size=(GROUPS, GROUP_SIZE)).astype(np.float32)
ADVANTAGES = RANDOM.normal(size=(COUNT, PROMPT + NEW)).astype(np.float32)
MARGINS = RANDOM.random(PAIRS).astype(np.float32)
LABELS = RANDOM.random(PAIRS) < 0.6
SETS = np.asarray(to_bits(RANDOM.random((COUNT, PROMPT + NEW, CONFIG.vocab_size)) < 0.6))


def parameters(seed: int):
    random = np.random.default_rng(seed)
    shapes = dict.fromkeys(("embed", "head"), (CONFIG.vocab_size, CONFIG.hidden_size))
    shapes["score"] = (CONFIG.hidden_size,)
    return {name: jnp.asarray(random.normal(size=shape) / 3, jnp.float32) for name, shape in shapes.items()}


PARAMS, OTHER = parameters(0), parameters(1)


def log_probs(params, rows):
    """Of each token after the one before."""
    hidden = embedding(CONFIG, params, jnp.roll(rows.tokens, 1, -1))
    kept = None if rows.kept is None else rows.kept.reshape(-1, rows.kept.shape[-1])
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), rows.tokens.reshape(-1)
    found = token_log_probs(flat, head(CONFIG, params), targets, kept=kept)
    return tuple(jnp.where(rows.mask, x.reshape(rows.mask.shape), 0.0) for x in found)


def logits(params, rows):
    return vocabulary_logits(CONFIG, params, embedding(CONFIG, params, jnp.roll(rows.tokens, 1, -1)))


def values(params, rows):
    return jnp.where(rows.mask, embedding(CONFIG, params, rows.tokens) @ params["score"], 0.0)


def scores(params, rows):
    return values(params, rows).sum(-1)


def four_models():
    learning = RlhfLearning(epochs=2, minibatches=2, micro_batches=2, group_size=2, warmup_steps=1)
    shaping = Shaping(
        kl=KlInReward(0.1, control=proportional_coef(1.0)), rewards=unit_variance, ending=bootstrapped_at_limit
    )
    return rlhf_loop(log_probs, values, control_recipes.ppo(), {"policy": SGD, "value": SGD}, shaping, learning)


def several_rewards():
    """Of a sampler that cuts and differs, with the entropy under control."""
    learning = GroupLearning(
        minibatches=2,
        micro_batches=2,
        correction=truncated_importance(ceiling=2.0),
        entropy_coef=0.01,
        entropy_control=stepped_coef(0.2),
    )
    return group_loop(log_probs, recipes.gdpo((1.0, 0.5)), SGD, learning)


def trpo():
    natural = recipes.trpo(0.01)
    return group_trpo_loop(logits, natural.advantage, weightings.token_mean, natural.direction, natural.search)


def pairs(margins=None):
    return PairedCompletions(completions(0, PAIRS, 2), margins)


LOOPS = {
    "policy": lambda: (
        policy_loop(log_probs, recipes.grpo(0.1), SGD, 2),
        CreditedCompletions(completions(), ADVANTAGES),
    ),
    "by tokens": lambda: (
        policy_loop(ByTokens(log_probs, PROMPT, (0.3, 0.6)), recipes.grpo(0.1), SGD, 4),
        CreditedCompletions(completions(), ADVANTAGES),
    ),
    "supervised": lambda: (supervised_loop(log_probs, SGD, 4), completions()),
    "dpo": lambda: (preference_loop(log_probs, recipes.dpo(0.1), SGD, 2), pairs(MARGINS)),
    "whole batch": lambda: (preference_loop(log_probs, recipes.aot(0.1), SGD), pairs()),
    "orpo": lambda: (preference_loop(log_probs, recipes.orpo(), SGD), pairs()),
    "kto": lambda: (label_loop(log_probs, unpaired.kto(0.1), SGD, 2, 1.3), LabeledCompletions(completions(), LABELS)),
    "bco": lambda: (
        label_loop(log_probs, unpaired.bco(0.1), SGD, reference_point=running_mean_reward),
        LabeledCompletions(completions(0, PAIRS, 1), LABELS),
    ),
    "reward": lambda: (reward_loop(scores, links.logistic, SGD, 2, 0.01), pairs(MARGINS)),
    "rlhf": lambda: (four_models(), ScoredCompletions(completions(), SCORES.reshape(-1))),
    "trpo": lambda: (trpo(), Groups(completions(), SCORES)),
    "several rewards": lambda: (
        several_rewards(),
        Groups(completions()._replace(kept=SETS), np.stack([SCORES, SCORES[::-1]])),
    ),
}
WITHOUT_REFERENCE = ("supervised", "orpo", "reward", "trpo", "several rewards")


@pytest.mark.parametrize("name", LOOPS)
def test_two_steps_are_the_same_on_every_mesh(name):
    (init, step), batch = LOOPS[name]()

    def run(state, batch, reference, key):
        return jax.lax.scan(lambda now, _: step(now, batch, key=key, reference=reference), state, length=2)

    params = {"policy": PARAMS, "value": OTHER} if name == "rlhf" else PARAMS
    reference = None if name in WITHOUT_REFERENCE else OTHER
    state, metrics = check_same_everywhere(MESHES, run, init(params), batch, reference, jax.random.key(0))
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.params, jax.device_get(params))
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert all(np.isfinite(x).all() for x in metrics.values())


def test_weights_are_the_same_on_every_mesh():
    """Those of every weighting, over rows of which some are empty."""
    mask = completions().mask & (np.arange(COUNT) % 5 > 0)[:, None]
    entropy = RANDOM.random(mask.shape).astype(np.float32)

    def run(_, mask, entropy):
        mask, entropy = spread(mask, ROWS), spread(entropy, ROWS)
        named = {"fixed_length": weightings.fixed_length(NEW)}
        named |= {name: getattr(weightings, name) for name in ("token_mean", "sequence_mean", "sequence_sum")}
        named["top_entropy"] = partial(weightings.top_entropy, entropy, share=0.4)
        return {name: weighting(mask) for name, weighting in named.items()}

    check_same_everywhere(MESHES, run, {}, mask, entropy)
