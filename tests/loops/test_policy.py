from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arms import ARMS, Arms, G, P, T, bandit, fixed, linen, rollout, zero_params
from preference_batches import numeric_gradient
from scipy.special import log_softmax

from rlax_llm.core.types import CreditedCompletions, Groups
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.policy import Anchor, policy_loop, supervised_loop
from rlax_llm.policy.trust_regions import cispo
from rlax_llm.recipes import group as recipes

pytestmark = pytest.mark.usefixtures("float64")

RECIPES = {
    "grpo": recipes.grpo(0),
    "grpo_kl": recipes.grpo(0.04),
    "dapo": recipes.dapo(),
    "dr_grpo": recipes.dr_grpo(T),
    "rloo": recipes.rloo(0),
    "rloo_kl": recipes.rloo(0.01),
}
each = pytest.mark.parametrize("name", RECIPES)


def climb(log_probs, objective, params, key, learning_rate=0.1, steps: int = 60):
    """A whole training run in one scan."""
    init, step = group_loop(log_probs, objective, optax.adam(learning_rate))

    def body(state, key):
        groups = rollout(log_probs, state.params, key)
        state, metrics = step(state, groups, reference=params)
        return state, metrics | {"score": groups.scores.mean()}

    return jax.lax.scan(body, init(params), jax.random.split(key, steps))


@each
def test_every_recipe_climbs_to_the_best_arm(name):
    run = jax.jit(lambda key: climb(bandit, RECIPES[name], zero_params(), key))
    state, metrics = run(jax.random.key(0))
    assert metrics["score"][0] < 0.45
    assert metrics["score"][-10:].mean() > 0.9
    assert jax.nn.softmax(state.params["logits"])[-1] > 0.9
    assert state.step == 60
    assert metrics["entropy"][-1] < metrics["entropy"][0]
    assert all(np.all(np.isfinite(x)) for x in metrics.values())


def test_any_module_works():
    params = Arms().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    _, metrics = jax.jit(lambda key: climb(linen, recipes.dapo(), params, key))(jax.random.key(1))
    assert metrics["score"][-10:].mean() > 0.9


def test_runs_over_learning_rates_and_seeds_are_one_program():
    rates, keys = jnp.array([0.0, 0.1]), jax.random.split(jax.random.key(0), 2)
    run = partial(climb, bandit, recipes.dapo(), zero_params())
    many = jax.jit(jax.vmap(jax.vmap(lambda key, rate: run(key, rate)[0].params["logits"], (0, None)), (None, 0)))
    logits = many(keys, rates)
    np.testing.assert_array_equal(logits[0], np.zeros((2, ARMS)))
    assert np.all(jax.nn.softmax(logits[1])[:, -1] > 0.9)
    alone = jax.jit(run)(keys[1], 0.1)[0].params["logits"]
    np.testing.assert_allclose(logits[1, 1], alone, rtol=1e-9)


@pytest.mark.parametrize("name", ["grpo_kl", "dapo", "rloo_kl"])
def test_micro_batches_change_nothing(name):
    params, completions, scores = fixed()
    groups = Groups(completions, scores)
    reference = zero_params(np.random.default_rng(1).normal(size=ARMS))
    results = []
    for micro_batches in (1, 2, 4):
        init, step = group_loop(bandit, RECIPES[name], optax.adam(0.1), GroupLearning(micro_batches=micro_batches))
        # Made inside the loop on purpose: a program for each number of micro-batches.
        run = jax.jit(
            lambda state, step=step: jax.lax.scan(
                lambda state, _: step(state, groups, reference=reference), state, None, 5
            )
        )
        results.append(run(init(params)))
    for state, metrics in results[1:]:
        np.testing.assert_allclose(state.params["logits"], results[0][0].params["logits"], rtol=0, atol=1e-12)
        assert set(metrics) == set(results[0][1])
        for key, values in metrics.items():
            np.testing.assert_allclose(values, results[0][1][key], rtol=1e-6 if "clip_fraction" in key else 1e-10)
    assert np.abs(results[0][0].params["logits"] - params["logits"]).max() > 0.1


def gradient_step(name_or_objective, params, completions, scores, reference=None):
    """Gradient (of an SGD step of rate 1) and metrics."""
    objective = RECIPES.get(name_or_objective, name_or_objective)
    init, step = group_loop(bandit, objective, optax.sgd(1.0))
    state, metrics = jax.jit(step)(init(params), Groups(completions, scores), reference=reference)
    return np.asarray(params["logits"] - state.params["logits"]), metrics


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "rloo"])
def test_groups_without_a_difference_teach_exactly_nothing(name):
    params, completions, _ = fixed()
    gradient, metrics = gradient_step(name, params, completions, jnp.full((P, G), 1e6 + 0.1))
    np.testing.assert_array_equal(gradient, np.zeros(ARMS))
    assert metrics["grad_norm"] == 0
    assert metrics["frac_reward_zero_std"] == 1


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "rloo"])
def test_a_completion_without_a_score_moves_nothing(name):
    """Its tokens may be any: the gradient is the same, and so it is not its own."""
    params, completions, scores = fixed()
    scores = scores.at[0, 1].set(jnp.nan)
    gradient, metrics = gradient_step(name, params, completions, scores)
    other = completions._replace(tokens=completions.tokens.at[1].add(1) % ARMS)
    np.testing.assert_allclose(gradient_step(name, params, other, scores)[0], gradient, rtol=0, atol=1e-15)
    assert np.abs(gradient).max() > 1e-3
    assert metrics["frac_reward_zero_std"] == 0
    nothing, metrics = gradient_step(name, params, completions, jnp.full((P, G), jnp.nan))
    np.testing.assert_array_equal(nothing, np.zeros(ARMS))
    assert metrics["frac_reward_zero_std"] == 1


def test_the_reference_pulls_back():
    """With equal scores only the KL is left: its gradient is that of the mean k3, by hand for a softmax."""
    params, completions, _ = fixed()
    reference = zero_params(np.random.default_rng(1).normal(size=ARMS))
    gradient, metrics = gradient_step(recipes.grpo(0.5), params, completions, jnp.zeros((P, G)), reference)
    log_p, log_q = log_softmax(params["logits"]), log_softmax(reference["logits"])
    expected, value = np.zeros(ARMS), 0.0
    mask, tokens = np.asarray(completions.mask), np.asarray(completions.tokens)
    for b, t in np.ndindex(P * G, T):
        if mask[b, t]:
            back = log_q[tokens[b, t]] - log_p[tokens[b, t]]
            weight = 1 / (P * G * mask[b].sum())
            value += (np.exp(back) - 1 - back) / mask.sum()
            expected += 0.5 * weight * (1 - np.exp(back)) * (np.eye(ARMS)[tokens[b, t]] - np.exp(log_p))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(metrics["kl"], value, rtol=1e-6)
    same, metrics = gradient_step(recipes.grpo(0.5), params, completions, jnp.zeros((P, G)), params)
    np.testing.assert_array_equal(same, np.zeros(ARMS))
    assert metrics["kl"] == 0


def test_garbage_outside_the_mask_reaches_neither_parameters_nor_metrics():
    params, completions, scores = fixed()

    def garbage(params, completions):
        spoilt = jnp.where(completions.mask, 0.0, jnp.nan)  # added, so that gradients pass through it
        return tuple(x + spoilt for x in bandit(params, completions))

    results = []
    for model in (bandit, garbage):
        init, step = group_loop(model, RECIPES["grpo_kl"], optax.sgd(1.0))
        results.append(jax.jit(step)(init(params), Groups(completions, scores), reference=zero_params()))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), *results)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_supervised_loss_is_the_mean_negative_log_likelihood(micro_batches):
    params, completions, _ = fixed()
    init, step = supervised_loop(bandit, optax.sgd(1.0), micro_batches)
    state, metrics = jax.jit(step)(init(params), completions)
    log_p = log_softmax(params["logits"])
    chosen = np.asarray(completions.tokens)[np.asarray(completions.mask)]
    np.testing.assert_allclose(metrics["loss"], -log_p[chosen].mean(), rtol=1e-6)
    expected = np.exp(log_p) - np.bincount(chosen, minlength=ARMS) / len(chosen)
    np.testing.assert_allclose(params["logits"] - state.params["logits"], expected, rtol=0, atol=1e-7)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected), rtol=1e-6)
    np.testing.assert_allclose(metrics["entropy"], -(np.exp(log_p) * log_p).sum(), rtol=1e-6)
    assert set(metrics) == {"loss", "entropy", "grad_norm", "lost_updates"}


def test_dft_weighs_each_token_by_its_probability():
    """Its slope is that of −p."""
    params, completions, _ = fixed()
    init, step = supervised_loop(bandit, optax.sgd(1.0), 2, cispo(ceiling=1.0))
    state, metrics = jax.jit(step)(init(params), completions)
    chosen = np.asarray(completions.tokens)[np.asarray(completions.mask)]
    wanted = jax.grad(lambda logits: -jax.nn.softmax(logits)[chosen].mean())(params["logits"])
    np.testing.assert_allclose(params["logits"] - state.params["logits"], wanted, rtol=0, atol=1e-7)
    p = np.exp(log_softmax(params["logits"]))[chosen]
    np.testing.assert_allclose(metrics["loss"], -(p * np.log(p)).mean(), rtol=1e-6)


def beside_reference(params, reference, completions):
    """``bandit`` with the reverse KL of its arms as a third array."""
    log_p, log_q = (jax.nn.log_softmax(x["logits"]) for x in (params, reference))
    return *bandit(params, completions), jnp.full(completions.tokens.shape, (jnp.exp(log_p) * (log_p - log_q)).sum())


def test_asft_is_dft_with_the_kl_from_the_reference():
    params, completions, _ = fixed()
    reference = zero_params(np.random.default_rng(1).normal(size=ARMS))
    chosen = np.asarray(completions.tokens)[np.asarray(completions.mask)]

    def literal(logits) -> tuple[float, float]:
        log_p, log_q = log_softmax(logits), log_softmax(reference["logits"])
        return -np.exp(log_p[chosen]).mean(), sum(math.exp(x) * (x - y) for x, y in zip(log_p, log_q))

    def taken(anchor):
        init, step = supervised_loop(bandit, optax.sgd(1.0), 2, cispo(ceiling=1.0), anchor)
        state, metrics = jax.jit(step)(init(params), completions, reference=reference)
        return np.asarray(params["logits"] - state.params["logits"]), metrics

    gradient, metrics = taken(Anchor(beside_reference, 0.3))
    logits = np.array(params["logits"])
    numeric = numeric_gradient(lambda: literal(logits)[0] + 0.3 * literal(logits)[1], logits)
    np.testing.assert_allclose(gradient, numeric, rtol=0, atol=1e-7)
    np.testing.assert_allclose(metrics["kl"], literal(logits)[1], rtol=1e-6)
    p = np.exp(log_softmax(logits))[chosen]
    np.testing.assert_allclose(metrics["loss"], -(p * np.log(p)).mean() + 0.3 * metrics["kl"], rtol=1e-6)
    (unheld, told), (dft, plain) = taken(Anchor(beside_reference, 0.0)), taken(None)
    np.testing.assert_allclose(unheld, dft, rtol=1e-12)
    np.testing.assert_allclose(told["loss"], plain["loss"], rtol=1e-12)
    init, step = supervised_loop(bandit, optax.sgd(1.0), anchor=Anchor(beside_reference, 0.3))
    with pytest.raises(ValueError, match="the anchor is a divergence from a reference, got reference None"):
        step(init(params), completions)


def test_errors():
    params, completions, scores = fixed()
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0))
    for wrong in (scores.ravel(), scores[:, :-1]):
        with pytest.raises(
            ValueError, match=r"group_loop: scores has shape \(.*\), wanted \[P, G\] .* with P · G = 16"
        ):
            step(init(params), Groups(completions, wrong))
    with pytest.raises(ValueError, match=r"group_loop: scores is a list, wanted an array; give jnp\.array\(scores\)\."):
        step(init(params), Groups(completions, scores.tolist()))
    init, step = policy_loop(bandit, recipes.dapo(), optax.sgd(1.0), micro_batches=3)
    with pytest.raises(ValueError, match=r"micro_batches is 3, wanted a divisor of the batch's 16 rows\."):
        step(init(params), CreditedCompletions(completions, jnp.ones((P * G, T))))
    init, step = group_loop(bandit, recipes.dapo(), optax.sgd(1.0), GroupLearning(micro_batches=P * G + 1))
    with pytest.raises(
        ValueError,
        match=rf"group_loop: micro_batches is {P * G + 1}, wanted a divisor of the {P * G} rows of a minibatch",
    ):
        step(init(params), Groups(completions, scores))
    for objective, part in (
        (recipes.grpo(0.1), "kl"),
        (recipes.rloo(), "advantage"),
        (recipes.reinforce_plus_plus(), "advantage"),
    ):
        init, step = group_loop(bandit, objective, optax.sgd(1.0))
        with pytest.raises(
            ValueError, match=rf"group_loop: objective\.{part} .*got reference None; give step reference="
        ):
            step(init(params), Groups(completions, scores))
    with pytest.raises(ValueError, match=r"group_loop: batch is a Completions, wanted a Groups; give Groups\(comp"):
        step(init(params), completions)
    init, step = policy_loop(bandit, recipes.grpo(0.1), optax.sgd(1.0))
    credited = CreditedCompletions(completions, jnp.ones((P * G, T)))
    with pytest.raises(ValueError, match=r"policy_loop: a reference is read, got neither batch.ref_log_probs nor ref"):
        step(init(params), credited)
    with pytest.raises(ValueError, match=r"policy_loop: got batch.ref_log_probs and reference, wanted one of them"):
        step(init(params), credited._replace(ref_log_probs=credited.advantages), reference=params)


def test_a_reference_is_its_log_probabilities_or_its_parameters():
    params, completions, _ = fixed()
    reference = zero_params(np.random.default_rng(1).normal(size=ARMS))
    init, step = policy_loop(bandit, recipes.grpo(0.5), optax.sgd(1.0), 2)
    batch = CreditedCompletions(completions, jnp.zeros((P * G, T)))
    live = step(init(params), batch, reference=reference)
    known = step(init(params), batch._replace(ref_log_probs=bandit(reference, completions)[0]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), live, known)
    assert np.abs(live[0].params["logits"] - params["logits"]).max() > 1e-3
