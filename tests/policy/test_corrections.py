from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlax_llm.policy.corrections import (
    correction_product,
    masked_importance,
    off_policy_mask,
    rejection,
    sampler_metrics,
    second_moment_mask,
    truncated_importance,
)
from rlax_llm.policy.ratios import sequence_ratio, summed_ratio, token_ratio

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
ROWS, COLUMNS = 4, 5
masks = arrays(bool, (ROWS, COLUMNS))
seeds = st.integers(0, 99)
LEVELS = {"token": token_ratio, "mean": sequence_ratio, "sum": summed_ratio}
FLOOR, CEILING = 0.7, 1.6
FACTORIES = {
    "truncated": (truncated_importance, lambda r: min(max(r, FLOOR), CEILING)),
    "masked": (masked_importance, lambda r: r if FLOOR <= r <= CEILING else 0.0),
    "rejection": (rejection, lambda r: 1.0 if FLOOR <= r <= CEILING else 0.0),
}
JITTED = {
    (name, level): jax.jit(factory(floor=FLOOR, ceiling=CEILING, ratio=ratio))
    for name, (factory, _) in FACTORIES.items()
    for level, ratio in LEVELS.items()
}
each = pytest.mark.parametrize(("name", "level"), JITTED)
METRICS, KEEP = jax.jit(sampler_metrics), jax.jit(off_policy_mask)


def policies(seed: int) -> np.ndarray:
    return -np.random.default_rng(seed).exponential(0.5, (2, ROWS, COLUMNS))


def ratios_of(level: str, old: np.ndarray, sampler: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ratio of each chosen token's level, token by token; NaN where nothing was chosen."""
    ratios = np.full(mask.shape, np.nan)
    for b in range(ROWS):
        chosen = [t for t in range(COLUMNS) if mask[b, t]]
        logs = [0.0 if np.isnan(sampler[b, t]) else old[b, t] - sampler[b, t] for t in chosen]
        for t, log in zip(chosen, logs, strict=True):
            ratios[b, t] = np.exp({"token": log, "sum": sum(logs), "mean": sum(logs) / len(logs)}[level])
    return ratios


@each
@few
@given(mask=masks, seed=seeds, garbage=st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
def test_weights_are_the_formulas_whatever_was_not_chosen(name, level, mask, seed, garbage):
    old, sampler = policies(seed)
    ratios = ratios_of(level, old, sampler, mask)
    expected = [[0.0 if np.isnan(r) else FACTORIES[name][1](r) for r in row] for row in ratios]
    weights = JITTED[name, level](np.where(mask, old, garbage), np.where(mask, sampler, garbage), mask)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@each
def test_where_the_two_agree_the_weights_are_the_mask(name, level):
    old, mask = policies(0)[0], np.random.default_rng(1).random((ROWS, COLUMNS)) < 0.5
    np.testing.assert_array_equal(JITTED[name, level](old, old, mask), mask)


@each
def test_a_token_without_a_sampler_log_prob_counts_as_agreeing(name, level):
    old, sampler = policies(2)
    sampler[0, 0] = np.nan
    mask = np.ones((ROWS, COLUMNS), bool)
    expected = JITTED[name, level](old, np.where(np.isnan(sampler), old, sampler), mask)
    np.testing.assert_array_equal(JITTED[name, level](old, sampler, mask), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each
def test_extreme_differences_are_finite_and_weights_carry_no_gradient(name, level, dtype):
    far = jnp.tile(jnp.array([80.0, -80.0, 0.0, 500.0, -500.0], dtype), (ROWS, 1))
    mask = jnp.ones((ROWS, COLUMNS), bool)
    weights = JITTED[name, level](far, jnp.zeros_like(far), mask)
    assert weights.dtype == jnp.float32
    assert np.isfinite(weights).all()
    gradient = jax.grad(lambda x: JITTED[name, level](x, jnp.zeros_like(far), mask).sum())(far)
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0)


def test_wide_bounds_give_the_unbiased_ratio_and_keep_everything():
    old, sampler = policies(3)
    mask = np.ones((ROWS, COLUMNS), bool)
    for factory in (truncated_importance, masked_importance):
        np.testing.assert_allclose(factory(ceiling=np.inf)(old, sampler, mask), np.exp(old - sampler), rtol=1e-12)
    np.testing.assert_array_equal(rejection(ceiling=np.inf)(old, sampler, mask), mask)


@few
@given(mask=masks, seed=seeds, limit=st.sampled_from([0.0, 0.05, 0.3, 100.0]))
def test_the_second_moment_is_brought_within_a_limit_by_dropping_the_fewest(mask, seed, limit):
    old, sampler = policies(seed)
    found = np.asarray(second_moment_mask(limit=limit)(old, sampler, mask))
    squares = sorted((old - sampler)[mask] ** 2)
    kept = len(squares)
    while kept and np.mean(squares[:kept]) > limit:
        kept -= 1
    assert found.sum() == kept and not found[~mask].any()
    np.testing.assert_allclose(sorted((old - sampler)[found > 0] ** 2), squares[:kept])
    assert (np.asarray(second_moment_mask(limit=limit)(old, old, mask)) == mask).all()


def test_corrections_multiply():
    old, sampler = policies(4)
    mask = np.ones((ROWS, COLUMNS), bool)
    filtered = rejection(floor=0.9, ceiling=1.1, ratio=sequence_ratio)
    tokens = truncated_importance(ceiling=2.0)
    expected = np.asarray(filtered(old, sampler, mask)) * np.asarray(tokens(old, sampler, mask))
    np.testing.assert_allclose(correction_product(filtered, tokens)(old, sampler, mask), expected, rtol=1e-14)
    assert 0 < np.asarray(filtered(old, sampler, mask)).mean() < 1
    np.testing.assert_array_equal(correction_product()(old, sampler, mask), mask)


@few
@given(mask=masks, seed=seeds, garbage=st.sampled_from([0.0, np.nan, np.inf]))
def test_off_policy_mask_drops_bad_completions_that_the_policy_has_left(mask, seed, garbage):
    current, sampler = policies(seed)
    advantages = np.repeat(np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], (ROWS, 1)), COLUMNS, 1)
    expected = mask.copy()
    for b in range(ROWS):
        chosen = [t for t in range(COLUMNS) if mask[b, t]]
        drift = sum(sampler[b, t] - current[b, t] for t in chosen) / max(len(chosen), 1)
        if advantages[b, 0] < 0 and drift > 0.1:
            expected[b] = False
    arrays = (np.where(mask, x, garbage) for x in (current, sampler, advantages))
    np.testing.assert_array_equal(KEEP(*arrays, mask, 0.1), expected)


@few
@given(mask=masks, seed=seeds)
def test_metrics_are_the_formulas(mask, seed):
    old, sampler = policies(seed)
    metrics = METRICS(np.where(mask, old, np.nan), np.where(mask, sampler, np.nan), mask)
    ratios = np.exp(old - sampler)[mask]
    if not mask.any():
        assert all(value == 0 for value in metrics.values())
        return
    expected = {
        "ratio_mean": ratios.mean(),
        "ratio_min": ratios.min(),
        "ratio_max": ratios.max(),
        "ess": ratios.sum() ** 2 / (len(ratios) * (ratios**2).sum()),
        "chi2": (ratios**2).mean() - 1,
        "kl": -np.log(ratios).mean(),
        "kl_k3": (ratios - 1 - np.log(ratios)).mean(),
    }
    assert set(metrics) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-10, atol=1e-12)


def test_metrics_in_expectation_over_the_samplers_tokens():
    """Each token of a row of 1000 as often as the sampler draws it: means are then expectations."""
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.25, 0.25, 0.5])
    drawn = np.repeat(np.arange(3), (q * 1000).astype(int))[None]
    metrics = sampler_metrics(np.log(p)[drawn], np.log(q)[drawn], np.ones(drawn.shape, bool))
    divergence = (q * np.log(q / p)).sum()
    expected = {"ratio_mean": 1.0, "chi2": (p**2 / q).sum() - 1, "kl": divergence, "kl_k3": divergence}
    for key, value in expected.items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-9)
    np.testing.assert_allclose(metrics["ess"], 1 / (1 + metrics["chi2"]), rtol=1e-12)


def test_metrics_survive_ratios_whose_square_leaves_the_format():
    old = jnp.array([[80.0, 0.0, 0.0, 0.0]], jnp.float32)
    metrics = sampler_metrics(old, jnp.zeros_like(old), old >= 0)
    np.testing.assert_allclose(metrics["ess"], 0.25, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], -20, rtol=1e-6)
    assert not any(np.isnan(value) for value in metrics.values())


@pytest.mark.parametrize("factory", [truncated_importance, masked_importance, rejection], ids=lambda f: f.__name__)
def test_bad_bounds_are_named(factory):
    name = factory.__name__
    with pytest.raises(ValueError, match=f"{name}: ceiling is 0.0, wanted a number greater than 0"):
        factory(ceiling=0.0)
    with pytest.raises(ValueError, match=f"{name}: floor is -1.0, wanted a number of at least 0"):
        factory(ceiling=1.0, floor=-1.0)
    with pytest.raises(ValueError, match=f"{name}: ceiling − floor is -1.0, wanted a number of at least 0"):
        factory(ceiling=1.0, floor=2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: truncated_importance(ceiling=2.0)(a, a, b > 0), "mask has shape"),
        (lambda a, b: off_policy_mask(a, a, b, a > 0, 0.1), "off_policy_mask: advantages has shape"),
        (lambda a, b: sampler_metrics(a, b, a > 0), "sampler_metrics: sampler_log_probs has shape"),
    ],
)
def test_shapes_that_differ_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
