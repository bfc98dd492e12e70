from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.core.kl import absolute, k1, k2, k3, kl_penalty, straight_through
from rlax_llm.core.types import PolicyBatch
from rlax_llm.policy.coupled import (
    Coupled,
    clip_cov,
    dppo_kl,
    dppo_tv,
    gmpo,
    keep_chosen,
    kl_cov,
    mask_group_variation,
    mask_off_policy,
    token_covariance,
    weigh_by_ratio,
)
from rlax_llm.policy.ratios import sequence_ratio
from rlax_llm.policy.trust_regions import cispo, clip, score_function, unclipped

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=25, deadline=None)
seeds, garbages = st.integers(0, 99), st.sampled_from([0.0, np.nan, np.inf, -np.inf, 80.0])
ROWS, COLUMNS, SHARE = 4, 6, 0.15
KEY = jax.random.key(0)


def plain(trust_region) -> Coupled:
    return Coupled(lambda log_ratio, batch: trust_region(log_ratio, batch.advantages))


PPO = plain(clip())
TERMS = {
    "gmpo": gmpo(0.3, 0.2),
    "dppo_tv": dppo_tv(0.1, 0.15, ceiling=1.5),
    "dppo_kl": dppo_kl(0.02, 0.03, ceiling=1.5),
    "mask_off_policy": mask_off_policy(clip(), 0.05),
    "kl_cov": kl_cov(unclipped, 0.7, SHARE),
    "weigh_by_ratio": weigh_by_ratio(kl_penalty(k3, 0.4)),
    "clip_cov": clip_cov(clip(), KEY, SHARE, 0.1, 2.0),
}
each = pytest.mark.parametrize("name", TERMS)


@partial(jax.jit, static_argnums=0)
def value_and_gradient(term: Coupled, batch: PolicyBatch) -> tuple[jax.Array, jax.Array]:
    """Losses, and the gradient of their weighted sum with respect to the log-probabilities."""

    def weighted(log_probs):
        moved = batch._replace(log_probs=log_probs)
        losses = jnp.where(batch.mask, term.loss(log_probs - batch.old_log_probs, moved), 0.0)
        return jnp.where(batch.mask, batch.weights * losses, 0.0).sum(), losses

    gradient, losses = jax.grad(weighted, has_aux=True)(batch.log_probs)
    return losses, gradient


def batch_for(seed: int, drift: float = 0.4) -> PolicyBatch:
    random = np.random.default_rng(seed)
    shape = (ROWS, COLUMNS)
    old = np.log(random.uniform(0.05, 0.95, shape))
    log_probs = np.minimum(old + drift * random.normal(size=shape), -0.01)
    mask = random.random(shape) < 0.7
    advantages = np.repeat(random.normal(size=(ROWS, 1)), COLUMNS, 1)
    return PolicyBatch(log_probs, old, advantages, mask, random.random(shape), old + random.normal(size=shape))


def spoilt(batch: PolicyBatch, garbage: float) -> PolicyBatch:
    return PolicyBatch(*(x if x is batch.mask or x is None else np.where(batch.mask, x, garbage) for x in batch))


def token_terms(keep, weight):
    """Loss and slope of a detached weight on kept tokens."""

    def literal(batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
        losses, gradient = np.zeros((2, ROWS, COLUMNS))
        for b, t in zip(*np.nonzero(batch.mask), strict=True):
            x, a = batch.log_probs[b, t] - batch.old_log_probs[b, t], batch.advantages[b, t]
            if keep(np.exp(batch.log_probs[b, t]), np.exp(batch.old_log_probs[b, t]), a):
                losses[b, t] = -weight(np.exp(x)) * a * x
                gradient[b, t] = -weight(np.exp(x)) * a * batch.weights[b, t]
        return losses, gradient

    return literal


def small_variation(p: float, old: float, a: float) -> bool:
    return p - old <= 0.15 if a > 0 else p - old >= -0.1


def small_divergence(p: float, old: float, a: float) -> bool:
    divergence = old * np.log(old / p) + (1 - old) * np.log((1 - old) / (1 - p))
    return divergence <= 0.03 or p <= old if a > 0 else divergence <= 0.02 or p >= old


def literal_gmpo(batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
    losses, gradient = np.zeros((2, ROWS, COLUMNS))
    for b in range(ROWS):
        chosen = np.flatnonzero(batch.mask[b])
        a = batch.advantages[b, 0]
        logs = {t: batch.log_probs[b, t] - batch.old_log_probs[b, t] for t in chosen}
        clipped = {t: min(x, 0.2) if a > 0 else max(x, -0.3) for t, x in logs.items()}
        for t in chosen:
            losses[b, t] = -a * np.exp(sum(clipped.values()) / len(chosen))
        total = sum(batch.weights[b, t] * losses[b, t] for t in chosen)
        for t in chosen:
            gradient[b, t] = total / len(chosen) if clipped[t] == logs[t] else 0.0
    return losses, gradient


def literal_off_policy(batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
    losses, gradient = np.zeros((2, ROWS, COLUMNS))
    for b in range(ROWS):
        chosen = np.flatnonzero(batch.mask[b])
        drift = sum(batch.old_log_probs[b, t] - batch.log_probs[b, t] for t in chosen) / max(len(chosen), 1)
        for t in chosen:
            r, a = np.exp(batch.log_probs[b, t] - batch.old_log_probs[b, t]), batch.advantages[b, t]
            if a < 0 and drift > 0.05:
                continue
            losses[b, t] = -min(r * a, min(max(r, 0.8), 1.2) * a)
            outside = (a > 0 and r > 1.2) or (a < 0 and r < 0.8)
            gradient[b, t] = 0.0 if outside else -r * a * batch.weights[b, t]
    return losses, gradient


def covariances(batch: PolicyBatch) -> dict[tuple[int, int], float]:
    chosen = list(zip(*np.nonzero(batch.mask), strict=True))
    mean_a = sum(batch.advantages[i] for i in chosen) / max(len(chosen), 1)
    mean_p = sum(batch.log_probs[i] for i in chosen) / max(len(chosen), 1)
    return {i: (batch.advantages[i] - mean_a) * (batch.log_probs[i] - mean_p) for i in chosen}


def literal_kl_cov(batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
    losses, gradient = np.zeros((2, ROWS, COLUMNS))
    covariance = covariances(batch)
    count = max(1, int(SHARE * len(covariance)))
    largest = sorted(covariance, key=lambda i: -covariance[i])[:count]
    for i in covariance:
        x = batch.log_probs[i] - batch.old_log_probs[i]
        penalized = i in largest
        losses[i] = -batch.advantages[i] * np.exp(x) + penalized * 0.7 * abs(x)
        gradient[i] = (-batch.advantages[i] * np.exp(x) + penalized * 0.7 * np.sign(x)) * batch.weights[i]
    return losses, gradient


def literal_corrected(batch: PolicyBatch) -> tuple[np.ndarray, np.ndarray]:
    losses, gradient = np.zeros((2, ROWS, COLUMNS))
    for i in zip(*np.nonzero(batch.mask), strict=True):
        r, d = np.exp(batch.log_probs[i] - batch.old_log_probs[i]), batch.ref_log_probs[i] - batch.log_probs[i]
        losses[i] = 0.4 * r * (np.exp(d) - 1 - d)
        gradient[i] = (losses[i] + 0.4 * r * (1 - np.exp(d))) * batch.weights[i]
    return losses, gradient


LITERAL = {
    "gmpo": literal_gmpo,
    "dppo_tv": token_terms(small_variation, lambda r: min(r, 1.5)),
    "dppo_kl": token_terms(small_divergence, lambda r: min(r, 1.5)),
    "mask_off_policy": literal_off_policy,
    "kl_cov": literal_kl_cov,
    "weigh_by_ratio": literal_corrected,
}


@pytest.mark.parametrize("name", LITERAL)
@few
@given(seed=seeds, garbage=garbages)
def test_equals_the_formula_with_its_gradient_whatever_was_not_chosen(name, seed, garbage):
    batch = batch_for(seed)
    expected, expected_gradient = LITERAL[name](batch)
    losses, gradient = value_and_gradient(TERMS[name], spoilt(batch, garbage))
    np.testing.assert_allclose(losses, expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(np.asarray(gradient)[~batch.mask], 0)


@few
@given(seed=seeds, garbage=garbages)
def test_clip_cov_drops_a_few_of_its_candidates_and_nothing_else(seed, garbage):
    batch = batch_for(seed)
    whole, gradient = value_and_gradient(PPO, batch)
    losses, other = value_and_gradient(TERMS["clip_cov"], spoilt(batch, garbage))
    dropped = {tuple(i) for i in np.argwhere((np.asarray(gradient) != 0) & (np.asarray(other) == 0))}
    covariance = covariances(batch)
    candidates = {i for i, value in covariance.items() if 0.1 < value < 2.0 and gradient[i] != 0}
    assert dropped <= candidates
    assert len(dropped) == min(len(candidates), max(1, int(SHARE * len(covariance))))
    kept = np.ones((ROWS, COLUMNS), bool)
    kept[tuple(np.array(sorted(dropped), int).reshape(-1, 2).T)] = False
    np.testing.assert_array_equal(losses, np.where(kept, whole, 0))
    np.testing.assert_array_equal(other, np.where(kept, gradient, 0))


def test_clip_cov_draws_evenly_anew_for_each_batch_and_repeatably():
    batch = batch_for(3)._replace(mask=np.ones((ROWS, COLUMNS), bool))
    log_ratio = jnp.zeros((ROWS, COLUMNS))

    @jax.jit
    def dropped(key, old_log_probs):
        term = clip_cov(score_function, key, 1 / 24, 0.1, 2.0)
        return term.loss(log_ratio + 1, batch._replace(old_log_probs=old_log_probs)) == 0

    keys = jax.random.split(KEY, 1500)
    share = np.asarray(jax.vmap(dropped, (0, None))(keys, batch.old_log_probs)).mean(0)
    candidates = share > 0
    assert candidates.sum() > 3
    np.testing.assert_allclose(share[candidates], 1 / candidates.sum(), atol=0.05)
    batches = batch.old_log_probs + np.arange(40)[:, None, None] * 1e-3
    draws = np.asarray(jax.vmap(dropped, (None, 0))(KEY, batches))
    assert len({tuple(draw.ravel()) for draw in draws}) > 2
    np.testing.assert_array_equal(dropped(KEY, batches[7]), draws[7])


def same(one: Coupled, other: Coupled, seed: int) -> None:
    batch = batch_for(seed)
    for ours, theirs in zip(value_and_gradient(one, batch), value_and_gradient(other, batch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("term", "other"),
    [
        (dppo_tv(1.0), plain(cispo(ceiling=20.0))),
        (dppo_kl(np.inf), plain(cispo(ceiling=20.0))),
        (mask_off_policy(clip(), np.inf), PPO),
        (mask_group_variation(clip(), np.inf, 2), PPO),
        (kl_cov(clip(), 0.0), PPO),
        (clip_cov(clip(), KEY, covariance_floor=1e9, covariance_ceiling=2e9), PPO),
        (
            gmpo(1e3),
            Coupled(
                lambda _, batch: unclipped(
                    sequence_ratio(batch.log_probs, batch.old_log_probs, batch.mask), batch.advantages
                )
            ),
        ),
    ],
    ids=["dppo_tv", "dppo_kl", "mask_off_policy", "mask_group_variation", "kl_cov", "clip_cov", "gmpo"],
)
def test_limiting_cases(term, other):
    for seed in range(3):
        same(term, other, seed)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_extremes_are_finite_in_any_format(name, dtype):
    rows = jnp.asarray(np.tile([0.0, -80.0, -1.0, -1e-4, -40.0, -0.5], (ROWS, 1)), dtype)
    advantages = jnp.tile(jnp.array([[1.0], [-1.0], [0.0], [2.0]], dtype), (1, COLUMNS))
    for old in (rows, rows[:, ::-1], jnp.zeros_like(rows)):
        batch = PolicyBatch(rows, old, advantages, rows < 1, jnp.ones_like(rows), old)
        for values in value_and_gradient(TERMS[name], batch):
            assert np.isfinite(np.asarray(values, np.float64)).all()


@each
def test_an_empty_batch_gives_zero(name):
    batch = spoilt(batch_for(0)._replace(mask=np.zeros((ROWS, COLUMNS), bool)), np.nan)
    for values in value_and_gradient(TERMS[name], batch):
        np.testing.assert_array_equal(values, 0)


@each
def test_eager_is_jitted(name):
    batch = batch_for(5)
    with jax.disable_jit():
        eager = value_and_gradient(TERMS[name], batch)
    for ours, theirs in zip(eager, value_and_gradient(TERMS[name], batch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def enumerated(estimator, logits, old_logits, ref_logits):
    """Expectation over every action of the old policy, as a function of the current policy's logits."""
    old, ref = (jax.nn.log_softmax(jnp.asarray(x)) for x in (old_logits, ref_logits))
    mask = jnp.ones(logits.shape, bool)

    def expected(x):
        log_probs = jax.nn.log_softmax(x)
        batch = PolicyBatch(log_probs, old, old, mask, old, ref)
        return (jnp.exp(old) * weigh_by_ratio(estimator).loss(log_probs - old, batch)).sum()

    return jax.value_and_grad(expected)(jnp.asarray(logits))


@pytest.mark.parametrize("estimator", [k1, k3], ids=["k1", "k3"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_corrected_value_and_gradient_are_those_of_the_divergence(estimator, on_policy):
    logits, old_logits, ref_logits = np.random.default_rng(7).normal(size=(3, 7))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (logits, ref_logits))
    divergence = (p * np.log(p / q)).sum()
    value, gradient = enumerated(estimator, logits, logits if on_policy else old_logits, ref_logits)
    np.testing.assert_allclose(value, divergence, rtol=1e-12)
    np.testing.assert_allclose(gradient, p * (np.log(p / q) - divergence), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("estimator", [k2, absolute], ids=["k2", "absolute"])
def test_corrected_expectation_does_not_depend_on_the_old_policy(estimator):
    logits, old_logits, ref_logits = np.random.default_rng(8).normal(size=(3, 7))
    moved, fresh = (enumerated(estimator, logits, old, ref_logits) for old in (old_logits, logits))
    for ours, theirs in zip(moved, fresh, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_token_covariance_is_the_covariance_in_the_mean():
    batch = batch_for(9)
    expected = np.cov(batch.advantages[batch.mask], batch.log_probs[batch.mask], ddof=0)[0, 1]
    terms = np.asarray(token_covariance(batch.log_probs, batch.advantages, batch.mask))
    np.testing.assert_allclose(terms[batch.mask].mean(), expected, rtol=1e-12)
    np.testing.assert_array_equal(terms[~batch.mask], 0)


def test_chosen_only_leaves_the_chosen_and_an_absent_reference():
    batch = batch_for(10)._replace(ref_log_probs=None)
    cleaned = keep_chosen(spoilt(batch._replace(ref_log_probs=batch.log_probs), np.nan)._replace(ref_log_probs=None))
    assert cleaned.ref_log_probs is None
    np.testing.assert_array_equal(cleaned.mask, batch.mask)
    for name in ("log_probs", "old_log_probs", "advantages", "weights"):
        np.testing.assert_array_equal(getattr(cleaned, name), np.where(batch.mask, getattr(batch, name), 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gmpo(-1.0), "gmpo: eps_low is -1.0, wanted a number greater than 0"),
        (lambda: dppo_tv(0.1, 0.0), "dppo_tv: eps_high is 0.0, wanted a number greater than 0"),
        (lambda: dppo_tv(0.1, ceiling=0.0), "cispo: ceiling is 0.0, wanted a number greater than 0"),
        (lambda: mask_group_variation(clip(), -1.0, 2), "mask_group_variation: limit is -1.0, wanted a number of at"),
        (lambda: dppo_kl(0.0), "dppo_kl: limit_low is 0.0, wanted a number greater than 0"),
        (lambda: clip_cov(clip(), KEY, share=0.0), "clip_cov: share is 0.0, wanted a number greater than 0"),
        (lambda: clip_cov(clip(), KEY, covariance_floor=9.0), "clip_cov: ceiling − floor is -4.0, wanted a number"),
        (lambda: kl_cov(clip(), -1.0), "kl_cov: kl_coef is -1.0, wanted a number of at least 0"),
        (lambda: kl_cov(clip(), share=-1.0), "kl_cov: share is -1.0, wanted a number greater than 0"),
        (lambda: weigh_by_ratio(kl_penalty(k1, 0.1)), "kl_penalty: k1 as a loss"),
        (lambda: weigh_by_ratio(straight_through(k3, k1)), "straight_through: k1 as a loss"),
        (
            lambda: value_and_gradient(weigh_by_ratio(k3), batch_for(0)._replace(ref_log_probs=None)),
            "importance_corrected: a KL term needs ref_log_probs, got None; give the reference's",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
