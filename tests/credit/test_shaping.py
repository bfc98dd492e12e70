from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.core.kl import k1, k2, k3
from rlax_llm.credit.shaping import (
    clipped_scores,
    fixed_if_truncated,
    informative,
    kl_in_reward,
    missing_eos_penalty,
    overlong_filter,
    scaled_if_truncated,
    score_at_end,
    soft_overlong_punishment,
    step_payments,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
B, T = 3, 5
masks = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.reshape(x, (B, T)))
SCORES = np.array([2.0, -1.5, 0.25])
placed = jax.jit(score_at_end)
with_kl = {e.__name__: jax.jit(lambda r, p, q, m, c, e=e: kl_in_reward(r, p, q, m, c, e)) for e in (k1, k2, k3)}
teaches = jax.jit(informative)


@few
@given(mask=masks)
def test_the_score_is_paid_on_the_last_chosen_token(mask):
    expected = np.zeros((B, T))
    for b in range(B):
        for t in reversed(range(T)):
            if mask[b, t]:
                expected[b, t] = SCORES[b]
                break
    rewards = placed(SCORES, mask)
    np.testing.assert_array_equal(rewards, expected)
    np.testing.assert_array_equal(rewards.sum(-1), np.where(mask.any(-1), SCORES, 0.0))
    np.testing.assert_array_equal(jax.vmap(score_at_end)(SCORES, mask), rewards)


steps_paid = jax.jit(step_payments)


@few
@given(mask=masks, ends=masks, outcome=st.booleans())
def test_steps_are_paid_where_they_end_and_the_rest_at_the_end(mask, ends, outcome):
    steps = np.where(ends, np.linspace(-1.0, 2.0, B * T).reshape(B, T), np.nan)
    paid = np.nansum(np.where(mask, steps, np.nan), -1)
    scores = paid + outcome * SCORES
    expected = np.where(mask, steps, np.nan)
    for b in range(B):
        chosen = [t for t in range(T) if mask[b, t]]
        if chosen and (outcome or not (mask[b] & ends[b]).any()):
            expected[b, chosen[-1]] = np.nan_to_num(expected[b, chosen[-1]]) + scores[b] - paid[b]
    rewards = np.asarray(steps_paid(scores, steps, mask))
    np.testing.assert_allclose(rewards, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.nansum(rewards, -1), np.where(mask.any(-1), scores, 0.0), rtol=1e-12, atol=1e-12)


def test_without_steps_the_score_is_paid_at_the_end():
    mask = np.array([[True, True, False, False, False]] * B)
    at_end = np.asarray(placed(SCORES, mask))
    np.testing.assert_array_equal(np.nan_to_num(steps_paid(SCORES, np.full((B, T), np.nan), mask)), at_end)
    np.testing.assert_array_equal(np.nan_to_num(steps_paid(SCORES, np.where(at_end, at_end, np.nan), mask)), at_end)


def test_a_missing_score_stays_visible_on_its_own_row():
    mask = np.array([[True, True, False], [True, False, False]])
    scores = np.array([np.nan, 1.0])
    np.testing.assert_array_equal(score_at_end(scores, mask), [[0, np.nan, 0], [1, 0, 0]])
    scored = mask & ~np.isnan(scores)[:, None]
    np.testing.assert_array_equal(score_at_end(scores, scored), [[0, 0, 0], [1, 0, 0]])
    slopes = jax.jacrev(lambda s: score_at_end(s, scored).sum())(jnp.asarray(scores))
    np.testing.assert_array_equal(slopes, [0, 1])


def test_scores_of_integers_and_half_precision_keep_their_fraction():
    assert placed(np.array([1, 2, 3]), np.ones((B, T), bool)).dtype == "float64"
    rewards = placed(jnp.array([0.5, 1.5, 2.5], jnp.bfloat16), np.ones((B, T), bool))
    assert rewards.dtype == "float32"
    np.testing.assert_array_equal(rewards[:, -1], [0.5, 1.5, 2.5])


def streams(seed: int = 0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    log_probs, ref_log_probs = -random.exponential(size=(2, B, T))
    return random.normal(size=(B, T)), log_probs, ref_log_probs, random.random((B, T)) < 0.6


@pytest.mark.parametrize("name", with_kl)
def test_kl_in_reward_equals_the_formula_with_its_gradient(name):
    rewards, log_probs, ref_log_probs, mask = streams()
    expected = rewards.copy()
    for i in np.ndindex(B, T):
        r = log_probs[i] - ref_log_probs[i]
        estimate = {"k1": r, "k2": r * r / 2, "k3": np.exp(-r) - 1 + r}[name]
        expected[i] -= 0.3 * estimate if mask[i] else 0.0
    np.testing.assert_allclose(with_kl[name](rewards, log_probs, ref_log_probs, mask, 0.3), expected, rtol=1e-12)
    check_grads(
        lambda r, p, q: with_kl[name](r, p, q, mask, 0.3), (rewards, log_probs, ref_log_probs), 1, modes=["rev"]
    )


@pytest.mark.parametrize("name", with_kl)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 80.0, -80.0])
def test_kl_in_reward_never_reads_what_the_policy_did_not_choose(name, garbage):
    rewards, log_probs, ref_log_probs, mask = streams()
    clean = with_kl[name](rewards, log_probs, ref_log_probs, mask, 0.3)
    spoilt_policy = np.where(mask, log_probs, garbage), ref_log_probs
    spoilt_reference = log_probs, np.where(mask, ref_log_probs, garbage)
    for spoilt in (spoilt_policy, spoilt_reference):
        np.testing.assert_array_equal(with_kl[name](rewards, *spoilt, mask, 0.3), clean)
        slopes = jax.grad(lambda p, q: with_kl[name](rewards, p, q, mask, 0.3).sum(), (0, 1))(*map(jnp.asarray, spoilt))
        assert np.all(np.isfinite(slopes))
        assert not np.any(np.asarray(slopes)[:, ~mask])


def test_kl_in_reward_limits():
    rewards, log_probs, ref_log_probs, mask = streams()
    np.testing.assert_array_equal(kl_in_reward(rewards, log_probs, ref_log_probs, mask, 0.0), rewards)
    np.testing.assert_array_equal(kl_in_reward(rewards, log_probs, ref_log_probs, np.zeros_like(mask), 0.5), rewards)
    many = jax.vmap(lambda c: kl_in_reward(rewards, log_probs, ref_log_probs, mask, c))(jnp.array([0.0, 0.5]))
    np.testing.assert_array_equal(many[0], rewards)
    sequence = (rewards + 0.0).sum(-1) - 0.5 * np.where(mask, log_probs - ref_log_probs, 0.0).sum(-1)
    np.testing.assert_allclose(many[1].sum(-1), sequence, rtol=1e-12)


def test_only_k1_in_the_reward_gives_the_gradient_of_the_divergence():
    """The policy gradient of the reward alone, by exact enumeration: E[∇log π · KL_t] against ∇ KL(π‖ref)."""
    logits, ref_logits = np.random.default_rng(1).normal(size=(2, 7))
    log_q, ones = jax.nn.log_softmax(ref_logits), np.ones(7, bool)

    def gradient(estimator):
        log_p = jax.nn.log_softmax(logits)
        rewards = kl_in_reward(np.zeros(7), log_p, log_q, ones, 1.0, estimator)
        return jax.grad(lambda x: (jnp.exp(log_p) * -rewards * jax.nn.log_softmax(x)).sum())(jnp.asarray(logits))

    def divergence(x):
        return (jax.nn.softmax(x) * (jax.nn.log_softmax(x) - log_q)).sum()

    expected = jax.grad(divergence)(jnp.asarray(logits))
    np.testing.assert_allclose(gradient(k1), expected, rtol=1e-10, atol=1e-12)
    assert np.abs(np.asarray(gradient(k3) - expected)).max() > 0.01


def test_scores_where_the_completion_was_truncated():
    scores, truncated = np.array([3.0, np.nan, -2.0, 1.0]), np.array([True, True, False, False])
    np.testing.assert_array_equal(missing_eos_penalty(scores, truncated, 1.5), [1.5, np.nan, -2, 1])
    np.testing.assert_array_equal(scaled_if_truncated(scores, truncated, 0.5), [1.5, np.nan, -2, 1])
    np.testing.assert_array_equal(fixed_if_truncated(scores, truncated, -0.5), [-0.5, -0.5, -2, 1])
    np.testing.assert_array_equal(missing_eos_penalty(scores, truncated, 0.0), scores)
    np.testing.assert_array_equal(scaled_if_truncated(scores, truncated, 1.0), scores)
    np.testing.assert_array_equal(fixed_if_truncated(scores, np.zeros(4, bool), -0.5), scores)


def test_scores_are_held_to_a_range():
    scores = np.array([-80.0, -1.0, 0.0, 80.0, np.inf, np.nan])
    np.testing.assert_array_equal(clipped_scores(scores, -10.0, 5.0), [-10, -1, 0, 5, 5, np.nan])


def literal_overlong(length: int, limit: int, buffer: int) -> float:
    """DAPO's equation 13 (arXiv 2503.14476), case by case."""
    if length <= limit - buffer:
        return 0.0
    if length <= limit:
        return (limit - buffer - length) / buffer
    return -1.0


@pytest.mark.parametrize(("limit", "buffer"), [(20480, 4096), (10, 3), (7, 7), (5, 1)])
def test_soft_overlong_punishment_equals_the_formula(limit, buffer):
    lengths = np.unique(np.r_[np.arange(12), limit + np.arange(-buffer - 2, 4, max(1, buffer // 7)), 10**7])
    expected = [literal_overlong(int(length), limit, buffer) for length in lengths]
    np.testing.assert_allclose(soft_overlong_punishment(lengths, limit, buffer), expected, rtol=1e-15)
    assert soft_overlong_punishment(jnp.asarray(lengths, jnp.int32), limit, buffer).dtype == "float64"
    with jax.enable_x64(False):
        np.testing.assert_allclose(soft_overlong_punishment(lengths, limit, buffer), expected, rtol=1e-6)


def test_the_overlong_filter_empties_rows_and_nothing_else():
    mask = streams()[3]
    truncated = np.array([False, True, False])
    np.testing.assert_array_equal(overlong_filter(mask, truncated), [mask[0], np.zeros(T, bool), mask[2]])
    np.testing.assert_array_equal(jax.vmap(overlong_filter)(mask, truncated), overlong_filter(mask, truncated))


@few
@given(scores=st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=4, max_size=4))
def test_with_right_and_wrong_answers_informative_is_a_mean_strictly_between(scores):
    known = [score for score in scores if not np.isnan(score)]
    assert bool(teaches(np.array(scores))) == (len(known) > 1 and 0 < sum(known) / len(known) < 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e6])
def test_rounding_is_no_difference_but_the_next_digits_are(dtype, scale):
    eps = np.finfo(dtype).eps
    score = dtype(scale)
    assert not teaches(np.full(4, score))
    assert not teaches(np.array([score, score * (1 + eps), score, score * (1 + 2 * eps)], dtype))
    assert teaches(np.array([score, score * (1 + 16 * eps), score, score], dtype))
    assert not teaches(np.array([0.1 + 0.2, 0.3, 0.3, 0.3]))


def test_informative_takes_a_tolerance_and_half_precision():
    scores = jnp.array([1.0, 1.05, 1.0, 1.0])
    assert informative(scores)
    assert not informative(scores, 0.1)
    assert informative(scores, 0.0)
    assert not informative(jnp.full(4, 0.1, jnp.bfloat16))
    assert informative(jnp.array([0.0, 1.0], jnp.bfloat16))
    assert not informative(jnp.array([3.0]))
    np.testing.assert_array_equal(jax.vmap(informative)(np.array([[0, 1], [2, 2]])), [True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: score_at_end(SCORES, np.ones((2, 3), bool)),
            "score_at_end: scores has shape (3,), mask has (2, 3); give scores the shape of mask without",
        ),
        (
            lambda: overlong_filter(np.ones((2, 3), bool), np.ones((2, 3), bool)),
            "overlong_filter: truncated has shape (2, 3), mask has (2, 3); give truncated the shape of mask without",
        ),
        (
            lambda: kl_in_reward(SCORES, SCORES, SCORES, np.ones(2, bool), 0.1),
            "kl_in_reward: mask has shape (2,), rewards has (3,); give arrays of one shape.",
        ),
        (lambda: clipped_scores(SCORES, 1.0, 1.0), "clipped_scores: low is 1.0 and high is 1.0, wanted low less than"),
        (
            lambda: missing_eos_penalty(SCORES, np.ones(2, bool), 1.0),
            "missing_eos_penalty: truncated has shape (2,), scores has (3,)",
        ),
        (
            lambda: scaled_if_truncated(SCORES, np.ones(2, bool), 1.0),
            "scaled_if_truncated: truncated has shape (2,), scores has (3,)",
        ),
        (
            lambda: fixed_if_truncated(SCORES, np.ones(2, bool), 1.0),
            "fixed_if_truncated: truncated has shape (2,), scores has (3,)",
        ),
        (
            lambda: soft_overlong_punishment(np.arange(3), 10, 0),
            "soft_overlong_punishment: buffer_tokens is 0, wanted a number greater than 0.",
        ),
        (
            lambda: soft_overlong_punishment(np.arange(3), 10, 11),
            "soft_overlong_punishment: buffer_tokens is 11, wanted at most max_new_tokens, 10.",
        ),
        (lambda: informative(np.ones((2, 3))), "informative: scores has shape (2, 3), wanted [G]; vmap over the other"),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
