"""How old what a collector hands out is, in updates, whatever wraps what."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Completions, Groups
from rlax_llm.loops.language import (
    Collector,
    aged,
    delayed_sampling,
    dynamic_sampling,
    language_loop,
    stale_sampling,
)
from rlax_llm.loops.replay import replayed

P, G, STEPS = 4, 2, 12


def scripted(memory, params, key, version):
    """Groups of which about half differ in score; their tokens are the policy's number, which is all of the policy."""
    scores = jax.random.randint(key, (P, G), 0, 2).astype(float)
    tokens = jnp.full((P * G, 1), params, jnp.int32)
    every = jnp.ones(tokens.shape, bool)
    return memory, Groups(Completions(tokens, every, every, 0.0 * tokens, every[:, 0]), scores), {}


WRITES_NO_VERSION = Collector(lambda params: (), scripted)


def stale(inner):
    return stale_sampling(inner, 3)


def late(inner):
    return delayed_sampling(inner, 2)


def again(inner):
    return replayed(inner, 3, 1.0)


def rounds(inner):
    return dynamic_sampling(inner, 4)


NESTINGS = [
    (stale,),
    (late,),
    (again, stale),
    (stale, again),
    (rounds, stale),
    (rounds, late),
    (late, again),
    (late, stale),
    (stale, late),
    (late, rounds, again),
]


def nested(wrappers) -> Collector:
    collector = WRITES_NO_VERSION
    for wrap in reversed(wrappers):
        collector = wrap(collector)
    return collector


@functools.cache
def run(wrappers) -> tuple[np.ndarray, np.ndarray]:
    """Ages and tokens ``[STEPS, P · G]`` where policy t is the number t."""
    collector = nested(wrappers)

    def step(memory, given):
        key, version = given
        memory, groups, _ = collector.collect(memory, version, key, version)
        return memory, (aged(groups, version).staleness[:, 0], groups.completions.tokens[:, 0])

    over = jax.random.split(jax.random.key(0), STEPS), jnp.arange(STEPS)
    found = jax.jit(lambda: jax.lax.scan(step, collector.init(jnp.int32(0)), over)[1])()
    ages, tokens = (np.asarray(x) for x in found)
    return ages, tokens


@pytest.mark.parametrize("wrappers", NESTINGS, ids=lambda wrappers: " around ".join(x.__name__ for x in wrappers))
def test_ages_are_the_updates_since_the_policy_that_drew(wrappers):
    ages, tokens = run(wrappers)
    np.testing.assert_array_equal(ages, np.arange(STEPS)[:, None] - tokens)
    assert ages.max() >= 2


def test_ages_counted_by_hand():
    by_hand = {
        (stale,): [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2],
        (rounds, stale): [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2],
        (late,): [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
        # Policies 0, 3, 6, 9 are seen; the newest that is two updates older than the one in use is the one before.
        (stale, late): [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5],
        # Two updates before, and then the last multiple of three.
        (late, stale): [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 2],
    }
    for wrappers, ages in by_hand.items():
        assert run(wrappers)[0].min(1).tolist() == ages, wrappers


class Counted(NamedTuple):
    """A learner whose policy is the number of its updates."""

    params: jax.Array


def test_the_loop_counts_its_updates_and_tells_them_to_its_learner():
    def learn(state, groups, *, key, reference, frozen):
        told = {"age": groups.staleness.max(), "drawn": groups.completions.tokens[0, 0]}
        return Counted(state.params + 1), told

    init, step = language_loop(nested((stale,)), (Counted, learn))
    state, told = jax.lax.scan(step, init(jnp.int32(0)), jax.random.split(jax.random.key(0), 7))
    assert told["age"].tolist() == [0, 1, 2, 0, 1, 2, 0] and told["drawn"].tolist() == [0, 0, 0, 3, 3, 3, 6]
    assert state.version == 7
