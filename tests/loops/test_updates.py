from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_rollouts import ACTIONS, BATCH, COUNT, FEATURES, FORMS, ONCE, POLICY, STEPS, a_rollout, flat, stepped

from rlax_llm.core.distributions import categorical
from rlax_llm.core.kl import doubling_coef, fixed_coef, k3
from rlax_llm.core.masked import whiten
from rlax_llm.core.types import Trajectory
from rlax_llm.credit import streams as credits
from rlax_llm.credit.values import clipped_value_loss
from rlax_llm.envs.probes import constant_reward
from rlax_llm.loops.updates import (
    Learning,
    Penalty,
    along_streams,
    gradient_update,
    no_normalization,
    plain_value_loss,
)
from rlax_llm.models.actor_critic import recurrent
from rlax_llm.recipes import control as control_recipes

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params(float64):
    return POLICY.init(jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(params):
    return a_rollout(params)


def hand_written_gradient(params, rollout, advantages, targets, value_coef, entropy_coef):
    """Of the loss of one actor-critic step, in sums over rows."""
    x, actions, values = flat(rollout.observations), flat(rollout.actions), flat(rollout.trajectory.values)
    logits = x @ np.asarray(params["actor"])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    actor, critic = np.zeros((FEATURES, ACTIONS)), np.zeros(FEATURES)
    for n in range(COUNT):
        score = np.eye(ACTIONS)[actions[n]] - p[n]
        entropy = -(p[n] * np.log(p[n])).sum()
        entropy_slope = -p[n] * (np.log(p[n]) + entropy)
        actor += np.outer(x[n], -advantages[n] * score - entropy_coef * entropy_slope) / COUNT
        critic += value_coef * (values[n] - targets[n]) * x[n] / COUNT
    return {"actor": actor, "critic": critic}


# One gradient


@pytest.mark.parametrize(("form", "normalize"), [*((form, no_normalization) for form in FORMS), ("gae", whiten)])
def test_one_epoch_of_one_minibatch_is_the_hand_written_policy_gradient(params, rollout, form, normalize):
    learning = ONCE._replace(target=credits.lambda_return(0.8), value_coef=0.3, entropy_coef=0.02, normalize=normalize)
    update = gradient_update(POLICY, control_recipes.reinforce(FORMS[form]), optax.sgd(1.0), learning)
    new, _, metrics = stepped(update, params, rollout)
    streams = [Trajectory(*(x[:, b] for x in rollout.trajectory)) for b in range(BATCH)]
    advantages, targets = (
        flat(np.stack([credit(stream) for stream in streams], 1)) for credit in (FORMS[form], learning.target)
    )
    error = np.square(flat(rollout.trajectory.values) - targets).mean() / 2
    if normalize is whiten:
        advantages = (advantages - advantages.mean()) / np.sqrt(advantages.var(ddof=1) + 1e-8)
    expected = hand_written_gradient(params, rollout, advantages, targets, 0.3, 0.02)
    for name, gradient in expected.items():
        np.testing.assert_allclose(params[name] - new[name], gradient, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(metrics["value_loss"], error, rtol=1e-9)
    np.testing.assert_allclose(metrics["entropy"], categorical.entropy(rollout.parameters).mean(), rtol=1e-9)


@pytest.mark.parametrize("recipe", [control_recipes.ppo(0.7), control_recipes.ppo_penalty(0.7)])
def test_on_policy_the_first_gradient_of_ppo_is_a2cs(params, rollout, recipe):
    found, expected = (
        stepped(gradient_update(POLICY, x, optax.sgd(1.0), ONCE), params, rollout)
        for x in (recipe, control_recipes.a2c(0.7))
    )
    for name in params:
        np.testing.assert_allclose(found[0][name], expected[0][name], rtol=1e-12)
    for name in ("kl_old", "clip_fraction"):
        assert found[2][name] == 0


def test_later_minibatches_see_another_policy_than_the_one_that_acted(params, rollout):
    learning = ONCE._replace(epochs=3)
    update = gradient_update(POLICY, control_recipes.ppo(eps=0.05), optax.sgd(3.0), learning)
    metrics = stepped(update, params, rollout)[2]
    assert metrics["kl_old"] > 1e-3 and metrics["clip_fraction"] > 0.05


def reference_loss(params, rollout, objective, learning, old, kl_coef=0.0):
    """PPO's loss in the shape of its paper, on the whole rollout."""
    logits = rollout.observations @ params["actor"]
    log_p, log_old = jax.nn.log_softmax(logits), jax.nn.log_softmax(rollout.parameters)
    chosen = jnp.take_along_axis(log_p - log_old, rollout.actions[..., None], -1)[..., 0]
    advantages = along_streams(objective.advantage, rollout.trajectory)
    advantages = (advantages - advantages.mean()) / jnp.sqrt(advantages.var(ddof=1) + 1e-8)
    ratio = jnp.exp(chosen)
    surrogate = (
        jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.9, 1.1) * advantages)
        if kl_coef == 0
        else (ratio * advantages)
    )
    values = rollout.observations @ params["critic"]
    targets = along_streams(learning.target, rollout.trajectory)
    clipped = old + jnp.clip(values - old, -0.2, 0.2)
    value_loss = jnp.maximum((values - targets) ** 2, (clipped - targets) ** 2) / 2
    kl = (jnp.exp(log_old) * (log_old - log_p)).sum(-1)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    terms = -surrogate + learning.value_coef * value_loss - learning.entropy_coef * entropy + kl_coef * kl
    return terms.mean()


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_epochs_are_gradient_steps_on_the_papers_loss(params, rollout, beta):
    learning = Learning(5, 1, value_loss=clipped_value_loss(0.2), value_coef=0.4, entropy_coef=0.01)
    objective = control_recipes.ppo_penalty() if beta else control_recipes.ppo(eps=0.1)
    penalty = Penalty(fixed_coef, beta) if beta else None
    new = stepped(gradient_update(POLICY, objective, optax.sgd(0.5), learning, penalty), params, rollout)[0]
    expected = params
    for _ in range(5):
        gradient = reference_gradient(expected, rollout, objective, learning, rollout.trajectory.values, beta)
        expected = jax.tree.map(lambda x, g: x - 0.5 * g, expected, gradient)
    for name in params:
        np.testing.assert_allclose(new[name], expected[name], rtol=1e-9, atol=1e-9)
        assert np.abs(new[name] - params[name]).max() > 0.01


reference_gradient = jax.grad(reference_loss)


# Minibatches


def spy(rows: int, steps: int) -> optax.GradientTransformation:
    """An optimizer that changes nothing and notes every gradient of the critic."""

    def init(params):
        return jnp.int32(0), jnp.zeros((steps, rows))

    def update(gradient, state, params=None):
        count, seen = state
        return jax.tree.map(jnp.zeros_like, gradient), (count + 1, seen.at[count].set(gradient["critic"]))

    return optax.GradientTransformation(init, update)


def rows_of(policy, rollout, rows, learning):
    """Which rows each gradient was of: the loss is the value, and every row has a value of its own."""
    learning = learning._replace(value_loss=lambda values, old, targets: values, value_coef=1.0)
    optimizer = spy(rows, learning.epochs * learning.minibatches)
    update = gradient_update(policy, control_recipes.reinforce(), optimizer, learning)
    params = {"actor": jnp.zeros(ACTIONS), "critic": jnp.zeros(rows)}
    state = stepped(update, params, rollout)[1]
    seen = np.asarray(state.opt_state[1]).reshape(learning.epochs, learning.minibatches, rows)
    return seen * (rows // learning.minibatches)


@pytest.mark.parametrize("minibatches", [1, 8, COUNT])
def test_minibatches_cover_every_step_exactly_once_an_epoch(rollout, minibatches):
    one_hot = rollout._replace(observations=jnp.eye(COUNT).reshape(STEPS, BATCH, COUNT))
    policy = POLICY._replace(evaluate=lambda p, c, x, s: (x[..., :1] * 0 + p["actor"], x @ p["critic"]))
    seen = rows_of(policy, one_hot, COUNT, Learning(3, minibatches))
    np.testing.assert_allclose(seen.sum(1), 1, rtol=1e-6)
    assert ((seen == 0) | (np.abs(seen - 1) < 1e-6)).all()
    np.testing.assert_array_equal((seen > 0).sum(-1), COUNT // minibatches)
    if minibatches > 1:
        assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()


@pytest.mark.parametrize("minibatches", [1, 2])
def test_with_memory_a_row_is_a_whole_stream_with_its_own_memory(rollout, minibatches):
    def evaluate(params, carry, x, starts):
        assert x.shape[:2] == starts.shape == (STEPS, BATCH // minibatches)
        # The number of the stream is in its memory and in its observations: both travel together.
        together = (carry == x[0, :, 0]) * jnp.ones((STEPS, 1))
        chosen = jnp.where(together == 1, params["critic"][carry.astype(int)], jnp.nan)
        return jnp.zeros((*starts.shape, ACTIONS)) + params["actor"], chosen

    policy = POLICY._replace(carry=jnp.zeros(()), evaluate=evaluate)
    numbers = jnp.arange(float(BATCH))
    streams = rollout._replace(
        observations=jnp.broadcast_to(numbers[None, :, None], (STEPS, BATCH, FEATURES)), carry=numbers
    )
    seen = rows_of(policy, streams, BATCH, Learning(3, minibatches))
    np.testing.assert_allclose(seen.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal((seen > 0).sum(-1), BATCH // minibatches)


def test_rows_stay_together(params, rollout):
    """In minibatches of one row, an action with its own observation and advantage: the sum does not know the order."""
    learning = ONCE._replace(minibatches=COUNT)
    one, every = (
        gradient_update(POLICY, control_recipes.reinforce(), optax.sgd(rate), x)
        for rate, x in ((1e-7, learning), (1e-7 * COUNT, ONCE))
    )
    found, expected = stepped(one, params, rollout)[0], stepped(every, params, rollout)[0]
    for name in params:
        # To second order in the rate the policy stands still between the minibatches.
        np.testing.assert_allclose(found[name] - params[name], expected[name] - params[name], rtol=1e-4, atol=1e-11)


def test_metrics_are_means_over_the_optimizer_steps(params, rollout):
    objective, learning = control_recipes.a2c(), ONCE._replace(epochs=3)
    metrics = stepped(gradient_update(POLICY, objective, optax.sgd(0.5), learning), params, rollout)[2]
    single, now, seen = gradient_update(POLICY, objective, optax.sgd(0.5), ONCE), params, []
    for _ in range(3):
        now, _, one = stepped(single, now, rollout)
        seen.append(one)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, np.mean([x[name] for x in seen]), rtol=1e-9, atol=1e-12)


# The KL limit and the penalty


def test_the_kl_limit_stops_and_leaves_everything_exactly(params, rollout):
    objective, optimizer = control_recipes.ppo(), optax.adam(0.3)
    first = stepped(gradient_update(POLICY, objective, optimizer, ONCE), params, rollout)
    stopped = stepped(
        gradient_update(POLICY, objective, optimizer, ONCE._replace(epochs=4, kl_limit=1e-6)), params, rollout
    )
    jax.tree.map(np.testing.assert_array_equal, stopped[:2], first[:2])
    np.testing.assert_allclose(stopped[2]["stopped"], 3 / 4)
    # The gradient that it stopped at is not taken although its own KL, and no later one, was over the limit.
    assert stopped[2]["kl_old"] > 1e-6


def test_a_wide_kl_limit_is_none(params, rollout):
    learning = ONCE._replace(epochs=4)
    found, expected = (
        stepped(gradient_update(POLICY, control_recipes.ppo(), optax.adam(0.3), x), params, rollout)
        for x in (learning._replace(kl_limit=1e9), learning)
    )
    jax.tree.map(np.testing.assert_array_equal, found[:2], expected[:2])
    assert found[2]["stopped"] == 0 and "stopped" not in expected[2]


def test_kl_old_is_k3_of_the_steps(params, rollout):
    update = gradient_update(POLICY, control_recipes.ppo(), optax.sgd(1.0), ONCE)
    new = stepped(update, params, rollout)[0]
    metrics = stepped(update, new, rollout)[2]
    log_probs = categorical.log_prob(rollout.observations @ new["actor"], rollout.actions)
    np.testing.assert_allclose(metrics["kl_old"], k3(rollout.log_probs, log_probs).mean(), rtol=1e-6)


@pytest.mark.parametrize(("target", "factor"), [(1e3, 0.5), (1e-9, 2.0), (None, 1.0)])
def test_the_penaltys_coefficient_follows_its_exact_kl(params, rollout, target, factor):
    learning = ONCE._replace(epochs=2)

    def run(target):
        penalty = Penalty(doubling_coef(target), 0.7)
        update = gradient_update(POLICY, control_recipes.ppo_penalty(), optax.sgd(0.5), learning, penalty)
        return stepped(update, params, rollout)

    new, _, metrics = run(1.0)
    old_log_p, log_p = (np.asarray(jax.nn.log_softmax(rollout.observations @ x["actor"])) for x in (params, new))
    exact = (np.exp(old_log_p) * (old_log_p - log_p)).sum(-1).mean()
    np.testing.assert_allclose(metrics["kl"], exact, rtol=1e-8)
    _, state, metrics = run(exact if target is None else target)
    np.testing.assert_allclose(metrics["kl_coef"], 0.7, rtol=1e-6)
    np.testing.assert_allclose(state.kl_coef, 0.7 * factor, rtol=1e-6)


def test_a_higher_penalty_holds_the_policy_back(params, rollout):
    def moved(coef):
        learning, penalty = ONCE._replace(epochs=30), Penalty(fixed_coef, coef)
        update = gradient_update(POLICY, control_recipes.ppo_penalty(), optax.sgd(0.02), learning, penalty)
        return float(stepped(update, params, rollout)[2]["kl"])

    kls = [moved(coef) for coef in (0.0, 1.0, 5.0)]
    assert kls[0] > kls[1] > kls[2] and kls[2] < 0.8 * kls[0]


# The parts


def test_credits_go_along_streams_and_carry_no_gradient(rollout):
    found = along_streams(credits.gae(0.7), rollout.trajectory)
    for b in range(BATCH):
        stream = Trajectory(*(x[:, b] for x in rollout.trajectory))
        np.testing.assert_allclose(found[:, b], credits.gae(0.7)(stream), rtol=1e-12)
    trajectory = rollout.trajectory
    slope = jax.grad(lambda v: along_streams(credits.gae(0.7), trajectory._replace(values=v)).sum())(trajectory.values)
    np.testing.assert_array_equal(slope, 0)


def test_plain_value_loss_is_the_limit_of_the_clipped_one():
    values, old, targets = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9)))
    found = plain_value_loss(values, old, targets)
    np.testing.assert_allclose(found, clipped_value_loss(1e9)(values, old, targets), rtol=1e-12)
    np.testing.assert_allclose(found, (values - targets) ** 2 / 2, rtol=1e-12)


ENVIRONMENT = constant_reward().environment


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gradient_update(POLICY, control_recipes.ppo()._replace(kl=k3), optax.sgd(1.0)),
            r"gradient_update: objective\.kl needs a reference, which control has not; give a penalty\.",
        ),
        (
            lambda: gradient_update(POLICY, control_recipes.ppo(), optax.sgd(1.0), Learning(epochs=0)),
            "gradient_update: epochs is 0, wanted a whole number",
        ),
        (
            lambda: gradient_update(POLICY, control_recipes.ppo(), optax.sgd(1.0), Learning(minibatches=0)),
            "gradient_update: minibatches is 0, wanted a whole number",
        ),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_minibatches_must_divide_the_steps(params, rollout):
    update = gradient_update(POLICY, control_recipes.ppo(), optax.sgd(1.0), Learning(1, 5))
    message = (
        r"^Learning\.minibatches is 5, wanted a divisor of the 32 rows of a rollout \(its steps\); change one of them"
    )
    with pytest.raises(ValueError, match=message):
        stepped(update, params, rollout)


def test_with_memory_minibatches_must_divide_the_environments(rollout):
    policy = recurrent(ENVIRONMENT, 4, 2)
    params = policy.init(jax.random.key(0))
    carry = jnp.zeros((BATCH, 2))
    given = rollout._replace(observations=rollout.observations[..., :1], carry=carry)
    update = gradient_update(policy, control_recipes.ppo(), optax.sgd(1.0), Learning(1, 3))
    with pytest.raises(ValueError, match=r"is 3, wanted a divisor of the 4 rows of a rollout \(its environments\)"):
        stepped(update, params, given)
