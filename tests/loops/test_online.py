"""Every recipe of online preference through the one loop: what it pays, its limits, and a tiny task until it is solved.

A prompt is a letter, and the answer another one, twice.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preference_tables import QUICKLY

from rlax_llm.core.types import Completions, Groups, PairedCompletions
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical, greedy
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.language import Prompts, fresh_sampling
from rlax_llm.loops.online import online_loop, paired, rivals_sampling
from rlax_llm.loops.preference import preference_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.policy.weightings import sequence_sum
from rlax_llm.preference.ordering import OnlinePairs
from rlax_llm.recipes import online as recipes
from rlax_llm.recipes.preference import dpo

LETTERS, LENGTH, P, SEEDS, STEPS = 5, 2, 5, 8, 300
CONFIG = DecoderConfig(LETTERS, 16, 32, 1, 2, 2, 8)
ANSWERS = (jnp.arange(LETTERS) + 1) % LETTERS
PROMPTS = Prompts(jnp.arange(LETTERS)[:, None], jnp.ones((LETTERS, 1), bool), columns=ANSWERS)


def share(completions, wanted):
    return (completions.tokens[:, -LENGTH:] == wanted[:, None]).mean(-1)


def solved(params) -> jax.Array:
    """Share of the letters that greedy answers have right."""
    request = Request(greedy, (), LENGTH, 1)
    found = generate_at_once(CONFIG, params, (PROMPTS.tokens, PROMPTS.valid), jax.random.key(0), request)
    return share(found, ANSWERS).mean()


def run(online, sizes, params, key):
    own, rivals = sizes
    request = Request(Categorical(), (), LENGTH, own)
    if rivals:
        reward = partial(weighed, 4.0)
        collector = rivals_sampling(CONFIG, PROMPTS, reward, request, P, online.rivals, rivals)
    else:
        collector = fresh_sampling(CONFIG, PROMPTS, share, request, P)
    layout = (2 if isinstance(online, OnlinePairs) else own, 1)
    init, step = online_loop(group_log_probs(CONFIG, layout), online, optax.adam(1e-2), rivals=rivals)

    def body(carry, key):
        memory, state = carry
        memory, groups, _ = collector.collect(memory, state.params, key, 0)
        state, told = step(state, groups, key=key, reference=params)
        return (memory, state), told

    start = collector.init(params), init(params)
    (_, state), metrics = jax.lax.scan(body, start, jax.random.split(key, STEPS))
    return solved(params), solved(state.params), metrics


def weighed(weight, completions, wanted):
    """A judge that is sure of itself."""
    return weight * share(completions, wanted)


# How many completions of a prompt are the policy's, and how many a rival's.
RECIPES = {
    "online_dpo": (recipes.online_dpo, (8, 0)),
    "xpo": (partial(recipes.xpo, 1.0, 1e-3), (16, 16)),
    "nash_md": (partial(recipes.nash_md, 0.5, 0.02), (16, 8)),
    "a_star_po": (partial(recipes.a_star_po, 0.3, 1.0), (4, 8)),
    "raft": (recipes.best_of_n, (16, 0)),
}
GROUPS = {"raft_plus_plus": (recipes.raft_plus_plus, 16), "gvpo": (partial(recipes.gvpo, 8), 8)}


def starts():
    return jax.vmap(partial(decoder.init_decoder, CONFIG))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.mark.parametrize("name", [*RECIPES, *GROUPS])
def test_every_recipe_goes_from_chance_to_solved(name):
    if name in RECIPES:
        made, sizes = RECIPES[name]
        online = made()
    else:
        made, own = GROUPS[name]
        online, sizes = recipes.best_of_n()._replace(objective=made()), (own, 0)
    keys = jax.random.split(jax.random.key(3), SEEDS)
    compiled = jax.jit(jax.vmap(partial(run, online, sizes)), compiler_options=QUICKLY)
    before, after, metrics = compiled(starts(), keys)
    assert before.mean() < 0.5
    assert after.shape == (SEEDS,)
    np.testing.assert_array_less(0.95, after.min(), err_msg=str(after))
    if name == "online_dpo":  # all are right in the end, and none is better
        assert metrics["frac_paired"][:, :50].mean() > metrics["frac_paired"][:, -50:].mean()


# Limits


def table(params, rows: Completions):
    log_p = jax.nn.log_softmax(params)
    return log_p[jnp.arange(rows.tokens.shape[1]), rows.tokens], jnp.zeros(rows.tokens.shape)


def drawn(scores, seed: int = 0) -> Groups:
    rows = scores.size
    random = np.random.default_rng(seed)
    tokens = jnp.asarray(random.integers(0, 3, (rows, 2)), jnp.int32)
    mask = jnp.ones((rows, 2), bool)
    made = Completions(tokens, mask, mask, jnp.zeros((rows, 2)), jnp.zeros(rows, bool))
    return Groups(made._replace(log_probs=table(jnp.zeros((2, 3)), made)[0]), jnp.asarray(scores, jnp.float32))


PARAMS, REFERENCE = jnp.array([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]]), jnp.zeros((2, 3))
NAN = float("nan")


def after(loop, batch, **more):
    init, step = loop
    return step(init(PARAMS), batch, reference=REFERENCE, **more)


def test_pairs_are_preference_loops_on_those_that_differ():
    scores = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [NAN, 0.0, 2.0]])
    groups = drawn(scores)
    state, metrics = after(online_loop(table, recipes.online_dpo(0.5), optax.sgd(1.0)), groups)
    rows = np.array([0, 1, 8, 7])
    pairs = PairedCompletions(jax.tree.map(lambda x: x[rows], groups.completions))
    wanted, told = after(preference_loop(table, dpo(0.5), optax.sgd(1.0)), pairs)
    chex.assert_trees_all_close(state.params, wanted.params, rtol=1e-6)
    chex.assert_trees_all_close(metrics["loss"], told["loss"], rtol=1e-6)
    assert metrics["frac_paired"] == pytest.approx(2 / 3)
    assert paired(recipes.online_dpo(), groups)[1].tolist() == [1, -1, 0, 0, 0, 0, 0, -1, 1]


def test_without_a_preference_nothing_is_learned_not_even_by_a_momentum():
    loop = online_loop(table, recipes.online_dpo(), optax.adam(0.1))
    init, step = loop
    state, _ = step(init(PARAMS), drawn(np.array([[1.0, 0.0]])), reference=REFERENCE)
    same, metrics = step(state, drawn(np.array([[1.0, 1.0]])), reference=REFERENCE)
    chex.assert_trees_all_equal(same, state)
    assert jnp.isnan(metrics["loss"]) and metrics["frac_paired"] == 0


def test_xpo_explores_what_the_reference_drew():
    """Against ``dpo``: a step down of α log π of the rival's completion, mean over the pairs."""
    scores = np.array([[1.0, 0.0], [0.0, 1.0]])
    groups = drawn(scores, 3)
    plain, more = (
        after(online_loop(table, recipes.xpo(0.5, alpha), optax.sgd(1.0), rivals=1), groups)[0].params
        for alpha in (0.0, 0.25)
    )
    rivals = jax.tree.map(lambda x: x[1::2], groups.completions)
    term = jax.grad(lambda params: 0.25 * table(params, rivals)[0].sum(-1).mean())(PARAMS)
    np.testing.assert_allclose(plain - more, term, atol=1e-6)


def test_xpo_explores_where_neither_is_preferred_too():
    """arXiv 2405.21046, algorithm 1, by loops: the term is of every pair, the preference of those that have one."""
    groups = drawn(np.array([[1.0, 0.0], [0.5, 0.5], [NAN, 1.0]]), 3)
    state, metrics = after(online_loop(table, recipes.xpo(0.5, 0.25), optax.sgd(1.0), rivals=1), groups)

    def literal(params):
        now, before = (table(x, groups.completions)[0].sum(-1) for x in (params, REFERENCE))
        gained = now - before
        preferred = -jax.nn.log_sigmoid(0.5 * (gained[0] - gained[1]))
        return (preferred + 0.25 * (now[1] + now[3])) / 2

    np.testing.assert_allclose(PARAMS - state.params, jax.grad(literal)(PARAMS), atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], literal(PARAMS), atol=1e-6)
    assert metrics["frac_paired"] == pytest.approx(1 / 3) and metrics["accuracy"] in (0.0, 1.0)
    tied = drawn(np.array([[0.5, 0.5]]), 4)
    same, told = after(online_loop(table, recipes.xpo(0.5, 0.0), optax.sgd(1.0), rivals=1), tied)
    np.testing.assert_array_equal(same.params, PARAMS)
    assert told["loss"] == 0 and told["accuracy"] == 0


def test_groups_without_rivals_are_group_loops():
    groups = drawn(np.array([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]]), 4)
    chex.assert_trees_all_equal(
        after(online_loop(table, recipes.best_of_n(), optax.sgd(1.0)), groups),
        after(group_loop(table, recipes.raft(), optax.sgd(1.0)), groups),
    )


def test_nash_md_pays_the_win_rate_less_a_half_and_the_kl_of_the_whole():
    """arXiv 2312.00886: the gradient of log π(y) times (P − ½ − τ log π(y)/μ(y)), by loops."""
    groups = drawn(np.array([[1.0, 0.2, 0.4], [0.0, 3.0, -1.0]]), 5)
    own = groups._replace(completions=groups.completions._replace(log_probs=table(PARAMS, groups.completions)[0]))
    state, _ = after(online_loop(table, recipes.nash_md(0.5, 0.3), optax.sgd(1.0), rivals=2), own)

    def literal(params):
        total = 0.0
        for prompt, scores in enumerate(np.asarray(groups.scores)):
            row = jax.tree.map(lambda x, row=3 * prompt: x[row : row + 1], groups.completions)
            now, start, reference = (table(x, row)[0].sum() for x in (params, PARAMS, REFERENCE))
            won = np.mean(1 / (1 + np.exp(scores[1:] - scores[0])))
            total -= now * (won - 0.5 - 0.3 * (start - reference)) / 2
        return total

    np.testing.assert_allclose(PARAMS - state.params, jax.grad(literal)(PARAMS), atol=1e-6)


def test_between_equals_nash_md_has_no_preference():
    """Win rates of ½ teach nothing, and without τ nothing else does."""
    groups = drawn(np.array([[2.0, 2.0], [-1.0, -1.0]]), 5)
    loop = online_loop(table, recipes.nash_md(0.5, 0.0), optax.sgd(1.0), rivals=1)
    np.testing.assert_allclose(after(loop, groups)[0].params, PARAMS, atol=1e-7)


def test_epochs_and_minibatches_take_each_pair_once():
    groups = drawn(np.array([[1.0, 0.0], [0.0, 1.0]]), 6)
    learning = GroupLearning(minibatches=2)
    loop = online_loop(table, recipes.online_dpo(0.5), optax.sgd(0.1), learning)
    state, _ = after(loop, groups, key=jax.random.key(0))
    assert state.step == 2
    orders = []
    for rows in ([0, 1, 3, 2], [3, 2, 0, 1]):
        init, step = preference_loop(table, dpo(0.5), optax.sgd(0.1), 1, sequence_sum)
        own = init(PARAMS)
        for part in (rows[:2], rows[2:]):
            pair = PairedCompletions(jax.tree.map(lambda x, part=part: x[np.array(part)], groups.completions))
            own = step(own, pair, reference=REFERENCE)[0]
        orders.append(own.params)
    assert any(np.allclose(state.params, one, atol=1e-7) for one in orders)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: online_loop(table, recipes.xpo(), optax.sgd(1.0)), "rivals is 0 and the algorithm's is 1.0"),
        (lambda: online_loop(table, recipes.online_dpo(), optax.sgd(1.0), rivals=1), "wanted 0"),
        (
            lambda: after(online_loop(table, recipes.xpo(), optax.sgd(1.0), rivals=2), drawn(np.zeros((1, 2)))),
            r"wanted \[P, G \+ 2\] of the 2 rows",
        ),
        (
            lambda: after(
                online_loop(table, recipes.online_dpo(), optax.sgd(1.0), GroupLearning(minibatches=2)),
                drawn(np.zeros((1, 2))),
                key=jax.random.key(0),
            ),
            "minibatches is 2, wanted a divisor of the 1 pairs",
        ),
        (
            lambda: online_loop(table, recipes.online_dpo(), optax.sgd(1.0))[1](
                online_loop(table, recipes.online_dpo(), optax.sgd(1.0))[0](PARAMS), drawn(np.zeros((1, 2)))
            ),
            "a reference is read",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
