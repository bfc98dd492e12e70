from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.groups import centred, kl_in_score, leave_one_out, per_group, z_score
from rlax_llm.types import Scored

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=40, deadline=None)
SIZE = 5
numbers = st.floats(-100, 100, allow_nan=False, allow_subnormal=False)
groups = st.lists(st.one_of(numbers, st.just(float("nan"))), min_size=SIZE, max_size=SIZE).map(np.array)
ESTIMATORS = {
    "centred": jax.jit(centred),
    "leave_one_out": jax.jit(leave_one_out),
    "z_score": jax.jit(z_score),
    "z_score_population": jax.jit(lambda s: z_score(s, 0, 1e-6)),
}
each = pytest.mark.parametrize("name", ESTIMATORS)


def literal(name: str, scores: np.ndarray) -> np.ndarray:
    """The papers' formulas with Python's own loops, over the scored members."""
    members = [i for i, score in enumerate(scores) if not np.isnan(score)]
    advantages = np.zeros(len(scores))
    if len(members) < 2:
        return advantages
    mean = sum(scores[i] for i in members) / len(members)
    squares = sum((scores[i] - mean) ** 2 for i in members)
    for i in members:
        if name == "centred":
            advantages[i] = scores[i] - mean
        elif name == "leave_one_out":
            advantages[i] = scores[i] - sum(scores[j] for j in members if j != i) / (len(members) - 1)
        elif name == "z_score":
            advantages[i] = (scores[i] - mean) / ((squares / (len(members) - 1)) ** 0.5 + 1e-4)
        elif name == "z_score_population":
            advantages[i] = (scores[i] - mean) / ((squares / len(members)) ** 0.5 + 1e-6)
    return advantages


@each
@few
@given(scores=groups)
def test_equals_the_formula(name, scores):
    # Where the deviations are rounding noise the literal formula has none of its digits right.
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
    np.testing.assert_allclose(leave_one_out(scores), centred(scores) * 6 / 5, rtol=1e-12)
    np.testing.assert_allclose(centred(scores).sum(), 0, atol=1e-14)
    np.testing.assert_allclose(z_score(scores, 1, 0.3) * (np.std(scores, ddof=1) + 0.3), centred(scores), rtol=1e-12)
    np.testing.assert_allclose(z_score(scores, 1, 1e9) * 1e9, centred(scores), rtol=1e-8)


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
@pytest.mark.parametrize("scores", [[3.5], [np.nan], [np.nan, np.nan], [np.nan, 2.0, np.nan]])
def test_fewer_than_two_scores_give_exactly_zero(name, scores):
    advantages = np.asarray(ESTIMATORS[name](np.array(scores)))
    np.testing.assert_array_equal(advantages, np.zeros(len(scores)))


@each
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


@each
@few
@given(scores=groups, shift=numbers, scale=st.sampled_from([0.5, 3.0]))
def test_shift_and_scale(name, scores, shift, scale):
    scores, shift = np.round(scores, 3), np.round(shift, 3)
    plain = np.asarray(ESTIMATORS[name](scores))
    np.testing.assert_allclose(ESTIMATORS[name](scores + shift), plain, rtol=1e-7, atol=1e-7)
    if not name.startswith("z_score"):
        np.testing.assert_allclose(ESTIMATORS[name](scale * scores), scale * plain, rtol=1e-9, atol=1e-9)


def test_per_group_takes_each_row_alone():
    scores = np.random.default_rng(2).normal(size=(3, 4))
    scores[1, 2] = np.nan
    advantages = per_group(z_score)(Scored(jnp.asarray(scores), None, None))
    np.testing.assert_allclose(advantages, [literal("z_score", row) for row in scores], rtol=1e-12)


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
    batch, advantage = scored(), per_group(centred)
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
