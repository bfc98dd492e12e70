"""Against TRL's PPO (``trl.experimental.ppo``, until TRL 1.2; later versions have none): its equations in torch.

It pays the score one slot *behind* the last token where there is one, and its critic is asked about that slot, too.
Here the score is paid on the last token, and nothing follows it. So the two agree where a completion fills its room, at
λ = 1, and where the critic knows the score; else the difference is ``(1 − λ) (s − V_slot)`` at the last token.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from rlax_llm.core.kl import k1, k3
from rlax_llm.core.masked import unit_variance, whiten
from rlax_llm.core.types import Completions, ScoredCompletions
from rlax_llm.credit.shaping import kl_in_reward, missing_eos_penalty, score_at_end
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, token_credit, token_rewards
from rlax_llm.loops.updates import no_normalization
from rlax_llm.recipes import control as control_recipes

pytestmark = pytest.mark.usefixtures("float64")
torch.set_num_threads(1)

B, T, BETA = 6, 7, 0.3
RAGGED, FULL = np.array([3, 6, 0, 4, 5, 1]), np.full(B, T - 1)  # the last token of each row


class Arrays(NamedTuple):
    """Numbers of a batch of completions, ``[B, T]`` and ``[B]``."""

    current: np.ndarray
    old: np.ndarray
    ref: np.ndarray
    values: np.ndarray
    scores: np.ndarray
    last: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return np.arange(T) <= self.last[:, None]

    @property
    def states(self) -> np.ndarray:
        """The tokens, and the slot behind the last one."""
        return np.arange(T) <= self.last[:, None] + 1


def arrays(last=RAGGED) -> Arrays:
    random = np.random.default_rng(0)
    current = -random.gamma(2.0, size=(B, T))
    old, ref = (current + 0.3 * random.normal(size=(B, T)) for _ in range(2))
    return Arrays(current, old, ref, random.normal(size=(B, T)), random.normal(size=B), last)


# TRL's equations


def moments(x, mask):
    count = mask.sum()
    mean = (x * mask).sum() / count
    return mean, ((x - mean) ** 2 * mask).sum() / count * count / (count - 1)


def their_whitening(x, mask, keep_mean: bool):
    mean, variance = moments(x, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return whitened + mean if keep_mean else whitened


def their_kl(data: Arrays, estimator: str):
    """Per token; outside the completion both log-probabilities are one constant."""
    log_ratio = torch.tensor(np.where(data.tokens, data.ref - data.old, 0.0))
    return -log_ratio if estimator == "k1" else torch.exp(log_ratio) - 1 - log_ratio


def their_rewards(data: Arrays, estimator: str, whitened: bool):
    rewards = -BETA * their_kl(data, estimator)
    slot = np.where(data.last + 1 < T, data.last + 1, data.last)
    rewards[np.arange(B), slot] += torch.tensor(data.scores)
    states = torch.tensor(data.states)
    return torch.where(states, their_whitening(rewards, states, True), 0.0) if whitened else rewards


def their_advantages(data: Arrays, rewards, discount: float, trace: float):
    """Before they are whitened, and the returns."""
    values = torch.tensor(np.where(data.states, data.values, 0.0))
    advantages, running = torch.zeros(B, T, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
    for t in reversed(range(T)):
        following = values[:, t + 1] if t + 1 < T else 0.0
        running = rewards[:, t] + discount * following - values[:, t] + discount * trace * running
        advantages[:, t] = running
    return advantages, advantages + values


def mean_over(x, mask):
    return (x * mask).sum() / mask.sum()


def their_losses(data: Arrays, log_probs, values, advantages, returns):
    """Policy and value loss, and the shares that are clipped."""
    tokens, states = torch.tensor(data.tokens), torch.tensor(data.states)
    ratio = torch.exp(torch.where(tokens, log_probs - torch.tensor(data.old), 0.0))
    surrogates = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)
    old_values = torch.tensor(np.where(data.states, data.values, 0.0))
    values = torch.where(states, values, 0.0)
    held = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    errors = (values - returns) ** 2, (held - returns) ** 2
    shares = [mean_over((pair[1] > pair[0]).double(), mask) for pair, mask in ((surrogates, tokens), (errors, states))]
    return mean_over(torch.maximum(*surrogates), tokens), 0.5 * mean_over(torch.maximum(*errors), states), *shares


# The pieces


def assert_close(found, expected, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance)


def our_rewards(data: Arrays, estimator, shaping=None):
    shaping = shaping or Shaping(kl=KlInReward(BETA, estimator))
    return token_rewards(shaping, jnp.asarray(data.scores), data.old, data.ref, jnp.asarray(data.tokens), BETA)


def our_credit(data: Arrays, rewards, discount, trace, mask=None):
    mask = jnp.asarray(data.tokens if mask is None else mask)
    shaping = Shaping(discount=discount, trace=trace, value_trace=trace)
    return token_credit(shaping, jnp.asarray(rewards), jnp.asarray(data.values), jnp.zeros(B), mask)


ESTIMATORS = {"k1": k1, "k3": k3}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


@each_estimator
def test_rewards_are_trls_but_for_the_slot(estimator):
    data = arrays()
    found, expected = our_rewards(data, ESTIMATORS[estimator]), their_rewards(data, estimator, False).numpy()
    assert_close(found.sum(-1), expected.sum(-1))
    before = np.arange(T) < data.last[:, None]
    assert_close(np.where(before, found, 0.0), np.where(before, expected, 0.0))
    filled = arrays(FULL)
    assert_close(our_rewards(filled, ESTIMATORS[estimator]), their_rewards(filled, estimator, False))


@each_estimator
def test_whitened_rewards_are_trls_over_the_same_places(estimator):
    """TRL's slot is one more place; where none is left the two are the same."""
    filled = arrays(FULL)
    shaping = Shaping(kl=KlInReward(BETA, ESTIMATORS[estimator]), rewards=unit_variance)
    assert_close(our_rewards(filled, None, shaping), their_rewards(filled, estimator, True))
    data = arrays()
    plain = their_rewards(data, estimator, False).numpy()
    assert_close(unit_variance(jnp.asarray(plain), jnp.asarray(data.states)), their_rewards(data, estimator, True))


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_with_the_slot_as_a_step_credit_is_trls(discount, trace):
    data = arrays()
    tokens, states = jnp.asarray(data.tokens), jnp.asarray(data.states)
    paid_later = score_at_end(jnp.asarray(data.scores), states)
    rewards = kl_in_reward(paid_later, jnp.asarray(data.old), jnp.asarray(data.ref), tokens, BETA)
    expected = their_rewards(data, "k1", False)
    assert_close(rewards, expected)
    advantages, returns = their_advantages(data, expected, discount, trace)
    credit = our_credit(data, rewards, discount, trace, states)
    assert_close(credit.advantages, np.where(data.states, advantages, 0.0))
    assert_close(credit.targets, np.where(data.states, returns, 0.0))
    whitened = torch.where(
        torch.tensor(data.tokens), their_whitening(advantages, torch.tensor(data.tokens), False), 0.0
    )
    assert_close(whiten(credit.advantages, tokens), whitened)


def both(data: Arrays, discount: float, trace: float):
    """Our advantages and targets less theirs, at the tokens."""
    credit = our_credit(data, our_rewards(data, k1), discount, trace)
    expected = their_advantages(data, their_rewards(data, "k1", False), discount, trace)
    return tuple(np.where(data.tokens, np.asarray(x) - y.numpy(), 0.0) for x, y in zip(credit, expected, strict=True))


def test_credit_is_trls_at_lambda_one_in_a_filled_room_and_for_a_critic_that_knows_the_score():
    for difference in both(arrays(), 1.0, 1.0) + both(arrays(FULL), 0.9, 0.7):
        assert_close(difference, np.zeros((B, T)))
    data = arrays()
    values = data.values.copy()
    with_slot = data.last + 1 < T
    values[with_slot, data.last[with_slot] + 1] = data.scores[with_slot]
    for difference in both(data._replace(values=values), 1.0, 0.6):
        assert_close(difference, np.zeros((B, T)))


def test_elsewhere_the_difference_is_what_the_critic_misses_in_the_slot():
    data, trace = arrays(), 0.6
    slot = np.minimum(data.last + 1, T - 1)
    missed = np.where(data.last + 1 < T, data.scores - data.values[np.arange(B), slot], 0.0)
    ahead = data.last[:, None] - np.arange(T)
    expected = np.where(ahead >= 0, (1 - trace) * missed[:, None] * trace ** np.maximum(ahead, 0), 0.0)
    for difference in both(data, 1.0, trace):
        assert_close(difference, expected)
    assert np.abs(expected).max() > 0.1


# The whole step, on numbers that are their own parameters


def given_log_probs(params, completions):
    """Row b of the batch reads row b of the parameters."""
    log_probs = params["log_probs"][completions.tokens[:, 0]]
    return log_probs, jnp.zeros(log_probs.shape)


def given_values(params, completions):
    return params["values"][completions.tokens[:, 0]]


def completions_of(data: Arrays) -> Completions:
    tokens = jnp.broadcast_to(jnp.arange(B, dtype=jnp.int32)[:, None], (B, T))
    mask = jnp.asarray(data.tokens)
    return Completions(tokens, mask, mask, jnp.asarray(data.old), jnp.asarray(data.last % 2 == 0))


def our_step(data: Arrays, shaping: Shaping, epochs: int):
    init, step = rlhf_loop(
        given_log_probs,
        given_values,
        control_recipes.ppo(eps=0.2),
        dict.fromkeys(("policy", "value"), optax.adam(0.1)),
        shaping,
        RlhfLearning(epochs=epochs),
    )
    params = {"policy": {"log_probs": jnp.asarray(data.current)}, "value": {"values": jnp.asarray(data.values)}}
    batch = ScoredCompletions(completions_of(data), jnp.asarray(data.scores), jnp.asarray(data.ref))
    state, metrics = jax.jit(step)(init(params), batch, key=jax.random.key(0))
    return state.params["policy"]["log_probs"], state.params["value"]["values"], metrics


def their_step(data: Arrays, estimator: str, whitened: bool, trace: float, epochs: int):
    """Epochs of one minibatch with torch's Adam, one over both models."""
    advantages, returns = their_advantages(data, their_rewards(data, estimator, whitened), 1.0, trace)
    tokens = torch.tensor(data.tokens)
    advantages = torch.where(tokens, their_whitening(advantages, tokens, False), 0.0)
    log_probs, values = (torch.tensor(x, requires_grad=True) for x in (data.current, data.values))
    optimizer, losses, changes = torch.optim.Adam([log_probs, values], lr=0.1), [], []
    for _ in range(epochs):
        found = their_losses(data, log_probs, values, advantages, returns)
        changes.append(torch.where(tokens, log_probs.detach() - torch.tensor(data.old), 0.0).numpy())
        optimizer.zero_grad()
        (found[0] + 0.1 * found[1]).backward()
        optimizer.step()
        losses.append([float(x.detach()) for x in found])
    return log_probs.detach().numpy(), values.detach().numpy(), np.mean(losses, 0), np.array(changes)


@pytest.mark.parametrize("whitened", [False, True])
@each_estimator
def test_a_step_on_completions_that_fill_their_room_is_trls(estimator, whitened):
    data = arrays(FULL)
    shaping = Shaping(
        scores=partial(missing_eos_penalty, penalty=1.0),
        kl=KlInReward(BETA, ESTIMATORS[estimator]),
        rewards=unit_variance if whitened else no_normalization,
    )
    log_probs, values, metrics = our_step(data, shaping, 4)
    penalized = data._replace(scores=data.scores - 1.0 * (data.last % 2 == 0))
    expected = their_step(penalized, estimator, whitened, 0.95, 4)
    assert_close(log_probs, expected[0], 1e-6)
    assert_close(values, expected[1], 1e-6)
    names = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction")
    assert_close([metrics[name] for name in names], expected[2], 1e-6)
    assert np.all(expected[2][2:] > 0)
    assert_close(metrics["approx_kl"], 0.5 * np.square(expected[3]).mean(), 1e-6)
    assert_close(metrics["ratio"], np.exp(expected[3]).mean(), 1e-6)
    kl = their_kl(penalized, estimator).sum(1).mean()
    assert_close(metrics["kl"], kl)
    assert_close(metrics["score"], penalized.scores.mean())
    assert_close(metrics["non_score_reward"], -BETA * kl)
    assert_close(metrics["rlhf_reward"], penalized.scores.mean() - BETA * kl)


def test_on_ragged_completions_the_policy_is_trls_at_lambda_one():
    """The critic's loss is a mean over tokens here and over slots there: Adam does not see the factor, losses do."""
    data = arrays()
    log_probs, _, metrics = our_step(data, Shaping(kl=KlInReward(BETA), trace=1.0, value_trace=1.0), 3)
    expected = their_step(data, "k1", False, 1.0, 3)
    assert_close(log_probs, expected[0], 1e-6)
    assert_close(metrics["policy_loss"], expected[2][0], 1e-6)
    assert_close(metrics["clip_fraction"], expected[2][2], 1e-6)
    assert_close(metrics["kl"], their_kl(data, "k1").sum(1).mean())
