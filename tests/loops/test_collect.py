from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.envs.environment import Box, Discrete, Environment, Step
from rlax_llm.loops.collect import rollout, start_runner
from rlax_llm.models.actor_critic import ActorCritic, policy_from_apply

STEPS, BATCH = 40, 16


class Counter(NamedTuple):
    """An episode's name, its step, and all the actions it has seen."""

    episode: jax.Array
    step: jax.Array
    actions: jax.Array


LIMIT, DEATH = 5, 3


def counting() -> Environment:
    """Episodes end by action 2 at step 3 or later (terminated), or at step 5 (truncated); both may fall together."""

    def observe(state: Counter) -> jax.Array:
        return jnp.array([state.episode, state.step, state.actions], jnp.float32)

    def reset(key: jax.Array) -> tuple[Counter, jax.Array]:
        state = Counter(jax.random.randint(key, (), 0, 2**24), jnp.int32(0), jnp.int32(0))
        return state, observe(state)

    def step(key: jax.Array, state: Counter, action: jax.Array) -> Step:
        state = Counter(state.episode, state.step + 1, state.actions + action)
        terminated = (action == 2) & (state.step >= DEATH)
        reward = jax.random.uniform(key) + state.step
        return Step(state, observe(state), reward, terminated, state.step >= LIMIT)

    return Environment("counting", reset, step, jax.ShapeDtypeStruct((3,), jnp.float32), Discrete(3))


def remembering() -> ActorCritic:
    """A uniform policy whose memory counts the steps of its episode from 10 on."""
    params = policy_from_apply(
        lambda key: {}, lambda p, x: jnp.zeros((*x.shape[:-1], 3)), lambda p, x: x.sum(-1), categorical
    )

    def act(params, carry, observations):
        return jnp.zeros((len(observations), 3)), carry + 1

    return params._replace(carry=jnp.float32(10), act=act)


ENVIRONMENT, POLICY = counting(), remembering()


def collected(key, environment=ENVIRONMENT, policy=POLICY, steps=STEPS, see=lambda x: x):
    start_key, rollout_key = jax.random.split(key)
    runner = start_runner(environment, policy, BATCH, start_key)
    return runner, *rollout(environment, policy, see, {}, runner, rollout_key, steps)


compiled = jax.jit(collected, static_argnames=("environment", "policy", "steps", "see"))


@pytest.fixture(scope="module")
def run():
    return jax.tree.map(np.asarray, compiled(jax.random.key(0)))


def ended(steps):
    return steps.terminated | steps.truncated


def test_an_episode_is_followed_by_a_fresh_one(run):
    before, after, steps = run
    assert steps.terminated.sum() > 10 and steps.truncated.sum() > 10
    ends = ended(steps)
    # The observation behind an end is a start, of another episode; elsewhere it is what the step led to.
    following = np.concatenate([steps.observations[1:], after.observations[None]])
    np.testing.assert_array_equal(following[~ends], steps.reached[~ends])
    np.testing.assert_array_equal(following[ends][:, 1:], 0)
    assert (following[ends][:, 0] != steps.reached[ends][:, 0]).all()
    np.testing.assert_array_equal(np.concatenate([steps.starts, after.starts[None]])[1:], ends)
    assert before.starts.all() and steps.starts[0].all()
    np.testing.assert_array_equal(before.observations, steps.observations[0])


def test_what_an_end_reached_is_the_old_episodes_state(run):
    _, _, steps = run
    np.testing.assert_array_equal(steps.reached[..., 0], steps.observations[..., 0])
    np.testing.assert_array_equal(steps.reached[..., 1], steps.observations[..., 1] + 1)
    np.testing.assert_array_equal(steps.reached[..., 2], steps.observations[..., 2] + steps.actions)
    assert set(steps.reached[ended(steps)][:, 1].astype(int).tolist()) == {DEATH, DEATH + 1, LIMIT}


def test_a_death_at_the_limit_is_a_death(run):
    _, _, steps = run
    both = (steps.actions == 2) & (steps.reached[..., 1] >= LIMIT)
    assert both.sum() > 3
    assert steps.terminated[both].all()
    assert not (steps.terminated & steps.truncated).any()
    np.testing.assert_array_equal(steps.terminated, (steps.actions == 2) & (steps.reached[..., 1] >= DEATH))


def test_returns_and_lengths_are_those_of_one_episode(run):
    _, after, steps = run
    for b in range(BATCH):
        total, length = 0.0, 0
        for t in range(STEPS):
            if steps.starts[t, b]:
                total, length = 0.0, 0
            total, length = total + steps.rewards[t, b], length + 1
            np.testing.assert_allclose(steps.returns[t, b], total, rtol=1e-6)
            assert steps.lengths[t, b] == length == steps.reached[t, b, 1]
        over = ended(steps)[-1, b]
        np.testing.assert_allclose(after.returns[b], 0 if over else total, rtol=1e-6)
        assert after.lengths[b] == (0 if over else length)


def test_the_memory_starts_with_the_episode(run):
    _, _, steps = run
    np.testing.assert_array_equal(steps.carry, 10 + steps.reached[..., 1])


def test_a_rollout_goes_on_where_the_last_one_stopped():
    before, after, _ = compiled(jax.random.key(1), steps=7)
    again, more = rollout(ENVIRONMENT, POLICY, lambda x: x, {}, after, jax.random.key(2), 6)
    np.testing.assert_array_equal(more.observations[0], after.observations)
    np.testing.assert_array_equal(more.starts[0], after.starts)
    running = ~np.asarray(after.starts)
    assert running.any() and not running.all()
    np.testing.assert_array_equal(more.lengths[0], np.where(running, after.lengths, 0) + 1)
    np.testing.assert_allclose(more.returns[0], after.returns + more.rewards[0], rtol=1e-6)
    np.testing.assert_array_equal(more.carry[0], 10 + more.reached[0, :, 1])
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, before)


def test_the_same_key_gives_the_same_and_another_key_something_else():
    first, again, other = (compiled(jax.random.key(seed)) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[2].actions != other[2].actions).any()
    assert (first[2].observations[0, :, 0] != other[2].observations[0, :, 0]).all()


def test_compiled_is_what_it_is_step_by_step():
    with jax.disable_jit():
        by_hand = collected(jax.random.key(5), steps=6)
    for found, expected in zip(jax.tree.leaves(compiled(jax.random.key(5), steps=6)), jax.tree.leaves(by_hand)):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_noise_and_resets_are_independent_of_each_other():
    """Across steps, environments and rollouts; a correlation of n independent pairs has deviation 1/√n."""
    _, after, steps = compiled(jax.random.key(6), steps=400)
    more = rollout(ENVIRONMENT, POLICY, lambda x: x, {}, after, jax.random.key(7), 400)[1]
    fraction = np.mod(np.asarray(steps.rewards), 1)
    actions = np.asarray(steps.actions, float)
    for name, x, y in [
        ("actions, steps", actions[:-1], actions[1:]),
        ("actions, environments", actions[:, :-1], actions[:, 1:]),
        ("actions, rollouts", actions, np.asarray(more.actions)),
        ("keys, steps", fraction[:-1], fraction[1:]),
        ("keys, environments", fraction[:, :-1], fraction[:, 1:]),
        ("keys, rollouts", fraction, np.mod(np.asarray(more.rewards), 1)),
        ("actions, keys", actions, fraction),
    ]:
        correlation = np.corrcoef(x.ravel(), y.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(x.size), name
    counts = np.bincount(np.asarray(steps.actions).ravel(), minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=5 * np.sqrt(2 / 9 / counts.sum()))
    names = np.asarray(steps.observations)[np.asarray(steps.starts)][:, 0]
    # Of 2²⁴ names, which float32 still tells apart; a shared key would repeat them by the hundred.
    assert len(np.unique(names)) >= len(names) - 2


def test_the_policy_sees_what_it_is_shown():
    seen = policy_from_apply(
        lambda key: {}, lambda p, x: jnp.eye(3)[x[..., 1].astype(int)] * 50, lambda p, x: 0, categorical
    )
    _, _, steps = compiled(jax.random.key(8), policy=seen, see=modulo_three)
    np.testing.assert_array_equal(steps.actions, steps.observations[..., 1] % 3)


def modulo_three(observations):
    return observations % 3


def pushing() -> Environment:
    """It clips an action to its box itself, as the contract says."""
    box = Box((-0.5, -1.0), (0.5, 2.0))

    def reset(key):
        return jnp.zeros(2), jnp.zeros(2)

    def step(key, state, action):
        held = jnp.clip(action, jnp.array(box.low), jnp.array(box.high))
        return Step(held, held, held.sum(), jnp.array(False), jnp.array(False))

    return Environment("push", reset, step, jax.ShapeDtypeStruct((2,), jnp.float32), box)


def test_actions_are_kept_as_they_were_drawn_and_not_as_a_box_cuts_them():
    def parameters(params, x):
        return jnp.zeros_like(x), jnp.ones_like(x)

    policy = policy_from_apply(lambda key: {}, parameters, lambda p, x: x.sum(-1), gaussian)
    _, _, steps = compiled(jax.random.key(9), environment=pushing(), policy=policy)
    assert np.abs(steps.actions).max() > 3
    np.testing.assert_allclose(steps.reached, np.clip(steps.actions, [-0.5, -1.0], [0.5, 2.0]))
    np.testing.assert_allclose(steps.rewards, np.asarray(steps.reached).sum(-1), rtol=1e-6)
    # A log-deviation of 1.
    np.testing.assert_allclose(np.std(steps.actions), np.e, rtol=0.15)


def test_no_step_is_lost_under_vmap_over_keys():
    keys = jax.random.split(jax.random.key(10), 3)
    side = jax.vmap(collected)(keys)
    for i, key in enumerate(keys):
        for found, expected in zip(jax.tree.leaves(side), jax.tree.leaves(compiled(key))):
            np.testing.assert_allclose(found[i], expected, rtol=1e-6)
