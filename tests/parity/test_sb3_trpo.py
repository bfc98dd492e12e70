"""One TRPO update and the advantages against sb3-contrib and stable-baselines3, in float64 on prepared buffers.

The peer's line search asks for KL(π‖π_old), ours for KL(π_old‖π); to second order they are the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from sb3_contrib import TRPO
from sb3_contrib.trpo import trpo as peer
from stable_baselines3.common import policies
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.core.types import Trajectory
from rlax_llm.credit import streams as credits
from rlax_llm.credit.values import squared_value_loss
from rlax_llm.loops.updates import ControlBatch, Learning, along_streams, natural_update
from rlax_llm.models.actor_critic import ActorCritic, policy_from_apply
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within

pytestmark = pytest.mark.usefixtures("float64")

STEPS, SHRINK, RATE = 256, 0.8, 1e-3
WIDTH = 32


class Peers(NamedTuple):
    """What the peer had before its update, and after it."""

    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    observations: np.ndarray
    actions: np.ndarray
    returns: np.ndarray
    advantages: np.ndarray
    direction: np.ndarray
    log: dict[str, Any]


def state_of(model: TRPO) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy().copy() for name, x in model.policy.state_dict().items()}


def updated(monkeypatch: pytest.MonkeyPatch, environment: str, radius: float, damping: float) -> Peers:
    """``TRPO.train()`` on a buffer of ours, the solution of its linear system overheard."""
    monkeypatch.setattr(policies, "preprocess_obs", lambda observations, *_, **__: observations)
    heard = {}

    def solve(matvec, b, **settings):
        heard["direction"] = solver(matvec, b, **settings).detach()
        return heard["direction"].clone()

    solver = peer.conjugate_gradient_solver
    monkeypatch.setattr(peer, "conjugate_gradient_solver", solve)
    settings = {"n_steps": STEPS, "batch_size": STEPS, "n_critic_updates": 1, "learning_rate": RATE, "cg_max_steps": 50}
    architecture = {"net_arch": [WIDTH, WIDTH], "ortho_init": False}
    given = {
        "seed": 0,
        "device": "cpu",
        "target_kl": radius,
        "cg_damping": damping,
        "line_search_shrinking_factor": SHRINK,
    }
    model = TRPO("MlpPolicy", environment, **settings, **given, policy_kwargs=architecture)
    model.policy.double()
    model.set_logger(Logger(folder=None, output_formats=[]))
    random = np.random.default_rng(0)
    buffer = model.rollout_buffer
    observations = random.normal(size=buffer.observations.shape)
    with torch.no_grad():
        distribution = model.policy.get_distribution(torch.tensor(observations[:, 0]))
        torch.manual_seed(0)
        actions = distribution.get_actions()
        buffer.log_probs = distribution.log_prob(actions).numpy()[:, None]
    buffer.actions = actions.numpy().reshape(STEPS, 1, -1)
    buffer.observations = observations
    buffer.advantages, buffer.returns, buffer.values = random.normal(size=(3, STEPS, 1))
    buffer.full = True
    kept = observations[:, 0], actions.numpy(), buffer.returns[:, 0].copy(), buffer.advantages[:, 0].copy()
    before = state_of(model)
    model.train()
    return Peers(before, state_of(model), *kept, heard["direction"].numpy(), dict(model.logger.name_to_value))


def network(params: dict[str, jax.Array], which: str, x: jax.Array) -> jax.Array:
    for layer in (0, 2):
        name = f"mlp_extractor.{which}_net.{layer}"
        x = jnp.tanh(x @ params[f"{name}.weight"].T + params[f"{name}.bias"])
    head = "action_net" if which == "policy" else "value_net"
    return x @ params[f"{head}.weight"].T + params[f"{head}.bias"]


def ours(before: dict[str, np.ndarray]) -> tuple[ActorCritic, dict[str, Any]]:
    def policy(params, x):
        output = network(params["actor"], "policy", x)
        if "log_std" not in before:
            return output
        return output, jnp.broadcast_to(params["actor"]["log_std"], output.shape)

    def values(params, x):
        return network(params["critic"], "value", x)[..., 0]

    distribution = gaussian if "log_std" in before else categorical
    params = {name: jnp.asarray(x) for name, x in before.items()}
    critic = {name: x for name, x in params.items() if "value_net" in name}
    actor = {name: x for name, x in params.items() if name not in critic}
    return policy_from_apply(lambda key: {}, policy, values, distribution), {"actor": actor, "critic": critic}


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("radius", "damping"), [(0.01, 0.1), (1.0, 0.003)])
def test_an_update_is_the_peers(monkeypatch, environment, radius, damping):
    theirs = updated(monkeypatch, environment, radius, damping)
    policy, params = ours(theirs.before)
    x = jnp.asarray(theirs.observations)[:, None]
    parameters, values = policy.evaluate(params, (), x, jnp.zeros((STEPS, 1), bool))
    actions = jnp.asarray(theirs.actions)[:, None]
    log_probs = policy.distribution.log_prob(parameters, actions)
    # Advantages and returns are given, not made: the credit reads them where a trajectory has its rewards and values.
    given = jnp.asarray(theirs.advantages)[:, None], jnp.asarray(theirs.returns)[:, None]
    ones = jnp.ones((STEPS, 1))
    trajectory = Trajectory(given[0], ones, ones, given[1], values)
    rollout = ControlBatch(x, ones > 1, actions, parameters, log_probs, trajectory, ())
    learning = Learning(1, 1, lambda t: t.values, lambda v, old, target: 2 * squared_value_loss(v, target))
    heard = {}

    def direction(matvec, gradient):
        heard["direction"] = natural_direction(radius, damping, 200, 1e-12)(matvec, gradient)
        return heard["direction"]

    search = backtracking_search(improves_within(radius), SHRINK)
    update = natural_update(policy, lambda t: t.rewards, direction, search, optax.adam(RATE, eps=1e-5), learning)
    new, _, metrics = update.step(params, update.init(params), rollout, jax.random.key(0))

    order = [name for name in theirs.before if name in params["actor"]]
    step = -np.concatenate([np.ravel(heard["direction"].step[name]) for name in order])
    cosine = step @ theirs.direction / np.linalg.norm(step) / np.linalg.norm(theirs.direction)
    assert cosine > 0.999
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    # The size of the whole step, and how much of it was taken.
    taken = np.concatenate([np.ravel(theirs.after[name] - theirs.before[name]) for name in order])
    fraction = np.linalg.norm(taken) / np.linalg.norm(step)
    assert theirs.log["train/is_line_search_success"] == 1 == metrics["accepted"]
    np.testing.assert_allclose(metrics["fraction"], fraction, rtol=1e-4)
    assert (metrics["rejected"] > 0) == (radius == 1)
    # The peer's linear system is solved to an absolute residual, and its start is random.
    ours_taken = np.concatenate([np.ravel(new["actor"][name] - theirs.before[name]) for name in order])
    assert np.linalg.norm(ours_taken - taken) < 1e-3 * np.linalg.norm(taken)
    for name, x_new in new["critic"].items():
        np.testing.assert_allclose(x_new, theirs.after[name], rtol=1e-6, atol=1e-8, err_msg=name)
    # Both divergences, in the direction that each of the two measures.
    after, _ = policy.evaluate(new, (), x, jnp.zeros((STEPS, 1), bool))
    reverse = policy.distribution.kl(after, parameters).mean()
    np.testing.assert_allclose(reverse, theirs.log["train/kl_divergence_loss"], rtol=2e-3)
    peers_policy, _ = policy.evaluate(ours(theirs.after)[1], (), x, jnp.zeros((STEPS, 1), bool))
    forward = policy.distribution.kl(parameters, peers_policy).mean()
    np.testing.assert_allclose(metrics["kl"], forward, rtol=2e-3)
    # And the surrogates, each where its own step led: a search stops at the first that improves, maybe by little.
    whitened = (theirs.advantages - theirs.advantages.mean()) / theirs.advantages.std(ddof=1)

    def surrogate(parameters):
        return (whitened * np.exp(policy.distribution.log_prob(parameters, actions) - log_probs)[:, 0]).mean()

    np.testing.assert_allclose(surrogate(peers_policy), theirs.log["train/policy_objective"], rtol=1e-6)
    np.testing.assert_allclose(surrogate(after), metrics["improvement"], rtol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_advantages_are_the_peers(lambda_):
    """It adds the value behind a truncation to the reward; its advantages and returns are then ours."""
    steps, streams, discount = 12, 3, 0.97
    random = np.random.default_rng(1)
    rewards, values, behind = random.normal(size=(3, steps, streams))
    ends = random.uniform(size=(steps, streams))
    terminated, truncated = ends < 0.15, ends > 0.8
    ended = terminated | truncated
    last_values = random.normal(size=streams)
    following = np.where(ended, behind, np.concatenate([values[1:], last_values[None]]))
    buffer = RolloutBuffer.__new__(RolloutBuffer)
    buffer.buffer_size, buffer.gamma, buffer.gae_lambda = steps, discount, lambda_
    buffer.rewards, buffer.values = rewards + truncated * discount * behind, values
    buffer.episode_starts = np.concatenate([np.ones((1, streams)), ended[:-1]])
    buffer.advantages = np.zeros((steps, streams))
    buffer.compute_returns_and_advantage(torch.tensor(last_values), ended[-1])
    traces = 1.0 - truncated
    traces[-1] = 0
    trajectory = Trajectory(*map(jnp.asarray, (rewards, discount * ~terminated, traces, values, following)))
    np.testing.assert_allclose(
        along_streams(credits.gae(lambda_), trajectory), buffer.advantages, rtol=1e-9, atol=1e-12
    )
    targets = along_streams(credits.lambda_return(lambda_), trajectory)
    np.testing.assert_allclose(targets, buffer.returns, rtol=1e-9, atol=1e-12)
