"""The small language: what is said to be exact is compared with samples and with what the optimum must satisfy."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import letters
from experiments.letters import PROMPT, Language, laid, true_reward
from rlax_llm.models import decoder

LANGUAGE = Language(letters=3, length=2, hidden=8, imitation_steps=40)
BETAS = jnp.array([0.2, 0.4, 0.8])
# The language is no array.
reference, distribution, exact, optimum = (
    jax.jit(function, static_argnums=0)
    for function in (letters.reference, letters.distribution, letters.exact, letters.optimum)
)
drawn = jax.jit(letters.drawn, static_argnums=(0, 4))
judged_pairs = jax.jit(letters.judged_pairs, static_argnums=(0, 3))


@pytest.fixture(scope="module")
def models():
    base = reference(LANGUAGE, jax.random.key(0))
    return base, jax.jit(decoder.init_decoder, static_argnums=0)(LANGUAGE.config, jax.random.key(1))


def test_rewards_are_shares_of_the_first_letter_less_the_second():
    rows = laid(jnp.array([[0, 1]] * 4), jnp.array([[0, 0], [0, 1], [2, 0], [1, 1]]))
    assert true_reward(rows).tolist() == [1.0, 0.0, 0.5, -1.0]


def test_a_distribution_is_that_of_the_samples(models):
    prompt = LANGUAGE.prompts[2]
    log_p = np.asarray(distribution(LANGUAGE, models[0], prompt))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
    rows = drawn(LANGUAGE, models[0], prompt[None], jax.random.key(2), 20_000)
    written = [tuple(row) for row in np.asarray(rows.tokens[:, PROMPT:])]
    shares = [written.count(one) / len(written) for one in product(range(3), repeat=2)]
    np.testing.assert_allclose(shares, np.exp(log_p), atol=5 * 0.5 / 20_000**0.5)
    # The sampler's log-probabilities are the learner's.
    places = np.asarray(rows.tokens[:, PROMPT:]) @ np.array([3, 1])
    np.testing.assert_allclose(np.where(rows.mask, rows.log_probs, 0).sum(-1), log_p[places], atol=1e-5)


def test_reward_and_kl_are_the_means_of_samples(models):
    base, other = models
    assert exact(LANGUAGE, base, base).kl == pytest.approx(0, abs=1e-6)
    found = exact(LANGUAGE, other, base)
    rows = drawn(LANGUAGE, other, LANGUAGE.prompts, jax.random.key(3), 2_000)
    log_probs = jax.jit(LANGUAGE.log_probs())
    log_p, log_ref = (jnp.where(rows.mask, log_probs(x, rows)[0], 0).sum(-1) for x in (other, base))
    for mean, samples in ((found.reward, true_reward(rows)), (found.kl, log_p - log_ref)):
        assert mean == pytest.approx(float(samples.mean()), abs=5 * float(samples.std()) / len(rows.tokens) ** 0.5)


def test_at_the_optimum_a_nat_more_buys_beta(models):
    """d E[r] / d KL = β along the frontier, and no other policy has more reward at its KL."""
    base, other = models
    step = 1e-2
    lower, upper = (optimum(LANGUAGE, base, BETAS * (1 + sign * step)) for sign in (1, -1))
    slopes = (upper.reward - lower.reward) / (upper.kl - lower.kl)
    np.testing.assert_allclose(slopes, BETAS, rtol=0.02)
    best, found = optimum(LANGUAGE, base, BETAS), exact(LANGUAGE, other, base)
    assert np.all(best.reward - BETAS * best.kl >= found.reward - BETAS * found.kl)


def test_the_judge_prefers_as_it_is_said_to(models):
    pairs = judged_pairs(LANGUAGE, models[0], jax.random.key(4), 8_000)
    tokens, rewards = np.asarray(pairs.tokens).reshape(-1, 2, 4), np.asarray(true_reward(pairs)).reshape(-1, 2)
    np.testing.assert_array_equal(tokens[:, 0, :PROMPT], tokens[:, 1, :PROMPT])
    gaps = np.round(rewards[:, 0] - rewards[:, 1], 3)
    for gap in (0.5, 1.0):
        right, wrong = (gaps == gap).sum(), (gaps == -gap).sum()
        wanted = 1 / (1 + np.exp(-LANGUAGE.sharpness * gap))
        assert right / (right + wrong) == pytest.approx(wanted, abs=5 * 0.5 / (right + wrong) ** 0.5)
