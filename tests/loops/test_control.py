"""The loop: what an update is given, and whole runs under jit, scan and vmap."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from control_runs import linear, scanned

from rlax_llm.credit import streams as credits
from rlax_llm.envs.environment import Discrete, Environment, Step
from rlax_llm.envs.probes import matching
from rlax_llm.envs.registry import make
from rlax_llm.loops.control import Collecting, control_loop, evaluate_greedily
from rlax_llm.loops.scaling import standardization, unit_return
from rlax_llm.loops.updates import Learning, Update, gradient_update, natural_update
from rlax_llm.models.actor_critic import perceptron, recurrent
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.recipes import control as control_recipes

# What an update is given


def watching() -> Update:
    """An update that changes nothing and keeps the rollout."""
    return Update(lambda params: (), lambda params, state, rollout, key: (params, rollout, {}))


LENGTH = 3


def clock() -> Environment:
    """Rewards of 10, episodes of three steps: step 1 observed as 101, 102, 103; then cut."""

    def observe(state):
        return jnp.stack([100 + state, -state]).astype(jnp.float32)

    def reset(key):
        return jnp.int32(1), observe(jnp.int32(1))

    def step(key, state, action):
        return Step(state + 1, observe(state + 1), jnp.float32(10), jnp.array(False), state >= LENGTH)

    return Environment("clock", reset, step, jax.ShapeDtypeStruct((2,), jnp.float32), Discrete(2))


def watched(collecting, rollouts, environment=None, policy=None):
    environment = clock() if environment is None else environment
    policy = linear(2) if policy is None else policy
    init, step = control_loop(environment, policy, watching(), collecting)
    compiled, state, seen = jax.jit(step), jax.jit(init)(jax.random.key(0)), []
    for i in range(rollouts):
        state, metrics = compiled(state, jax.random.key(i))
        seen.append((state, metrics))
    return seen


def test_scalings_are_the_moments_of_all_that_was_seen():
    """Four steps a rollout, episodes of three: the running returns go on across rollouts and stop at an end."""
    gamma = 0.5
    collecting = Collecting(2, 4, gamma, standardization(), unit_return())
    times = np.arange(40) % LENGTH
    observations = np.stack([101 + times, -1 - times], -1)
    returns = 10 * (1 - gamma ** (times + 1)) / (1 - gamma)
    for i, (state, _) in enumerate(watched(collecting, 5)):
        before, after = 4 * i, 4 * (i + 1)
        np.testing.assert_allclose(state.observation_scale.samples, 2 * after)
        np.testing.assert_allclose(state.observation_scale.mean, observations[:after].mean(0), rtol=1e-5)
        np.testing.assert_allclose(state.observation_scale.variance, observations[:after].var(0), rtol=1e-3)
        np.testing.assert_allclose(state.reward_scale.mean, returns[:after].mean(), rtol=1e-5)
        np.testing.assert_allclose(state.reward_scale.variance, returns[:after].var(), rtol=1e-4)
        np.testing.assert_allclose(state.discounted, returns[after - 1], rtol=1e-6)
        # What is learned from is what the policy saw: the scale before the rollout; and rewards at the scale with it.
        mean, deviation = (0, 1) if i == 0 else (observations[:before].mean(0), observations[:before].std(0))
        expected = np.clip((observations[before:after] - mean) / deviation, -10, 10)
        np.testing.assert_allclose(state.update.observations[:, 0], expected, rtol=2e-3)
        rewards = np.clip(10 / returns[:after].std(), -10, 10)
        np.testing.assert_allclose(state.update.trajectory.rewards, rewards, rtol=1e-3)
        assert state.steps == 2 * after


def test_a_rollout_has_the_values_of_the_states_that_were_reached():
    policy = linear(2)
    policy = policy._replace(init=lambda key: {"actor": jnp.zeros((2, 2)), "critic": jnp.array([0.01, 1.0])})
    for i, (state, metrics) in enumerate(watched(Collecting(2, 4, 0.8), 3, policy=policy)):
        times = (np.arange(4) + 4 * i) % LENGTH + 1
        given, ends = state.update, times == LENGTH
        trajectory = given.trajectory
        for b in range(2):
            np.testing.assert_allclose(given.observations[:, b, 0], 100 + times)
            np.testing.assert_array_equal(given.starts[:, b], times == 1)
            np.testing.assert_allclose(trajectory.values[:, b], 0.01 * (100 + times) - times, rtol=1e-5)
            np.testing.assert_allclose(trajectory.next_values[:, b], 0.01 * (101 + times) - times - 1, rtol=1e-5)
            np.testing.assert_allclose(trajectory.discounts[:, b], 0.8)
            np.testing.assert_array_equal(trajectory.traces[:, b], ~ends & (np.arange(4) < 3))
            np.testing.assert_allclose(given.log_probs[:, b], np.log(0.5), rtol=1e-6)
        assert metrics["episodes"] == 2 * ends.sum()
        np.testing.assert_allclose(metrics["episode_return"], 10 * LENGTH)
        np.testing.assert_allclose(metrics["episode_length"], LENGTH)
        targets = 10 + 0.8 * trajectory.next_values
        expected = 1 - np.var(targets - trajectory.values) / np.var(targets)
        np.testing.assert_allclose(metrics["explained_variance"], expected, rtol=1e-3)


def test_with_memory_the_value_behind_a_step_is_that_of_the_next_step():
    policy = recurrent(clock(), 4, 5)
    for state, _ in watched(Collecting(3, 7, 0.5), 2, policy=policy):
        trajectory, starts = state.update.trajectory, np.asarray(state.update.starts)
        same = ~starts[1:]
        np.testing.assert_allclose(trajectory.next_values[:-1][same], trajectory.values[1:][same], rtol=1e-5)
        assert np.abs(trajectory.next_values[:-1][~same] - trajectory.values[1:][~same]).min() > 1e-4


def test_without_an_end_there_is_no_return_to_report():
    _, metrics = watched(Collecting(2, 2, 0.5), 1)[0]
    assert metrics["episodes"] == 0
    assert np.isnan(metrics["episode_return"]) and np.isnan(metrics["episode_length"])


# Transformations


MATCHING = matching()


def small(optimizer=None, eps=0.2, collecting=Collecting(4, 8, 0.5), iterations=3):
    policy = perceptron(MATCHING.environment, (8,))
    optimizer = optax.sgd(0.3) if optimizer is None else optimizer
    update = gradient_update(policy, control_recipes.ppo(eps=eps), optimizer, Learning(2, 2))
    return scanned(MATCHING.environment, policy, update, collecting, iterations)


SMALL = jax.jit(small())


def close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_many_seeds_are_each_seed():
    run, keys = SMALL, jax.random.split(jax.random.key(0), 3)
    state, metrics = jax.jit(jax.vmap(small()))(keys)
    for i, key in enumerate(keys):
        close(
            jax.tree.map(lambda x, i=i: x[i], (state.params, state.steps, metrics)),
            [(s.params, s.steps, m) for s, m in [run(key)]],
        )
    kernels = jax.tree.leaves(state.params)
    assert all(len(np.unique(leaf, axis=0)) == 3 for leaf in kernels)


def test_learning_rate_clip_and_discount_may_be_mapped_over():
    def run(rate, eps, discount):
        return small(optax.sgd(rate), eps, Collecting(4, 8, discount))(jax.random.key(1))[0].params

    one, settings = jax.jit(run), [jnp.array([0.1, 1.0, 1.0]), jnp.array([0.2, 0.2, 0.01]), jnp.array([0.5, 0.5, 0.9])]
    side = jax.jit(jax.vmap(run))(*settings)
    for i in range(3):
        close(jax.tree.map(lambda x, i=i: x[i], side), one(*(x[i] for x in settings)))
    assert all(len(np.unique(leaf.reshape(3, -1), axis=0)) == 3 for leaf in jax.tree.leaves(side))


def test_scan_is_pythons_loop():
    policy = perceptron(MATCHING.environment, (8,))
    update = gradient_update(policy, control_recipes.ppo(), optax.sgd(0.3), Learning(2, 2))
    init, step = control_loop(MATCHING.environment, policy, update, Collecting(4, 8, 0.5))
    start, later = jax.random.split(jax.random.key(2))
    state, compiled = jax.jit(init)(start), jax.jit(step)
    for key in jax.random.split(later, 3):
        state, metrics = compiled(state, key)
    scanned_state, scanned_metrics = SMALL(jax.random.key(2))
    close(scanned_state, state)
    close(jax.tree.map(lambda x: x[-1], scanned_metrics), metrics)


# Learning


def recall() -> Environment:
    """The cue is seen once; three steps later the action must be the cue: 1 if it is, −1 otherwise."""

    def observe(cue, time):
        return jnp.stack([jnp.where(time == 0, 2.0 * cue - 1, 0.0), jnp.where(time == LENGTH, 1.0, 0.0)])

    def reset(key):
        cue = jax.random.randint(key, (), 0, 2)
        return (cue, jnp.int32(0)), observe(cue, 0)

    def step(key, state, action):
        cue, time = state
        reward = jnp.where(time == LENGTH, jnp.where(action == cue, 1.0, -1.0), 0.0)
        return Step((cue, time + 1), observe(cue, time + 1), reward, time == LENGTH, jnp.array(False))

    return Environment("recall", reset, step, jax.ShapeDtypeStruct((2,), jnp.float32), Discrete(2))


@pytest.mark.parametrize(("make_policy", "solves"), [(recurrent, True), (perceptron, False)])
def test_only_a_policy_with_memory_recalls(make_policy, solves):
    environment = recall()
    policy = make_policy(environment, 16, 16) if solves else make_policy(environment, (16,))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
    update = gradient_update(policy, control_recipes.ppo(), optimizer, Learning(4, 2, entropy_coef=0.01))
    # Ten steps a rollout, four an episode: memory is carried from one rollout to the next.
    run = jax.jit(scanned(environment, policy, update, Collecting(32, 10, 0.9), 80))
    last = np.asarray(run(jax.random.key(0))[1]["episode_return"])[-10:].mean()
    assert last > 0.9 if solves else abs(last) < 0.15


def scaled(environment: Environment) -> Environment:
    """In units that no network wants."""

    def reset(key):
        state, observation = environment.reset(key)
        return state, 1e5 + 300 * observation

    def step(key, state, action):
        step = environment.step(key, state, action)
        return step._replace(observation=1e5 + 300 * step.observation, reward=500 * step.reward)

    return environment._replace(reset=reset, step=step)


def test_scalings_make_bad_units_learnable():
    environment = scaled(MATCHING.environment)
    policy = perceptron(environment, (8,))
    update = gradient_update(policy, control_recipes.a2c(), optax.adam(1e-2), Learning(2, 2))

    def last(collecting):
        run = jax.jit(scanned(environment, policy, update, collecting, 60))
        return np.asarray(run(jax.random.key(0))[1]["episode_return"])[-5:].mean()

    assert last(Collecting(16, 8, 0.5, standardization(), unit_return())) > 450
    assert last(Collecting(16, 8, 0.5)) < 250


def test_ppo_and_trpo_learn_to_balance_a_pole():
    environment = make("CartPole-v1")
    policy, collecting = perceptron(environment, (32,)), Collecting(8, 128)
    evaluate, keys = evaluate_greedily(environment, policy, collecting, 200), jax.random.split(jax.random.key(0), 2)
    search, state = backtracking_search(improves_within(0.02), 0.8), None
    for update in (
        gradient_update(policy, control_recipes.ppo(), optax.adam(3e-3), Learning(4, 4)),
        natural_update(policy, credits.gae(0.95), natural_direction(0.02), search, optax.adam(3e-3), Learning(10, 4)),
    ):
        run = scanned(environment, policy, update, collecting, 24)
        state, metrics = jax.jit(jax.vmap(run))(keys)
        returns = np.asarray(metrics["episode_return"])
        assert returns[:, 0].mean() < 35
        assert np.nanmean(returns[:, -3:]) > 90  # who balances all the time ends no episode
    greedy, states = jax.jit(jax.vmap(evaluate))(state, keys)
    assert greedy.shape == (2, 8) and greedy.mean() > 120 and greedy.max() <= 200
    assert all(leaf.shape[:3] == (2, 200, 8) for leaf in jax.tree.leaves(states))


def test_a_greedy_episode_counts_one_episode():
    policy, collecting = linear(2), Collecting(5, 4)
    init, _ = control_loop(clock(), policy, watching(), collecting)
    state = jax.jit(init)(jax.random.key(0))
    returns, states = evaluate_greedily(clock(), policy, collecting, 10)(state, jax.random.key(1))
    np.testing.assert_allclose(returns, 10 * LENGTH)
    np.testing.assert_array_equal(states[:, 0], [2, 3, 4, *[4] * 7])
    short, _ = evaluate_greedily(clock(), policy, collecting, 2)(state, jax.random.key(1))
    np.testing.assert_allclose(short, 20)


@pytest.mark.parametrize("field", ["environments", "horizon_steps"])
def test_errors_say_what_got_wanted(field):
    with pytest.raises(ValueError, match=rf"^control_loop: {field} is 0, wanted a whole number"):
        control_loop(clock(), linear(2), watching(), Collecting()._replace(**{field: 0}))
