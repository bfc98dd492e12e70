"""Measures of several completions: against enumeration, the papers' own formulas, and each other."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlax_llm.credit.groups import max_leave_one_out
from rlax_llm.rewards.measures import (
    best_of_k,
    difference_interval,
    majority,
    mean_interval,
    share_interval,
    sign_flip_test,
)


@pytest.mark.parametrize("k", range(1, 6))
def test_the_best_of_k_is_the_mean_over_all_subsets(k):
    scores = np.random.default_rng(0).normal(size=(3, 5))
    wanted = [np.mean([max(part) for part in itertools.combinations(row, k)]) for row in scores]
    np.testing.assert_allclose(best_of_k(scores, k), wanted, rtol=1e-12)


def test_pass_at_k_is_the_estimator_of_codex():
    """``1 − ∏_{i=n−c+1}^{n} (1 − k / i)``, as arXiv 2107.03374 writes it, also where factorials leave float64."""
    for n, c, k in ((10, 0, 3), (10, 3, 1), (10, 3, 4), (10, 8, 4), (200, 7, 100), (2000, 3, 64)):
        wanted = 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
        assert best_of_k(np.arange(n) < c, k) == pytest.approx(wanted, abs=1e-10)


def test_the_best_of_all_but_one_is_what_each_one_owes_less():
    """``max − mean_i(max − max_{j≠i})``: the advantage that learns from pass@k says the same of k = n − 1."""
    scores = np.array([0.25, 1.0, 0.5, 0.75], np.float32)
    owed = np.asarray(max_leave_one_out(jnp.asarray(scores)))
    assert best_of_k(scores, 3) == pytest.approx(scores.max() - owed.mean())


def test_k_beyond_the_completions_is_told():
    with pytest.raises(ValueError, match="k is 5, wanted a whole number from 1 to the 4"):
        best_of_k(np.zeros(4), 5)


def test_the_majority_is_that_of_drawing_among_the_leaders():
    rng = np.random.default_rng(1)
    for _ in range(40):
        votes = rng.integers(0, 3, 5).tolist()
        right = rng.integers(0, 3)
        counts = {vote: votes.count(vote) for vote in votes}
        leaders = [vote for vote in counts if counts[vote] == max(counts.values())]
        wanted = sum(vote == right for vote in leaders) / len(leaders)
        shuffled = rng.permutation(5)
        assert majority(votes, [vote == right for vote in votes]) == wanted
        assert majority([votes[i] for i in shuffled], [votes[i] == right for i in shuffled]) == wanted
    assert majority([None, None, "4"], [False, False, True]) == 1.0
    assert majority([None], [True]) == 0.0


def test_wilsons_interval_is_that_of_scipy_and_solves_its_equation():
    for solved, count in ((0, 7), (3, 7), (7, 7), (120, 256)):
        found = share_interval((np.arange(count) < solved).astype(float))
        wanted = stats.binomtest(solved, count).proportion_ci(method="wilson")
        np.testing.assert_allclose(found[1:], [wanted.low, wanted.high], atol=1e-12)
        for end in found[1:]:
            assert abs(found.mean - end) <= 1.96 * math.sqrt(end * (1 - end) / count) + 1e-9


def test_completions_of_one_prompt_are_not_independent():
    """Where all of a prompt agree, many draws say no more than one; where they do not, as much as n · draws prompts."""
    solved = np.random.default_rng(2).integers(0, 2, 50).astype(float)
    assert share_interval(solved, draws=8) == share_interval(solved)
    half = np.full(50, 0.5)
    whole = np.tile([0.0, 1.0], 200)
    np.testing.assert_allclose(share_interval(half + 1e-9 * np.tile([1, -1], 25), draws=8), share_interval(whole))


def test_intervals_hold_what_they_promise():
    """The true value is inside for about 95 of 100 data sets."""
    rng = np.random.default_rng(3)
    hard = rng.beta(0.5, 0.5, (400, 60))
    inside = [low <= 0.5 <= high for _, low, high in (share_interval(rng.binomial(4, p) / 4, 4) for p in hard)]
    assert 0.92 < np.mean(inside) < 0.98
    inside = [low <= 1.0 <= high for _, low, high in (mean_interval(x) for x in rng.uniform(0, 2, (400, 60)))]
    assert 0.92 < np.mean(inside) < 0.98
    assert mean_interval(np.array([2.0])) == (2.0, -math.inf, math.inf)


def test_the_interval_of_a_difference_is_agresti_and_mins():
    """The Wald interval of a table of 2 × 2 with half a prompt in each cell; it holds for few prompts, and within 1."""
    for better, worse, same in ((3, 1, 12), (0, 0, 16), (16, 0, 0)):
        b, c, n = better + 0.5, worse + 0.5, better + worse + same + 2
        half = stats.norm.ppf(0.975) * np.sqrt(b + c - (b - c) ** 2 / n) / n
        mean, low, high = difference_interval(np.repeat([1.0, -1.0, 0.0], [better, worse, same]))
        assert mean == (better - worse) / (n - 2)
        np.testing.assert_allclose([low, high], [(b - c) / n - half, min(max((b - c) / n + half, mean), 1)], rtol=1e-12)
    counts = np.random.default_rng(1).multinomial(12, (0.3, 0.1, 0.6), 2000)
    ends = [difference_interval(np.repeat([1.0, -1.0, 0.0], count)) for count in counts]
    assert np.mean([low <= 0.2 <= high for _, low, high in ends]) > 0.93
    many = np.repeat([1.0, -1.0, 0.0], [3000, 1000, 6000])
    np.testing.assert_allclose(difference_interval(many), mean_interval(many), atol=1e-3)


def test_the_sign_flip_test_is_its_enumeration():
    rng = np.random.default_rng(4)
    for _ in range(10):
        differences = rng.integers(-4, 5, 9)
        sums = [abs(sum(signs * differences)) for signs in itertools.product((-1, 1), repeat=9)]
        assert sign_flip_test(differences) == pytest.approx(np.mean(np.array(sums) >= abs(differences.sum())))


def test_the_sign_flip_test_of_right_and_wrong_is_mcnemars():
    for better, worse in ((0, 0), (5, 0), (9, 3), (40, 41), (200, 120)):
        differences = np.repeat([1, -1, 0], [better, worse, 30])
        wanted = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert sign_flip_test(differences) == pytest.approx(wanted, rel=1e-9)
        assert sign_flip_test(3 * differences) == sign_flip_test(differences)
    with pytest.raises(ValueError, match="float64, wanted whole numbers"):
        sign_flip_test(np.array([0.5]))
