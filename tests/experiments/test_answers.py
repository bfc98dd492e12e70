"""The small language of the experiments on groups: its base, its rewards and its exact lengths."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.answers import PROMPT, Language, base, demonstrations, lengths, right, told
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.language import fresh_sampling

LANGUAGE = Language(letters=5, longest=6, hard=0.3, imitation_steps=150)


@pytest.fixture(scope="module")
def groups():
    params = jax.jit(lambda key: base(LANGUAGE, key))(jax.random.key(0))
    request = Request(Categorical(), (LANGUAGE.stop,), LANGUAGE.longest, 8)
    collector = fresh_sampling(LANGUAGE.config, LANGUAGE.prompts, right, request, 512)
    return params, jax.jit(collector.collect)((), params, jax.random.key(1), 0)[1]


def test_writers_answer_as_well_as_they_should():
    rows = demonstrations(LANGUAGE, jax.random.key(0), 20_000)
    prompts = np.asarray(rows.tokens[:, :PROMPT])
    hard = prompts[:, 0] > prompts[:, 1]
    answered = np.asarray(rows.tokens[:, PROMPT]) == prompts.min(1)
    assert answered[~hard].mean() == pytest.approx(LANGUAGE.easy, abs=0.02)
    assert answered[hard].mean() == pytest.approx(LANGUAGE.hard, abs=0.02)
    tokens = np.asarray(rows.tokens)[np.asarray(rows.mask)]
    ended = ~np.asarray(rows.truncated)
    assert (tokens == LANGUAGE.stop).sum() == ended.sum()


def test_exact_lengths_are_those_of_samples(groups):
    params, drawn = groups
    sampled_lengths = np.asarray(drawn.completions.mask.sum(-1))
    correct = np.asarray(drawn.scores).ravel() > 0
    for exact, where in zip(jax.jit(partial(lengths, LANGUAGE))(params), (correct, ~correct), strict=True):
        own = sampled_lengths[where]
        assert float(exact) == pytest.approx(own.mean(), abs=4 * own.std() / np.sqrt(own.size))


def test_what_is_told_of_groups(groups):
    _, drawn = groups
    tell = jax.jit(told)
    metrics = tell(drawn)
    assert float(metrics["accuracy"]) == pytest.approx(float(drawn.scores.mean()), abs=1e-6)
    assert metrics["accuracy_easy"] > metrics["accuracy_hard"]
    empty = drawn.completions._replace(mask=jnp.zeros_like(drawn.completions.mask))
    assert np.isnan(tell(drawn._replace(completions=empty))["length_wrong"])
