"""Gymnax's environments: specifications, dynamics against Gymnasium's, ends, and every message."""

from __future__ import annotations

import importlib.metadata
import sys
from functools import partial
from typing import Any
from urllib.error import URLError

import gymnasium
import gymnax as library
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.utils import load_mnist

from rlax_llm.envs.environment import Box, Discrete
from rlax_llm.envs.gymnax_envs import gymnax
from rlax_llm.envs.ids import GYMNAX_IDS


def a_run(environment, length, policy, seed=0):
    """The steps, stacked, of a run that no one resets."""

    def advance(carry, key):
        state, observation = carry
        step = environment.step(key, state, policy(key, observation))
        return (step.state, step.observation), step

    def run(key):
        return jax.lax.scan(advance, environment.reset(key), jax.random.split(key, length))

    # Nothing here runs long enough for an optimized program to be worth its compilation.
    program = jax.jit(run).lower(jax.random.key(seed))
    return program.compile(compiler_options={"xla_backend_optimization_level": "0"})(jax.random.key(seed))[1]


def at_random(actions):
    if isinstance(actions, Discrete):
        return lambda key, _: jax.random.randint(key, (), 0, actions.n)
    low, high = jnp.array(actions.low), jnp.array(actions.high)
    return lambda key, _: jax.random.uniform(key, low.shape, minval=low, maxval=high)


def balanced(_, observation):
    return (observation @ jnp.array([0.1, 0.3, 3.0, 1.0]) > 0).astype(jnp.int32)


def test_every_registered_id_is_listed():
    assert tuple(library.registered_envs) == GYMNAX_IDS


@pytest.mark.parametrize("name", [name for name in GYMNAX_IDS if name != "MNISTBandit-bsuite"])
def test_every_environment_keeps_its_specification(name):
    environment = gymnax(name)
    assert environment.name == name
    steps = a_run(environment, 3, at_random(environment.actions))
    assert (steps.observation.shape, steps.observation.dtype) == ((3, *environment.observation.shape), jnp.float32)
    assert environment.observation.dtype == jnp.float32
    assert (steps.reward.shape, steps.reward.dtype) == ((3,), jnp.float32)
    assert steps.terminated.shape == steps.truncated.shape == (3,)
    assert steps.terminated.dtype == steps.truncated.dtype == bool
    assert all(np.isfinite(x).all() for x in (steps.observation, steps.reward))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(jax.eval_shape(environment.reset, jax.random.key(0))))


def test_a_space_of_bounds_has_a_bound_for_each_action():
    assert gymnax("Pendulum-v1").actions == Box((-2.0,), (2.0,))
    assert gymnax("Reacher-misc").actions == Box((-1.0, -1.0), (1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("CartPole-v1", ("x", "x_dot", "theta", "theta_dot")),
        ("Acrobot-v1", ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2")),
        ("MountainCar-v0", ("position", "velocity")),
        ("MountainCarContinuous-v0", ("position", "velocity")),
        ("Pendulum-v1", ("theta", "theta_dot")),
    ],
)
def test_dynamics_are_those_of_gymnasium(name, fields):
    environment = gymnax(name)
    theirs: Any = gymnasium.make(name).unwrapped
    theirs.reset(seed=0)
    state, _ = environment.reset(jax.random.key(0))
    theirs.state = np.array([getattr(state, field) for field in fields])
    draw, step = at_random(environment.actions), jax.jit(environment.step)
    for key in jax.random.split(jax.random.key(1), 8):
        action = draw(key, None)
        state, observation, reward, terminated, truncated = step(key, state, action)
        expected, expected_reward, expected_end, *_ = theirs.step(np.asarray(action)[()])
        np.testing.assert_allclose(observation, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(reward, expected_reward, rtol=1e-4)
        assert bool(terminated) == bool(expected_end) and not truncated


@pytest.mark.parametrize(("name", "limit"), [("CartPole-v1", 200), ("Pendulum-v1", 200)])
def test_a_limit_of_steps_truncates_and_does_not_terminate(name, limit):
    environment = gymnax(name, max_steps_in_episode=limit)
    policy = balanced if name == "CartPole-v1" else at_random(environment.actions)
    steps = a_run(environment, limit, policy)
    assert not steps.terminated.any()
    assert np.flatnonzero(steps.truncated).tolist() == [limit - 1]


def test_an_end_can_be_both():
    fallen = a_run(gymnax("CartPole-v1"), 30, lambda *_: jnp.array(1))
    last = int(np.flatnonzero(fallen.terminated)[0])
    assert not fallen.truncated.any()
    both = a_run(gymnax("CartPole-v1", max_steps_in_episode=last + 1), last + 1, lambda *_: jnp.array(1))
    assert bool(both.terminated[-1]) and bool(both.truncated[-1]) and not both.truncated[:-1].any()


def test_a_step_never_resets():
    steps = a_run(gymnax("CartPole-v1", max_steps_in_episode=5), 40, lambda *_: jnp.array(1))
    assert steps.state.time.tolist() == list(range(1, 41))
    assert steps.terminated[-1] and np.all(np.diff(steps.observation[:, 0]) > 0)


def test_actions_are_clipped_before_the_reward_counts_them():
    environment = gymnax("MountainCarContinuous-v0")
    state, _ = environment.reset(jax.random.key(0))
    inside, outside = (environment.step(jax.random.key(1), state, jnp.array([x])) for x in (1.0, 50.0))
    jax.tree.map(np.testing.assert_array_equal, outside, inside)
    np.testing.assert_allclose(inside.reward, -0.1, rtol=1e-6)


def test_a_named_state_is_one_hot():
    _, observation = gymnax("FrozenLake-misc").reset(jax.random.key(0))
    assert observation.tolist() == [1.0] + [0.0] * 15


def test_the_constructors_arguments_are_parameters():
    assert gymnax("DeepSea-bsuite", size=5).observation.shape == (5, 5)
    assert gymnax("Catch-bsuite", rows=7, max_steps_in_episode=9).observation.shape == (7, 5)


def test_a_parameter_can_be_mapped():
    def velocity(gravity):
        environment = gymnax("Pendulum-v1", g=gravity)
        state, _ = environment.reset(jax.random.key(0))
        return environment.step(jax.random.key(1), state, jnp.zeros(1)).observation[2]

    gravities = jnp.array([0.0, 5.0, 10.0])
    mapped = jax.vmap(velocity)(gravities)
    np.testing.assert_allclose(np.diff(mapped)[0], np.diff(mapped)[1], rtol=1e-4)
    np.testing.assert_allclose(mapped, [velocity(float(g)) for g in gravities], rtol=1e-5)


def test_images_that_download():
    images, labels = np.full((4, 28, 28), 255, np.uint8), np.arange(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_mnist, "load_mnist", lambda: ((images, labels), None))
        environment = gymnax("MNISTBandit-bsuite")
        assert environment.observation.shape == (28, 28)
        steps = a_run(environment, 1, at_random(environment.actions))
        assert steps.terminated.all()


# Registered by a user


class Custom(library.environments.environment.Environment):
    """Whose action is one number without an axis."""

    def __init__(self, space=None, observe=lambda x: x):
        self.space, self.observed = space or spaces.Box(-1.0, 3.0, ()), observe

    def reset_env(self, key, params):
        return self.observed(jnp.zeros(2)), library.EnvState(time=0)

    def step_env(self, key, state, action, params) -> Any:
        assert jnp.shape(action) == ()
        after = library.EnvState(time=state.time + 1)
        return self.observed(jnp.full(2, action)), after, action, jnp.array(False), {}

    def action_space(self, params):
        return self.space

    def observation_space(self, params):
        return spaces.Box(-1.0, 3.0, (2,))


@pytest.fixture
def registered():
    def register(**arguments):
        library.register("Custom-v0", partial(Custom, **arguments))
        return "Custom-v0"

    yield register
    library.registered_envs.remove("Custom-v0")
    del library.registration._registry["Custom-v0"]


def test_a_scalar_box_becomes_a_vector(registered):
    environment = gymnax(registered())
    assert environment.actions == Box((-1.0,), (3.0,))
    state, _ = environment.reset(jax.random.key(0))
    assert environment.step(jax.random.key(0), state, jnp.array([7.0])).observation.tolist() == [3.0, 3.0]


def test_other_actions_are_refused(registered):
    with pytest.raises(ValueError, match=r"the actions of Custom-v0 are Dict.*; wanted Discrete or Box"):
        gymnax(registered(space=spaces.Dict({})))


def test_other_observations_are_refused(registered):
    with pytest.raises(ValueError, match=r"Custom-v0 observes PyTreeDef\(\(\*, \*\)\); wanted one array"):
        gymnax(registered(observe=lambda x: (x, x)))


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gymnax("Cartpole-v0"),
            "there is no environment 'Cartpole-v0'; did you mean 'CartPole-v1'\\? gymnax.registered_envs lists",
        ),
        (
            lambda: gymnax("CartPole-v1", max_steps_in_episodes=3),
            "CartPole-v1 has no parameter 'max_steps_in_episodes'; did you mean 'max_steps_in_episode'\\? It takes ",
        ),
        (
            lambda: gymnax("CartPole-v1", max_steps_in_episode=0),
            "gymnax: max_steps_in_episode is 0, wanted a whole number of at least 1",
        ),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_data_that_can_not_be_downloaded(monkeypatch):
    def fail():
        raise URLError("no network")

    monkeypatch.setattr(load_mnist, "load_mnist", fail)
    with pytest.raises(ValueError, match="MNISTBandit-bsuite downloads its data when it is made, and that failed"):
        gymnax("MNISTBandit-bsuite")


def test_an_old_or_missing_gymnax(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.9")
    with pytest.raises(ImportError, match=r"Gymnax is 0\.0\.9, which reports a time limit as an end; wanted 1\.0"):
        gymnax("CartPole-v1")
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r'Gymnax can\'t be imported .*; pip install "gymnax>=1\.0" six'):
        gymnax("CartPole-v1")
