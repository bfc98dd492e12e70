"""What is replayed, for whom, and whose log-probabilities it has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Completions, Groups, Known
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.curriculum import by_pass_rate, near_rate
from rlax_llm.loops.language import Collector, Prompts, aged, delayed_sampling, dynamic_sampling, fresh_sampling
from rlax_llm.loops.replay import given_places, remembered_places, replayed
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs

P, G, N = 4, 2, 3
KEY = jax.random.key(0)


def scripted(rounds) -> Collector:
    """Groups with these scores ``[P, G]``, one round after the other; tokens and prompts tell round and group."""

    def collect(memory, params, key, version):
        scores = jnp.asarray(rounds, float)[memory]
        number = 100 * memory + jnp.arange(len(scores))
        tokens = jnp.repeat(number, G)[:, None].astype(jnp.int32)
        every = jnp.ones(tokens.shape, bool)
        completions = Completions(tokens, every, every, -1.0 * tokens, every[:, 0])
        return memory + 1, Groups(completions, scores, known=Known(prompts=number)), {}

    return Collector(lambda params: jnp.int32(0), collect)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_last_informative_groups_stand_in_for_uninformative_ones(share):
    """Against lists: which places are given away, from what, how old, and what is remembered then."""
    rounds = np.random.default_rng(0).integers(0, 2, (12, P, G))
    collect = replayed(scripted(rounds), N, share)
    step, memory, remembered, replays = jax.jit(collect.collect), collect.init(()), [], 0
    for number, scores in enumerate(rounds):
        memory, groups, told = step(memory, (), jax.random.fold_in(KEY, number), number)
        fresh = [100 * number + place for place in range(P)]
        dull = [place for place in range(P) if scores[place].min() == scores[place].max()]
        dull = dull[: min(round(share * P), len(remembered))]
        found = groups.known.prompts.tolist()
        assert [found[place] for place in range(P) if place not in dull] == [x for x in fresh if x % 100 not in dull]
        again = [found[place] for place in dull]
        assert len(set(again)) == len(again) and set(again) <= set(remembered)
        ages = [number - x // 100 for x in found]
        np.testing.assert_array_equal(aged(groups, number).staleness[:, 0], np.repeat(ages, G))
        np.testing.assert_array_equal(groups.completions.log_probs[:, 0], -np.repeat(found, G))
        np.testing.assert_array_equal(groups.scores, [rounds[x // 100][x % 100] for x in found])
        assert told["replay/share"] == len(again) / P
        assert told["replay/age"] == pytest.approx(np.mean([ages[place] for place in dull]) if dull else 0)
        new = [x for x in reversed(fresh) if scores[x % 100].min() < scores[x % 100].max()]
        remembered, replays = (new + remembered)[:N], replays + len(again)
        assert memory.groups.known.prompts[: len(remembered)].tolist() == remembered
    assert (replays > 5) == (share > 0)


def test_every_remembered_group_is_given_as_often_as_any_other():
    informative, there = jnp.array([False, True, False]), jnp.array([True, True, False, True])
    keys = jax.random.split(KEY, 3000)
    places = jax.vmap(lambda key: given_places(informative, there, 2, key))(keys)
    assert (places[:, 1] == 5).all() and (places[:, 0] != places[:, 2]).all()
    counts = np.bincount(places[:, 0], minlength=4) / len(keys)
    np.testing.assert_allclose(counts, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.03)


def test_more_groups_than_there_is_room_for_leave_the_newest():
    places, there = remembered_places(jnp.ones(5, bool), jnp.array([True, False]))
    assert places.tolist() == [6, 5] and there.all()


def test_what_dynamic_sampling_could_not_fill_is_filled():
    same, other = [[1, 1], [1, 1]], [[0, 1], [1, 0]]
    collect = replayed(dynamic_sampling(scripted([other, same, same]), 1), N, 1.0)
    step = jax.jit(lambda memory, version: collect.collect(memory, (), KEY, version))
    memory, first, _ = step(collect.init(()), 0)
    _, second, told = step(memory, 1)
    assert told["sampling/filled"] == 0 and told["replay/share"] == 1
    assert sorted(second.known.prompts.tolist()) == first.known.prompts.tolist() == [0, 1]
    assert second.completions.mask.all() and (aged(second, 1).staleness == 1).all()


def test_replayed_groups_have_the_log_probabilities_of_the_policy_that_drew_them():
    """A decoder that changes at every step, sampled two steps late: ``staleness`` names the parameters."""
    letters, delay, steps = 5, 2, 6
    config = DecoderConfig(letters, 16, 32, 1, 2, 2, 8)
    prompts = Prompts(jnp.arange(letters)[:, None], jnp.ones((letters, 1), bool), jnp.arange(letters))

    def reward(completions, wanted):
        return (completions.tokens[:, 1:] == wanted[:, None]).any(-1).astype(float)

    choosing = by_pass_rate(letters, near_rate())
    inner = fresh_sampling(config, prompts, reward, Request(Categorical(), (), 2, G), P, choosing)
    collect = replayed(delayed_sampling(inner, delay), 8, 0.75)
    policies = jax.vmap(lambda key: decoder.init_decoder(config, key))(jax.random.split(KEY, steps))

    def step(memory, given):
        params, key, version = given
        memory, groups, metrics = collect.collect(memory, params, key, version)
        # What every policy makes of each row.
        score = group_log_probs(config, (G, 1))
        own = jax.vmap(lambda params: score(params, groups.completions)[0])(policies)
        return memory, (aged(groups, version), metrics, own)

    start = collect.init(jax.tree.map(lambda x: x[0], policies))
    run = jax.jit(lambda start, keys: jax.lax.scan(step, start, (policies, keys, jnp.arange(steps)))[1])
    groups, metrics, own = run(start, jax.random.split(KEY, steps))
    ages = np.asarray(groups.staleness[..., 1], int)
    groups, own = jax.tree.map(np.asarray, (groups, own))
    assert ages[0].max() == 0 and (ages.min(1) == [0, 1, 2, 2, 2, 2]).all() and ages.max() > delay
    assert metrics["replay/share"].max() > 0 and (metrics["replay/age"] <= ages.max(1)).all()
    for number in range(steps):
        for row, age in enumerate(ages[number]):
            drawn, mask = (getattr(groups.completions, name)[number, row] for name in ("log_probs", "mask"))
            apart = np.abs(np.where(mask, own[number, :, row] - drawn, 0.0)).max(-1)
            assert apart[number - age] < 1e-5 and np.delete(apart, number - age).min() > 1e-3


def test_groups_whose_scores_tie_are_informative_where_their_steps_differ():
    """Group 0 earned with other steps, group 1 with the same; all scores are 1."""

    def collect(memory, params, key, version):
        every = jnp.ones((4, 2), bool)
        completions = Completions(jnp.arange(8).reshape(4, 2), every, every, 0.0 * every, every[:, 0])
        steps = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])
        return memory, Groups(completions, jnp.ones((2, 2)), known=Known(step_rewards=steps)), {}

    inner = Collector(lambda params: jnp.int32(0), collect)
    dynamic = dynamic_sampling(inner, 1)
    _, groups, told = dynamic.collect(dynamic.init(()), (), KEY, 0)
    assert told["sampling/kept"] == 0.5 and groups.completions.tokens[:2].ravel().tolist() == [0, 1, 2, 3]
    again = replayed(inner, 1, 1.0)
    memory, _, told = again.collect(again.init(()), (), KEY, 0)
    _, groups, later = again.collect(memory, (), KEY, 1)
    assert (told["replay/share"], later["replay/share"]) == (0, 0.5)
    assert groups.completions.tokens[2:].ravel().tolist() == [0, 1, 2, 3]


def test_mistakes_are_told():
    for size, share, told in ((0, 0.5, "size is 0"), (1, 1.5, "1 − share"), (1, -0.5, "share is -0.5")):
        with pytest.raises(ValueError, match=told):
            replayed(scripted([]), size, share)
