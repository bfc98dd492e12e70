from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_batches import PAIRS, Pair, batch_of, log_sigma, loss_of, numeric_gradient, rows_of

from rlax_llm.preference.implicit_rewards import (
    Responses,
    alpha_slope,
    log_prob,
    log_ratio,
    mean_log_prob,
    mean_log_ratio,
)
from rlax_llm.preference.links import chosen_drop, hinge, logistic, sorted_pairs
from rlax_llm.preference.pairs import PreferenceBatch, desensitize_length, per_response, preference_loss
from rlax_llm.recipes.preference import alpha_po, aot, cpo, dpo, f_dpo, ipo, orpo, simpo, sppo

pytestmark = pytest.mark.usefixtures("float64")
few = settings(max_examples=20, deadline=None)


def log_odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


def bent(mean: float) -> float:
    return (1 - math.exp(mean) ** -0.25) / 0.25


def literal_aot(pairs: list[Pair]) -> list[float]:
    policy, reference = sorted(p.w - p.l for p in pairs), sorted(p.ref_w - p.ref_l for p in pairs)
    return [-log_sigma(0.3 * (x - y)) for x, y in zip(policy, reference)]


def literal_unpaired_aot(pairs: list[Pair]) -> list[float]:
    chosen, rejected = sorted(p.w - p.ref_w for p in pairs), sorted(p.l - p.ref_l for p in pairs)
    return [-log_sigma(0.3 * (x - y)) for x, y in zip(chosen, rejected)]


def of_each(formula):
    return lambda pairs: [formula(p) for p in pairs]


LITERAL = {
    "dpo": (dpo(0.3), of_each(lambda p: -log_sigma(0.3 * p.delta))),
    "f-dpo": (
        f_dpo(alpha_slope(0.5), 0.3),
        of_each(lambda p: -log_sigma(0.6 * (math.exp((p.ref_w - p.w) / 2) - math.exp((p.ref_l - p.l) / 2)) * -1)),
    ),
    "ipo": (ipo(0.3), of_each(lambda p: (p.mean_delta - 1 / 0.6) ** 2)),
    "ipo on sums": (
        ipo(0.3)._replace(rewards=per_response(log_ratio())),
        of_each(lambda p: (p.delta - 1 / 0.6) ** 2),
    ),
    "sppo": (
        sppo(0.3),
        of_each(lambda p: (p.w - p.ref_w - 1 / 0.6) ** 2 + (p.l - p.ref_l + 1 / 0.6) ** 2),
    ),
    "aot": (aot(0.3), literal_aot),
    "aot, unpaired": (dpo(0.3)._replace(link=sorted_pairs(logistic)), literal_unpaired_aot),
    "cpo": (cpo(0.3), of_each(lambda p: -log_sigma(0.3 * (p.w - p.l)))),
    "simpo": (simpo(2.0, 0.5), of_each(lambda p: -log_sigma(2 * p.mean_margin - 0.5))),
    "alpha_po": (
        alpha_po(0.25, 2.0, 0.5),
        of_each(lambda p: -log_sigma(2 * (bent(p.w / p.length_w) - bent(p.l / p.length_l)) - 0.5)),
    ),
    "orpo": (
        orpo(0.2)._replace(nll_coef=0.0),
        of_each(lambda p: -0.2 * log_sigma(log_odds(p.w / p.length_w) - log_odds(p.l / p.length_l))),
    ),
    "slic": (cpo(1.0)._replace(link=hinge), of_each(lambda p: max(0.0, 1 - p.w + p.l))),
    "dpop": (
        dpo(0.3)._replace(link=chosen_drop(logistic, 5.0)),
        of_each(lambda p: -log_sigma(0.3 * (p.delta - 5 * max(0.0, p.ref_w - p.w)))),
    ),
    "length-normalized dpo": (
        dpo(0.3)._replace(rewards=per_response(mean_log_ratio(0.3))),
        of_each(lambda p: -log_sigma(0.3 * p.mean_delta)),
    ),
}
each = pytest.mark.parametrize("name", LITERAL)
each_by_pairs = pytest.mark.parametrize("name", [name for name in LITERAL if "aot" not in name])  # AOT sorts the batch
STEPS = {
    name: jax.jit(
        jax.value_and_grad(lambda x, batch, preference=preference: loss_of(x, batch, preference), has_aux=True)
    )
    for name, (preference, _) in LITERAL.items()
}


def step(name: str, batch: PreferenceBatch):
    return STEPS[name]((batch.chosen.log_probs, batch.rejected.log_probs), batch)


def literal(name: str, batch: PreferenceBatch) -> float:
    losses = LITERAL[name][1]([Pair(batch, b) for b in range(len(batch.weights))])
    return sum(weight * loss for weight, loss in zip(batch.weights, losses))


@each
def test_equals_the_formula_with_its_gradients(name):
    batch = batch_of()
    (loss, _), gradients = step(name, batch)
    np.testing.assert_allclose(loss, literal(name, batch), rtol=1e-9)
    for side, gradient in zip((batch.chosen, batch.rejected), gradients):
        numeric = numeric_gradient(lambda: literal(name, batch), side.log_probs)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)
        assert not np.asarray(gradient)[~side.mask].any()


@pytest.mark.parametrize("tail_coef", [0.0, 0.4])
def test_length_desensitized_equals_the_formula_with_its_gradient(tail_coef):
    batch = batch_of(1)
    preference = dpo(0.3)._replace(rewards=desensitize_length(dpo(0.3).rewards, tail_coef))

    def expected() -> float:
        return sum(-log_sigma(0.3 * Pair(batch, b, tail_coef).delta) for b in range(PAIRS)) / PAIRS

    (loss, _), gradients = jax.jit(jax.value_and_grad(lambda x: loss_of(x, batch, preference), has_aux=True))(
        (batch.chosen.log_probs, batch.rejected.log_probs)
    )
    np.testing.assert_allclose(loss, expected(), rtol=1e-9)
    for side, gradient in zip((batch.chosen, batch.rejected), gradients):
        np.testing.assert_allclose(gradient, numeric_gradient(expected, side.log_probs), rtol=1e-6, atol=1e-8)


def test_length_desensitized_limits():
    batch, rewards = batch_of(2), per_response(log_ratio())
    np.testing.assert_allclose(desensitize_length(rewards, 1.0)(batch), rewards(batch), rtol=1e-12)
    shorter = [min(Pair(batch, b).length_w, Pair(batch, b).length_l) for b in range(PAIRS)]
    cut = [x._replace(mask=x.mask & (np.arange(x.mask.shape[1]) < np.c_[shorter])) for x in batch[:2]]
    expected = rewards(batch._replace(chosen=cut[0], rejected=cut[1]))
    np.testing.assert_allclose(desensitize_length(rewards, 0.0)(batch), expected, rtol=1e-12)
    without = batch._replace(
        chosen=batch.chosen._replace(ref_log_probs=None), rejected=batch.rejected._replace(ref_log_probs=None)
    )
    of_policy = desensitize_length(per_response(log_prob()), 0.3)
    np.testing.assert_array_equal(of_policy(without), of_policy(batch))


@each_by_pairs
@few
@given(seed=st.integers(0, 1000))
def test_micro_batches_sum_to_the_whole(name, seed):
    batch = batch_of(seed)
    batch.weights[:] = np.random.default_rng(seed).random(PAIRS)
    (loss, metrics), gradients = step(name, batch)
    halves = [step(name, rows_of(batch, rows)) for rows in (np.s_[:2], np.s_[2:])]
    np.testing.assert_allclose(sum(half[0][0] for half in halves), loss, rtol=1e-12)
    for key in metrics:
        np.testing.assert_allclose(sum(half[0][1][key] for half in halves), metrics[key], rtol=1e-9, atol=1e-12)
    for side in (0, 1):
        joined = np.concatenate([half[1][side] for half in halves])
        np.testing.assert_allclose(joined, gradients[side], rtol=1e-12, atol=1e-15)


@each
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 80.0])
def test_what_is_masked_is_never_read(name, garbage):
    batch = batch_of(3)
    dirty = [
        x._replace(log_probs=np.where(x.mask, x.log_probs, garbage), ref_log_probs=np.where(x.mask, x[2], garbage))
        for x in batch[:2]
    ]
    expected, result = step(name, batch), step(name, batch._replace(chosen=dirty[0], rejected=dirty[1]))
    jax.tree.map(np.testing.assert_array_equal, result, expected)


@each_by_pairs
@pytest.mark.parametrize("garbage", [np.nan, 80.0])
def test_a_pair_of_weight_zero_is_padding(name, garbage):
    batch = batch_of(4)
    batch.weights[1] = 0
    expected = step(name, rows_of(batch, [0, 2, 3]))
    batch.chosen.log_probs[1] = batch.rejected.log_probs[1] = batch.chosen.ref_log_probs[1] = garbage
    margins = np.where(np.arange(PAIRS) == 1, garbage, 0.0)
    (loss, metrics), gradients = step(name, batch._replace(margins=margins))
    np.testing.assert_allclose(loss, expected[0][0], rtol=1e-12)
    np.testing.assert_allclose(metrics["margin"], expected[0][1]["margin"], rtol=1e-12)
    for gradient, wanted in zip(gradients, expected[1]):
        assert not np.asarray(gradient)[1].any()
        np.testing.assert_allclose(np.delete(gradient, 1, 0), wanted, rtol=1e-12)


@each
def test_empty_responses_and_an_empty_batch_are_finite(name):
    batch = batch_of(5)
    batch.chosen.mask[0] = batch.rejected.mask[1] = batch.chosen.mask[2] = batch.rejected.mask[2] = False
    (loss, _), gradients = step(name, batch)
    assert np.isfinite([loss, np.sum(gradients[0]), np.sum(gradients[1])]).all()
    (loss, _), gradients = step(name, batch._replace(weights=np.zeros(PAIRS)))
    assert loss == 0
    assert not gradients[0].any()
    assert not gradients[1].any()


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_extreme_log_ratios_are_finite(name, dtype, value):
    batch = batch_of(6)
    sides = [
        jnp.asarray(np.full_like(x.log_probs, -81.0 + max(sign * value, 0)), dtype)
        for x, sign in zip(batch[:2], (1, -1))
    ]
    sides = [
        x._replace(log_probs=log_probs, ref_log_probs=jnp.asarray(np.full_like(x.log_probs, -40.0), dtype))
        for x, log_probs in zip(batch[:2], sides)
    ]
    (loss, _), gradients = step(name, PreferenceBatch(*sides, batch.weights.astype(np.float32)))
    assert loss.dtype == jnp.float32
    assert gradients[0].dtype == dtype
    assert np.isfinite(np.asarray([loss, *gradients[0].ravel(), *gradients[1].ravel()], np.float64)).all()


def test_eager_equals_jitted_and_a_stack_of_batches_may_be_vmapped():
    batches = [batch_of(7), batch_of(8)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    many = jax.vmap(lambda batch: preference_loss(dpo(0.3), batch)[0])(stacked)
    np.testing.assert_allclose(many, [preference_loss(dpo(0.3), batch)[0] for batch in batches], rtol=1e-12)
    np.testing.assert_allclose(many, [step("dpo", batch)[0][0] for batch in batches], rtol=1e-12)


def test_limiting_cases():
    batch = batch_of(9)
    same = batch._replace(
        chosen=batch.chosen._replace(ref_log_probs=batch.chosen.log_probs),
        rejected=batch.rejected._replace(ref_log_probs=batch.rejected.log_probs),
    )
    np.testing.assert_allclose(step("dpo", same)[0][0], math.log(2), rtol=1e-12)
    np.testing.assert_allclose(step("ipo", same)[0][0], (1 / 0.6) ** 2, rtol=1e-12)
    one = rows_of(batch, [2])
    np.testing.assert_allclose(step("aot", one)[0][0], step("dpo", one)[0][0], rtol=1e-12)
    unit = [x._replace(ref_log_probs=np.zeros_like(x.log_probs)) for x in batch[:2]]
    uniform = step("dpo", batch._replace(chosen=unit[0], rejected=unit[1]))
    np.testing.assert_allclose(uniform[0][0], step("cpo", batch)[0][0], rtol=1e-12)
    sharp = preference_loss(alpha_po(1e-9, 2.0, 0.5), batch)[0]
    np.testing.assert_allclose(sharp, step("simpo", batch)[0][0], rtol=1e-6)
    plain = preference_loss(simpo(2.0, 0.0), batch)[0]
    normalized = cpo()._replace(rewards=per_response(mean_log_prob(2.0)))
    np.testing.assert_allclose(plain, preference_loss(normalized, batch)[0], rtol=1e-12)


def test_the_optimum_of_ipo_is_its_target_and_dpo_has_none():
    mask = np.ones((1, 1), bool)
    at_target = (
        Responses(np.array([[1 / 0.6 - 2.0]]), mask, np.array([[-2.0]])),
        Responses(-np.ones((1, 1)), mask, -np.ones((1, 1))),
    )
    batch = PreferenceBatch(*at_target, np.ones(1))
    (loss, _), (gradient, _) = step("ipo on sums", batch)
    np.testing.assert_allclose([loss, gradient[0, 0]], 0, atol=1e-12)
    assert step("dpo", batch)[1][0][0, 0] < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo(0.0), "log_prob: beta is 0.0, wanted a number greater than 0."),
        (lambda: ipo(-1), "ipo: beta is -1, wanted a number greater than 0."),
        (lambda: sppo(0), "sppo: beta is 0, wanted a number greater than 0."),
        (lambda: alpha_po(beta=0), "log_prob: beta is 0, wanted a number greater than 0."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
