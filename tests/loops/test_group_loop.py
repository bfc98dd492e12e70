"""Epochs, minibatches, corrections, filters and the entropy bonus of the group loop; TRPO on completions."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arms import ARMS, G, P, T, bandit, completions_of, fixed, rollout, zero_params

from rlax_llm.core.kl import fixed_coef
from rlax_llm.core.types import Completions, CreditedCompletions, Groups, Known
from rlax_llm.credit import batches as batch_credit
from rlax_llm.credit.groups import per_group, z_score
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import GroupLearning, group_advantages, group_loop, group_trpo_loop, uninformative_share
from rlax_llm.loops.language import Prompts, dynamic_sampling, fresh_sampling
from rlax_llm.loops.minibatches import Passes, minibatch_rows
from rlax_llm.loops.policy import policy_loop
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.policy.coupled import mask_off_policy
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.policy.proximal import log_linear
from rlax_llm.policy.trust_regions import clip
from rlax_llm.policy.weightings import token_mean, top_entropy
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import mixed, variants

pytestmark = pytest.mark.usefixtures("float64")

KEY = jax.random.key(3)
EVERY = {
    "grpo": recipes.grpo(0),
    "grpo_kl": recipes.grpo(0.01),
    "dapo": recipes.dapo(),
    "dr_grpo": recipes.dr_grpo(T),
    "rloo": recipes.rloo(0.01),
    "gspo": recipes.gspo(0.1, 0.1),
    "gspo_token": recipes.gspo_token(0.1, 0.1),
    "luspo": recipes.luspo(0.1, 0.1),
    "gmpo": recipes.gmpo(),
    "cispo": recipes.cispo(5.0),
    "sapo": recipes.sapo(),
    "vespo": recipes.vespo(),
    "dppo_tv": recipes.dppo_tv(),
    "dppo_kl": recipes.dppo_kl(),
    "lite_ppo": recipes.lite_ppo(),
    "opo": recipes.opo(),
    "gpg": recipes.gpg(),
    "reinforce_plus_plus": recipes.reinforce_plus_plus(0.001),
    "reinforce_plus_plus_baseline": recipes.reinforce_plus_plus_baseline(),
    "maxrl": mixed.maxrl(),
    "topr": mixed.topr(),
    "kimi": mixed.kimi(),
    "dro": mixed.dro(),
    "clip_cov": variants.clip_cov(),
    "kl_cov": variants.kl_cov(),
    "remax": variants.remax(),
    "otb": variants.otb(),
    "fipo": variants.fipo(),
    "real": variants.real(G),
    "gfpo": variants.gfpo(),
    "gfpo_shortest": variants.gfpo_shortest(),
    "gigpo": variants.gigpo(),
    "spo": variants.spo(P),
    "rae": variants.rae(1),
    "log_linear": recipes.dapo()._replace(trust_region=log_linear(clip())),
    "off_policy_mask": recipes.dapo()._replace(trust_region=mask_off_policy(clip(), 0.1)),
    "chord": mixed.chord(),
    "luffy": mixed.luffy(),
    "echo": mixed.echo(),
}


def in_turn(objective, state, completions, scores, orders, optimizer, reference=None):
    """The optimizer steps one by one, each by ``policy_loop`` on its rows."""
    ref_log_probs = None if reference is None else bandit(reference, completions)[0]
    advantages = group_advantages(objective.advantage, completions, scores, ref_log_probs)
    step = jax.jit(policy_loop(bandit, objective, optimizer)[1])
    seen = []
    for order in orders:
        rows, credit = jax.tree.map(lambda x, order=order: x[order], (completions, advantages))
        known = None if ref_log_probs is None else ref_log_probs[order]
        state, metrics = step(state, CreditedCompletions(rows, credit, known))
        seen.append(metrics)
    return state, {name: np.mean([x[name] for x in seen]) for name in seen[0]}


@pytest.mark.parametrize("name", ["grpo_kl", "dapo", "rloo"])
@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (3, 1), (2, 2)])
def test_a_batch_is_learned_from_as_one_would_by_hand(name, epochs, minibatches):
    params, completions, scores = fixed()
    reference = zero_params(np.random.default_rng(1).normal(size=ARMS))
    learning = GroupLearning(epochs, minibatches, telling=whole_advantages)
    init, step = group_loop(bandit, EVERY[name], optax.adam(0.1), learning)
    state, metrics = jax.jit(step)(init(params), Groups(completions, scores), key=KEY, reference=reference)
    orders = minibatch_rows(P * G, KEY, Passes(epochs, minibatches, G))
    assert sorted(np.asarray(orders[:minibatches]).ravel()) == list(range(P * G))
    start = policy_loop(bandit, EVERY[name], optax.adam(0.1))[0](params)
    wanted, told = in_turn(EVERY[name], start, completions, scores, orders, optax.adam(0.1), reference)
    np.testing.assert_allclose(state.params["logits"], wanted.params["logits"], rtol=1e-12)
    assert state.step == epochs * minibatches
    ref_log_probs = bandit(reference, completions)[0]
    credit = group_advantages(EVERY[name].advantage, completions, scores, ref_log_probs)
    np.testing.assert_allclose(metrics["advantages"], credit, rtol=1e-12)
    for key, value in told.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-6, atol=1e-12)


def with_what_is_known(params, groups: Groups) -> Groups:
    """What recipes read beside the scores: a greedy score, prompts, a role, collisions; each token is a turn."""
    p = jax.nn.softmax(params["logits"])
    right = (groups.completions.tokens == ARMS - 1).reshape(P, G, T) / T
    known = Known(
        baselines=jnp.full(P, (jnp.argmax(p) == ARMS - 1) * 1.0),
        prompts=jnp.arange(P),
        roles=jnp.zeros((P, G), int),
        collisions=jnp.full((P, G, T), (p**2).sum()),
        turns=jnp.broadcast_to(jnp.arange(T), (P, G, T)),
        anchors=jnp.broadcast_to(jnp.arange(T), (P, G, T)),
        turn_returns=jnp.cumsum(right[..., ::-1], -1)[..., ::-1],
    )
    return groups._replace(known=known, staleness=jnp.ones((P * G, T)))


def with_demonstrations(groups: Groups, member: bool) -> Groups:
    """Each group with one more row, its last, that the policy did not draw: the best arm at every place.

    It is scored and in the mask where it is a member of its group, and has no score where it is not.
    """
    shape = P, 1, T
    shown = Completions(
        jnp.full(shape, ARMS - 1, jnp.int32), jnp.ones(shape, bool), jnp.full(shape, member), jnp.zeros(shape),
        jnp.zeros((P, 1), bool), given=jnp.ones(shape, bool),
    )  # fmt: skip
    drawn = groups.completions._replace(given=jnp.zeros((P * G, T), bool))
    rows = jax.tree.map(
        lambda x, last: jnp.concatenate([x.reshape(P, G, *last.shape[2:]), last], 1).reshape(-1, *last.shape[2:]),
        drawn,
        shown,
    )
    return Groups(rows, jnp.pad(groups.scores, ((0, 0), (0, 1)), constant_values=1.0 if member else jnp.nan))


def with_answers(groups: Groups) -> Groups:
    """Each row with the answer of a tool behind it: the arm that was drawn first, again."""
    rows = groups.completions
    answer = jnp.zeros((P * G, T + 1), bool).at[:, -1].set(True)
    wider = Completions(
        jnp.concatenate([rows.tokens, rows.tokens[:, :1]], 1), jnp.ones_like(answer), ~answer,
        jnp.pad(rows.log_probs, ((0, 0), (0, 1))), rows.truncated, given=answer,
    )  # fmt: skip
    return groups._replace(completions=wider)


GIVING = {
    "chord": partial(with_demonstrations, member=False),
    "luffy": partial(with_demonstrations, member=True),
    "echo": with_answers,
}


def climb(objective, key, learning, steps=60, told=jnp.mean, giving=None):
    """A run on the arms: of each step what is told of the scores ``[P, G]`` of what was drawn, their mean."""
    params = zero_params()
    init, step = group_loop(bandit, objective, optax.adam(0.05), learning)

    def one(state, key):
        drawn = rollout(bandit, state.params, key)
        groups = giving(drawn) if giving else with_what_is_known(state.params, drawn)
        return step(state, groups, key=key, reference=params)[0], told(drawn.scores)

    return jax.lax.scan(one, init(params), jax.random.split(key, steps))[1]


# Half of a group is learned from, or weights fall where completions are told apart, or where the group is right.
STEPS = {"gfpo": 200, "real": 200, "maxrl": 100}


@pytest.mark.parametrize("learning", [GroupLearning(2), GroupLearning(4, 2)], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_learns_from_eight_seeds(name, learning):
    climbing = partial(climb, EVERY[name], learning=learning, steps=STEPS.get(name, 60), giving=GIVING.get(name))
    scores = jax.jit(jax.vmap(climbing))(jax.random.split(KEY, 8))
    assert scores[:, 0].mean() < 0.4  # chance is 0.2
    assert np.all(scores[:, -10:].mean(-1) >= 0.95)


def test_pass_at_k_raises_the_best_of_a_group():
    climbing = partial(
        climb, variants.pass_at_k(), learning=GroupLearning(4, 2), steps=100, told=lambda scores: scores.max(-1).mean()
    )
    best = jax.jit(jax.vmap(climbing))(jax.random.split(KEY, 8))
    assert best[:, 0].mean() < 0.6  # chance is 0.44
    assert np.all(best[:, -10:].mean(-1) >= 0.95)


def test_the_kl_of_older_tokens_is_that_of_the_policy():
    """One of an arm that the policy would hardly draw any more has a k3 of thousands, and a corrected weight of 0."""
    params, reference = zero_params([-12.0, *np.zeros(ARMS - 1)]), zero_params()
    tokens = jnp.tile(jnp.arange(ARMS, dtype=jnp.int32), (P * G, 1))  # as often as the reference drew them
    old, now = (jax.nn.log_softmax(x["logits"]) for x in (reference, params))
    groups = Groups(completions_of(tokens, old[tokens]), jnp.zeros((P, G)))
    told = {}
    for correction in (None, truncated_importance(ceiling=2.0)):
        learning = GroupLearning(correction=correction, micro_batches=2)
        init, step = group_loop(bandit, recipes.grpo(0.01), optax.sgd(1.0), learning)
        told[correction is None] = float(jax.jit(step)(init(params), groups, reference=reference)[1]["kl"])
    assert told[False] == pytest.approx(float((jnp.exp(now) * (now - old)).sum()), rel=1e-6)
    assert told[True] > 1e4 * told[False]


def test_what_an_advantage_remembers_is_in_the_state():
    params, completions, scores = fixed()
    known = Known(prompts=jnp.array([0, 1, 1, 3]))
    init, step = group_loop(bandit, variants.spo(5), optax.adam(0.1), GroupLearning(2))
    state = init(params)
    assert state.memory.won.tolist() == state.memory.lost.tolist() == [4.0] * 5
    for count in (1, 2):
        state, _ = jax.jit(step)(state, Groups(completions, scores, known=known))
        assert state.memory.step == count
    assert state.memory.won[2] == state.memory.won[4] == 4
    assert np.all(state.memory.won[jnp.array([0, 1, 3])] != 4)
    assert state.memory.seen.tolist() == [1, 1, -1, 1, -1]


def uneven(params, completions):
    """The arms with an entropy that tells tokens apart, which no gradient reads."""
    log_probs, _ = bandit(params, completions)
    return log_probs, jnp.cos(completions.tokens + 0.7 * jnp.arange(T))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_credit_of_the_tokens_of_highest_entropy_alone(micro_batches):
    params, completions, scores = fixed()
    objective = recipes.dapo()
    learning = GroupLearning(micro_batches=micro_batches, telling=whole_advantages, credited=0.3)
    init, step = group_loop(uneven, objective, optax.sgd(1.0), learning)
    state, metrics = jax.jit(step)(init(params), Groups(completions, scores))
    kept = top_entropy(uneven(params, completions)[1], completions.mask, 0.3)
    credit = jnp.where(kept, group_advantages(objective.advantage, completions, scores), 0.0)
    np.testing.assert_allclose(metrics["advantages"], credit, rtol=1e-12)
    assert 0 < kept.sum() < completions.mask.sum() / 2
    own, learn = policy_loop(uneven, objective, optax.sgd(1.0))
    wanted = learn(own(params), CreditedCompletions(completions, credit))[0]
    np.testing.assert_allclose(state.params["logits"], wanted.params["logits"], rtol=1e-12)


def test_rows_that_belong_together_are_not_taken_in_parts():
    for objective in (variants.real(G), variants.clip_cov(), variants.kl_cov()):
        with pytest.raises(ValueError, match="policy_update: micro_batches is 2, and the objective reads several rows"):
            group_loop(bandit, objective, optax.sgd(1.0), GroupLearning(micro_batches=2))


def test_a_sampler_that_is_the_learner_needs_no_correction():
    params, completions, scores = fixed(drift=0.0)
    plain, corrected = (
        group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(correction=correction))
        for correction in (None, truncated_importance(ceiling=2.0))
    )
    groups = Groups(completions, scores)
    wanted = plain[1](plain[0](params), groups)[0]
    state, metrics = corrected[1](corrected[0](params), groups)
    np.testing.assert_allclose(state.params["logits"], wanted.params["logits"], rtol=1e-12)
    assert float(metrics["sampler/ratio_mean"]) == pytest.approx(1)
    assert float(metrics["sampler/correction_mean"]) == pytest.approx(1)


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4], [0, 1, 3]], ids=["another policy", "its nucleus"])
def test_a_correction_recovers_the_gradient_of_the_learners_own_samples(kept):
    """Samples of another policy with importance weights have the on-policy gradient in expectation: here exactly.

    Of a top-p sampler the sum stops at its nucleus: no weight brings back what is never drawn.
    """
    learner, sampler = jnp.array([0.5, -0.2, 0.1, 0.3, -0.4]), jnp.array([0.1, 0.4, -0.3, 0.0, 0.2])
    # Every arm once in a group of completions of one token, weighted by the sampler's probability in the score
    # function's place: the expectation over the sampler as a sum.
    arms = jnp.array(kept)
    sampled = jax.nn.log_softmax(sampler[arms])
    scores = jnp.array([[1.0, 0.0, 2.0, -1.0, 0.5]])[:, arms]
    completions = completions_of(arms[:, None].astype(jnp.int32), sampled[:, None])

    objective = recipes.gpg()._replace(advantage=lambda scored: scored.scores * len(kept) * jnp.exp(sampled))

    def moved(correction):
        init, step = group_loop(bandit, objective, optax.sgd(1.0), GroupLearning(correction=correction))
        return step(init(zero_params(learner)), Groups(completions, scores))[0].params["logits"] - learner

    wanted = jax.grad(lambda x: (jax.nn.softmax(x)[arms] * scores[0]).sum())(learner)
    np.testing.assert_allclose(moved(truncated_importance(ceiling=1e9)), wanted, rtol=1e-6)  # weights are float32
    assert np.abs(moved(None) - wanted).max() > 0.01


def test_micro_batches_change_the_memory_and_nothing_else():
    """Ten steps of a decoder on several lengths, in micro-batches of half a group, of two and of all 8 groups."""
    prompts_per_step, letters, stop = 8, 5, 0
    config = DecoderConfig(letters, 16, 32, 1, 2, 2, 8)
    start = decoder.init_decoder(config, KEY, jnp.float64)
    prompts = Prompts(jnp.arange(1, letters)[:, None], jnp.ones((letters - 1, 1), bool), jnp.arange(1, letters))

    def reward(completions, wanted):
        return ((completions.tokens[:, 1:] == wanted[:, None]) & completions.mask[:, 1:]).mean(-1)

    collect = dynamic_sampling(
        fresh_sampling(config, prompts, reward, Request(Categorical(), (stop,), 5, G), prompts_per_step)
    )
    groups = jax.jit(lambda key: collect.collect(collect.init(start), start, key, 0)[1])(KEY)
    drawn = groups.completions
    assert drawn.mask.sum(-1).min() < drawn.mask.sum(-1).max()
    ends = []
    for micro_batches in (16, 4, 1):
        learning = GroupLearning(micro_batches=micro_batches, entropy_coef=0.01)
        init, step = group_loop(group_log_probs(config, (G, 1)), recipes.dapo(), optax.adam(1e-2), learning)
        steps = jax.jit(lambda state, step=step: jax.lax.scan(lambda now, _: step(now, groups), state, None, 10))
        ends.append(steps(init(start)))
    moved = jax.tree.map(jnp.subtract, ends[-1][0].params, start)
    assert min(np.abs(x).max() for x in jax.tree.leaves(moved)) > 0.01
    for state, metrics in ends[:-1]:
        np.testing.assert_allclose(metrics["policy_loss"], ends[-1][1]["policy_loss"], rtol=0, atol=1e-9)
        chex.assert_trees_all_close(state.params, ends[-1][0].params, rtol=0, atol=1e-8)


def test_truncated_completions_can_be_left_out():
    params, completions, scores = fixed()
    completions = completions._replace(truncated=jnp.arange(P * G) % 2 == 0)
    filtered = GroupLearning(teaching=overlong_filter)
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0), filtered)
    state, _ = step(init(params), Groups(completions, scores))
    credit = group_advantages(recipes.dapo().advantage, completions, scores)
    kept = completions._replace(mask=completions.mask & ~completions.truncated[:, None])
    start, by_hand = policy_loop(bandit, recipes.dapo(), optax.sgd(1.0))
    wanted = by_hand(start(params), CreditedCompletions(kept, credit))[0]
    np.testing.assert_allclose(state.params["logits"], wanted.params["logits"], rtol=1e-12)


def test_a_minibatch_without_a_token_is_no_step():
    """Half the groups hold nothing: two minibatches are as one of the other half, whatever the optimizer remembers."""
    params, completions, scores = fixed()
    rows = jnp.arange(P * G) < P * G // 2
    blank = completions._replace(mask=completions.mask & rows[:, None])
    scores = jnp.where(rows.reshape(P, G), scores, jnp.nan)
    optimizer = optax.adamw(0.1, weight_decay=0.1)
    control = {"entropy_coef": 0.1, "entropy_control": stepped_coef(1.0, 0.01)}
    keys = jax.random.split(KEY, 64)
    orders = jax.jit(jax.vmap(lambda key: minibatch_rows(P * G, key, Passes(1, 2, G))))(keys)
    key = next(key for key, order in zip(keys, orders, strict=True) if rows[order].all(1).any())
    init, step = group_loop(bandit, recipes.dapo(), optimizer, GroupLearning(minibatches=2, **control))
    step = jax.jit(step)
    warm = step(init(params), Groups(completions, scores), key=KEY)[0]
    found, metrics = step(warm, Groups(blank, scores), key=key)
    half = jax.tree.map(lambda x: x[: P * G // 2], completions)
    alone = group_loop(bandit, recipes.dapo(), optimizer, GroupLearning(**control))[1]
    wanted, told = jax.jit(alone)(warm, Groups(half, scores[: P // 2]))
    chex.assert_trees_all_close(found, wanted, rtol=1e-12)
    assert found.step == warm.step + 1
    for name in ("entropy", "policy_loss", "clip_fraction"):
        np.testing.assert_allclose(metrics[name], told[name], rtol=1e-12)
    nothing = completions._replace(mask=jnp.zeros_like(completions.mask))
    left, metrics = step(warm, Groups(nothing, jnp.full_like(scores, jnp.nan)), key=key)
    chex.assert_trees_all_equal(left, warm)
    assert np.isnan(metrics["entropy"])


def test_the_entropy_bonus_climbs_the_entropy():
    params, completions, _ = fixed()
    scores = jnp.zeros((P, G))  # nothing else to learn
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(entropy_coef=0.5))
    moved = step(init(params), Groups(completions, scores))[0].params["logits"] - params["logits"]

    def entropy(logits):
        return -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum()

    np.testing.assert_allclose(moved, 0.5 * jax.grad(entropy)(params["logits"]), rtol=1e-7)


def test_the_bonus_is_steered_to_a_target():
    learning = GroupLearning(entropy_coef=0.1, entropy_control=stepped_coef(1.0, 0.01))
    params, completions, scores = fixed()
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(0.0), learning)
    state, metrics = step(init(params), Groups(completions, scores))
    assert float(metrics["entropy_coef"]) == pytest.approx(0.1)
    change = -0.01 if metrics["entropy"] > 1 else 0.01
    assert float(state.entropy_coef) == pytest.approx(0.1 + change)


@pytest.mark.parametrize("entropy", [0.0, 0.3, 2.0])
def test_stepped_coef_without_a_step_is_fixed_coef(entropy):
    assert stepped_coef(0.3, 0.0)(0.7, entropy) == fixed_coef(0.7, entropy)
    assert stepped_coef(0.3, 5.0)(0.7, 0.4) == 0  # never below


def test_several_rewards():
    params, completions, scores = fixed()
    planes = jnp.stack([scores, scores**2])
    objective = recipes.gdpo((1.0, 0.5))
    init, step = group_loop(bandit, objective, optax.sgd(1.0))
    state, metrics = step(init(params), Groups(completions, planes))
    credit = batch_credit.gdpo(planes, jnp.array([1.0, 0.5])).reshape(-1, 1)
    start, by_hand = policy_loop(bandit, objective, optax.sgd(1.0))
    credited = CreditedCompletions(completions, jnp.broadcast_to(credit, completions.tokens.shape))
    wanted = by_hand(start(params), credited)[0]
    np.testing.assert_allclose(state.params["logits"], wanted.params["logits"], rtol=1e-12)
    assert metrics["frac_reward_zero_std"] == 0


def test_a_group_is_uninformative_where_no_reward_differs():
    scores = jnp.array([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [3.0, 3.0], [1.0, 2.0]]])
    assert uninformative_share(scores) == pytest.approx(1 / 3)
    assert uninformative_share(scores[0]) == pytest.approx(2 / 3)


def logits_of(params, completions):
    return jnp.broadcast_to(params["logits"], (*completions.tokens.shape, ARMS))


def trpo(radius=0.01):
    search = backtracking_search(improves_within(radius))
    return group_trpo_loop(logits_of, per_group(z_score), token_mean, natural_direction(radius), search)


def test_trpo_stays_in_its_radius_and_learns():
    init, step = trpo(0.02)

    def one(state, key):
        groups = rollout(bandit, state.params, key)
        state, metrics = step(state, groups)
        return state, metrics | {"score": groups.scores.mean()}

    run = jax.jit(lambda key: jax.lax.scan(one, init(zero_params()), jax.random.split(key, 60)))
    state, metrics = run(KEY)
    assert np.all(np.asarray(metrics["kl"]) <= 0.02)
    assert metrics["score"][-10:].mean() >= 0.95
    assert state.step == 60


def test_trpo_steps_along_the_natural_gradient():
    """Along ``F⁻¹ g`` with the softmax's own Fisher matrix, as far as the quadratic model of the KL allows."""
    params, completions, scores = fixed(drift=0.0)
    radius = 1e-6
    search = backtracking_search(improves_within(2 * radius))
    loop = group_trpo_loop(
        logits_of, per_group(z_score), token_mean, natural_direction(radius, damping=1e-9, iterations=50), search
    )
    state = loop[1](loop[0](params), Groups(completions, scores))[0]
    moved = np.asarray(state.params["logits"] - params["logits"])
    p = np.asarray(jax.nn.softmax(params["logits"]))
    fisher = np.diag(p) - np.outer(p, p)
    start, by_hand = policy_loop(bandit, recipes.dapo(), optax.sgd(1.0))
    credit = group_advantages(recipes.dapo().advantage, completions, scores)
    state = by_hand(start(params), CreditedCompletions(completions, credit))[0]
    gradient = np.asarray(state.params["logits"] - params["logits"])
    direction = np.linalg.pinv(fisher) @ gradient
    wanted = direction * np.sqrt(2 * radius / (direction @ fisher @ direction))
    np.testing.assert_allclose(moved - moved.mean(), wanted - wanted.mean(), rtol=1e-3, atol=1e-8)


def test_mistakes_are_told():
    params, completions, scores = fixed()
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(minibatches=3))
    with pytest.raises(ValueError, match=r"minibatches is 3, wanted a divisor of the 4 groups"):
        step(init(params), Groups(completions, scores), key=KEY)
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(minibatches=2))
    with pytest.raises(ValueError, match="key is None"):
        step(init(params), Groups(completions, scores))
    with pytest.raises(ValueError, match="epochs"):
        group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(0))
    with pytest.raises(ValueError, match="entropy_coef"):
        group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(entropy_coef=-1.0))
