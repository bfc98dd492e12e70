from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_rollouts import ACTIONS, COUNT, FEATURES, FORMS, POLICY, a_rollout, flat, stepped

from rlax_llm.core.distributions import gaussian
from rlax_llm.credit import streams as credits
from rlax_llm.envs.probes import constant_reward
from rlax_llm.loops.updates import (
    Learning,
    along_streams,
    natural_update,
)
from rlax_llm.models.actor_critic import perceptron, policy_from_apply, recurrent
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params(float64):
    return POLICY.init(jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(params):
    return a_rollout(params)


RADIUS = 0.01
DIRECTION = natural_direction(RADIUS, 1e-3, 50, 1e-12)
SEARCH = backtracking_search(improves_within(RADIUS))


def natural(learning, optimizer, policy=POLICY, advantage=FORMS["gae"]):
    return natural_update(policy, advantage, DIRECTION, SEARCH, optimizer, learning)


def test_the_actor_takes_the_papers_step_on_the_whole_rollout(params, rollout):
    new, _, metrics = stepped(natural(Learning(2, 4), optax.sgd(0.1)), params, rollout)
    x, actions = flat(rollout.observations), flat(rollout.actions)
    advantages = flat(along_streams(FORMS["gae"], rollout.trajectory))
    advantages = (advantages - advantages.mean()) / np.sqrt(advantages.var(ddof=1) + 1e-8)
    log_old = np.asarray(jax.nn.log_softmax(x @ params["actor"]))
    size = FEATURES * ACTIONS
    fisher, gradient = 1e-3 * np.eye(size), np.zeros(size)
    for n in range(COUNT):
        p = np.exp(log_old[n])
        for a in range(ACTIONS):
            score = np.outer(x[n], np.eye(ACTIONS)[a] - p).ravel()
            fisher += p[a] * np.outer(score, score) / COUNT
            gradient += (a == actions[n]) * advantages[n] * score / COUNT
    solution = np.linalg.solve(fisher, gradient)
    full = np.sqrt(2 * RADIUS / (solution @ fisher @ solution)) * solution.reshape(FEATURES, ACTIONS)
    np.testing.assert_allclose(new["actor"], params["actor"] + metrics["fraction"] * full, rtol=1e-6, atol=1e-7)
    log_new = np.asarray(jax.nn.log_softmax(x @ new["actor"]))
    np.testing.assert_allclose(metrics["kl"], (np.exp(log_old) * (log_old - log_new)).sum(-1).mean(), rtol=1e-6)
    ratio = np.exp(log_new - log_old)[np.arange(COUNT), actions]
    np.testing.assert_allclose(metrics["improvement"], (ratio * advantages).mean() - advantages.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["entropy"], -(np.exp(log_old) * log_old).sum(-1).mean(), rtol=1e-9)
    assert metrics["accepted"] and metrics["kl"] <= RADIUS


def test_the_critic_is_left_to_the_optimizer(params, rollout):
    target, optimizer = credits.lambda_return(0.8), optax.adam(0.1)
    new, state, metrics = stepped(natural(Learning(3, 1, target), optimizer), params, rollout)
    x, targets = rollout.observations, along_streams(target, rollout.trajectory)
    critic, opt_state, losses = params["critic"], optimizer.init(params["critic"]), []
    for _ in range(3):
        error = x @ critic - targets
        losses.append(0.5 * np.square(error).mean())
        gradient = (error[..., None] * x).mean((0, 1))
        updates, opt_state = optimizer.update(gradient, opt_state, critic)
        critic = critic + updates
    np.testing.assert_allclose(new["critic"], critic, rtol=1e-9)
    np.testing.assert_allclose(metrics["value_loss"], np.mean(losses), rtol=1e-9)
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(opt_state), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_actor_and_critic_do_not_touch_each_other(params, rollout):
    def run(learning, rate, advantage=FORMS["gae"]):
        return stepped(natural(learning, optax.sgd(rate), advantage=advantage), params, rollout)[0]

    first, other, third = (
        run(Learning(1, 1), 0.1),
        run(Learning(4, 8, credits.return_to_go), 0.7),
        run(Learning(1, 1), 0.1, FORMS["q_value"]),
    )
    np.testing.assert_array_equal(first["actor"], other["actor"])
    assert np.abs(first["critic"] - other["critic"]).max() > 1e-3
    np.testing.assert_array_equal(first["critic"], third["critic"])
    assert np.abs(first["actor"] - third["actor"]).max() > 1e-3


def test_a_gaussian_policy_and_a_policy_without_advantage(params, rollout):
    def spread(p, x):
        return x @ p["actor"]["mean"], jnp.broadcast_to(p["actor"]["log_std"], (*x.shape[:-1], 2))

    actor = {"mean": params["actor"][:, :2], "log_std": jnp.array([-0.5, 0.2])}
    policy = policy_from_apply(lambda key: {}, spread, lambda p, x: x @ p["critic"], gaussian)
    parameters = spread({"actor": actor}, rollout.observations)
    actions = gaussian.sample(jax.random.key(0), parameters)
    given = rollout._replace(parameters=parameters, actions=actions, log_probs=gaussian.log_prob(parameters, actions))
    start = {"actor": actor, "critic": params["critic"]}
    new, _, metrics = stepped(natural(Learning(1, 1), optax.sgd(0.1), policy), start, given)
    kl = gaussian.kl(parameters, spread(new, rollout.observations)).mean()
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-9)
    assert metrics["accepted"] and RADIUS / 100 < kl <= RADIUS
    zero = given._replace(trajectory=jax.tree.map(jnp.zeros_like, given.trajectory))
    stays, _, metrics = stepped(natural(Learning(1, 1), optax.sgd(0.1), policy), start, zero)
    jax.tree.map(np.testing.assert_array_equal, stays["actor"], actor)
    assert not metrics["accepted"] and metrics["fraction"] == 0


ENVIRONMENT = constant_reward().environment


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        (Learning(epochs=0), "epochs is 0, wanted a whole number"),
        (Learning(minibatches=-1), "minibatches is -1, wanted"),
    ],
)
def test_errors_say_what_got_wanted(learning, message):
    with pytest.raises(ValueError, match=f"^natural_update: {message}"):
        natural(learning, optax.sgd(1.0))


def test_minibatches_of_the_critic_must_divide_the_steps(params, rollout):
    with pytest.raises(ValueError, match=r"^Learning\.minibatches is 5, wanted a divisor of the 32 rows of a rollout"):
        stepped(natural(Learning(1, 5), optax.sgd(0.1)), params, rollout)


@pytest.mark.parametrize(
    ("make", "entries"),
    [
        (functools.partial(perceptron, ENVIRONMENT, (4,), shared=(4,)), r"\['actor', 'critic', 'torso'\]"),
        (functools.partial(recurrent, ENVIRONMENT, 4, 4), r"\['actor', 'critic', 'torso'\]"),
        (lambda: POLICY._replace(init=lambda key: {"all": jnp.zeros(1)}), r"\['all'\]"),
    ],
)
def test_a_trust_region_wants_a_critic_that_shares_nothing(make, entries):
    policy = make()
    update = natural(Learning(), optax.sgd(0.1), policy)
    message = rf"^natural_update: the policy's parameters have the entries {entries}, wanted actor and critic alone;"
    with pytest.raises(ValueError, match=message):
        update.init(policy.init(jax.random.key(0)))
