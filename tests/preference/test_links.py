from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.preference.links import (
    apo_down,
    centered_rewards,
    chosen_drop,
    compare_with_zero,
    demand_margin,
    discopop,
    exo,
    hinge,
    logistic,
    misranking,
    nca,
    robust,
    smooth_labels,
    sorted_pairs,
    squared,
    weighted_sum,
)

pytestmark = pytest.mark.usefixtures("float64")
few = settings(max_examples=30, deadline=None)
SIZE = 4


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigma(x: float) -> float:
    return math.log(sigma(x))


def literal_exo(w: float, r: float) -> float:
    policy, label = (sigma(w - r), sigma(r - w)), (0.9, 0.1)
    return sum(p * math.log(p / q) for p, q in zip(policy, label))


def literal_discopop(w: float, r: float) -> float:
    blend = sigma((w - r) / 0.5)
    return (1 - blend) * -log_sigma(w - r) + blend * math.exp(-(w - r))


# Each link with its paper's formula for one pair, rewards w and r.
LITERAL = {
    "logistic": (logistic, lambda w, r: -log_sigma(w - r)),
    "misranking": (misranking, lambda w, r: 1 - sigma(w - r)),
    "hinge": (hinge, lambda w, r: max(0.0, 1 - (w - r))),
    "squared": (squared(0.7), lambda w, r: (w - r - 0.7) ** 2),
    "exo": (exo(0.1), literal_exo),
    "nca": (nca, lambda w, r: -log_sigma(w) - log_sigma(-w) / 2 - log_sigma(-r) / 2),
    "apo_down": (apo_down, lambda w, r: sigma(w) + 1 - sigma(w - r)),
    "discopop": (discopop(0.5), literal_discopop),
    "demand_margin": (demand_margin(logistic, 0.7), lambda w, r: -log_sigma(w - r - 0.7)),
    "cdpo": (smooth_labels(logistic, 0.1), lambda w, r: -0.9 * log_sigma(w - r) - 0.1 * log_sigma(r - w)),
    "robust": (
        robust(logistic, 0.1),
        lambda w, r: (-0.9 * log_sigma(w - r) + 0.1 * log_sigma(r - w)) / (1 - 2 * 0.1),
    ),
    "bco_pair": (compare_with_zero(logistic), lambda w, r: -log_sigma(w) - log_sigma(-r)),
    "apo_zero": (compare_with_zero(misranking), lambda w, r: 1 - sigma(w) + sigma(r)),
    "sppo": (compare_with_zero(squared(0.7)), lambda w, r: (w - 0.7) ** 2 + (r + 0.7) ** 2),
    "dpop": (chosen_drop(logistic, 5.0), lambda w, r: -log_sigma(w - r - 5 * max(0.0, -w))),
    "centered": (centered_rewards(logistic, 0.01), lambda w, r: -log_sigma(w - r) + 0.01 * (w + r) ** 2),
    "mixed": (
        weighted_sum((0.8, logistic), (0.2, compare_with_zero(logistic))),
        lambda w, r: -0.8 * log_sigma(w - r) - 0.2 * (log_sigma(w) + log_sigma(-r)),
    ),
}
# Those that read the difference of the rewards alone.
OF_DIFFERENCES = ["logistic", "misranking", "hinge", "squared", "exo", "discopop", "demand_margin", "cdpo", "robust"]
each = pytest.mark.parametrize("name", LITERAL)


def with_gradients(link):
    return jax.jit(jax.value_and_grad(lambda w, r: link(w, r).sum(), (0, 1)))


JITTED = {name: jax.jit(link) for name, (link, _) in LITERAL.items()}
GRADIENTS = {name: with_gradients(link) for name, (link, _) in LITERAL.items()}
rewards = st.lists(st.floats(-80, 80, allow_subnormal=False), min_size=SIZE, max_size=SIZE).map(np.array)


@each
def test_equals_the_formula_with_its_gradients(name):
    formula, step = LITERAL[name][1], 1e-6
    w, r = np.random.default_rng(0).normal(size=(2, SIZE))
    np.testing.assert_allclose(JITTED[name](w, r), [formula(*pair) for pair in zip(w, r)], rtol=1e-12)
    numeric = np.array(
        [
            [
                (formula(x + step, y) - formula(x - step, y)) / (2 * step),
                (formula(x, y + step) - formula(x, y - step)) / (2 * step),
            ]
            for x, y in zip(w, r)
        ]
    ).T
    np.testing.assert_allclose(GRADIENTS[name](w, r)[1], numeric, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(LITERAL[name][0](w, r), JITTED[name](w, r), rtol=1e-12)  # eager as jitted
    many = jax.vmap(LITERAL[name][0])(w, r)  # and one pair at a time
    np.testing.assert_allclose(many, JITTED[name](w, r), rtol=1e-12)


@pytest.mark.parametrize("name", OF_DIFFERENCES)
@few
@given(w=rewards, r=rewards, shift=st.floats(-80, 80))
def test_a_common_shift_changes_nothing(name, w, r, shift):
    np.testing.assert_allclose(JITTED[name](w + shift, r + shift), JITTED[name](w, r), rtol=1e-9, atol=1e-9)


@few
@given(w=rewards, r=rewards)
def test_identities(w, r):
    link, flipped = JITTED["logistic"](w, r), JITTED["logistic"](r, w)
    np.testing.assert_allclose(link - flipped, r - w, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(JITTED["misranking"](w, r) + JITTED["misranking"](r, w), 1, rtol=1e-12)
    np.testing.assert_allclose(JITTED["misranking"](w, r), np.exp(-np.asarray(flipped)), rtol=1e-9)
    # The mean of the robust loss over flipped labels is the loss of the true ones.
    unbiased = 0.9 * JITTED["robust"](w, r) + 0.1 * JITTED["robust"](r, w)
    np.testing.assert_allclose(unbiased, link, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(JITTED["cdpo"](w, r), 0.9 * link + 0.1 * flipped, rtol=1e-12)
    assert np.all(JITTED["exo"](w, r) >= -1e-12)
    np.testing.assert_allclose(JITTED["bco_pair"](w, r), JITTED["bco_pair"](-r, -w), rtol=1e-12)
    np.testing.assert_allclose(JITTED["dpop"](abs(w), r), JITTED["logistic"](abs(w), r), rtol=1e-12)


def test_limiting_cases():
    w, r = np.random.default_rng(1).normal(size=(2, 6))
    for limit in (smooth_labels(hinge, 0.0), robust(hinge, 0.0), demand_margin(hinge, 0.0), chosen_drop(hinge, 0.0)):
        np.testing.assert_array_equal(limit(w, r), hinge(w, r))
    for limit in (centered_rewards(hinge, 0.0), weighted_sum((1.0, hinge))):
        np.testing.assert_array_equal(limit(w, r), hinge(w, r))
    np.testing.assert_allclose(smooth_labels(logistic, 0.5)(w, r), smooth_labels(logistic, 0.5)(r, w), rtol=1e-12)
    np.testing.assert_allclose(robust(hinge, 0.2)(w, r), smoothed_by(hinge, -0.2 / 0.6)(w, r), rtol=1e-12)
    np.testing.assert_allclose(demand_margin(squared(0.3), 0.4)(w, r), squared(0.7)(w, r), rtol=1e-12)
    np.testing.assert_allclose(demand_margin(hinge, w)(w, r), hinge(np.zeros(6), r), rtol=1e-12)  # a margin for each
    target = np.log(0.9 / 0.1)
    np.testing.assert_allclose(exo(0.1)(target, 0.0), 0, atol=1e-15)
    np.testing.assert_allclose(jax.grad(exo(0.1))(target, 0.0), 0, atol=1e-15)
    np.testing.assert_allclose(discopop(0.05)(-30.0, 0.0), 30, rtol=1e-12)
    np.testing.assert_allclose(discopop(0.05)(30.0, 0.0), np.exp(-30), rtol=1e-12)
    np.testing.assert_allclose(discopop(1e9)(w, r), (logistic(w, r) + np.exp(r - w)) / 2, rtol=1e-8)
    np.testing.assert_allclose(hinge(-40.0, 40.0) - logistic(-40.0, 40.0), 1, rtol=1e-12)


def smoothed_by(link, share: float):
    return lambda w, r: (1 - share) * link(w, r) + share * link(r, w)


def test_hinge_has_no_gradient_at_its_corner():
    assert GRADIENTS["hinge"](np.array([2.0, 1.0, 0.5]), np.zeros(3))[1][0].tolist() == [0, 0, -1]


def test_sorted_pairs_compares_quantiles():
    w, r = np.random.default_rng(2).normal(size=(2, 5))
    expected = [-log_sigma(x - y) for x, y in zip(sorted(w), sorted(r))]
    link = sorted_pairs(logistic)
    np.testing.assert_allclose(link(w, r), expected, rtol=1e-12)
    order, other = np.random.default_rng(3).permuted(np.tile(np.arange(5), (2, 1)), axis=1)
    np.testing.assert_array_equal(link(w[order], r[other]), link(w, r))
    np.testing.assert_array_equal(link(w[:1], r[:1]), logistic(w[:1], r[:1]))
    # The gradient goes back to the response that holds the rank.
    ranks = np.argsort(np.argsort(w))
    slopes = np.array([sigma(x - y) - 1 for x, y in zip(sorted(w), sorted(r))])
    gradient = jax.grad(lambda x: link(x, jnp.asarray(r)).sum())(jnp.asarray(w))
    np.testing.assert_allclose(gradient, slopes[ranks], rtol=1e-12)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_extreme_rewards_have_finite_losses_and_gradients(name, dtype):
    grid = np.array([-80, -1, 0, 80])
    w, r = (jnp.asarray(x.reshape(-1), dtype) for x in np.meshgrid(grid, grid))
    loss, gradients = GRADIENTS[name](w, r)
    assert JITTED[name](w, r).dtype == dtype
    assert np.isfinite(np.asarray([loss, *gradients[0], *gradients[1]], np.float64)).all()


def test_far_apart_rewards_do_not_overflow_in_discopop():
    loss, gradients = GRADIENTS["discopop"](jnp.float32([-500, 500]), jnp.float32([500, -500]))
    np.testing.assert_allclose(loss, 1000, rtol=1e-6)
    np.testing.assert_allclose(gradients[0], [-1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: logistic(np.zeros(2), np.zeros(3)),
            "logistic: rejected_rewards has shape (3,), chosen_rewards has (2,)",
        ),
        (lambda: misranking(np.zeros(2), np.zeros(3)), "misranking: rejected_rewards has shape (3,)"),
        (lambda: hinge(np.zeros(2), np.zeros(3)), "hinge: rejected_rewards has shape (3,)"),
        (lambda: squared(1.0)(np.zeros(2), np.zeros(3)), "squared: rejected_rewards has shape (3,)"),
        (lambda: nca(np.zeros(2), np.zeros(3)), "nca: rejected_rewards has shape (3,)"),
        (lambda: discopop()(np.zeros(2), np.zeros(3)), "discopop: rejected_rewards has shape (3,)"),
        (
            lambda: compare_with_zero(hinge)(np.zeros(2), np.zeros(3)),
            "compare_with_zero: rejected_rewards has shape",
        ),
        (lambda: sorted_pairs(hinge)(np.zeros((2, 1)), np.zeros(2)), "sorted_pairs: chosen_rewards has shape (2, 1)"),
        (lambda: exo(0.0), "exo: eps is 0.0, wanted a number greater than 0."),
        (lambda: exo(1), "exo: eps is 1, wanted a number below 1."),
        (lambda: exo(float("nan")), "exo: eps is nan, wanted a number greater than 0."),
        (lambda: discopop(0.0), "discopop: temperature is 0.0, wanted a number greater than 0."),
        (lambda: smooth_labels(hinge, -0.1), "smooth_labels: eps is -0.1, wanted a share of labels in [0, 0.5]."),
        (lambda: smooth_labels(hinge, 0.6), "smooth_labels: eps is 0.6, wanted a share of labels in [0, 0.5]."),
        (lambda: robust(hinge, 0.5), "robust: eps is 0.5, wanted a share of labels in [0, 0.5)."),
        (lambda: weighted_sum(), "weighted_sum: got no term; give at least one pair (coefficient, link)."),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)


def test_parameters_may_be_traced():
    w, r = np.random.default_rng(4).normal(size=(2, 3))
    eps = jnp.array([0.1, 0.3])
    for factory in (exo, lambda e: smooth_labels(logistic, e), lambda e: robust(logistic, e), discopop, squared):
        many = jax.vmap(lambda e, factory=factory: factory(e)(w, r))(eps)
        np.testing.assert_allclose(many, [factory(0.1)(w, r), factory(0.3)(w, r)], rtol=1e-12)
