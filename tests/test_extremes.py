"""Every loss, estimator, link and slope a thousand nats from where it is used: finite, and in the right direction.

Float32, as a run computes. A gradient of 0 far out is right where the function saturates or clips, and is said here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core import distributions, kl
from rlax_llm.core.exponentials import exp_then_line, expm1_then_line, straight_from
from rlax_llm.core.types import PolicyBatch
from rlax_llm.credit import off_policy
from rlax_llm.policy import coupled, trust_regions
from rlax_llm.policy.corrections import masked_importance, rejection, sampler_metrics, truncated_importance
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.preference import links, unpaired
from rlax_llm.preference.implicit_rewards import (
    alpha_slope,
    forward_kl_slope,
    jensen_shannon_slope,
    log_odds,
    mean_log_prob,
)
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import trl, verl

FAR = np.array([-1e3, -400.0, -89.0, -50.0, -36.0, -30.0, 30.0, 36.0, 50.0, 89.0, 400.0, 1e3], np.float32)


def values_and_slopes(function, *arrays) -> tuple[np.ndarray, np.ndarray]:
    """Values, and the slope in the first array; both finite, the slope's square too."""
    arrays = tuple(jnp.asarray(x, jnp.float32) for x in arrays)

    @jax.jit
    def both(x, *others):
        values, pullback = jax.vjp(lambda x: function(x, *others), x)
        return values, pullback(jnp.ones_like(values))[0]

    values, slopes = both(*arrays)
    assert values.dtype == jnp.float32
    assert np.isfinite(values).all()
    assert np.isfinite(jnp.square(slopes)).all(), "the norm of the gradient overflows"
    return np.asarray(values), np.asarray(slopes)


def assert_direction(slopes, sign, flat) -> None:
    """``sign`` where the function is not ``flat``, and 0 there."""
    np.testing.assert_array_equal(np.sign(slopes), np.where(flat, 0, sign))


@pytest.mark.parametrize(("function", "plain"), [(exp_then_line, np.exp), (expm1_then_line, np.expm1)])
def test_the_curve_is_the_formula_then_its_tangent(function, plain):
    end = straight_from(jnp.float32(0))
    near = np.linspace(-60, end - 0.01, 200).astype(np.float32)
    values, slopes = values_and_slopes(function, near)
    exact = near.astype(np.float64)
    np.testing.assert_allclose(values, plain(exact), rtol=1e-5)
    np.testing.assert_allclose(slopes, np.exp(exact), rtol=1e-5)
    far = end + np.array([0.0, 1.0, 500.0, 1000.0])
    values, slopes = values_and_slopes(function, far)
    np.testing.assert_allclose(values, np.exp(end) * (1 + far - end), rtol=1e-5)
    np.testing.assert_allclose(slopes, np.exp(end), rtol=1e-5)
    both = values_and_slopes(function, np.linspace(end - 3, end + 3, 61))
    assert (np.diff(both[0], 2) > -1e-5 * both[0][1:-1]).all(), "not convex"
    assert np.isfinite(function(jnp.float32(1e38))) and np.isnan(function(jnp.float32(np.nan)))


ESTIMATORS = {
    "k1": (kl.k1, lambda d: np.ones_like(d)),
    "k2": (kl.k2, np.sign),
    "k3": (kl.k3, np.sign),
    "absolute": (kl.absolute, np.sign),
    "straight_through": (kl.straight_through(kl.k3, kl.k2), np.sign),
    "kl_penalty": (kl.kl_penalty(kl.k3, 0.04), np.sign),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_divergence_estimators(name):
    function, sign = ESTIMATORS[name]
    values, slopes = values_and_slopes(function, FAR - 1, np.full_like(FAR, -1))
    assert_direction(slopes, sign(FAR), False)
    if name not in ("k1",):
        assert (values > 0).all()


# Flat where the advantage and the log-ratio have these signs: the clip of PPO, or a gate that has closed.
UP, DOWN = (lambda a, d: (a > 0) & (d > 0)), (lambda a, d: (a < 0) & (d < 0))
REGIONS = {
    "score_function": (trust_regions.score_function, lambda a, d: False),
    "unclipped": (trust_regions.unclipped, lambda a, d: d < -87),  # exp leaves float32 at the other end
    "clip": (trust_regions.clip(), lambda a, d: UP(a, d) | DOWN(a, d) | (d < -87)),
    "dual_clip": (trust_regions.dual_clip(), lambda a, d: (d > 0) | DOWN(a, d) | (d < -87)),
    "cispo": (trust_regions.cispo(ceiling=5.0), lambda a, d: d < -87),
    "cispo without a ceiling": (trust_regions.cispo(ceiling=np.inf), lambda a, d: d < -87),
    "sapo": (trust_regions.sapo(), lambda a, d: (d > 0) | (d < -87)),
    "vespo": (trust_regions.vespo(), lambda a, d: (d > 0) | (np.where(a < 0, 3, 2) * d < -87)),
    "vespo without decay": (trust_regions.vespo(2.0, 0.0, 2.0, 0.0), lambda a, d: d < -43),
    "add_penalty": (trust_regions.add_penalty(trust_regions.score_function, 0.3), None),
}


@pytest.mark.parametrize("name", REGIONS)
def test_trust_regions(name):
    region, flat = REGIONS[name]
    advantages, distances = (x.ravel() for x in np.meshgrid([-2.0, 1.5], FAR))
    _, slopes = values_and_slopes(lambda d, a: region(d, a), distances, advantages)
    if flat is not None:
        assert_direction(slopes, -np.sign(advantages), flat(advantages, distances))
    values, slopes = values_and_slopes(lambda d, a: region(d, a), FAR, np.zeros_like(FAR))
    if name != "add_penalty":
        assert (values == 0).all() and (slopes == 0).all()


def test_discovered_policy_optimization_bounds_the_gain_and_keeps_the_way_back():
    region = trust_regions.discovered_policy_optimization()
    _, slopes = values_and_slopes(region, FAR, np.full_like(FAR, 1.5))
    assert_direction(slopes, -1, (FAR > 0) | (FAR < -87))
    values_and_slopes(region, FAR, np.full_like(FAR, -2.0))


LINKS = {
    "logistic": links.logistic,
    "misranking": links.misranking,
    "hinge": links.hinge,
    "squared": links.squared(0.5),
    "exo": links.exo(),
    "nca": links.nca,
    "apo_down": links.apo_down,
    "discopop": links.discopop(),
    "discopop, warm": links.discopop(5.0),
    "demand_margin": links.demand_margin(links.logistic, 0.5),
    "smooth_labels": links.smooth_labels(links.logistic, 0.1),
    "robust": links.robust(links.logistic, 0.1),
    "compare_with_zero": links.compare_with_zero(links.logistic),
    "sorted_pairs": links.sorted_pairs(links.logistic),
    "chosen_drop": links.chosen_drop(links.logistic, 5.0),
    "centered_rewards": links.centered_rewards(links.logistic, 0.01),
    "weighted_sum": links.weighted_sum((0.5, links.hinge), (1.0, links.exo())),
}
FALLING = ("logistic", "hinge", "demand_margin", "compare_with_zero", "chosen_drop", "sorted_pairs")


@pytest.mark.parametrize("name", LINKS)
def test_links(name):
    link = LINKS[name]
    chosen, rejected = (x.ravel() for x in np.meshgrid(FAR / 2, FAR / 2))
    _, slopes = values_and_slopes(link, chosen, rejected)
    values_and_slopes(lambda r, w: link(w, r), rejected, chosen)
    assert name not in FALLING or (slopes <= 0).all()
    if name in FALLING:
        # A pair that is wrong by a thousand has the full gradient.
        assert values_and_slopes(link, [-500.0], [500.0])[1][0] <= -0.9
    if name.startswith("discopop"):
        assert values_and_slopes(link, [-500.0], [500.0])[1][0] < -0.5


SLOPES = {"forward_kl": forward_kl_slope, "jensen_shannon": jensen_shannon_slope}
SLOPES |= {f"alpha {alpha}": alpha_slope(alpha) for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0)}


@pytest.mark.parametrize("name", SLOPES)
def test_reward_slopes_rise(name):
    _, slopes = values_and_slopes(SLOPES[name], FAR)
    assert (slopes >= 0).all()
    # It saturates on one side at most: the other never loses its gradient.
    assert (slopes[FAR > 0] > 0).all() or (slopes[FAR < 0] > 0).all()


@pytest.mark.parametrize("make", [unpaired.kto, unpaired.bco])
@pytest.mark.parametrize("reference", [-1e3, 0.0, 1e3])
def test_losses_of_labels(make, reference):
    for desirable in (True, False):
        labels = jnp.full(len(FAR), desirable)
        loss = lambda r, labels=labels: unpaired.unpaired_value(make().link, r, labels, reference)  # noqa: E731
        slopes = values_and_slopes(loss, FAR)[1]
        assert (np.sign(slopes) * (-1 if desirable else 1) >= 0).all()


def test_rewards_of_responses():
    rows, mask = np.repeat(-np.abs(FAR)[:, None], 3, 1), jnp.ones((len(FAR), 3), bool)
    for reward in (log_odds, mean_log_prob(2.0)):
        _, slopes = values_and_slopes(lambda x, r=reward: r(x, None, mask), rows)
        assert (slopes > 0).all()


def test_divergences_of_distributions():
    tokens = -np.abs(np.stack([FAR, FAR[::-1] / 3], -1)) - 1
    values_and_slopes(kl.top_k_kl, tokens, tokens[::-1])
    values_and_slopes(lambda q, p: kl.top_k_kl(p, q), tokens[::-1], tokens)
    logits = np.stack([FAR, np.zeros_like(FAR)], -1)
    values_and_slopes(distributions.categorical_kl, logits, logits[::-1])
    values_and_slopes(lambda q, p: distributions.categorical_kl(p, q), logits[::-1], logits)
    zero = jnp.zeros_like(FAR)
    values_and_slopes(lambda s: distributions.normal_kl((zero, s), (zero + 1, zero)), FAR)
    values_and_slopes(lambda s: distributions.normal_log_prob((zero, s), zero), FAR)


def test_corrections_and_multistep_targets():
    old, sampler = jnp.asarray(FAR[None] - 1), jnp.full((1, len(FAR)), -1.0)
    mask = jnp.ones(old.shape, bool)
    for make in (truncated_importance, masked_importance, rejection):
        for ceiling in (2.0, np.inf):
            weights = make(ceiling=ceiling)(old, sampler, mask)
            assert np.isfinite(weights).all() and (weights >= 0).all()
    assert all(np.isfinite(x) for x in jax.jit(sampler_metrics)(old, sampler, mask).values())
    found = jax.jit(off_policy.vtrace)(jnp.ones(len(FAR)), 0.9, sampler[0], sampler[0], jnp.asarray(FAR))
    assert all(np.isfinite(x).all() for x in found)
    assert np.isfinite(off_policy.truncated_ratio(jnp.asarray(FAR), np.inf)).all()


OBJECTIVES = {
    "grpo": recipes.grpo(0.04),
    "dapo": recipes.dapo(),
    "dr_grpo": recipes.dr_grpo(6),
    "rloo": recipes.rloo(0),
    "gspo": recipes.gspo(),
    "gspo_token": recipes.gspo_token(),
    "luspo": recipes.luspo(),
    "gmpo": recipes.gmpo(),
    "cispo": recipes.cispo(5.0),
    "sapo": recipes.sapo(),
    "vespo": recipes.vespo(),
    "dppo_tv": recipes.dppo_tv(),
    "dppo_kl": recipes.dppo_kl(),
    "kl_cov": recipes.dapo()._replace(trust_region=coupled.kl_cov(trust_regions.unclipped)),
    "mask_off_policy": recipes.dapo()._replace(trust_region=coupled.mask_off_policy(trust_regions.clip(), 0.5)),
    "corrected kl": trl.grpo_corrected_kl(0.04),
    "verl": verl.grpo(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name):
    objective = OBJECTIVES[name]
    mask, base = jnp.ones((2, 3), bool), jnp.full((2, 3), -1.0)
    advantages = jnp.array([[1.0] * 3, [-2.0] * 3])

    @jax.jit
    def gradient(log_probs, old, ref):
        batch = PolicyBatch(log_probs, old, advantages, mask, objective.weighting(mask), ref)
        return jax.value_and_grad(lambda x: policy_loss(objective, batch._replace(log_probs=x))[0])(log_probs)

    for old in (-1001.0, -90.0, -1.0):
        for own in (-1001.0, -90.0, -1.0):
            for ref in (-1001.0, -1.0):
                value, slopes = gradient(base.at[0, 0].set(own).at[1, 0].set(own), base.at[:, 0].set(old), base + ref)
                assert np.isfinite(value) and np.isfinite(slopes).all(), (old, own, ref)


def test_an_update_after_the_norm_clip_keeps_its_direction():
    """One token that fell a thousand nats below the reference: it is pulled back, and nothing is NaN or lost."""
    objective, mask = recipes.grpo(0.04), jnp.ones((2, 3), bool)
    log_probs = jnp.full((2, 3), -1.0).at[0, 0].set(-1001.0)
    batch = PolicyBatch(log_probs, log_probs, jnp.ones((2, 3)), mask, ref_log_probs=jnp.full((2, 3), -1.0))
    gradient = jax.jit(jax.grad(lambda x: policy_loss(objective, batch._replace(log_probs=x))[0]))(log_probs)
    clip = optax.clip_by_global_norm(1.0)
    update = clip.update(gradient, clip.init(gradient))[0]
    np.testing.assert_allclose(update[0, 0], -1.0, rtol=1e-5)
    adam = optax.adam(1e-3)
    moved, state = adam.update(gradient, adam.init(gradient))
    assert np.isfinite(jax.tree.leaves(state)[-1]).all() and float(moved[0, 0]) > 0
