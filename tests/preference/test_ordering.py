"""From scores to pairs, by loops; and whose likelihood a loss reads."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preference_batches import CHOSEN, PAIRS, REJECTED, Pair, batch_of, log_sigma, loss_of

from rlax_llm.policy.weightings import sequence_sum, token_mean
from rlax_llm.preference.implicit_rewards import Responses
from rlax_llm.preference.ordering import best_and_worst, each_against_its_rival
from rlax_llm.preference.pairs import preference_loss
from rlax_llm.recipes.online import xpo
from rlax_llm.recipes.preference import cpo, dpo, simpo, tpo, tpo_length

pytestmark = pytest.mark.usefixtures("float64")


def test_best_and_worst_by_loops():
    random = np.random.default_rng(1)
    for _ in range(40):
        scores = random.integers(0, 3, 5).astype(float)
        scores[random.random(5) < 0.3] = math.nan
        found = best_and_worst(jnp.asarray(scores[:3]), jnp.asarray(scores[3:]))
        known = [x for x in scores if not math.isnan(x)]
        assert bool(found.there[0]) == (len(set(known)) > 1)
        if found.there[0]:
            assert scores[found.chosen[0]] == max(known) and scores[found.rejected[0]] == min(known)


def test_each_against_its_rival_by_loops():
    random = np.random.default_rng(2)
    scores = random.integers(0, 3, (2, 40)).astype(float)
    scores[random.random((2, 40)) < 0.2] = math.nan
    found = each_against_its_rival(*map(jnp.asarray, scores))
    for k, (own, other) in enumerate(scores.T):
        assert bool(found.there[k]) == (own > other or own < other)
        if found.there[k]:
            assert (found.chosen[k], found.rejected[k]) == ((k, 40 + k) if own > other else (40 + k, k))
    with pytest.raises(ValueError, match="each_against_its_rival: others has shape"):
        each_against_its_rival(jnp.zeros(2), jnp.zeros(1))


# Whose likelihood it is


def equal_columns(seed: int):
    """Both sides with as many columns."""
    batch, missing = batch_of(seed), ((0, 0), (0, CHOSEN - REJECTED))
    return batch._replace(rejected=jax.tree.map(lambda x: np.pad(x, missing), batch.rejected))


def test_xpo_adds_alpha_times_what_the_reference_drew():
    """arXiv 2405.21046, algorithm 1, by loops, with its gradient."""
    batch, explored = equal_columns(3), np.array([True, False, False, True])
    sides = batch.chosen, batch.rejected
    likely = jnp.where(explored[:, None], batch.chosen.mask, batch.rejected.mask)
    batch = batch._replace(explored=jnp.asarray(explored), token_weights=sequence_sum(likely))
    total = 0.0
    for b in range(PAIRS):
        pair = Pair(batch, b)
        total += (-log_sigma(0.3 * pair.delta) + 0.05 * (pair.w if explored[b] else pair.l)) / PAIRS
    preference = xpo(0.3, 0.05).preference
    np.testing.assert_allclose(preference_loss(preference, batch)[0], total, rtol=1e-12)
    gradients = jax.grad(lambda x: loss_of(x, batch, preference)[0])(tuple(x.log_probs for x in sides))
    plain = jax.grad(lambda x: loss_of(x, batch, dpo(0.3))[0])(tuple(x.log_probs for x in sides))
    for side, ours in enumerate((explored, ~explored)):
        extra = 0.05 / PAIRS * (sides[side].mask & ours[:, None])
        np.testing.assert_allclose(gradients[side], plain[side] + extra, rtol=1e-12, atol=1e-15)


def test_without_exploration_xpo_is_dpo():
    batch = equal_columns(4)
    batch = batch._replace(explored=jnp.ones(PAIRS, bool), token_weights=sequence_sum(batch.chosen.mask))
    np.testing.assert_allclose(
        preference_loss(xpo(0.3, 0.0).preference, batch)[0], preference_loss(dpo(0.3), batch)[0], rtol=1e-12
    )


def test_tpo_is_cpo_and_the_likelihood_of_gold():
    """arXiv 2405.16681, eq. 8, by loops; with the chosen response as gold it is cpo, TPO-L simpo."""
    batch, gold = batch_of(5), batch_of(6).chosen
    weights = np.asarray(token_mean(jnp.asarray(gold.mask)), np.float64)
    nll = -sum(gold.log_probs[i] for i in zip(*np.nonzero(gold.mask), strict=True)) / gold.mask.sum()
    pairs = [Pair(batch, b) for b in range(PAIRS)]
    wanted = {
        "tpo": np.mean([-log_sigma(0.3 * (pair.w - pair.l)) for pair in pairs]) + 0.7 * nll,
        "tpo_length": np.mean([-log_sigma(2 * pair.mean_margin - 0.4) for pair in pairs]) + 0.7 * nll,
    }
    own = batch._replace(gold=gold, token_weights=weights)
    same = batch._replace(gold=batch.chosen, token_weights=np.asarray(token_mean(jnp.asarray(batch.chosen.mask))))
    made = {"tpo": (tpo(0.3, 0.7), cpo(0.3, 0.7)), "tpo_length": (tpo_length(2.0, 0.4, 0.7), simpo(2.0, 0.4, 0.7))}
    for name, (ours, parent) in made.items():
        np.testing.assert_allclose(preference_loss(ours, own)[0], wanted[name], rtol=1e-6)
        np.testing.assert_allclose(preference_loss(ours, same)[0], preference_loss(parent, same)[0], rtol=1e-6)
    with pytest.raises(ValueError, match="gold is None and the likelihood is a gold response's"):
        preference_loss(tpo(), batch._replace(token_weights=weights))
    with pytest.raises(ValueError, match="explored is None"):
        preference_loss(xpo().preference, equal_columns(5)._replace(token_weights=weights))


def test_gradients_of_gold_are_of_gold_alone():
    batch, gold = batch_of(7), batch_of(8).chosen
    weights = np.asarray(token_mean(jnp.asarray(gold.mask)), np.float64)

    def loss(log_probs):
        third = Responses(log_probs, gold.mask)
        return preference_loss(tpo(0.3, 0.7), batch._replace(gold=third, token_weights=weights))[0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(gold.log_probs)), -0.7 * weights, rtol=1e-12)
