from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.kl import k2, k3, kl_penalty
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.coupled import Coupled, dppo_kl, dppo_tv, gmpo, mask_off_policy, weigh_by_ratio
from rlax_llm.policy.objectives import policy_loss
from rlax_llm.policy.ratios import sequence_ratio, sequence_token_ratio, summed_ratio, summed_token_ratio
from rlax_llm.policy.trust_regions import (
    add_penalty,
    cispo,
    clip,
    discovered_policy_optimization,
    dual_clip,
    sapo,
    score_function,
    unclipped,
    vespo,
)
from rlax_llm.policy.weightings import fixed_length, sequence_mean, sequence_sum, token_mean
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import trl

pytestmark = pytest.mark.usefixtures("float64")

OBJECTIVES = {
    "grpo": recipes.grpo(0.3),
    "grpo_k2": recipes.grpo()._replace(kl=kl_penalty(k2, 0.3)),
    "dapo": recipes.dapo(),
    "dr_grpo": recipes.dr_grpo(7),
    "rloo": recipes.rloo(),
}
TOKENS = pytest.mark.parametrize("name", tuple(OBJECTIVES))
GSPO = recipes.grpo(0)._replace(ratio=sequence_ratio, trust_region=clip(0.2, 0.25))
OBJECTIVES |= {
    "gspo": GSPO,
    "gspo_token": GSPO._replace(ratio=sequence_token_ratio),
    "luspo": GSPO._replace(weighting=sequence_sum),
    "vespo": recipes.dapo()._replace(ratio=summed_token_ratio, trust_region=vespo()),
    "gmpo": recipes.grpo(0)._replace(trust_region=gmpo()),
    "dppo_kl": recipes.dapo()._replace(trust_region=dppo_kl(0.05), kl=weigh_by_ratio(kl_penalty(k3, 0.3))),
    "off_policy": recipes.grpo(0.3)._replace(trust_region=mask_off_policy(dual_clip(), 0.1)),
}
each = pytest.mark.parametrize("name", OBJECTIVES)


def batch_for(objective, seed: int = 0, shape: tuple[int, int] = (6, 5), drift: float = 0.3) -> PolicyBatch:
    random = np.random.default_rng(seed)
    log_probs = -random.exponential(size=shape)
    old_log_probs, ref_log_probs = log_probs + drift * random.normal(size=(2, *shape))
    mask = random.random(shape) < 0.7
    mask[-1] = False
    advantages = np.broadcast_to(random.normal(size=(shape[0], 1)), shape)
    weights, uniform = objective.weighting(mask), token_mean(mask)
    arrays = log_probs, old_log_probs, advantages, mask, weights, ref_log_probs, uniform
    return PolicyBatch(*map(jnp.asarray, arrays))


@partial(jax.jit, static_argnums=0)
def value_and_gradient(objective, batch: PolicyBatch):
    """Loss, metrics and the gradient with respect to the log-probabilities."""

    def loss(log_probs):
        return policy_loss(objective, batch._replace(log_probs=log_probs))

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(batch.log_probs)
    return value, metrics, gradient


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@each
def test_what_the_policy_did_not_choose_is_never_read(name, garbage):
    objective = OBJECTIVES[name]
    batch = batch_for(objective)
    value, metrics, gradient = value_and_gradient(objective, batch)
    fields = ("log_probs", "old_log_probs", "advantages", "weights", "ref_log_probs", "uniform")
    for spoilt in (fields, *((field,) for field in fields)):
        changed = {field: jnp.where(batch.mask, getattr(batch, field), garbage) for field in spoilt}
        other_value, other_metrics, other_gradient = value_and_gradient(objective, batch._replace(**changed))
        np.testing.assert_array_equal(other_value, value)
        np.testing.assert_array_equal(other_gradient, gradient)
        jax.tree.map(np.testing.assert_array_equal, other_metrics, metrics)
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(batch.mask)], 0)


@each
def test_micro_batches_add_up(name):
    objective, parts = OBJECTIVES[name], 3
    batch = batch_for(objective)
    value, metrics, gradient = value_and_gradient(objective, batch)
    pieces = [jax.tree.map(lambda x, i=i: x[i::parts], batch) for i in range(parts)]
    results = [value_and_gradient(objective, piece) for piece in pieces]
    np.testing.assert_allclose(sum(result[0] for result in results), value, rtol=1e-12)
    for key, total in metrics.items():
        np.testing.assert_allclose(
            sum(result[1][key] for result in results), total, rtol=1e-6 if "clip_fraction" in key else 1e-12
        )
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result[2], gradient[i::parts])


@TOKENS
def test_any_layout(name):
    objective = OBJECTIVES[name]
    batch = batch_for(objective)
    turned = jax.tree.map(jnp.transpose, batch)
    value, _, gradient = value_and_gradient(objective, batch)
    turned_value, _, turned_gradient = value_and_gradient(objective, turned)
    np.testing.assert_allclose(turned_value, value, rtol=1e-12)
    np.testing.assert_array_equal(turned_gradient.T, gradient)


@pytest.mark.parametrize(
    "region",
    [
        score_function,
        unclipped,
        clip(0.2),
        clip(3e-4, 4e-4),
        dual_clip(),
        cispo(ceiling=5.0),
        sapo(),
        vespo(),
        discovered_policy_optimization(),
        add_penalty(unclipped, 0.3),
        dppo_tv(0.1),
        dppo_kl(0.1),
        mask_off_policy(clip(), 0.1),
    ],
)
def test_on_policy_every_trust_region_is_reinforce(region):
    objective = recipes.dapo()._replace(trust_region=region)
    batch = batch_for(objective, drift=0.0)
    _, metrics, gradient = value_and_gradient(objective, batch)
    expected = -np.asarray(batch.weights) * np.asarray(batch.advantages) * np.asarray(batch.mask)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    assert metrics["kl_old"] == 0
    assert metrics["clip_fraction"] == 0


def test_on_policy_with_centered_advantages_the_value_is_zero_but_the_gradient_is_not():
    objective = recipes.dapo()
    batch = batch_for(objective, drift=0.0)
    mask = jnp.ones_like(batch.mask)
    advantages = batch.advantages - batch.advantages.mean()
    batch = batch._replace(mask=mask, weights=objective.weighting(mask), advantages=advantages)
    value, _, gradient = value_and_gradient(objective, batch)
    np.testing.assert_allclose(value, 0, atol=1e-8)
    assert np.abs(gradient).max() > 0.01


def test_metrics_equal_their_formulas():
    objective = recipes.grpo(0.3)
    batch = batch_for(objective)
    value, metrics, _ = value_and_gradient(objective, batch)
    log_probs, old, advantages, mask, weights, ref = map(np.asarray, batch[:6])
    ratio = np.exp(log_probs - old)
    outside = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    expected = {
        "policy_loss": -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages),
        "kl_old": ratio - 1 - np.log(ratio),
        "kl": np.exp(ref - log_probs) - 1 - (ref - log_probs),
        "clip_fraction": outside,
        "clip_fraction_low": outside & (ratio < 1),
        "clip_fraction_high": outside & (ratio > 1),
    }
    assert set(metrics) == set(expected)
    loss = (weights * expected.pop("policy_loss"))[mask].sum()
    np.testing.assert_allclose(metrics["policy_loss"], loss, rtol=1e-12)
    for key, values in expected.items():  # means of tokens, though the loss is a mean of rows
        np.testing.assert_allclose(metrics[key], values[mask].mean(), rtol=1e-6)
    assert 0 < metrics["clip_fraction"] < 1
    np.testing.assert_allclose(value, loss + 0.3 * (weights * expected["kl"])[mask].sum(), rtol=1e-12)


EVERY_WEIGHTING = [
    token_mean,
    sequence_mean,
    sequence_sum,
    fixed_length(100),
    trl.over_all_rows(),
    trl.over_all_rows(7),
]


@pytest.mark.parametrize("weighting", EVERY_WEIGHTING)
@pytest.mark.parametrize("mended", [False, True], ids=["of the weighting", "with a sampler's correction"])
def test_metrics_are_of_tokens_whatever_the_loss_weighs(weighting, mended):
    """All tokens clipped is a fraction of 1, and a KL is that of a token; in one batch and in parts of it."""
    objective = recipes.dapo()._replace(weighting=weighting)
    mask = jnp.arange(5) < jnp.array([5, 1, 3, 0])[:, None]
    zero = jnp.zeros(mask.shape)
    weights = weighting(mask) * (jnp.linspace(0.1, 3.0, 20).reshape(4, 5) if mended else 1.0)
    batch = PolicyBatch(zero - 1, zero - 2, zero + 1, mask, weights, zero - 1.5, token_mean(mask))
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(4)]
    summed = jax.tree.map(lambda *x: sum(x), *(policy_loss(objective, part)[1] for part in parts))
    for metrics in (policy_loss(objective, batch)[1], policy_loss(objective, batch._replace(uniform=None))[1], summed):
        found = [metrics[name] for name in ("clip_fraction", "clip_fraction_high", "clip_fraction_low")]
        np.testing.assert_allclose(found, [1, 1, 0], rtol=1e-6)
        np.testing.assert_allclose(metrics["kl_old"], np.e - 2, rtol=1e-6)
        np.testing.assert_allclose(metrics["kl"], np.exp(-0.5) - 0.5, rtol=1e-6)


@each
def test_weights_may_be_left_out_of_a_whole_batch(name):
    objective = OBJECTIVES[name]
    batch = batch_for(objective)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_gradient(objective, batch._replace(weights=None, uniform=None)),
        value_and_gradient(objective, batch),
    )


def test_without_a_kl_term_the_reference_is_measured_and_changes_nothing():
    objective = recipes.dapo()
    batch = batch_for(objective)
    value, metrics, gradient = value_and_gradient(objective, batch)
    other_value, other_metrics, other_gradient = value_and_gradient(objective, batch._replace(ref_log_probs=None))
    assert set(metrics) - set(other_metrics) == {"kl"}
    np.testing.assert_array_equal(other_value, value)
    np.testing.assert_array_equal(other_gradient, gradient)


def test_metrics_carry_no_gradient():
    objective = recipes.grpo(0.3)
    batch = batch_for(objective)
    gradient = jax.grad(lambda x: sum(policy_loss(objective, batch._replace(log_probs=x))[1].values()))(batch.log_probs)
    np.testing.assert_array_equal(gradient, np.zeros(batch.log_probs.shape))


def test_replacing_one_function_changes_one_thing():
    dapo, batch = recipes.dapo(), batch_for(recipes.dapo())
    for weighting in (token_mean, sequence_mean, sequence_sum):
        weights = weighting(batch.mask)
        value = policy_loss(dapo._replace(weighting=weighting), batch._replace(weights=weights))[0]
        losses = dapo.trust_region(batch.log_probs - batch.old_log_probs, batch.advantages)
        np.testing.assert_allclose(value, (weights * losses).sum(), rtol=1e-12)


def test_an_empty_batch_gives_zero():
    objective = recipes.grpo(0.3)
    batch = batch_for(objective)
    mask = jnp.zeros_like(batch.mask)
    value, _, gradient = value_and_gradient(objective, batch._replace(mask=mask, weights=objective.weighting(mask)))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(mask.shape))


def literal_rows(name: str, batch: PolicyBatch) -> tuple[float, np.ndarray]:
    """Sequence-level losses as the peers write them, one row at a time, with the derivative by hand."""
    log_probs, old, advantages, mask = map(
        np.asarray, (batch.log_probs, batch.old_log_probs, batch.advantages, batch.mask)
    )
    rows = [b for b in range(len(mask)) if mask[b].any()]
    value, gradient = 0.0, np.zeros(mask.shape)
    for b in rows:
        chosen, a = np.flatnonzero(mask[b]), advantages[b, 0]
        total = sum(log_probs[b, t] - old[b, t] for t in chosen)
        if name == "vespo":
            k, decay = (2, 3) if a >= 0 else (3, 2)
            phi = np.exp(decay + k * total - decay * np.exp(total))
            value += -phi * a * total * len(chosen) / mask.sum()
            gradient[b, chosen] = -phi * a / mask.sum()
            continue
        mean = total if name == "rloo_sequence" else total / len(chosen)
        r = np.exp(mean)
        times = len(chosen) if name == "luspo" else 1
        inside = not ((a > 0 and r > 1.25) or (a < 0 and r < 0.8))
        value += -min(r * a, min(max(r, 0.8), 1.25) * a) * times / len(rows)
        slope = -r * a * inside * times / len(rows)
        gradient[b, chosen] = slope if name == "rloo_sequence" else slope / len(chosen)
    return value, gradient


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["gspo", "gspo_token", "luspo", "vespo", "rloo_sequence"])
def test_sequence_level_objectives_are_the_papers(name, seed):
    objective = OBJECTIVES.get(name, GSPO._replace(ratio=summed_ratio))
    batch = batch_for(objective, seed)._replace(ref_log_probs=None)
    value, metrics, gradient = value_and_gradient(objective, batch)
    expected, expected_gradient = literal_rows(name, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6, atol=1e-12)
    # a clipped token is one whose advantage reaches no parameter
    unmoved = (np.asarray(gradient) == 0) & np.asarray(batch.mask) & (np.asarray(batch.advantages) != 0)
    np.testing.assert_allclose(metrics["clip_fraction"], unmoved.sum() / np.asarray(batch.mask).sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["gmpo", "off_policy", "gspo"])
def test_clip_fraction_counts_tokens_that_an_advantage_does_not_move(name):
    objective = OBJECTIVES[name]._replace(kl=None)
    batch = batch_for(objective, drift=0.8)
    _, metrics, gradient = value_and_gradient(objective, batch)
    unmoved = (np.asarray(gradient) == 0) & np.asarray(batch.mask)
    np.testing.assert_allclose(metrics["clip_fraction"], unmoved.sum() / np.asarray(batch.mask).sum(), rtol=1e-6)
    assert 0 < metrics["clip_fraction"] < 1


def test_kl_old_is_measured_by_tokens_at_every_level_of_the_ratio():
    batch = batch_for(recipes.dapo())
    expected = value_and_gradient(recipes.dapo(), batch)[1]["kl_old"]
    for ratio in (sequence_ratio, summed_ratio):
        metrics = value_and_gradient(recipes.dapo()._replace(ratio=ratio), batch)[1]
        np.testing.assert_allclose(metrics["kl_old"], expected, rtol=1e-12)


def test_coupled_terms_are_the_plain_ones_when_they_read_nothing_more():
    plain = recipes.grpo(0.3)
    coupled = plain._replace(
        trust_region=Coupled(lambda log_ratio, batch: clip(0.2)(log_ratio, batch.advantages)),
        kl=Coupled(lambda log_ratio, batch: 0.3 * k3(batch.log_probs, batch.ref_log_probs)),
    )
    batch = batch_for(plain)
    for one, other in zip(value_and_gradient(plain, batch), value_and_gradient(coupled, batch), strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-14), one, other)


def test_advantages_of_zero_take_tokens_out_of_the_policy_term_alone():
    """Peers' entropy and off-policy masks: every denominator and the KL term stay as they were."""
    objective = recipes.grpo(0.3)
    batch = batch_for(objective)
    kept = np.random.default_rng(1).random(batch.mask.shape) < 0.5
    value, metrics, _ = value_and_gradient(objective, batch._replace(advantages=jnp.where(kept, batch.advantages, 0)))
    losses = objective.trust_region(batch.log_probs - batch.old_log_probs, batch.advantages)
    expected = np.asarray(batch.weights * losses)[kept & np.asarray(batch.mask)].sum()
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-12)
    penalty = np.asarray(batch.weights * k3(batch.log_probs, batch.ref_log_probs))[np.asarray(batch.mask)].sum()
    np.testing.assert_allclose(value, expected + 0.3 * penalty, rtol=1e-12)
    np.testing.assert_allclose(metrics["kl"], value_and_gradient(objective, batch)[1]["kl"], rtol=1e-12)


def test_a_coupled_kl_without_a_reference_is_named():
    objective = OBJECTIVES["dppo_kl"]
    with pytest.raises(ValueError, match=r"policy_loss: objective.kl needs ref_log_probs, got None; give them, or set"):
        policy_loss(objective, batch_for(objective)._replace(ref_log_probs=None))
