"""The adapter against a stand-in with Brax's interface: a point pushed along a line that falls off at 1."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from rlax_llm.envs.brax_env import brax
from rlax_llm.envs.environment import Box
from rlax_llm.envs.ids import BRAX_NAMES
from rlax_llm.envs.registry import make


class State(NamedTuple):
    obs: jax.Array | dict
    reward: jax.Array
    done: jax.Array


class Line:
    action_size = 2

    def __init__(self, backend="generalized", observe=lambda x: x):
        self.push, self.observe = {"generalized": 0.25, "spring": 0.5}[backend], observe

    def reset(self, key):
        return State(self.observe(jax.random.uniform(key, (1,), maxval=0.01)), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        obs = state.obs + self.push * action[:1]
        return State(self.observe(obs), action.sum(), (obs[0] > 1).astype(jnp.float32))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    known = {"ant": Line}
    envs = SimpleNamespace(get_environment=lambda name, **parameters: known[name](**parameters))
    monkeypatch.setitem(sys.modules, "brax", ModuleType("brax"))
    monkeypatch.setitem(sys.modules, "brax.envs", envs)


def pushed(environment, length, push=1.0):
    def advance(state, key):
        step = environment.step(key, state, jnp.full(2, push))
        return step.state, step

    state, observation = environment.reset(jax.random.key(0))
    return observation, jax.lax.scan(advance, state, jax.random.split(jax.random.key(1), length))[1]


def test_the_specification():
    environment = make("brax:ant")
    assert environment.name == "brax:ant" and environment.actions == Box((-1.0, -1.0), (1.0, 1.0))
    observation, steps = pushed(environment, 3)
    assert observation.shape == environment.observation.shape == (1,)
    assert steps.reward.dtype == jnp.float32 and steps.terminated.dtype == steps.truncated.dtype == bool


def test_a_horizon_truncates_and_a_fall_terminates():
    _, steps = pushed(brax("ant", horizon_steps=3), 6)
    assert steps.truncated.tolist() == [False, False, True, True, True, True]
    assert steps.terminated.tolist() == [False, False, False, True, True, True]
    _, kept = pushed(brax("ant", horizon_steps=3), 3, push=-1.0)
    assert kept.truncated.tolist() == [False, False, True] and not kept.terminated.any()


def test_a_step_never_resets():
    _, steps = pushed(brax("ant", horizon_steps=2), 6)
    assert steps.state.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert (jnp.diff(steps.observation[:, 0]) > 0).all()


def test_actions_are_clipped():
    environment = brax("ant")
    (_, inside), (_, outside) = pushed(environment, 2, 1.0), pushed(environment, 2, 9.0)
    assert inside.reward.tolist() == outside.reward.tolist() == [2.0, 2.0]


def test_parameters_reach_the_constructor():
    slow, fast = (pushed(brax("ant", backend=x), 1)[1].observation[0, 0] for x in ("generalized", "spring"))
    assert jnp.isclose(fast - slow, 0.25)


def test_names():
    assert "ant" in BRAX_NAMES and list(BRAX_NAMES) == sorted(set(BRAX_NAMES))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brax("antt"), r"brax: there is no environment 'antt'; did you mean 'ant'\? There are .*ant, "),
        (lambda: brax("ant", horizon_steps=0), "brax: horizon_steps is 0, wanted a whole number of at least 1"),
        (lambda: brax("ant", bakend="spring"), r"brax: ant can't be made with \{'bakend': 'spring'\}: .*bakend"),
        (lambda: brax("ant", observe=lambda x: {"state": x}), r"ant observes PyTreeDef\(\{'state'.*; wanted one array"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_of_the_constructor_itself_are_kept():
    with pytest.raises(KeyError, match="mjx"):
        brax("ant", backend="mjx")


def test_without_brax(monkeypatch):
    monkeypatch.setitem(sys.modules, "brax.envs", None)
    with pytest.raises(ImportError, match=r'Brax can\'t be imported .*; pip install "rlax-llm\[brax\]"'):
        brax("ant")
