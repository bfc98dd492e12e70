from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preference_batches import CHOSEN, PAIRS, Pair, batch_of, log_sigma, loss_of, numeric_gradient, rows_of

from rlax_llm.policy.weightings import sequence_mean, token_mean
from rlax_llm.preference.implicit_rewards import log_prob
from rlax_llm.preference.links import centered_rewards, demand_margin, logistic, squared
from rlax_llm.preference.pairs import (
    log_collision_probability,
    on_policy,
    on_policy_weights,
    pair_loss,
    pair_mean,
    policy_and_reference,
    preference_loss,
)
from rlax_llm.recipes.preference import aot, cpo, dpo, orpo

pytestmark = pytest.mark.usefixtures("float64")


def test_margins_are_demanded_of_each_pair():
    batch, margins = batch_of(10), np.array([0.5, 0.0, -1.0, 2.0])
    expected = sum(-log_sigma(0.3 * Pair(batch, b).delta - margins[b]) for b in range(PAIRS)) / PAIRS
    loss, metrics = preference_loss(dpo(0.3), batch._replace(margins=margins))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(
        metrics["margin"], 0.3 * np.mean([Pair(batch, b).delta for b in range(PAIRS)]), rtol=1e-12
    )


def test_margin_and_accuracy_of_the_two_readings_of_a_pair_agree():
    batch = batch_of(11)
    paired, across = (preference_loss(x, batch)[1] for x in (dpo(0.3), aot(0.3)))
    for key in ("margin", "accuracy"):
        np.testing.assert_allclose(across[key], paired[key], rtol=1e-9)
    policy, reference = policy_and_reference(log_prob(0.3))(batch)
    np.testing.assert_allclose(policy - reference, [0.3 * Pair(batch, b).delta for b in range(PAIRS)], rtol=1e-9)


def test_metrics_carry_no_gradient_and_a_tie_is_wrong():
    batch = batch_of(12)
    expected = [Pair(batch, b) for b in range(PAIRS)]
    metrics = preference_loss(dpo(0.3), batch)[1]
    np.testing.assert_allclose(metrics["chosen_reward"], 0.3 * np.mean([p.w - p.ref_w for p in expected]), rtol=1e-12)
    np.testing.assert_allclose(metrics["rejected_reward"], 0.3 * np.mean([p.l - p.ref_l for p in expected]), rtol=1e-12)
    np.testing.assert_allclose(metrics["accuracy"], np.mean([p.delta > 0 for p in expected]), rtol=1e-12)
    sides = batch.chosen.log_probs, batch.rejected.log_probs
    for key in metrics:
        assert not jax.grad(lambda x, key=key: loss_of(x, batch, dpo(0.3))[1][key])(sides)[0].any()
    assert pair_loss(logistic, np.ones(2), np.ones(2), np.full(2, 0.5))[1]["accuracy"] == 0


# The likelihood term


@pytest.mark.parametrize("weighting", [token_mean, sequence_mean])
def test_likelihood_term_equals_the_formula_with_its_gradient(weighting):
    batch = batch_of(13)
    weights = np.asarray(weighting(jnp.asarray(batch.chosen.mask)), np.float64)
    preference, batch = dpo(0.3)._replace(nll_coef=0.7), batch._replace(token_weights=weights)
    nll = -sum(weights[i] * batch.chosen.log_probs[i] for i in np.ndindex(PAIRS, CHOSEN))
    loss, metrics = preference_loss(preference, batch)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-12)
    np.testing.assert_allclose(
        loss, np.mean([-log_sigma(0.3 * Pair(batch, b).delta) for b in range(PAIRS)]) + 0.7 * nll, rtol=1e-12
    )
    sides = batch.chosen.log_probs, batch.rejected.log_probs
    chosen, rejected = jax.grad(lambda x: loss_of(x, batch, preference)[0])(sides)
    plain = jax.grad(lambda x: loss_of(x, batch, dpo(0.3))[0])(sides)
    np.testing.assert_allclose(chosen, plain[0] - 0.7 * weights, rtol=1e-12)
    np.testing.assert_array_equal(rejected, plain[1])


def test_likelihood_may_read_the_prompt_but_nothing_of_weight_zero():
    batch = batch_of(14)
    batch.chosen.mask[:, 0] = False
    batch.chosen.mask[:, 1] = True
    weights = np.zeros((PAIRS, CHOSEN))
    weights[:, 0] = 0.25  # the prompt's last token
    batch.chosen.log_probs[:, 2:] = np.where(batch.chosen.mask[:, 2:], batch.chosen.log_probs[:, 2:], np.nan)
    loss, metrics = preference_loss(orpo(0.2), batch._replace(token_weights=weights))
    np.testing.assert_allclose(metrics["nll"], -batch.chosen.log_probs[:, 0].mean(), rtol=1e-12)
    np.testing.assert_allclose(loss, metrics["preference_loss"] + metrics["nll"], rtol=1e-12)
    sides = batch.chosen.log_probs, batch.rejected.log_probs
    gradient = jax.grad(lambda x: loss_of(x, batch._replace(token_weights=weights), orpo(0.0))[0])(sides)[0]
    np.testing.assert_allclose(gradient, -weights, rtol=1e-12)


def test_weight_of_the_likelihood_may_be_traced():
    batch = batch_of(15)._replace(token_weights=np.full((PAIRS, CHOSEN), 0.1))
    many = jax.vmap(lambda coef: preference_loss(cpo(0.3, coef), batch)[0])(jnp.array([0.0, 2.0]))
    pairs = [Pair(batch, b) for b in range(PAIRS)]
    np.testing.assert_allclose(many[0], np.mean([-log_sigma(0.3 * (p.w - p.l)) for p in pairs]), rtol=1e-12)
    np.testing.assert_allclose(many[1] - many[0], -0.2 * batch.chosen.log_probs.sum(), rtol=1e-12)


# Weights, reward models


def test_pair_mean_counts_pairs_with_two_responses():
    chosen, rejected = np.ones((4, 2), bool), np.ones((4, 3), bool)
    chosen[0] = rejected[2] = False
    np.testing.assert_array_equal(pair_mean(chosen, rejected), [0, 0.5, 0, 0.5])
    np.testing.assert_array_equal(pair_mean(chosen & False, rejected), np.zeros(4))


def test_on_policy_weights_equal_the_formula():
    random = np.random.default_rng(16)
    logits, tokens = random.normal(size=(3, 4, 6)), random.integers(0, 6, (3, 4))
    mask = np.arange(4) < np.array([[4], [2], [0]])
    expected = []
    for b in range(3):
        terms = []
        for t in range(int(mask[b].sum())):
            p = np.exp(logits[b, t]) / sum(math.exp(x) for x in logits[b, t])
            terms.append(math.log(p[tokens[b, t]]) - math.log(sum(x**2 for x in p)))
        expected.append(math.exp(sum(terms) / len(terms)) if terms else 1.0)

    def weights(x: jax.Array) -> jax.Array:
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(x), tokens[..., None], -1)[..., 0]
        return on_policy_weights(log_probs, log_collision_probability(x), mask)

    np.testing.assert_allclose(weights(logits), expected, rtol=1e-12)
    assert not jax.grad(lambda x: weights(x).sum())(jnp.asarray(logits)).any()
    np.testing.assert_allclose(weights(np.zeros_like(logits)), np.ones(3), rtol=1e-12)


def test_wpo_equals_the_formula_with_its_gradient_and_dpo_for_a_uniform_policy():
    random = np.random.default_rng(20)
    batch, wpo = batch_of(20), dpo(0.3)._replace(factors=on_policy, nll_coef=0.7)
    weights = np.asarray(token_mean(jnp.asarray(batch.chosen.mask)), np.float64)
    agreeing = [-random.exponential(0.7, size=side.mask.shape) for side in (batch.chosen, batch.rejected)]
    chosen, rejected = (x._replace(log_collisions=y) for x, y in zip((batch.chosen, batch.rejected), agreeing))
    given = batch._replace(chosen=chosen, rejected=rejected, token_weights=weights)
    factors = [
        math.exp(
            sum(
                np.mean([side.log_probs[b, t] - side.log_collisions[b, t] for t in np.flatnonzero(side.mask[b])])
                for side in (chosen, rejected)
            )
        )
        for b in range(PAIRS)
    ]

    def expected() -> float:
        losses = [-log_sigma(0.3 * Pair(batch, b).delta) for b in range(PAIRS)]
        return np.mean(np.multiply(factors, losses)) - 0.7 * (weights * batch.chosen.log_probs).sum()

    sides = batch.chosen.log_probs, batch.rejected.log_probs
    (loss, metrics), gradients = jax.jit(jax.value_and_grad(lambda x: loss_of(x, given, wpo), has_aux=True))(sides)
    np.testing.assert_allclose(loss, expected(), rtol=1e-9)
    np.testing.assert_allclose(metrics["pair_weight"], np.mean(factors), rtol=1e-9)
    plain = preference_loss(dpo(0.3), batch)[1]
    np.testing.assert_allclose(metrics["margin"], plain["margin"], rtol=1e-12)
    for side, gradient in zip(sides, gradients):  # the factors are fixed
        np.testing.assert_allclose(gradient, numeric_gradient(expected, side), rtol=1e-6, atol=1e-8)
    uniform = [x._replace(log_collisions=x.log_probs) for x in (batch.chosen, batch.rejected)]
    alike = preference_loss(wpo, given._replace(chosen=uniform[0], rejected=uniform[1]))[0]
    np.testing.assert_allclose(alike, preference_loss(wpo._replace(factors=None), given)[0], rtol=1e-12)


def test_reward_model_loss_equals_the_formula_with_its_gradients():
    scores = np.random.default_rng(17).normal(size=(2, PAIRS))
    margins, weights = np.array([0.5, 0.0, -1.0, 2.0]), np.array([0.4, 0.1, 0.3, 0.2])
    link = centered_rewards(demand_margin(logistic, margins), 0.01)

    def expected() -> float:
        terms = [-log_sigma(w - r - m) + 0.01 * (w + r) ** 2 for w, r, m in zip(*scores, margins)]
        return sum(weight * term for weight, term in zip(weights, terms))

    loss, gradient = jax.value_and_grad(lambda x: pair_loss(link, *x, weights)[0])(jnp.asarray(scores))
    np.testing.assert_allclose(loss, expected(), rtol=1e-12)
    np.testing.assert_allclose(gradient, numeric_gradient(expected, scores), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_a_score_of_weight_zero_is_never_read(garbage):
    scores, weights = np.array([[1.0, garbage], [2.0, garbage]]), np.array([1.0, 0.0])
    link = centered_rewards(demand_margin(logistic, np.array([0.5, garbage])), 0.01)
    loss, gradient = jax.value_and_grad(lambda x: pair_loss(link, *x, weights)[0])(jnp.asarray(scores))
    np.testing.assert_allclose(loss, -log_sigma(-1.5) + 0.09, rtol=1e-12)
    assert not np.asarray(gradient)[:, 1].any()


# Errors

BATCH = batch_of(18)
WITHOUT = BATCH._replace(chosen=BATCH.chosen._replace(ref_log_probs=None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preference_loss(dpo(), WITHOUT), "log_ratio: ref_log_probs is None; give the reference's"),
        (lambda: preference_loss(aot(), WITHOUT), "policy_against_reference: ref_log_probs is None; give the"),
        (
            lambda: preference_loss(dpo(), BATCH._replace(weights=np.ones(3))),
            "preference_loss: chosen has shape (4,), weights has (3,)",
        ),
        (
            lambda: preference_loss(dpo(), BATCH._replace(rejected=rows_of(BATCH, [0, 1]).rejected)),
            "preference_loss: rejected has shape (2,), weights has (4,)",
        ),
        (
            lambda: preference_loss(dpo(), BATCH._replace(margins=np.ones(2))),
            "preference_loss: margins has shape (2,), weights has (4,)",
        ),
        (
            lambda: preference_loss(orpo(), BATCH),
            "preference_loss: nll_coef is not 0 but token_weights is None; give a Weighting of chosen.mask, or set",
        ),
        (
            lambda: preference_loss(dpo(), BATCH._replace(token_weights=np.ones((4, 3)))),
            "preference_loss: token_weights has shape (4, 3), log_probs has (4, 5)",
        ),
        (
            lambda: pair_mean(np.ones((2, 3), bool), np.ones((3, 3), bool)),
            "pair_mean: rejected has shape (3,), chosen has (2,)",
        ),
        (
            lambda: pair_loss(logistic, np.ones(2), np.ones(3), np.ones(2)),
            "pair_loss: rejected_rewards has shape (3,), chosen_rewards has (2,)",
        ),
        (
            lambda: preference_loss(dpo()._replace(factors=on_policy), BATCH),
            "preference_loss: log_collisions is None and WPO's factors read it; give it of both sides",
        ),
        (
            lambda: on_policy_weights(np.ones((2, 3)), np.ones((2, 2)), np.ones((2, 3), bool)),
            "on_policy_weights: log_collisions has shape (2, 2), log_probs has (2, 3)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)


def test_a_link_that_is_no_recipe_of_ours_composes():
    batch = batch_of(19)
    custom = cpo(1.0)._replace(link=lambda chosen, rejected: squared(0.0)(chosen, rejected) / 2)
    expected = np.mean([(p.w - p.l) ** 2 / 2 for p in (Pair(batch, b) for b in range(PAIRS))])
    np.testing.assert_allclose(preference_loss(custom, batch)[0], expected, rtol=1e-12)
