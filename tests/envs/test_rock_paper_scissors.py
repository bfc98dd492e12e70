"""The game against its rules, exploitability against enumeration, the opponent against a transcription in NumPy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.envs.rock_paper_scissors import (
    PAYOFFS,
    best_response,
    exploitability,
    response_values,
    rock_paper_scissors,
    softmax_response,
)

BEATS = {"paper": "rock", "scissors": "paper", "rock": "scissors"}
NAMES = ("rock", "paper", "scissors")
MIXED = st.lists(st.floats(0.0, 1.0, width=32), min_size=3, max_size=3).filter(lambda x: sum(x) > 0.1)


def rounds(game, actions, seed=0):
    def advance(state, inputs):
        step = game.step(*inputs[:1], state, inputs[1])
        return step.state, step

    start, _ = game.reset(jax.random.key(seed))
    return jax.lax.scan(advance, start, (jax.random.split(jax.random.key(seed + 1), len(actions)), actions))[1]


def test_payoffs_are_the_rules():
    for i, mine in enumerate(NAMES):
        for j, yours in enumerate(NAMES):
            assert PAYOFFS[i, j] == (BEATS[mine] == yours) - (BEATS[yours] == mine)


@settings(max_examples=30, deadline=None)
@given(MIXED)
def test_exploitability_is_the_loss_to_the_worst_opponent(weights):
    p = np.array(weights) / np.sum(weights)
    losses = [-sum(p[i] * PAYOFFS[i, j] for i in range(3)) for j in range(3)]
    np.testing.assert_allclose(response_values(jnp.array(p)), losses, atol=1e-6)
    worst = float(exploitability(jnp.array(p)))
    np.testing.assert_allclose(worst, max(losses), atol=1e-6)
    # No mixed opponent does better than a deterministic one, and only the uniform strategy can't be exploited.
    for q in np.random.default_rng(0).dirichlet(np.ones(3), 20):
        assert -(p @ PAYOFFS @ q) <= worst + 1e-6
    assert worst >= np.abs(p - 1 / 3).max() / 2 - 1e-6


def test_exploitability_at_its_ends():
    assert exploitability(jnp.full(3, 1 / 3)) == 0
    assert [float(exploitability(x)) for x in jnp.eye(3)] == [1.0, 1.0, 1.0]


def test_the_opponent_is_the_transcription():
    rate, actions = 0.3, np.random.default_rng(1).choice(3, 40, p=[0.6, 0.3, 0.1])
    steps = rounds(rock_paper_scissors(40, rate), jnp.array(actions))
    shares, decided = np.full(3, 1 / 3), 0
    for action, reward, after in zip(actions, np.asarray(steps.reward), np.asarray(steps.state.shares), strict=True):
        values = -shares @ PAYOFFS
        best = np.flatnonzero(values > values.max() - 1e-6)
        assert reward in PAYOFFS[action, best]
        decided += len(best) == 1
        shares = (1 - rate) * shares + rate * (np.arange(3) == action)
        np.testing.assert_allclose(after, shares, atol=1e-6)
    assert decided == 39  # all but the first, where it knows nothing


@pytest.mark.parametrize("action", [0, 1, 2])
def test_a_deterministic_player_loses_every_round_but_the_first(action):
    steps = rounds(rock_paper_scissors(20), jnp.full(20, action))
    assert steps.reward[1:].tolist() == [-1.0] * 19


@pytest.mark.parametrize("respond", [best_response, softmax_response(0.1)])
def test_a_uniform_player_loses_nothing(respond):
    actions = jax.random.randint(jax.random.key(7), (5_000,), 0, 3)
    rewards = np.asarray(rounds(rock_paper_scissors(5_000, 0.1, respond), actions).reward)
    assert abs(rewards.mean()) < 5 * rewards.std() / np.sqrt(len(rewards))


def test_at_rate_one_the_last_action_is_answered():
    actions = jax.random.randint(jax.random.key(3), (50,), 0, 3)
    rewards = np.asarray(rounds(rock_paper_scissors(50, 1.0), actions).reward)
    np.testing.assert_array_equal(
        rewards[1:], [PAYOFFS[a, (b + 1) % 3] for b, a in itertools.pairwise(actions.tolist())]
    )


def test_ties_are_broken_at_random():
    keys = jax.random.split(jax.random.key(0), 3000)
    answers = jax.vmap(best_response, (0, None))(keys, jnp.full(3, 1 / 3))
    np.testing.assert_allclose(np.bincount(answers, minlength=3) / 3000, 1 / 3, atol=5 * np.sqrt(2 / 9 / 3000))


def test_softmax_response_has_its_limits():
    keys, shares = jax.random.split(jax.random.key(0), 3000), jnp.array([0.2, 0.3, 0.5])
    cold = jax.vmap(softmax_response(1e-3), (0, None))(keys, shares)
    np.testing.assert_array_equal(cold, jax.vmap(best_response, (0, None))(keys, shares))
    hot = np.bincount(jax.vmap(softmax_response(1e6), (0, None))(keys, shares), minlength=3) / 3000
    np.testing.assert_allclose(hot, 1 / 3, atol=5 * np.sqrt(2 / 9 / 3000))


def test_an_episode_is_truncated_at_its_horizon_and_forgotten():
    game = rock_paper_scissors(horizon_steps=5)
    steps = rounds(game, jnp.zeros(6, int))
    assert steps.truncated.tolist() == [False] * 4 + [True] * 2 and not steps.terminated.any()
    assert steps.observation.tolist() == [[1.0]] * 6 and game.observation.shape == (1,)
    assert game.reset(jax.random.key(9))[0].shares.tolist() == jnp.full(3, 1 / 3).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rock_paper_scissors(0), "rock_paper_scissors: horizon_steps is 0, wanted a whole number"),
        (lambda: rock_paper_scissors(rate=0.0), r"rock_paper_scissors: rate is 0.0, wanted a number in \(0, 1\]"),
        (lambda: rock_paper_scissors(rate=1.5), r"rock_paper_scissors: rate is 1.5, wanted a number in \(0, 1\]"),
        (lambda: softmax_response(0.0), "softmax_response: temperature is 0.0, wanted a number greater than 0"),
        (lambda: exploitability(jnp.ones((2, 3))), r"probabilities has shape \(2, 3\), wanted \(3,\); vmap over"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
