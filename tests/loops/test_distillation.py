"""Every recipe of distillation through the one loop: what it pays, its limits, and a tiny task from chance to solved.

A prompt is a letter, and the answer another one, twice. The teacher is a wider decoder that was shown the answers; one
that is the student itself reads them in its prompt, from where the student has learned to copy.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.types import Completions, Groups
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.loops.distillation import Views, distillation_loop, given_or_drawn
from rlax_llm.loops.language import Collector, Prompts, fresh_sampling
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.distilling import Reading, distilled_log_probs, teacher_log_probs
from rlax_llm.models.scoring import group_log_probs, row_log_probs
from rlax_llm.policy.distillation import demonstration
from rlax_llm.recipes import distillation as recipes

LETTERS, LENGTH, P, G, SEEDS = 5, 2, 5, 8, 8
STUDENT = DecoderConfig(LETTERS, 16, 32, 1, 2, 2, 8)
TEACHER = DecoderConfig(LETTERS, 24, 48, 1, 2, 2, 12, qk_norm="head")
LAYOUT = (G, 1)
ANSWERS = (jnp.arange(LETTERS) + 1) % LETTERS  # none is its own letter, or a hint would look like none
PROMPTS = Prompts(jnp.arange(LETTERS)[:, None], jnp.ones((LETTERS, 1), bool), columns=ANSWERS)
REQUEST = Request(Categorical(), (), LENGTH, G)


def rows_of(prompts, answers) -> Completions:
    tokens = jnp.concatenate([prompts, jnp.repeat(answers[:, None], LENGTH, 1)], 1).astype(jnp.int32)
    everything = jnp.ones(tokens.shape, bool)
    mask = jnp.arange(tokens.shape[1]) >= prompts.shape[1]
    return Completions(tokens, everything, everything & mask, jnp.zeros(tokens.shape), jnp.zeros(len(tokens), bool))


def share(completions, wanted):
    return (completions.tokens[:, -LENGTH:] == wanted[:, None]).mean(-1)


def solved(config, params) -> jax.Array:
    """Share of the letters that greedy answers have right."""
    request = Request(greedy, (), LENGTH, 1)
    found = generate_at_once(config, params, (PROMPTS.tokens, PROMPTS.valid), jax.random.key(0), request)
    return share(found, ANSWERS).mean()


def hinted(prompts, hints) -> jax.Array:
    """``after_example`` in tokens: prompt, hint, prompt."""
    return jnp.concatenate([prompts, hints, prompts], 1)


def imitate(config, params, batch, steps, log_probs=row_log_probs):
    init, step = supervised_loop(log_probs(config), optax.adam(1e-2))
    return jax.lax.scan(
        lambda state, key: step(state, batch(key)), init(params), jax.random.split(jax.random.key(1), steps)
    )[0].params


@cache
def a_teacher():
    """It has seen every answer, and is sure of none."""
    start = decoder.init_decoder(TEACHER, jax.random.key(5))
    params = jax.jit(partial(imitate, TEACHER, batch=lambda key: rows_of(PROMPTS.tokens, ANSWERS), steps=60))(start)
    assert solved(TEACHER, params) == 1
    return params


@cache
def copiers():
    """Students that copy a hint from their prompt and, without one, say any letter."""
    letters = jnp.arange(LETTERS)
    prompts, answers = jnp.repeat(letters, LETTERS)[:, None], jnp.tile(letters, LETTERS)
    shown = rows_of(hinted(prompts, jnp.repeat(answers[:, None], LENGTH, 1)), answers)
    plain = rows_of(prompts, answers)
    wide = jax.tree.map(lambda x: x if x.ndim == 1 else jnp.pad(x, ((0, 0), (1 + LENGTH, 0))), plain)
    everything = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), shown, wide)

    def one(key):
        return imitate(STUDENT, decoder.init_decoder(STUDENT, key), lambda _: everything, 400)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), SEEDS))


def starts(distillation):
    if distillation.follows is not None:
        return copiers()
    return jax.vmap(partial(decoder.init_decoder, STUDENT))(jax.random.split(jax.random.key(0), SEEDS))


def views_of(distillation, top_k: int = 0) -> Views:
    teacher = STUDENT if distillation.follows is not None else TEACHER
    compared = None
    if distillation.divergence is not None:
        compared = distilled_log_probs((STUDENT, teacher), LAYOUT, distillation.divergence, top_k=top_k)
    return Views(group_log_probs(STUDENT, LAYOUT), teacher_log_probs(teacher, LAYOUT), compared)


def with_hints(distillation, collector: Collector) -> Collector:
    """The answer of the row, or a right attempt of another of its group; none is padding."""
    if distillation.prompting is None:
        return collector
    of_group = distillation.prompting.hints is not demonstration

    def collect(memory, params, key, version):
        memory, groups, metrics = collector.collect(memory, params, key, version)
        rows = groups.completions
        right = (groups.scores == 1)[:, None, :] & ~jnp.eye(G, dtype=bool)
        best = rows.tokens.reshape(P, G, -1)[jnp.arange(P)[:, None], right.argmax(-1), 1:].reshape(P * G, LENGTH)
        answers = jnp.repeat(ANSWERS[rows.tokens[:, 0]][:, None], LENGTH, 1)
        there = right.any(-1).reshape(-1) if of_group else jnp.ones(P * G, bool)
        tokens = jnp.concatenate([hinted(rows.tokens[:, :1], best if of_group else answers), rows.tokens[:, 1:]], 1)
        valid = (jnp.arange(tokens.shape[1]) > LENGTH) | there[:, None]
        return memory, groups._replace(completions=rows._replace(teacher=Reading(tokens, valid))), metrics

    return Collector(collector.init, collect)


def run(distillation, reference, params, key, top_k=0):
    drawn = fresh_sampling(STUDENT, PROMPTS, share, REQUEST, P)
    given = rows_of(jnp.repeat(PROMPTS.tokens, G, 0), jnp.repeat(ANSWERS, G))
    collector = given_or_drawn(drawn, Groups(given, jnp.zeros((LETTERS, G))), distillation.on_policy)
    collector = with_hints(distillation, collector if distillation.on_policy < 1 else drawn)
    # A certain student has no slope left: one that begins as a copier takes small steps, and more of them.
    rate, steps = (1e-2, 400) if distillation.follows is None else (2e-3, 600)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    init, step = distillation_loop(views_of(distillation, top_k), distillation, optimizer)

    def body(state, key):
        _, groups, metrics = collector.collect((), state.params, key, 0)
        state, told = step(state, groups, key=key, reference=reference)
        return state, told | metrics

    before = solved(STUDENT, params)
    state, metrics = jax.lax.scan(body, init(params), jax.random.split(key, steps))
    return before, solved(STUDENT, state.params), metrics


RECIPES = {
    "gkd": recipes.gkd,
    "forward_kl": recipes.forward_kl,
    "reverse_kl": recipes.reverse_kl,
    "opd": recipes.opd,
    "iw_opd": recipes.iw_opd,
    "opd_grpo": recipes.opd_grpo,
    "minillm": recipes.minillm,
    "sdft": partial(recipes.sdft, follows=1e-4),
    "opsd": recipes.opsd,
    "sdpo": partial(recipes.sdpo, reward_coef=1.0, follows=1e-4),
}


# What such a small student learns without a hint it forgets with one, so a teacher that follows it does so slowly.


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_goes_from_chance_to_solved(name):
    distillation = RECIPES[name]()
    reference = None if distillation.follows is not None else a_teacher()
    keys = jax.random.split(jax.random.key(3), SEEDS)
    before, after, metrics = jax.jit(jax.vmap(partial(run, distillation, reference)))(starts(distillation), keys)
    assert before.mean() < 0.5
    assert after.shape == (SEEDS,)
    # Where the student is its own teacher, another machine's order of sums leaves another seed with a letter wrong.
    least = after.min() if distillation.follows is None else after.mean()
    np.testing.assert_array_less(0.95, least, err_msg=str(after))
    if 0 < distillation.on_policy < 1:
        assert abs(metrics["on_policy"].mean() - distillation.on_policy) < 0.1
