from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from rlax_llm.core.exponentials import straight_from
from rlax_llm.policy.trust_regions import (
    add_penalty,
    cispo,
    clip,
    discovered_policy_optimization,
    dual_clip,
    sapo,
    score_function,
    slopes,
    topr,
    unclipped,
    vespo,
)

pytestmark = pytest.mark.usefixtures("float64")


def clipped(low: float, high: float):
    """Loss and slope of PPO's clip, case by case (slope with respect to the log-ratio)."""

    def value(log_ratio: float, advantage: float) -> float:
        ratio = np.exp(log_ratio)
        return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)

    def slope(log_ratio: float, advantage: float) -> float:
        ratio = np.exp(log_ratio)
        if (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low):
            return 0.0
        return -advantage * ratio

    return value, slope


def dual_clipped(low: float, high: float, ceiling: float):
    value, slope = clipped(low, high)

    def capped(log_ratio: float, advantage: float) -> bool:
        return advantage < 0 and np.exp(log_ratio) > ceiling

    return (
        lambda x, a: -ceiling * a if capped(x, a) else value(x, a),
        lambda x, a: 0.0 if capped(x, a) else slope(x, a),
    )


def detached(weight):
    """Loss and slope of a weighted score function whose weight carries no gradient."""
    return lambda x, a: -weight(x, a) * a * x, lambda x, a: -weight(x, a) * a


def soft_gate(tau_positive: float, tau_negative: float):
    def value(x: float, a: float) -> float:
        tau = tau_positive if a > 0 else tau_negative
        return -4 / tau * expit(tau * (np.exp(x) - 1)) * a

    def slope(x: float, a: float) -> float:
        tau = tau_positive if a > 0 else tau_negative
        p = expit(tau * (np.exp(x) - 1))
        return -4 * p * (1 - p) * np.exp(x) * a

    return value, slope


def gamma(x: float, a: float) -> float:
    k, decay = (2, 3) if a >= 0 else (3, 2)
    return np.exp(decay) * np.exp(x) ** k * np.exp(-decay * np.exp(x))


def drifted(alpha: float, beta: float):
    """The surrogate minus the drift, as the paper prints them, and its derivative term by term."""

    def value(x: float, a: float) -> float:
        r = np.exp(x)
        if a >= 0:
            drift = max((r - 1) * a - alpha * np.tanh((r - 1) * a / alpha), 0)
        else:
            drift = max(x * a - beta * np.tanh(x * a / beta), 0)
        return -(r * a - drift)

    def slope(x: float, a: float) -> float:
        r = np.exp(x)
        if a >= 0:
            drift = r * a * np.tanh((r - 1) * a / alpha) ** 2 if (r - 1) * a > 0 else 0
        else:
            drift = a * np.tanh(x * a / beta) ** 2 if x * a > 0 else 0
        return -(r * a - drift)

    return value, slope


CASES = {
    "score_function": (score_function, lambda x, a: -a * x, lambda x, a: -a),
    "unclipped": (unclipped, lambda x, a: -a * np.exp(x), lambda x, a: -a * np.exp(x)),
    "clip": (clip(), *clipped(0.2, 0.2)),
    "clip_narrow": (clip(3e-4), *clipped(3e-4, 3e-4)),
    "clip_higher": (clip(0.2, 0.28), *clipped(0.2, 0.28)),
    "clip_whole": (clip(1.0, 2.0), *clipped(1.0, 2.0)),
    "dual_clip": (dual_clip(), *dual_clipped(0.2, 0.2, 3.0)),
    "dual_clip_higher": (dual_clip(0.2, 0.28, 10.0), *dual_clipped(0.2, 0.28, 10.0)),
    "cispo": (cispo(ceiling=5.0), *detached(lambda x, a: min(np.exp(x), 5.0))),
    "cispo_two_sided": (cispo(floor=0.8, ceiling=1.2), *detached(lambda x, a: min(max(np.exp(x), 0.8), 1.2))),
    "topr": (topr(), *detached(lambda x, a: 1.0 if a > 0 else min(np.exp(x), 1.0))),
    "sapo": (sapo(), *soft_gate(1.0, 1.05)),
    "sapo_sharp": (sapo(3.0, 0.5), *soft_gate(3.0, 0.5)),
    "vespo": (vespo(), *detached(gamma)),
    "discovered": (discovered_policy_optimization(), *drifted(2.0, 0.6)),
    "discovered_narrow": (discovered_policy_optimization(0.5, 1.5), *drifted(0.5, 1.5)),
    "add_penalty": (
        add_penalty(unclipped, 0.3),
        lambda x, a: -a * np.exp(x) + 0.3 * (np.exp(x) - 1 - x),
        lambda x, a: -a * np.exp(x) + 0.3 * (np.exp(x) - 1),
    ),
}
each = pytest.mark.parametrize("name", CASES)
LOG_RATIOS, ADVANTAGES = (x.ravel() for x in np.meshgrid(np.linspace(-3, 3, 41), [-2.0, -0.5, 0.0, 1.0, 1.7]))


@each
def test_equals_the_formula_with_its_gradient(name):
    region, value, slope = CASES[name]
    pairs = list(zip(LOG_RATIOS, ADVANTAGES, strict=True))
    np.testing.assert_allclose(region(LOG_RATIOS, ADVANTAGES), [value(*pair) for pair in pairs], rtol=1e-12)
    expected = [slope(*pair) for pair in pairs]
    # 1 − p² near p = 1 keeps the last bit of 1, times ratios of up to 20: in the oracle as in the function.
    atol = 1e-13 if name.startswith(("sapo", "discovered")) else 1e-300
    np.testing.assert_allclose(slopes(region, LOG_RATIOS, ADVANTAGES), expected, rtol=1e-12, atol=atol)


@each
def test_gradient_at_ratio_one_is_the_score_function(name):
    advantages = np.linspace(-2, 2, 9)
    np.testing.assert_allclose(slopes(CASES[name][0], np.zeros(9), advantages), -advantages, rtol=1e-12)


@each
def test_elementwise_over_any_layout(name):
    region = CASES[name][0]
    shaped = region(LOG_RATIOS.reshape(5, 41), ADVANTAGES.reshape(5, 41))
    np.testing.assert_array_equal(shaped.ravel(), region(LOG_RATIOS, ADVANTAGES))
    np.testing.assert_allclose(jax.vmap(region)(LOG_RATIOS, ADVANTAGES), shaped.ravel(), rtol=1e-14)


def test_identities():
    wide = clip(1e6)
    np.testing.assert_array_equal(wide(LOG_RATIOS, ADVANTAGES), unclipped(LOG_RATIOS, ADVANTAGES))
    np.testing.assert_allclose(
        slopes(wide, LOG_RATIOS, ADVANTAGES), slopes(unclipped, LOG_RATIOS, ADVANTAGES), rtol=1e-14
    )
    np.testing.assert_array_equal(clip(0.2, 0.2)(LOG_RATIOS, ADVANTAGES), clip(0.2)(LOG_RATIOS, ADVANTAGES))
    # pessimistic: never below the unclipped loss
    assert np.all(clip(0.2)(LOG_RATIOS, ADVANTAGES) >= unclipped(LOG_RATIOS, ADVANTAGES))


@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_a_ratio_beyond_float32_is_clipped_and_not_nan(advantage):
    far, advantages = jnp.array([1e2, 1e3], jnp.float32), jnp.full(2, advantage, jnp.float32)
    np.testing.assert_allclose(clip(0.2)(far, advantages), -1.2 * np.asarray(advantages), rtol=1e-6)
    np.testing.assert_array_equal(slopes(clip(0.2), far, advantages), np.zeros(2))


def test_an_overflowing_ratio_without_advantage_has_no_loss():
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float64):
        far, none = jnp.array([89.0, 1e3, 1e30], dtype), jnp.zeros(3, dtype)
        np.testing.assert_array_equal(unclipped(far, none), none)
        np.testing.assert_array_equal(slopes(unclipped, far, none), none)


def test_unclipped_is_the_formula_up_to_where_squares_leave_the_format_and_then_its_tangent():
    for end, dtype in ((35.4, jnp.float32), (283.9, jnp.float64)):
        ones, log_ratio = jnp.ones(2, dtype), jnp.array([end, -end], dtype)
        expected = -np.exp(np.asarray(log_ratio, np.float64)).astype(dtype)
        np.testing.assert_allclose(unclipped(log_ratio, ones), expected, rtol=1e-5)
        np.testing.assert_allclose(slopes(unclipped, log_ratio, ones), expected, rtol=1e-5)
        corner = straight_from(log_ratio)
        beyond, steepness = corner + np.array([1.0, 1000.0]), -np.exp(corner)
        values = unclipped(jnp.asarray(beyond, dtype), ones)
        np.testing.assert_allclose(values, steepness * np.array([2.0, 1001.0]), rtol=1e-5)
        np.testing.assert_allclose(slopes(unclipped, jnp.asarray(beyond, dtype), ones), steepness, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_extreme_log_ratios_are_finite_in_any_format(name, dtype):
    region = CASES[name][0]
    log_ratio, advantages = (jnp.asarray(x.ravel(), dtype) for x in np.meshgrid([-80.0, 0.0, 80.0], [-1.5, 0.0, 1.0]))
    for values in (region(log_ratio, advantages), slopes(region, log_ratio, advantages)):
        assert values.dtype == dtype
        assert np.isfinite(np.asarray(values, np.float64)).all()


@each
def test_no_advantage_no_loss(name):
    if name != "add_penalty":
        np.testing.assert_array_equal(CASES[name][0](LOG_RATIOS, np.zeros(len(LOG_RATIOS))), 0)


def same(one, other, rtol: float = 1e-12) -> None:
    """Two trust regions with one value and one slope."""
    np.testing.assert_allclose(one(LOG_RATIOS, ADVANTAGES), other(LOG_RATIOS, ADVANTAGES), rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(
        slopes(one, LOG_RATIOS, ADVANTAGES), slopes(other, LOG_RATIOS, ADVANTAGES), rtol=rtol, atol=1e-12
    )


def test_limiting_cases():
    same(dual_clip(0.2, 0.28, 1e9), clip(0.2, 0.28))
    same(cispo(floor=1.0, ceiling=1.0), score_function)
    same(vespo(0.0, 0.0, 0.0, 0.0), score_function)
    same(add_penalty(clip(), 0.0), clip())
    same(discovered_policy_optimization(1e9, 1e9), unclipped)
    unbiased = slopes(unclipped, LOG_RATIOS, ADVANTAGES)
    for region in (cispo(ceiling=1e9), vespo(1.0, 0.0, 1.0, 0.0)):
        np.testing.assert_allclose(slopes(region, LOG_RATIOS, ADVANTAGES), unbiased, rtol=1e-12)
    np.testing.assert_allclose(slopes(sapo(1e-6, 1e-6), LOG_RATIOS, ADVANTAGES), unbiased, rtol=1e-9)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    far = np.linspace(-80, 80, 33)
    loss = dual_clip(0.2, 0.2, 3.0)(far, -2 * np.ones(33))
    assert np.max(loss) == 6
    assert np.all(loss[far <= 1] == clip()(far, -2 * np.ones(33))[far <= 1])


def test_the_weight_of_vespo_peaks_at_k_over_lambda():
    log_ratio = np.linspace(-3, 3, 6001)
    for advantage, peak in ((1.0, 2 / 3), (-1.0, 3 / 2)):
        weights = -slopes(vespo(), log_ratio, np.full(6001, advantage)) * advantage
        np.testing.assert_allclose(np.exp(log_ratio[np.argmax(weights)]), peak, rtol=1e-3)


def test_penalty_is_unbiased_for_the_divergence_from_the_old_policy_with_its_gradient():
    old, logits = np.random.default_rng(0).normal(size=(2, 7))
    q, log_q = np.exp(old) / np.exp(old).sum(), old - np.log(np.exp(old).sum())
    term = add_penalty(lambda log_ratio, advantages: 0 * log_ratio, 0.7)

    def expected(x):
        return (q * term(jax.nn.log_softmax(x) - log_q, jnp.zeros(7))).sum()

    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(expected(jnp.asarray(logits)), 0.7 * (q * np.log(q / p)).sum(), rtol=1e-12)
    np.testing.assert_allclose(jax.grad(expected)(jnp.asarray(logits)), 0.7 * (p - q), rtol=1e-10)


def test_slopes_carry_no_gradient():
    gradient = jax.grad(lambda x: slopes(unclipped, x, jnp.ones(3)).sum())(jnp.ones(3))
    np.testing.assert_array_equal(gradient, np.zeros(3))


def test_parameters_may_be_traced():
    many = jax.vmap(lambda ceiling: cispo(ceiling=ceiling)(LOG_RATIOS, ADVANTAGES))(jnp.array([2.0, 5.0]))
    np.testing.assert_allclose(many[1], cispo(ceiling=5.0)(LOG_RATIOS, ADVANTAGES), rtol=1e-12)
    many = jax.vmap(lambda coef: add_penalty(clip(), coef)(LOG_RATIOS, ADVANTAGES))(jnp.array([0.0, 0.3]))
    np.testing.assert_allclose(many[0], clip()(LOG_RATIOS, ADVANTAGES), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_clip(-0.1), "clip: eps_low is -0.1, wanted a number greater than 0"),
        (lambda: dual_clip(ceiling=0.5), "dual_clip: ceiling − 1 is -0.5, wanted a number greater than 0"),
        (lambda: cispo(ceiling=0.0), "cispo: ceiling is 0.0, wanted a number greater than 0"),
        (lambda: cispo(ceiling=1.0, floor=-1.0), "cispo: floor is -1.0, wanted a number of at least 0"),
        (lambda: cispo(ceiling=0.5, floor=1.0), "cispo: ceiling − floor is -0.5, wanted a number of at least 0"),
        (lambda: sapo(0.0), "sapo: temperature_positive is 0.0, wanted a number greater than 0"),
        (lambda: sapo(1.0, -1.0), "sapo: temperature_negative is -1.0, wanted a number greater than 0"),
        (lambda: vespo(-1.0), "vespo: k_positive is -1.0, wanted a number of at least 0"),
        (lambda: vespo(lambda_negative=-1), "vespo: lambda_negative is -1, wanted a number of at least 0"),
        (lambda: discovered_policy_optimization(0), "discovered_policy_optimization: alpha is 0, wanted a number"),
        (lambda: discovered_policy_optimization(1, 0), "discovered_policy_optimization: beta is 0, wanted a number"),
        (lambda: add_penalty(clip(), -0.1), "add_penalty: kl_coef is -0.1, wanted a number of at least 0"),
        *(
            (lambda region=region: region(jnp.zeros(3), jnp.zeros(4)), rf"{name}: advantages has shape \(4,\)")
            for name, region in {
                "cispo": cispo(ceiling=2.0),
                "sapo": sapo(),
                "vespo": vespo(),
                "clip": dual_clip(),
                "discovered_policy_optimization": discovered_policy_optimization(),
            }.items()
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
