"""Each probe's values, right and mistaken, against rolling its environment out under the rule that gives them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.envs.environment import Discrete
from rlax_llm.envs.probes import PROBES, continuous_matching, delayed_reward, diagnosis, time_limit, two_steps

LENGTH = 90


def compiled(probe):
    return probe._replace(environment=probe.environment._replace(step=jax.jit(probe.environment.step)))


COMPILED = {name: compiled(factory()) for name, factory in PROBES.items()}
CONTINUOUS, ALL = COMPILED["continuous_matching"], list(COMPILED.values())
PARAMETERS = pytest.mark.parametrize("probe", ALL, ids=list(PROBES))


def state_of(probe, index):
    return jnp.array(probe.observations[index], jnp.float32) if probe is CONTINUOUS else jnp.array(index)


def rolled_out(probe, index, policy, beyond=(), discount=None):
    """Σ γ^t r from state ``index``. An end in ``beyond`` is not one; "next" goes on behind any end in a new episode,
    and "before" where it was before the step."""
    environment, discount = probe.environment, probe.discount if discount is None else discount
    state, observation, total = state_of(probe, index), probe.observations[index], 0.0
    for t in range(LENGTH):
        step = environment.step(jax.random.key(t), state, jnp.array(policy(observation)))
        total += discount**t * float(step.reward)
        before, state, observation = (state, observation), step.state, np.asarray(step.observation)
        end = "terminated" if step.terminated else "truncated" if step.truncated else None
        if end and "next" in beyond:
            state, observation = environment.reset(jax.random.key(t))
        elif end and "before" in beyond:
            state, observation = before
        elif end and end not in beyond:
            break
    return total


def best(probe):
    def policy(observation):
        if probe.best_actions is None:
            return 0
        return probe.best_actions[int(np.abs(probe.observations - observation).sum(-1).argmin())]

    return policy


def each(probe, policy, **rule):
    return [rolled_out(probe, index, policy, **rule) for index in range(len(probe.values))]


@PARAMETERS
def test_values_are_those_of_the_best_policy(probe):
    np.testing.assert_allclose(each(probe, best(probe), beyond=("truncated",)), probe.values, atol=1e-6)


@PARAMETERS
def test_no_other_action_is_better(probe):
    actions = probe.environment.actions
    others = range(actions.n) if isinstance(actions, Discrete) else np.linspace(-4, 4, 9)[:, None]
    for first in others:
        assert np.all(each(probe, lambda _, a=first: a, beyond=("truncated",)) <= probe.values + 1e-6)


@PARAMETERS
def test_the_best_return_is_the_mean_over_starts(probe):
    starts = [probe.environment.reset(key)[1] for key in jax.random.split(jax.random.key(0), 64)]
    indices = {int(np.abs(probe.observations - x).sum(-1).argmin()) for x in starts}
    returns = [rolled_out(probe, index, best(probe), discount=1.0) for index in indices]
    np.testing.assert_allclose(np.mean(returns), probe.best_return, atol=1e-6)


RULES = {
    "termination is no end": {"beyond": ("terminated", "truncated")},
    "the discount is lost": {"discount": 1.0},
}
for END in ("termination", "truncation"):
    RULES[f"{END} is a death"] = {}
    RULES[f"{END} is bootstrapped from the observation after it"] = {"beyond": ("terminated", "truncated")}
    RULES[f"{END} is bootstrapped from the observation before it"] = {"beyond": ("before",)}
    RULES[f"{END} is bootstrapped from the next episode"] = {"beyond": ("next",)}
OF_ACTIONS = {
    "the action has not learned",
    "the action has learned the opposite",
    "the policy sees the other observation",
    "the policy does not see its observation",
    "the observation is not seen",
}


@PARAMETERS
def test_mistaken_values_are_those_of_the_mistaken_rule(probe):
    assert probe.mistakes.keys() <= RULES.keys() | OF_ACTIONS
    for mistake in RULES.keys() & probe.mistakes.keys():
        np.testing.assert_allclose(each(probe, best(probe), **RULES[mistake]), probe.mistakes[mistake], atol=1e-6)


@pytest.mark.parametrize("name", ["two_arms", "matching", "delayed_reward"])
def test_mistaken_actions_are_worth_what_is_said(name):
    probe = COMPILED[name]
    first = {a: rolled_out(probe, 0, lambda o, a=a: a) for a in range(2)}
    wrong = 1 - int(best(probe)(probe.observations[0]))
    np.testing.assert_allclose(
        probe.mistakes["the action has not learned"][0], np.mean(list(first.values())), atol=1e-6
    )
    opposite = {"matching": "the policy sees the other observation"}.get(name, "the action has learned the opposite")
    np.testing.assert_allclose(probe.mistakes[opposite][0], first[wrong], atol=1e-6)


@pytest.mark.parametrize("name", ["matching", "continuous_matching"])
def test_a_blind_policy_is_worth_what_is_said(name):
    probe, action = (COMPILED[name], 0) if name == "matching" else (CONTINUOUS, np.zeros(1))
    blind = probe.mistakes["the policy does not see its observation"]
    np.testing.assert_allclose(each(probe, lambda _: action), blind, atol=1e-6)


def test_a_blind_critic_is_worth_the_mean():
    probe = PROBES["observed_reward"]()
    np.testing.assert_allclose(probe.mistakes["the observation is not seen"], probe.values.mean(), atol=1e-6)


@PARAMETERS
def test_every_mistake_is_told_from_the_others(probe):
    noise = 0.04 * np.random.default_rng(0).uniform(-1, 1, probe.values.shape)
    assert diagnosis(probe, probe.values + noise) == "right"
    for mistake, values in probe.mistakes.items():
        assert diagnosis(probe, jnp.asarray(values + noise)) == mistake


@PARAMETERS
def test_environments_keep_their_specification(probe):
    environment = probe.environment
    action = jnp.array(0) if isinstance(environment.actions, Discrete) else jnp.zeros(1)
    state, observation = jax.jit(environment.reset)(jax.random.key(0))
    step = jax.jit(environment.step)(jax.random.key(1), state, action)
    for seen in (observation, step.observation):
        assert (seen.shape, seen.dtype) == (environment.observation.shape, jnp.float32)
    assert step.reward.shape == () and step.reward.dtype == jnp.float32
    assert step.terminated.dtype == step.truncated.dtype == bool
    assert jax.tree.map(jnp.shape, step.state) == jax.tree.map(jnp.shape, state)
    assert environment.name == f"probe:{dict(zip(map(id, ALL), PROBES))[id(probe)]}"


@pytest.mark.parametrize("name", ["observed_reward", "matching", "continuous_matching"])
def test_observations_come_alike_often(name):
    observations = jax.vmap(PROBES[name]().environment.reset)(jax.random.split(jax.random.key(0), 2000))[1]
    np.testing.assert_allclose(np.mean(observations[:, 0] > 0), 0.5, atol=5 * 0.5 / np.sqrt(2000))


def test_ends_of_the_twins():
    def ends(name):
        environment = PROBES[name]().environment
        step = environment.step(jax.random.key(0), jnp.array(2), jnp.array(0))
        return bool(step.terminated), bool(step.truncated)

    assert [ends(x) for x in ("time_limit", "termination", "termination_at_limit")] == [
        (False, True),
        (True, False),
        (True, True),
    ]


def test_a_gaussian_policy_has_the_stated_value():
    environment, draws = continuous_matching().environment, jax.random.normal(jax.random.key(0), (4000, 1))
    step = jax.vmap(environment.step, (None, None, 0))
    rewards = np.asarray(step(jax.random.key(0), jnp.ones(1), 0.5 + 0.3 * draws).reward)
    np.testing.assert_allclose(rewards.mean(), -(0.5**2) - 0.3**2, atol=5 * rewards.std() / np.sqrt(4000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_limit(1.0), r"probe:time_limit: discount is 1.0, wanted a number in \[0, 1\)"),
        (lambda: delayed_reward(delay_steps=0), "delayed_reward: delay_steps is 0, wanted a whole number"),
        (lambda: diagnosis(two_steps(), np.zeros(3)), r"diagnosis: values has shape \(3,\), probe.values has \(2,\)"),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
