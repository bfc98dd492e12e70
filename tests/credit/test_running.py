"""Baselines that go on from step to step, against loops over dictionaries."""

from __future__ import annotations

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.types import Known, Scored
from rlax_llm.credit.running import halving, remembering, role_baseline, running_value, whitened

pytestmark = pytest.mark.usefixtures("float64")

PROMPTS, P, G, STEPS = 5, 3, 2, 6


def steps(seed: int = 0):
    """Scores between 0 and 1, prompts of which some come twice in a step, roles and drifts."""
    random = np.random.default_rng(seed)
    for _ in range(STEPS):
        scores = random.random((P, G))
        scores[random.random((P, G)) < 0.2] = np.nan
        drift = random.random(PROMPTS) * 10
        yield scores, random.integers(0, PROMPTS, P), random.integers(0, 2, (P, G)), drift


def run(advantage, seed, known):
    memory, found = advantage.init(), []
    credit = jax.jit(advantage.credit)
    for scores, which, roles, drift in steps(seed):
        credit_now, memory = credit(memory, Scored(jnp.asarray(scores), None, None, known=known(which, roles, drift)))
        found.append(np.asarray(credit_now))
    return found


@pytest.mark.parametrize("by", ["drift", "steps"])
def test_a_running_value_is_that_of_a_dictionary(by):
    def known(which, roles, drift):
        own = jnp.asarray(drift[which]) if by == "drift" else None
        return Known(prompts=jnp.asarray(which), drift=own)

    found = run(running_value(PROMPTS, halving(4.0, 0.5, 0.9), weight=6.0), 1, known)
    won, lost, seen = defaultdict(lambda: 3.0), defaultdict(lambda: 3.0), {}
    for step, (scores, which, _, drift) in enumerate(steps(1)):
        wanted, before = np.zeros((P, G)), {i: won[i] / (won[i] + lost[i]) for i in which}
        for p, g in np.ndindex(P, G):
            if not np.isnan(scores[p, g]):
                wanted[p, g] = scores[p, g] - before[which[p]]
        for i in set(which.tolist()):
            rows = [scores[p, g] for p, g in np.ndindex(P, G) if which[p] == i and not np.isnan(scores[p, g])]
            if rows and i in seen:
                moved = drift[i] if by == "drift" else step - seen[i]
                left = min(max(2 ** (-moved / 4.0), 0.5), 0.9)
                won[i], lost[i] = left * won[i], left * lost[i]
            if rows:
                seen[i] = step
            won[i] += sum(rows)
            lost[i] += sum(1 - x for x in rows)
        np.testing.assert_allclose(found[step], wanted, rtol=1e-6, atol=1e-7)  # what is remembered is float32


def test_without_forgetting_it_is_the_mean_of_all_scores():
    value = running_value(1, lambda distance: jnp.ones_like(distance), weight=1e-6)
    memory, seen = value.init(), []
    for score in (1.0, 0.25, 0.5, 0.75):
        now = Scored(jnp.array([[score]]), None, None, known=Known(prompts=jnp.array([0])))
        advantage, memory = value.credit(memory, now)
        if seen:
            assert float(advantage[0, 0]) == pytest.approx(score - np.mean(seen), abs=1e-5)
        seen.append(score)


def test_a_baseline_of_roles_is_a_dictionary_that_each_score_moves():
    found = run(role_baseline(2, 0.8), 2, lambda which, roles, drift: Known(roles=jnp.asarray(roles)))
    means = defaultdict(float)
    for step, (scores, _, roles, _) in enumerate(steps(2)):
        before = dict(means)
        for p, g in np.ndindex(P, G):
            role, known = int(roles[p, g]), not np.isnan(scores[p, g])
            wanted = scores[p, g] - before.get(role, 0.0) if known else 0.0
            assert found[step][p, g] == pytest.approx(wanted, abs=1e-6)
            if known:
                means[role] = 0.8 * means[role] + 0.2 * scores[p, g]


def test_a_baseline_that_never_moves_is_the_score():
    found = run(role_baseline(2, 1.0), 3, lambda which, roles, drift: Known(roles=jnp.asarray(roles)))
    for credit, (scores, *_) in zip(found, steps(3), strict=True):
        np.testing.assert_array_equal(credit, np.nan_to_num(scores))


def test_whitening_is_of_the_completions_that_have_a_score():
    def known(which, roles, drift):
        return Known(roles=jnp.asarray(roles))

    plain, white = (run(x, 4, known) for x in (role_baseline(2), whitened(role_baseline(2), ddof=0, eps=0.0)))
    for raw, found, (scores, *_) in zip(plain, white, steps(4), strict=True):
        there = ~np.isnan(scores)
        np.testing.assert_allclose(found[there], (raw[there] - raw[there].mean()) / raw[there].std(), rtol=1e-6)
        assert np.all(found[~there] == 0)


def test_an_advantage_without_a_memory_is_one_that_keeps_nothing():
    advantage = remembering(lambda scored: 2 * scored.scores)
    assert remembering(advantage) is advantage
    credit, memory = advantage.credit(advantage.init(), Scored(jnp.ones((1, 2)), None, None))
    assert credit.tolist() == [[2.0, 2.0]] and memory == ()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: running_value(0), "running_value: prompts is 0, wanted a whole number of at least 1"),
        (lambda: role_baseline(2, 1.5), "role_baseline: 1 − decay is -0.5, wanted a number of at least 0"),
        (lambda: halving(0.0), "halving: half_life is 0.0, wanted a number greater than 0"),
        (
            lambda: role_baseline(2).credit(jnp.zeros(2), Scored(jnp.ones((1, 2)), None, None)),
            "role_baseline: known.roles is None",
        ),
    ],
)
def test_wrong_use_is_told(make, told):
    with pytest.raises(ValueError, match=told):
        make()
