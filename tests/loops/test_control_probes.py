"""Whole runs: probes whose values are known, on which every recipe must be right and every mistake must show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from control_runs import linear, scanned

from rlax_llm.core.distributions import gaussian
from rlax_llm.core.kl import doubling_coef
from rlax_llm.credit import streams as credits
from rlax_llm.envs.environment import Discrete, Environment, Step
from rlax_llm.envs.probes import PROBES, Probe, continuous_matching, diagnosis
from rlax_llm.loops import control
from rlax_llm.loops.collect import Steps
from rlax_llm.loops.control import Collecting
from rlax_llm.loops.updates import Learning, Penalty, Update, gradient_update, natural_update, no_normalization
from rlax_llm.models.actor_critic import ActorCritic, policy_from_apply
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.recipes import control as control_recipes

# All probes with a choice among actions as one environment: which one it is may be traced, so one compilation of a
# recipe solves them all. Its tables are what the probes' own functions give.

DISCRETE = {name: factory() for name, factory in PROBES.items() if factory is not continuous_matching}
STATES, WIDTH = (max(probe.observations.shape[axis] for probe in DISCRETE.values()) for axis in (0, 1))
DISCOUNTS = jnp.array([probe.discount for probe in DISCRETE.values()])
STARTS = 16
ENDS = ("time_limit", "termination", "termination_at_limit", "constant_reward")


def wide(observations: jax.Array) -> jax.Array:
    return jnp.pad(observations, (*[(0, 0)] * (observations.ndim - 1), (0, WIDTH - observations.shape[-1])))


@functools.cache
def tables() -> tuple[Step, jax.Array, jax.Array]:
    """Of all probes: every step ``[P, S, A]``, some fresh states ``[P, N]`` and their observations."""
    states, actions = (jnp.asarray(x) for x in np.indices((STATES, 2)))

    def table(probe: Probe):
        key = jax.random.key(0)
        steps = jax.vmap(jax.vmap(probe.environment.step, (None, 0, 0)), (None, 0, 0))(key, states, actions)
        fresh, seen = jax.vmap(probe.environment.reset)(jax.random.split(key, STARTS))
        return steps._replace(observation=wide(steps.observation)), fresh, wide(seen)

    return jax.jit(lambda: jax.tree.map(lambda *x: jnp.stack(x), *[table(probe) for probe in DISCRETE.values()]))()


def any_probe(number: jax.Array) -> Environment:
    steps, fresh, seen = jax.tree.map(lambda x: x[number], tables())

    def reset(key):
        start = jax.random.randint(key, (), 0, STARTS)
        return fresh[start], seen[start]

    def step(key, state, action):
        return jax.tree.map(lambda x: x[state, action], steps)

    return Environment("any probe", reset, step, jax.ShapeDtypeStruct((WIDTH,), jnp.float32), Discrete(2))


POLICY = linear(WIDTH)
PLAIN = Learning(1, 1, credits.lambda_return(0.9), value_coef=1.0, normalize=no_normalization)
SEVERAL = Learning(4, 2, credits.lambda_return(0.9), value_coef=1.0)


def reinforce(policy: ActorCritic, form: jax.Array | int = 4) -> Update:
    def credit(trajectory):
        return jax.lax.switch(form, list(FORMS.values()), trajectory)

    return gradient_update(policy, control_recipes.reinforce(credit), optax.adam(0.05), PLAIN)


def ppo(policy: ActorCritic, form: jax.Array | int = 0) -> Update:
    return gradient_update(policy, control_recipes.ppo(0.9), optax.adam(0.02), SEVERAL)


def ppo_penalty(policy: ActorCritic, form: jax.Array | int = 0) -> Update:
    penalty = Penalty(doubling_coef(0.05))
    return gradient_update(policy, control_recipes.ppo_penalty(0.9), optax.adam(0.02), SEVERAL, penalty)


def trpo(policy: ActorCritic, form: jax.Array | int = 0) -> Update:
    search = backtracking_search(improves_within(0.02))
    return natural_update(policy, credits.gae(0.9), natural_direction(0.02, 0.01), search, optax.adam(0.05), SEVERAL)


FORMS = {
    "total_return": credits.total_return,
    "return_to_go": credits.return_to_go,
    "return_minus_baseline": credits.return_minus_baseline,
    "q_value": credits.q_value,
    "advantage": credits.gae(0.9),
    "td_residual": credits.td_residual,
    "wrong sign": lambda trajectory: -credits.gae(0.9)(trajectory),
}


def resetting_itself(environment: Environment) -> Environment:
    """Where an episode ends its last observation is lost: what comes back is the next episode's first."""

    def step(key, state, action):
        step = environment.step(key, state, action)
        ended = step.terminated | step.truncated
        return step._replace(observation=jnp.where(ended, environment.reset(key)[1], step.observation))

    return environment._replace(step=step)


def unseen(environment: Environment) -> Environment:
    def reset(key):
        state, observation = environment.reset(key)
        return state, 0 * observation

    def step(key, state, action):
        step = environment.step(key, state, action)
        return step._replace(observation=0 * step.observation)

    return environment._replace(reset=reset, step=step)


WRAPS = {"as it is": lambda environment: environment, "resets itself": resetting_itself, "unseen": unseen}
MISTAKES: dict[str, Callable[[Steps], Steps]] = {
    "none": lambda steps: steps,
    "a time limit is a death": lambda steps: steps._replace(
        terminated=steps.terminated | steps.truncated, truncated=steps.truncated & False
    ),
    "bootstrapped from before the cut": lambda steps: steps._replace(
        reached=jnp.where(steps.truncated[..., None], steps.observations, steps.reached)
    ),
    "no end": lambda steps: steps._replace(
        terminated=steps.terminated & False, truncated=steps.terminated | steps.truncated
    ),
}


class Case(NamedTuple):
    """A probe, and what is done to it; everything by name."""

    probe: str
    form: str = "advantage"
    mistake: str = "none"
    wrap: str = "as it is"
    discounts: bool = True
    stale: bool = False


END_CASES = [Case(name, mistake=mistake) for mistake in MISTAKES for name in ENDS]
RESET_CASES = [Case(name, wrap="resets itself") for name in ("time_limit", "termination", "two_steps")]
BLIND_CASES = [Case(name, wrap="unseen") for name in ("observed_reward", "matching")]
UNDISCOUNTED_CASES = [Case(name, discounts=False) for name in ("two_steps", "two_arms")]
SIGN_CASES = [Case(name, "wrong sign") for name in ("two_arms", "matching", "delayed_reward", "two_steps")]
STALE_CASES = [Case("two_arms", stale=True)]
SIX = [form for form in FORMS if form != "wrong sign"]
RECIPES = {
    reinforce: [
        *(Case(name, form) for form in SIX for name in DISCRETE),
        *(END_CASES + RESET_CASES + BLIND_CASES + UNDISCOUNTED_CASES + SIGN_CASES),
    ],
    ppo: [*map(Case, DISCRETE), *STALE_CASES],
    ppo_penalty: [*map(Case, DISCRETE)],
    trpo: [*map(Case, DISCRETE)],
}


def altered(number: jax.Array, choice: jax.Array) -> Environment:
    every = [wrap(any_probe(number)) for wrap in WRAPS.values()]

    def reset(key):
        return jax.lax.switch(choice, [environment.reset for environment in every], key)

    def step(*given):
        return jax.lax.switch(choice, [environment.step for environment in every], *given)

    return every[0]._replace(reset=reset, step=step)


def forgetting(update: Update, stale: jax.Array) -> Update:
    """Where it is stale, the behavior policy's log-probabilities are those of the first policy, log ½, for ever."""

    def step(params, state, rollout, key):
        log_probs = jnp.where(stale, np.log(0.5), rollout.log_probs)
        return update.step(params, state, rollout._replace(log_probs=log_probs), key)

    return update._replace(step=step)


@functools.cache
def learned(recipe: Callable[..., Update]) -> dict[Case, tuple[np.ndarray, np.ndarray]]:
    """Values and probabilities of the actions at the probe's observations, of all cases in one program."""
    right = control.trajectory
    tables()  # outside of the trace, as it is kept

    def run(number, form, mistake, wrap, discounts, stale, key):
        def mistaken(policy, see, params, carry, steps):
            return right(policy, see, params, carry, jax.lax.switch(mistake, list(MISTAKES.values()), steps))

        collecting = Collecting(16, 8, jnp.where(discounts, DISCOUNTS[number], 1.0))
        update = forgetting(recipe(POLICY, form), stale)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control, "trajectory", mistaken)
            return scanned(altered(number, wrap), POLICY, update, collecting, 250)(key)[0].params

    cases = RECIPES[recipe]
    lists = [list(DISCRETE), list(FORMS), list(MISTAKES), list(WRAPS)]
    numbers = np.array([[names.index(name) for names, name in zip(lists, case)] for case in cases])
    flags = np.array([case[4:] for case in cases])
    keys = jax.random.split(jax.random.key(0), len(cases))
    params = jax.jit(jax.vmap(run))(*numbers.T, *flags.T, keys)
    found = {}
    for i, case in enumerate(cases):
        observations = wide(np.asarray(DISCRETE[case.probe].observations, np.float32))
        actor, critic = (np.asarray(params[name][i]) for name in ("actor", "critic"))
        found[case] = observations @ critic, np.asarray(jax.nn.softmax(observations @ actor))
    return found


def diagnoses(cases: list[Case], recipe: Callable[..., Update] = reinforce) -> dict[str, str]:
    """And the values are those that the diagnosis predicts, not only the nearest."""
    found = {}
    for case in cases:
        probe, (values, _) = DISCRETE[case.probe], learned(recipe)[case]
        found[case.probe] = diagnosis(probe, values)
        predicted = {"right": probe.values, **probe.mistakes}[found[case.probe]]
        np.testing.assert_allclose(values, predicted, atol=0.15, err_msg=str(case))
    return found


@pytest.mark.parametrize(
    ("recipe", "form"),
    [*((reinforce, form) for form in SIX), *((recipe, "advantage") for recipe in (ppo, ppo_penalty, trpo))],
)
def test_every_recipe_solves_every_probe(recipe, form):
    for name, probe in DISCRETE.items():
        values, probabilities = learned(recipe)[Case(name, form)]
        assert diagnosis(probe, values) == "right", (name, values)
        np.testing.assert_allclose(values, probe.values, atol=0.08, err_msg=name)
        if probe.best_actions is not None:
            # In a delayed reward only the first action matters.
            states = [0] if name == "delayed_reward" else range(len(values))
            assert all(probabilities[s, probe.best_actions[s]] > 0.9 for s in states), name


@pytest.mark.parametrize("recipe", [ppo, trpo])
def test_a_gaussian_policy_solves_its_probe(recipe):
    probe = continuous_matching()

    def init(key):
        return {"actor": {"mean": jnp.zeros((1, 1)), "log_std": jnp.zeros(1)}, "critic": jnp.zeros(1)}

    def spread(p, x):
        mean = x @ p["actor"]["mean"]
        return mean, jnp.broadcast_to(p["actor"]["log_std"], mean.shape)

    # −(m − o)² − σ² is the same at both observations, so one number is a critic.
    policy = policy_from_apply(init, spread, lambda p, x: p["critic"][0] + 0 * x[..., 0], gaussian)
    run = scanned(probe.environment, policy, recipe(policy), Collecting(64, 4, probe.discount), 250)
    params = jax.jit(run)(jax.random.key(0))[0].params
    mean, log_std = (np.asarray(x) for x in spread(params, jnp.asarray(probe.observations, jnp.float32)))
    np.testing.assert_allclose(mean, probe.best_actions, atol=0.15)
    assert np.exp(log_std).max() < 0.5
    worth = -np.square(mean - probe.best_actions).max() - np.exp(2 * log_std).max()
    np.testing.assert_allclose(params["critic"][0], worth, atol=0.1)


# Every mistake shows, and says which it is


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        ("none", dict.fromkeys(ENDS, "right")),
        ("a time limit is a death", {"time_limit": "truncation is a death"}),
        (
            "bootstrapped from before the cut",
            {"time_limit": "truncation is bootstrapped from the observation before it"},
        ),
        (
            "no end",
            {
                "constant_reward": "termination is no end",
                "termination": "termination is bootstrapped from the observation after it",
                "termination_at_limit": "termination is bootstrapped from the observation after it",
            },
        ),
    ],
)
def test_a_wrong_end_has_the_value_that_the_probe_predicts(mistake, expected):
    found = diagnoses([case for case in END_CASES if case.mistake == mistake])
    assert found == dict.fromkeys(ENDS, "right") | expected


def test_an_environment_that_resets_itself_bootstraps_from_the_next_episode():
    wrong = "truncation is bootstrapped from the next episode"
    assert diagnoses(RESET_CASES) == {"time_limit": wrong, "termination": "right", "two_steps": "right"}


def test_a_blind_critic_shows():
    found = diagnoses(BLIND_CASES)
    assert found == {"observed_reward": "the observation is not seen", "matching": "the action has not learned"}


def test_a_lost_discount_shows():
    assert diagnoses(UNDISCOUNTED_CASES) == {"two_steps": "the discount is lost", "two_arms": "right"}


def test_a_wrong_sign_shows():
    assert diagnoses(SIGN_CASES) == {
        "two_arms": "the action has learned the opposite",
        "matching": "the policy sees the other observation",
        "delayed_reward": "the action has learned the opposite",
        "two_steps": "right",
    }


def test_stale_log_probabilities_stop_the_policy_at_the_clip():
    """Once the ratio is 1.2 there is no slope any more: the probability passes 0.6 by momentum alone."""
    (case,) = STALE_CASES
    values, probabilities = learned(ppo)[case]
    assert diagnosis(DISCRETE["two_arms"], values) == "the action has not learned"
    assert 0.6 <= probabilities[0, 1] < 0.75
    np.testing.assert_allclose(values[0], probabilities[0, 1], atol=0.1)
