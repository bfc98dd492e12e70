"""Which groups a step of partial rollouts hands out, whose tokens they are, and that none is lost or given twice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.curriculum import by_pass_rate, near_rate
from rlax_llm.loops.language import Prompts, aged, delayed_sampling, dynamic_sampling, fresh_sampling, stale_sampling
from rlax_llm.loops.partial import partial_sampling
from rlax_llm.loops.replay import replayed
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs

LETTERS, P, G, LIMIT = 7, 3, 2, 8
CONFIG = DecoderConfig(LETTERS, 16, 32, 1, 2, 2, 8)
TOKENS = jnp.stack([jnp.zeros(LETTERS, jnp.int32), jnp.arange(LETTERS, dtype=jnp.int32)], 1)
PROMPTS = Prompts(TOKENS, jnp.ones((LETTERS, 2), bool).at[::2, 0].set(False), jnp.arange(LETTERS))
REQUEST = Request(Categorical(top_k=6), (1,), LIMIT, G)
KEY = jax.random.key(0)
PARAMS = decoder.init_decoder(CONFIG, KEY)


def reward(completions, wanted):
    return (completions.tokens[:, 2:] == wanted[:, None]).any(-1).astype(float)


def collector(budget, further=0, choosing=None):
    return partial_sampling(CONFIG, PROMPTS, reward, REQUEST, (P, further), budget, choosing)


def run(collect, keys, policies=None):
    """Groups and metrics of each step, under one policy or one for each."""
    start = PARAMS if policies is None else jax.tree.map(lambda x: x[0], policies)

    def step(memory, given):
        key, version, params = given if policies is not None else (*given, PARAMS)
        memory, groups, metrics = collect.collect(memory, params, key, version)
        return memory, (aged(groups, version), metrics, getattr(memory, "begun", 0))

    steps = keys, jnp.arange(len(keys)) if policies is not None else jnp.zeros(len(keys), int)
    over = steps if policies is None else (*steps, policies)
    return jax.jit(lambda: jax.lax.scan(step, collect.init(start), over)[1])()


def test_with_a_budget_of_the_longest_completion_it_is_the_plain_collector():
    """Prompts by a curriculum, so that what it learns is the same too."""
    choosing, keys = by_pass_rate(LETTERS, near_rate()), jax.random.split(KEY, 4)
    plain = run(fresh_sampling(CONFIG, PROMPTS, reward, REQUEST, P, choosing), keys)[0]
    found, told, _ = run(collector(LIMIT, 0, choosing), keys)
    assert (told["sampling/filled"] == 1).all() and (told["sampling/carried"] == 0).all()
    for name in ("tokens", "mask", "valid", "truncated", "kept"):
        pair = (getattr(groups.completions, name) for groups in (found, plain))
        np.testing.assert_array_equal(*pair, err_msg=name)
    np.testing.assert_allclose(found.completions.log_probs, plain.completions.log_probs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.scores, plain.scores)
    np.testing.assert_array_equal(found.known.prompts, plain.known.prompts)
    assert not found.staleness.any()


class Literal:
    """Groups in flight as lists: what each will be is drawn at once, at the keys of the step that begins it."""

    def __init__(self, budget, further):
        self.budget, self.places, self.count = budget, [None] * (P + further), 0

    def step(self, key):
        which, draw = jax.random.split(key)
        chosen = jax.random.randint(which, (len(self.places),), 0, LETTERS)
        asked = PROMPTS.tokens[chosen], PROMPTS.valid[chosen]
        whole = jax.device_get(generate_at_once(CONFIG, PARAMS, asked, draw, REQUEST))
        for place, group in enumerate(self.places):
            if group is None:
                rows = slice(place * G, place * G + G)
                self.places[place] = {
                    "number": self.count,
                    "prompt": int(chosen[place]),
                    "tokens": whole.tokens[rows],
                    "mask": whole.mask[rows],
                    "steps": 0,
                }
                self.count += 1
        for group in self.places:
            group["steps"] += 1
        ready = [x for x in self.places if x["mask"].sum(1).max() <= x["steps"] * self.budget]
        given = sorted(ready, key=lambda group: group["number"])[:P]
        self.places = [None if any(x is y for y in given) else x for x in self.places]
        return given


@pytest.mark.parametrize(("budget", "further"), [(3, 2), (2, 0)])
def test_every_group_that_was_begun_is_handed_out_once_as_one_generation_draws_it(budget, further):
    keys = jax.random.split(KEY, 12)
    groups, told, begun = run(collector(budget, further), keys)
    literal, numbers = Literal(budget, further), []
    for step, key in enumerate(keys):
        given, now = literal.step(key), jax.tree.map(lambda x, at=step: np.asarray(x[at]), groups)
        rows = now.completions
        assert told["sampling/filled"][step] == pytest.approx(len(given) / P)
        assert told["sampling/carried"][step] == P + further - len(given)
        assert now.known.prompts[: len(given)].tolist() == [group["prompt"] for group in given]
        for place, group in enumerate(given):
            of_group = slice(place * G, place * G + G)
            np.testing.assert_array_equal(rows.mask[of_group], group["mask"])
            np.testing.assert_array_equal(rows.tokens[of_group], group["tokens"])
            # Of one policy no token is another's, however many steps a group took.
            assert not now.staleness[of_group].any()
        assert not rows.mask[len(given) * G :].any() and np.isnan(now.scores[len(given) :]).all()
        numbers += [group["number"] for group in given]
    left = [group["number"] for group in literal.places if group is not None]
    assert sorted(numbers + left) == list(range(literal.count)) and begun[-1] == literal.count
    assert len(numbers) > 8 and told["sampling/filled"].min() < 1


def late(inner):
    """Sampled from a step late."""
    return delayed_sampling(inner, 1)


def now_and_then(inner):
    """Brought up to date at every third step, within rounds that draw several times a step."""
    return dynamic_sampling(stale_sampling(inner, 3), 2)


@pytest.mark.parametrize("wrapped", [late, now_and_then])
def test_each_part_has_the_log_probabilities_of_the_policy_that_drew_it(wrapped):
    """Another policy at every step: ``staleness`` of a token names its parameters."""
    steps = 8
    policies = jax.vmap(lambda key: decoder.init_decoder(CONFIG, key))(jax.random.split(KEY, steps))
    groups, _, _ = run(wrapped(collector(3, 1)), jax.random.split(KEY, steps), policies)
    score = group_log_probs(CONFIG, (G, 2))
    own = jax.jit(jax.vmap(lambda rows: jax.vmap(lambda params: score(params, rows)[0])(policies)))(groups.completions)
    several = 0
    for step in range(steps):
        both = groups.completions, groups.staleness
        rows, ages = jax.tree.map(lambda x, at=step: np.asarray(x[at]), both)
        drew = np.where(rows.mask, step - ages.astype(int), 0)
        assert drew.min() >= 0
        found = np.take_along_axis(np.asarray(own[step]), drew[None], 0)[0]
        np.testing.assert_allclose(np.where(rows.mask, found - rows.log_probs, 0), 0, atol=1e-5)
        several += sum(len(np.unique(drew[row][rows.mask[row]])) > 1 for row in range(len(drew)))
    assert several > 5


def whole_again(inner):
    """Those that were handed out before stand in where nothing is whole."""
    return replayed(inner, P, 1.0)


@pytest.mark.parametrize(
    "wrapped", [lambda x: whole_again(stale_sampling(x, 3)), lambda x: stale_sampling(whole_again(x), 3)]
)
def test_ages_are_updates_whatever_wraps_what_counted_by_hand(wrapped):
    """Six tokens, three at a step, of policies 0 0 0 3 3 3; groups are whole at steps 1, 3, 5, and are given again."""

    def differing(completions, wanted):
        return (jnp.arange(P * G) % G).astype(float)

    request = Request(Categorical(), (), 6, G)
    inner = wrapped(partial_sampling(CONFIG, PROMPTS, differing, request, (P, 0), 3))
    policies = jax.tree.map(lambda x: jnp.broadcast_to(x, (6, *x.shape)), PARAMS)  # which say nothing of their version
    groups, told, _ = run(inner, jax.random.split(KEY, 6), policies)
    assert told["replay/share"].tolist() == [0, 0, 1, 0, 1, 0]
    ages = {1: [1] * 6, 2: [2] * 6, 3: [3, 3, 3, 0, 0, 0], 4: [4, 4, 4, 1, 1, 1], 5: [2] * 6}
    for step, by_hand in ages.items():
        assert (groups.staleness[step, :, 2:] == jnp.array(by_hand)).all(), step
    assert not groups.completions.mask[0].any()


def test_rounds_of_dynamic_sampling_make_nothing_older():
    collect = dynamic_sampling(collector(2, 1), most_rounds=6)
    memory = collect.init(PARAMS)
    assert memory.groups.scores.shape == (2 * P, G)
    _, groups, told = jax.jit(collect.collect)(memory, PARAMS, KEY, 5)
    assert told["sampling/rounds"] > 1 and told["sampling/filled"] > 0
    assert not aged(groups, 5).staleness.any()
    here = groups.completions.mask.any(-1).reshape(P, G).any(-1)
    assert (jnp.ptp(groups.scores, -1) > 0)[here].all()


def test_wrong_numbers_are_told():
    for sizes, budget, told in (((0, 1), 1, "groups is 0"), ((1, -1), 1, "further is -1"), ((1, 0), 0, "budget is 0")):
        with pytest.raises(ValueError, match=f"partial_sampling: {told}"):
            partial_sampling(CONFIG, PROMPTS, reward, REQUEST, sizes, budget)
