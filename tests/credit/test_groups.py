from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import (
    centered,
    greedy_baseline,
    has_rival,
    kl_in_score,
    leave_one_out,
    length_centered,
    max_leave_one_out,
    mean_relative,
    pass_at_k,
    per_group,
    z_score,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=40, deadline=None)
SIZE = 5
numbers = st.floats(-100, 100, allow_nan=False, allow_subnormal=False)
groups = st.lists(st.one_of(numbers, st.just(float("nan"))), min_size=SIZE, max_size=SIZE).map(np.array)
ESTIMATORS = {
    "centered": jax.jit(centered),
    "leave_one_out": jax.jit(leave_one_out),
    "z_score": jax.jit(z_score),
    "z_score_population": jax.jit(lambda s: z_score(s, 0, 1e-6)),
    "max_leave_one_out": jax.jit(max_leave_one_out),
    "pass_at_k": jax.jit(pass_at_k),
    "mean_relative": jax.jit(mean_relative),
}
IN_STDS = ("z_score", "z_score_population", "pass_at_k")
each = pytest.mark.parametrize("name", ESTIMATORS)
of_differences = pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "mean_relative"])


def literal(name: str, scores: np.ndarray) -> np.ndarray:
    """The papers' formulas with Python's own loops and exact sums, over the scored members."""
    exact = {i: Fraction(float(score)) for i, score in enumerate(scores) if not np.isnan(score)}
    advantages, count = np.zeros(len(scores)), len(exact)
    if count < 2:
        return advantages
    mean = sum(exact.values()) / count
    squares = sum((score - mean) ** 2 for score in exact.values())
    for i, score in exact.items():
        others = [other for j, other in exact.items() if j != i]
        if name == "centered":
            advantages[i] = score - mean
        elif name == "leave_one_out":
            advantages[i] = score - sum(others) / (count - 1)
        elif name == "mean_relative":
            advantages[i] = score / mean - 1 if mean > 1e-6 else 0
        elif name == "z_score":
            advantages[i] = (score - mean) / ((squares / (count - 1)) ** 0.5 + 1e-4)
        elif name == "z_score_population":
            advantages[i] = (score - mean) / ((squares / count) ** 0.5 + 1e-6)
        else:
            margin = max(exact.values()) - max(others)
            std = (squares / (count - 1)) ** 0.5
            advantages[i] = margin / (std + 1e-6) if name == "pass_at_k" and std else margin
    return advantages


@each
@few
@given(scores=groups)
def test_equals_the_formula(name, scores):
    # Deviations that are rounding noise have no digit right in floating point.
    scores = np.round(scores, 3)
    np.testing.assert_allclose(ESTIMATORS[name](scores), literal(name, scores), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("ddof", "eps", "peer"),
    [(1, 1e-4, "TRL"), (1, 1e-6, "verl"), (1, 1e-9, "OpenRLHF"), (0, 1e-4, "EasyDeL"), (0, 1e-2, "HALOs")],
)
def test_z_score_of_the_peers(ddof, eps, peer):
    scores = np.random.default_rng(0).normal(size=8)
    expected = (scores - scores.mean()) / (scores.std(ddof=ddof) + eps)
    np.testing.assert_allclose(z_score(jnp.asarray(scores), ddof, eps), expected, rtol=1e-12)


def test_ddof_is_a_factor_of_root_two_in_a_pair():
    pair = jnp.array([3.0, 7.0])
    np.testing.assert_allclose(z_score(pair, 0, 0.0), z_score(pair, 1, 0.0) * 2**0.5, rtol=1e-12)
    np.testing.assert_allclose(z_score(pair, 0, 0.0), [-1, 1], rtol=1e-12)


def test_identities():
    scores = jnp.asarray(np.random.default_rng(1).normal(size=6))
    np.testing.assert_allclose(leave_one_out(scores), centered(scores) * 6 / 5, rtol=1e-12)
    np.testing.assert_allclose(centered(scores).sum(), 0, atol=1e-14)
    np.testing.assert_allclose(z_score(scores, 1, 0.3) * (np.std(scores, ddof=1) + 0.3), centered(scores), rtol=1e-12)
    np.testing.assert_allclose(z_score(scores, 1, 1e9) * 1e9, centered(scores), rtol=1e-8)


def test_mean_relative_is_the_slope_of_the_logarithm_of_the_success_rate():
    """Of a coin with p = sigmoid(θ): the mean of A · ∇log π over a group is the slope of log p, times what was seen."""
    solved = jnp.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    p = solved.mean()  # the maximum-likelihood θ, at which the group's mean is the rate itself
    scores_slope = solved - p  # of log π at each draw
    np.testing.assert_allclose((mean_relative(solved) * scores_slope).mean(), 1 - p)  # ∇θ log p
    np.testing.assert_allclose(mean_relative(solved) * p, centered(solved))


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, -7.3, 1e6 + 0.1, 1 / 3 * 1e6, 1e30])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_scores_give_exactly_zero(name, dtype, value, size):
    scores = np.full(size, value, dtype)
    assert not np.any(ESTIMATORS[name](scores))
    scores[0] = np.nan
    assert not np.any(ESTIMATORS[name](scores))


@each
@pytest.mark.parametrize("scores", [[np.nan, np.nan], [np.nan, 2.0, np.nan], [3.5, np.nan]])
def test_fewer_than_two_scores_give_exactly_zero(name, scores):
    advantages = np.asarray(ESTIMATORS[name](np.array(scores)))
    np.testing.assert_array_equal(advantages, np.zeros(len(scores)))


@each
@pytest.mark.parametrize("score", [3.5, np.nan])
def test_a_group_of_one_is_zero_and_an_error_where_a_standard_deviation_is_asked_for(name, score):
    if name not in IN_STDS:
        np.testing.assert_array_equal(ESTIMATORS[name](np.array([score])), [0.0])
        return
    asked = name.removesuffix("_population")
    with pytest.raises(ValueError, match=rf"{asked}: scores has shape \(1,\), and a group of one has no standard dev"):
        ESTIMATORS[name](np.array([score]))
    with pytest.raises(ValueError, match="sample at least two completions of each prompt"):
        jax.eval_shape(per_group(ESTIMATORS[name]), Scored(np.array([[score]]), None, None))


@each
@pytest.mark.parametrize("scores", [[0.0, 1.0, np.nan, 2.5], [2.0, 2.0, 2.0, np.nan], [np.nan] * 4])
def test_the_gradient_is_finite_and_nothing_comes_from_a_missing_score(name, scores):
    slopes = np.asarray(jax.jacrev(ESTIMATORS[name])(jnp.array(scores)))
    assert np.all(np.isfinite(slopes))
    missing = np.isnan(scores)
    assert not np.any(slopes[:, missing])
    assert not np.any(slopes[missing])


@each
def test_half_precision_scores_are_taken_in_float32(name):
    scores = np.array([0.5, 1.25, -2.0, 0.5, 3.0])
    for dtype in (jnp.bfloat16, jnp.float32):
        advantages = ESTIMATORS[name](jnp.asarray(scores, dtype))
        assert advantages.dtype == "float32"
        np.testing.assert_allclose(advantages, ESTIMATORS[name](scores), rtol=2e-6, atol=2e-7)


@of_differences
def test_a_small_difference_on_a_large_offset_is_kept(name):
    scores = np.array([0.0, 1.0, 1.0, 0.0, 3.0])
    np.testing.assert_allclose(ESTIMATORS[name](scores + 2.0**40), ESTIMATORS[name](scores), rtol=1e-12, atol=1e-12)


@each
def test_integer_scores_are_taken_as_numbers(name):
    scores = np.array([0, 1, 1, 0, 5])
    np.testing.assert_allclose(ESTIMATORS[name](scores), ESTIMATORS[name](scores.astype(float)), rtol=1e-12)


@each
@few
@given(scores=groups, order=st.permutations(range(SIZE)))
def test_permutation_of_a_group_permutes_its_advantages(name, scores, order):
    scores = np.round(scores, 3)
    permuted = ESTIMATORS[name](scores[order])
    np.testing.assert_allclose(permuted, np.asarray(ESTIMATORS[name](scores))[order], rtol=1e-9, atol=1e-9)


@each
@few
@given(scores=groups, missing=st.integers(0, SIZE - 1))
def test_a_missing_score_is_as_if_the_completion_were_not_there(name, scores, missing):
    scores = np.round(scores, 3)
    scores[missing] = np.nan
    full = np.asarray(ESTIMATORS[name](scores))
    assert full[missing] == 0
    np.testing.assert_allclose(
        np.delete(full, missing), ESTIMATORS[name](np.delete(scores, missing)), rtol=1e-9, atol=1e-9
    )


@of_differences
@few
@given(scores=groups, shift=numbers, scale=st.sampled_from([0.5, 3.0]))
def test_shift_and_scale(name, scores, shift, scale):
    scores, shift = np.round(scores, 3), np.round(shift, 3)
    plain = np.asarray(ESTIMATORS[name](scores))
    np.testing.assert_allclose(ESTIMATORS[name](scores + shift), plain, rtol=1e-7, atol=1e-7)
    if name not in IN_STDS:
        np.testing.assert_allclose(ESTIMATORS[name](scale * scores), scale * plain, rtol=1e-9, atol=1e-9)


def test_per_group_takes_each_row_alone():
    scores = np.random.default_rng(2).normal(size=(3, 4))
    scores[1, 2] = np.nan
    advantages = per_group(z_score)(Scored(jnp.asarray(scores), None, None))
    np.testing.assert_allclose(advantages, [literal("z_score", row) for row in scores], rtol=1e-12)


opo = jax.jit(length_centered)


@few
@given(scores=groups, lengths=st.lists(st.integers(0, 3), min_size=SIZE, max_size=SIZE))
def test_length_centered_equals_the_formula(scores, lengths):
    """OPO's baseline (arXiv 2505.23585): the sum of length times score over the sum of lengths."""
    scores = np.round(scores, 3)
    members = [i for i in range(SIZE) if not np.isnan(scores[i])]
    total = sum(lengths[i] for i in members)
    expected = np.zeros(SIZE)
    if len(members) > 1 and total:
        baseline = sum(lengths[i] * scores[i] for i in members) / total
        for i in members:
            expected[i] = scores[i] - baseline
    mask = np.arange(3) < np.array(lengths)[:, None]
    advantages = opo(Scored(scores[None], None, mask[None]))
    np.testing.assert_allclose(advantages[0], expected, rtol=1e-9, atol=1e-9)


def test_length_centered_limits():
    scores = np.random.default_rng(4).normal(size=(1, SIZE))
    even = Scored(scores, None, np.ones((1, SIZE, 3), bool))
    np.testing.assert_allclose(opo(even), per_group(centered)(even), rtol=1e-12)
    assert not np.any(opo(even._replace(scores=np.full((1, SIZE), 0.1))))
    # The gradient of the whole sequence with this baseline: lengths times advantages sum to 0.
    ragged = even._replace(mask=np.arange(3)[None, None] < np.array([1, 2, 3, 0, 2])[None, :, None])
    np.testing.assert_allclose((ragged.mask.sum(-1) * opo(ragged)).sum(), 0, atol=1e-13)


def test_a_rival_is_another_scored_member():
    scores = np.array([[0.0, 1.0, np.nan], [1.0, 1.0, 1.0], [np.nan, 2.0, np.nan], [np.nan] * 3])
    expected = [[True, True, False], [True] * 3, [False] * 3, [False] * 3]
    np.testing.assert_array_equal(jax.vmap(has_rival)(scores), expected)


def test_greedy_baseline():
    scores, greedy_scores = np.array([[1.0, np.nan, 3.0], [2.0, 0.5, 0.0]]), np.array([0.5, np.nan])
    advantages = jax.vmap(greedy_baseline)(scores, greedy_scores)
    np.testing.assert_array_equal(advantages, [[0.5, 0, 2.5], [0, 0, 0]])
    np.testing.assert_array_equal(greedy_baseline(jnp.array([3.0]), jnp.array(1.0)), [2.0])
    first = per_group(lambda s: greedy_baseline(s, s[0]))
    np.testing.assert_array_equal(first(Scored(scores, None, None)), [[0, 0, 2], [0, -1.5, -2]])
    assert greedy_baseline(jnp.ones(2, jnp.bfloat16), jnp.bfloat16(0.5)).dtype == "float32"
    slopes = jax.jacrev(greedy_baseline)(jnp.asarray(scores[0]), 0.5)
    np.testing.assert_array_equal(slopes, np.diag([1, 0, 1]))


def test_only_the_one_right_answer_learns_under_pass_at_k():
    np.testing.assert_array_equal(max_leave_one_out(jnp.array([0.0, 1.0, 0.0, 0.0])), [0, 1, 0, 0])
    np.testing.assert_array_equal(max_leave_one_out(jnp.array([0.0, 1.0, 1.0, 0.0])), np.zeros(4))
    np.testing.assert_array_equal(pass_at_k(jnp.array([0.0, 1.0, 1.0, 0.0])), np.zeros(4))


def test_max_leave_one_out_is_the_gradient_of_the_expected_best():
    """By exact enumeration of every pair of draws from a three-way policy."""
    rewards, logits = np.array([0.3, -1.0, 2.0]), np.random.default_rng(5).normal(size=3)

    def expected_best(x):
        p = jax.nn.softmax(x)
        return sum(p[i] * p[j] * max(rewards[i], rewards[j]) for i in range(3) for j in range(3))

    def surrogate(x):
        p, log_p = jax.lax.stop_gradient(jax.nn.softmax(x)), jax.nn.log_softmax(x)
        total = 0.0
        for i in range(3):
            for j in range(3):
                credit = max_leave_one_out(jnp.array([rewards[i], rewards[j]]))
                total += p[i] * p[j] * (credit[0] * log_p[i] + credit[1] * log_p[j])
        return total

    np.testing.assert_allclose(
        jax.grad(surrogate)(jnp.asarray(logits)), jax.grad(expected_best)(jnp.asarray(logits)), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: centered(jnp.ones(3), jnp.ones(2)), "centered: weights has shape (2,), scores has (3,)"),
        (lambda: max_leave_one_out(jnp.ones((2, 3))), "max_leave_one_out: scores has shape (2, 3), wanted [G]"),
        (lambda: pass_at_k(jnp.ones((2, 3))), "max_leave_one_out: scores has shape (2, 3), wanted [G]"),
        (lambda: greedy_baseline(jnp.ones((2, 3)), 1.0), "greedy_baseline: scores has shape (2, 3), wanted [G]"),
        (
            lambda: greedy_baseline(jnp.ones(3), jnp.ones(3)),
            "greedy_baseline: greedy_score has shape (3,), wanted []; vmap over the other axes.",
        ),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


def scored(seed: int = 3) -> Scored:
    random = np.random.default_rng(seed)
    log_probs, ref_log_probs = -random.exponential(size=(2, 2, 3, 5))
    return Scored(random.normal(size=(2, 3)), log_probs, random.random((2, 3, 5)) < 0.6, ref_log_probs)


def test_kl_in_score_equals_the_formula():
    batch = scored()
    shaped = batch.scores.copy()
    for p, g, t in np.ndindex(2, 3, 5):
        if batch.mask[p, g, t]:
            shaped[p, g] -= 0.7 * (batch.log_probs[p, g, t] - batch.ref_log_probs[p, g, t])
    advantages = kl_in_score(per_group(leave_one_out), 0.7)(batch)
    np.testing.assert_allclose(advantages, [literal("leave_one_out", row) for row in shaped], rtol=1e-12)


def test_kl_in_score_limits():
    batch, advantage = scored(), per_group(centered)
    plain = advantage(batch)
    np.testing.assert_array_equal(kl_in_score(advantage, 0)(batch._replace(ref_log_probs=None)), plain)
    np.testing.assert_allclose(
        kl_in_score(advantage, 0.5)(batch._replace(ref_log_probs=batch.log_probs)), plain, rtol=1e-12
    )
    many = jax.vmap(lambda coef: kl_in_score(advantage, coef)(batch))(jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(many[0], plain, rtol=1e-12)
    np.testing.assert_allclose(many[1], kl_in_score(advantage, 0.5)(batch), rtol=1e-12)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_kl_in_score_never_reads_what_the_policy_did_not_choose(garbage):
    batch, advantage = scored(), kl_in_score(per_group(leave_one_out), 0.7)
    log_probs = np.where(batch.mask, batch.log_probs, garbage)
    np.testing.assert_array_equal(advantage(batch._replace(log_probs=log_probs)), advantage(batch))
    ref_log_probs = np.where(batch.mask, batch.ref_log_probs, garbage)
    np.testing.assert_array_equal(advantage(batch._replace(ref_log_probs=ref_log_probs)), advantage(batch))


def test_kl_in_score_of_a_missing_score_stays_missing():
    batch = scored()
    batch.scores[0, 1] = np.nan
    advantages = np.asarray(kl_in_score(per_group(leave_one_out), 0.7)(batch))
    assert advantages[0, 1] == 0
    assert np.all(np.isfinite(advantages))
    assert advantages[0, 0] == -advantages[0, 2] != 0
