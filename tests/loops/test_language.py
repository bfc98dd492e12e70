"""Reinforcement learning as one program, on a decoder that is to write the letter its prompt asks for."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, inverse_cdf
from rlax_llm.loops.group import GroupLearning, group_loop, informative_groups
from rlax_llm.loops.language import (
    Collector,
    Groups,
    Prompts,
    aged,
    delayed_sampling,
    dynamic_sampling,
    fresh_sampling,
    language_loop,
    rounded_sampling,
    stale_sampling,
)
from rlax_llm.loops.replay import replayed
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.recipes import group as recipes

LETTERS, LENGTH, P, G = 5, 3, 4, 4
CONFIG = DecoderConfig(LETTERS, 16, 32, 1, 2, 2, 8)
PROMPTS = Prompts(jnp.arange(LETTERS)[:, None], jnp.ones((LETTERS, 1), bool), columns=jnp.arange(LETTERS))
REQUEST = Request(Categorical(), (), LENGTH, G)
KEY = jax.random.key(0)


def share(completions, wanted):
    return (completions.tokens[:, 1:] == wanted[:, None]).mean(-1)


def collector(request=REQUEST, reward=share):
    return fresh_sampling(CONFIG, PROMPTS, reward, request, P)


def update(learning=GroupLearning(), rate=1e-2, temperature=1.0):  # noqa: B008 (never changed)
    return group_loop(group_log_probs(CONFIG, (G, 1), temperature), recipes.dapo(), optax.adam(rate), learning)


def run(key, steps=60, collect=None, **given):
    init, step = language_loop(collect or collector(), update(**given))
    state = init(decoder.init_decoder(CONFIG, KEY))
    return jax.lax.scan(step, state, jax.random.split(key, steps))


def test_seeds_and_learning_rates_are_one_program():
    rates = jnp.array([0.0, 1e-2])
    many = jax.jit(jax.vmap(lambda key, rate: run(key, rate=rate)[1], (0, None)), static_argnums=())
    keys = jax.random.split(KEY, 3)
    rewards = jax.jit(jax.vmap(lambda rate: many(keys, rate)["reward"]))(rates)
    assert rewards.shape == (2, 3, 60)
    assert np.abs(rewards[0].mean() - 1 / LETTERS) < 0.1  # nothing is learned at a rate of 0
    assert np.all(rewards[1, :, -5:].mean(-1) > 0.6)
    alone = jax.jit(partial(run, rate=1e-2))(keys[1])[1]["reward"]
    np.testing.assert_allclose(rewards[1, 1, :5], alone[:5], atol=1e-6)


def test_the_first_update_has_ratios_of_one_at_any_temperature():
    """A sampler that closes over a traced temperature, and a learner at the same."""

    def first(temperature):
        def draw(key, logits):
            return inverse_cdf(key, logits / temperature)

        collect = collector(Request(draw, (), LENGTH, G))
        init, step = language_loop(collect, update(temperature=temperature))
        return step(init(decoder.init_decoder(CONFIG, KEY)), KEY)[1]

    metrics = jax.jit(jax.vmap(first))(jnp.array([0.5, 1.0, 2.0]))
    assert np.all(np.asarray(metrics["kl_old"]) < 1e-6)
    assert np.all(np.diff(metrics["entropy"]) > 0)


SAMPLERS = {
    "cold": Categorical(0.5),
    "top-p": Categorical(1.0, top_p=0.8),
    "all": Categorical(0.7, top_k=4, top_p=0.9, min_p=0.05, logit_bias=((2, 1.0), (0, -0.5))),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_first_update_has_ratios_of_one_whatever_cuts_the_sampler(name):
    """Prompts of several lengths, completions that stop early: what was drawn has the learner's log-probabilities."""
    sampler, stop, group_size = SAMPLERS[name], 0, 8
    tokens, valid = pad_prompts([[1], [2, 3, 1], [4, 4], [3, 1, 2, 2, 1]], stop, LETTERS)
    params = jax.tree.map(lambda x: 1.5 * x, decoder.init_decoder(CONFIG, KEY))
    drawn = generate_at_once(CONFIG, params, (tokens, valid), KEY, Request(sampler, (stop,), 6, group_size, 2))
    lengths = drawn.mask.sum(-1)
    assert 2 <= lengths.min() < lengths.max()
    bias = sampler.logit_bias
    log_probs = group_log_probs(CONFIG, (group_size, tokens.shape[1]), sampler.temperature, logit_bias=bias)
    own = jax.jit(log_probs)(params, drawn)[0]
    np.testing.assert_allclose(jnp.where(drawn.mask, own - drawn.log_probs, 0.0), 0.0, atol=1e-5)
    scores = jax.random.normal(KEY, (4, group_size))
    init, step = group_loop(log_probs, recipes.dapo(1e-4, 1e-4), optax.sgd(0.1))
    metrics = jax.jit(step)(init(params), Groups(drawn, scores))[1]
    # The narrowest clip there is has nothing to clip.
    assert metrics["clip_fraction"] == 0 and metrics["kl_old"] < 1e-9


def fresh(params, key):
    return collector().collect((), params, key, 0)[1]


def test_dynamic_sampling_fills_the_batch_with_informative_groups():
    """On rewards that are rarely different: every group of the batch is, and a surplus is used first."""

    def rare(completions, wanted):
        return (share(completions, wanted) == 1).astype(float)  # a chance of 1 in 125 a completion

    collect = dynamic_sampling(collector(reward=rare), most_rounds=200)
    params = decoder.init_decoder(CONFIG, KEY)
    memory, groups, metrics = jax.jit(collect.collect)(collect.init(params), params, KEY, 0)
    assert np.all(informative_groups(groups.scores))
    assert metrics["sampling/filled"] == 1 and metrics["sampling/rounds"] > 1
    kept = metrics["sampling/kept"] * metrics["sampling/rounds"] * P
    assert round(float(kept)) == P + int(metrics["sampling/surplus"])
    assert int(memory.kept) == int(metrics["sampling/surplus"]) < P
    assert groups.completions.mask.sum() == P * G * LENGTH


def scripted(rounds):
    """A collector that gives these scores ``[P, G]`` one after the other; tokens tell the round and the row."""

    def collect(memory, params, key, version):
        scores = jnp.asarray(rounds, float)[memory % len(rounds)]
        rows = scores.size
        tokens = jnp.broadcast_to((100 * memory + jnp.arange(rows))[:, None], (rows, 2)).astype(jnp.int32)
        every, nothing = jnp.ones((rows, 2), bool), jnp.zeros((rows, 2))
        completions = Completions(tokens, every, every, nothing, jnp.zeros(rows, bool))
        return memory + 1, Groups(completions, scores), {}

    return Collector(lambda params: jnp.int32(0), collect)


def tokens_of(groups):
    return np.asarray(groups.completions.tokens[:, 0]).reshape(groups.scores.shape)[:, 0].tolist()


def test_a_surplus_is_carried_over_and_nothing_is_used_twice():
    collect = dynamic_sampling(scripted([[[0, 1], [1, 1]], [[0, 1], [1, 0]], [[1, 0], [0, 1]]]), most_rounds=5)
    memory, params = collect.init(()), ()
    memory, first, told = collect.collect(memory, params, KEY, 0)
    assert tokens_of(first) == [0, 100] and told["sampling/rounds"] == 2 and told["sampling/surplus"] == 1
    memory, second, told = collect.collect(memory, params, KEY, 1)
    assert tokens_of(second) == [102, 200] and told["sampling/rounds"] == 1
    assert aged(second, 1).staleness[:, 0].tolist() == [1, 1, 0, 0]
    assert told["sampling/surplus"] == 1 and told["sampling/kept"] == 1


def test_places_that_stay_empty_teach_nothing():
    collect = dynamic_sampling(scripted([[[0, 1], [1, 1]], [[1, 1], [0, 0]]]), most_rounds=2)
    _, groups, told = collect.collect(collect.init(()), (), KEY, 0)
    assert told["sampling/filled"] == 0.5 and told["sampling/kept"] == 0.25
    assert np.isnan(groups.scores[1]).all() and not groups.completions.mask[2:].any()
    assert groups.completions.mask[:2].all()


def test_a_stale_sampler_lags_and_is_corrected():
    """Samples of parameters two steps old: token ratios differ from 1, their mean is 1, and the run still learns."""
    lagging = stale_sampling(collector(), 3)
    learning = GroupLearning(correction=truncated_importance(ceiling=5.0))
    _, metrics = jax.jit(partial(run, collect=lagging, learning=learning))(KEY)
    spread = np.asarray(metrics["sampler/ratio_max"] - metrics["sampler/ratio_min"])
    assert np.all(spread[::3] < 1e-5) and np.all(spread[1:20:3] > 1e-2)
    assert np.abs(np.asarray(metrics["sampler/ratio_mean"]) - 1).mean() < 0.1
    assert metrics["reward"][-5:].mean() > 0.6


WRAPPERS = {
    "stale": partial(stale_sampling, every=1),
    "delayed": partial(delayed_sampling, updates=0),
    "replayed": partial(replayed, size=2, share=0.0),
    "rounded": partial(rounded_sampling, dtype=jnp.float32),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_that_change_nothing(name):
    params = decoder.init_decoder(CONFIG, KEY)
    collect = WRAPPERS[name](collector())
    found = collect.collect(collect.init(params), params, KEY, 0)[1]
    jax.tree.map(np.testing.assert_array_equal, found, fresh(params, KEY))


def test_a_rounded_sampler_is_near_the_learner():
    init, step = language_loop(
        rounded_sampling(collector(), jnp.bfloat16), update(GroupLearning(correction=truncated_importance(ceiling=2.0)))
    )
    metrics = jax.jit(step)(init(decoder.init_decoder(CONFIG, KEY)), KEY)[1]
    assert 0 < metrics["sampler/kl_k3"] < 1e-3 and metrics["kl_old"] < 1e-6


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="most_rounds"):
        dynamic_sampling(collector(), 0)
    with pytest.raises(ValueError, match="every"):
        stale_sampling(collector(), 0)
    with pytest.raises(ValueError, match="most − updates is -1"):
        delayed_sampling(collector(), 2, 1)
    with pytest.raises(ValueError, match="updates is traced and most is None"):
        jax.eval_shape(lambda updates: delayed_sampling(collector(), updates).init(()), 1)
    with pytest.raises(ValueError, match="batch_size"):
        fresh_sampling(CONFIG, PROMPTS, share, REQUEST, 0)
