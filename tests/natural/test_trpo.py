from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.natural.fisher import natural_direction, natural_gradient
from rlax_llm.natural.trpo import (
    Trial,
    backtracking_search,
    full_step,
    improves_within,
    line_search,
    policy_problem,
    trpo_step,
)

pytestmark = pytest.mark.usefixtures("float64")

STATES, ACTIONS = 3, 4
SHARES = np.array([0.2, 0.5, 0.3])
EVERY_STATE, EVERY_ACTION = (x.ravel() for x in np.indices((STATES, ACTIONS)))
REWARDS = np.random.default_rng(0).normal(size=(STATES, ACTIONS))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def reward_of(logits) -> float:
    return float((SHARES[:, None] * softmax(np.asarray(logits)) * REWARDS).sum())


def divergence_of(old, new) -> float:
    p, q = softmax(np.asarray(old)), softmax(np.asarray(new))
    return float(sum(SHARES[s] * p[s, a] * np.log(p[s, a] / q[s, a]) for s in range(STATES) for a in range(ACTIONS)))


def tabular(logits, rewards=REWARDS):
    """Every action of every state, weighed by its probability: surrogate and divergence are exact."""
    p = jax.nn.softmax(logits)
    advantages = rewards - (p * rewards).sum(-1, keepdims=True)
    weights = jnp.asarray(SHARES)[:, None] * p
    return policy_problem(
        lambda logits: logits[EVERY_STATE], categorical, logits, EVERY_ACTION, advantages.ravel(), weights.ravel()
    )


def one_step(logits, radius, damping=0.1, rewards=REWARDS, search=None):
    chosen = backtracking_search(improves_within(radius)) if search is None else search
    direction = natural_direction(radius, damping, 50, 1e-12)
    return trpo_step(logits, tabular(logits, rewards), direction, chosen)


step = jax.jit(one_step, static_argnames="search")
COUNT = 60


@functools.partial(jax.jit, static_argnames="search")
def updates_of(logits, radius, damping=0.1, search=None):
    def update(logits, _):
        new, metrics = one_step(logits, radius, damping, search=search)
        return new, (new, metrics)

    return jax.lax.scan(update, logits, None, COUNT)[1]


def start(seed: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(STATES, ACTIONS)))


def literal_step(logits: np.ndarray, radius: float, damping: float) -> tuple[np.ndarray, int, float]:
    """One update by the paper, with the Fisher matrix formed and solved, and Python's own loop for the search."""
    p = softmax(logits)
    size = STATES * ACTIONS
    fisher, gradient = damping * np.eye(size), np.zeros(size)
    for s in range(STATES):
        mean = sum(p[s, a] * REWARDS[s, a] for a in range(ACTIONS))
        for a in range(ACTIONS):
            score = np.zeros((STATES, ACTIONS))
            score[s] = -p[s]
            score[s, a] += 1
            fisher += SHARES[s] * p[s, a] * np.outer(score.ravel(), score.ravel())
            gradient += SHARES[s] * p[s, a] * (REWARDS[s, a] - mean) * score.ravel()
    solution = np.linalg.solve(fisher, gradient)
    step = np.sqrt(2 * radius / (solution @ fisher @ solution)) * solution.reshape(STATES, ACTIONS)
    for rejected in range(10):
        candidate = logits + 0.5**rejected * step
        if reward_of(candidate) > reward_of(logits) and divergence_of(logits, candidate) <= radius:
            return candidate, rejected, reward_of(candidate) - reward_of(logits)
    return logits, 10, 0.0


# The step


@pytest.mark.parametrize("radius", [0.01, 1.5])
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_a_step_equals_the_papers(radius, damping):
    counts = set()
    for seed in range(6):
        logits = start(seed)
        expected, rejected, improvement = literal_step(np.asarray(logits), radius, damping)
        new, metrics = step(logits, radius, damping)
        np.testing.assert_allclose(new, expected, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(metrics["improvement"], improvement, rtol=1e-7)
        np.testing.assert_allclose(metrics["kl"], divergence_of(logits, new), rtol=1e-7)
        assert metrics["rejected"] == rejected
        np.testing.assert_allclose(metrics["fraction"], 0.5**rejected)
        counts.add(rejected)
    assert (radius, damping) != (1.5, 1e-3) or max(counts) > 0


def test_expected_improvement_is_the_first_order_one():
    _, metrics = step(start(0), 1e-8)
    np.testing.assert_allclose(metrics["expected_improvement"], metrics["improvement"], rtol=1e-3)
    assert metrics["accepted"]
    assert metrics["fraction"] == 1


def test_a_scan_of_updates_keeps_the_radius_and_improves_every_time():
    radius = 0.05
    path, metrics = updates_of(start(1), radius)
    policies = [start(1), *path]
    rewards = [reward_of(policy) for policy in policies]
    for i in range(COUNT):
        distance = divergence_of(policies[i], policies[i + 1])
        assert distance <= radius * (1 + 1e-9)
        np.testing.assert_allclose(metrics["kl"][i], distance, rtol=1e-6, atol=1e-12)
        if metrics["accepted"][i]:
            assert rewards[i + 1] > rewards[i]
        else:
            np.testing.assert_array_equal(policies[i + 1], policies[i])
    best = float((SHARES * REWARDS.max(-1)).sum())
    assert best - rewards[-1] < 0.02 * (best - rewards[0])


def test_the_quadratic_step_alone_breaks_the_limit_and_the_search_repairs_it():
    radius, damping = 0.3, 1e-3
    _, alone = updates_of(start(5), radius, damping, search=full_step)
    _, searched = updates_of(start(5), radius, damping)
    assert np.max(alone["kl"]) > 1.1 * radius
    assert np.all(alone["accepted"])
    assert np.all(searched["kl"] <= radius)
    assert np.all(searched["improvement"] >= 0)


def test_mapped_over_seeds_and_radii_equals_one_by_one():
    many, radii = jnp.stack([start(seed) for seed in range(8)]), jnp.array([0.01, 0.3] * 4)
    path, metrics = jax.vmap(updates_of)(many, radii)
    for seed in range(8):
        alone, own = updates_of(many[seed], radii[seed])
        np.testing.assert_allclose(path[seed, :5], alone[:5], rtol=1e-8, atol=1e-9)
        np.testing.assert_array_equal(metrics["rejected"][seed, :5], own["rejected"][:5])


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_without_a_gradient_nothing_moves(value):
    new, metrics = step(start(3), 0.01, rewards=np.full((STATES, ACTIONS), value))
    np.testing.assert_array_equal(new, start(3))
    assert not metrics["accepted"]
    assert metrics["rejected"] == 10
    assert [float(metrics[name]) for name in ("fraction", "kl", "improvement", "expected_improvement")] == [0] * 4
    assert np.isnan(metrics["cg_residual"]) == np.isnan(value)


def test_a_network_in_float32_with_a_gaussian():
    random = np.random.default_rng(4)
    observations, actions, advantages = (
        jnp.asarray(random.normal(size=size), jnp.float32) for size in ((64, 3), (64, 2), 64)
    )
    params = {"mean": jnp.asarray(random.normal(size=(3, 2)), jnp.float32), "log_std": jnp.zeros(2, jnp.float32)}

    def policy(params):
        mean = observations @ params["mean"]
        return mean, jnp.broadcast_to(params["log_std"], mean.shape)

    @jax.jit
    def update(params):
        problem = policy_problem(policy, gaussian, params, actions, advantages, jnp.full(64, 1 / 64, jnp.float32))
        direction, search = natural_direction(0.01, 1e-3), backtracking_search(improves_within(0.01, share=0.1))
        return trpo_step(params, problem, direction, search)

    new, metrics = update(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    assert metrics["accepted"]
    assert metrics["improvement"] >= 0.1 * metrics["expected_improvement"] > 0
    old_mean, new_mean = (np.asarray(observations, float) @ np.asarray(x["mean"], float) for x in (params, new))
    log_std = np.asarray(new["log_std"], float)
    distance = log_std + (1 + (old_mean - new_mean) ** 2) / (2 * np.exp(2 * log_std)) - 0.5
    np.testing.assert_allclose(metrics["kl"], distance.sum(-1).mean(), rtol=1e-4)
    assert metrics["kl"] <= 0.01

    many = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, params))(jnp.linspace(1, 0.5, 8))
    mapped, _ = jax.jit(jax.vmap(update))(many)
    last, _ = update(jax.tree.map(lambda leaf: leaf[-1], many))
    for left, right in zip(jax.tree.leaves(mapped), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(left[-1], right, rtol=1e-5, atol=1e-6)


# The problem


def test_the_problem_at_its_start():
    random = np.random.default_rng(5)
    logits, actions, advantages = start(4), np.array([1, 3, 0]), random.normal(size=STATES)
    problem = policy_problem(lambda x: x, categorical, logits, actions, advantages, SHARES)
    np.testing.assert_allclose(problem.surrogate(logits), -(SHARES * advantages).sum(), rtol=1e-12)
    assert problem.divergence(logits) == 0
    np.testing.assert_allclose(jax.grad(problem.divergence)(logits), np.zeros((STATES, ACTIONS)), atol=1e-15)
    p = softmax(np.asarray(logits))
    policy_gradient = -(SHARES * advantages)[:, None] * (np.eye(ACTIONS)[actions] - p)
    np.testing.assert_allclose(jax.grad(problem.surrogate)(logits), policy_gradient, rtol=1e-12, atol=1e-15)
    moved = start(5)
    q = softmax(np.asarray(moved))
    expected = -sum(SHARES[s] * advantages[s] * q[s, actions[s]] / p[s, actions[s]] for s in range(STATES))
    np.testing.assert_allclose(problem.surrogate(moved), expected, rtol=1e-12)
    np.testing.assert_allclose(problem.divergence(moved), divergence_of(logits, moved), rtol=1e-12)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 80.0])
def test_a_row_of_weight_zero_is_never_read(garbage):
    logits, moved, actions = start(6), start(7), np.array([1, 3, 0])
    advantages, weights = np.array([1.0, garbage, -0.5]), np.array([0.4, 0.0, 0.6])

    def policy(x):
        return x + jnp.array([0.0, garbage, 0.0])[:, None]

    whole = policy_problem(policy, categorical, logits, actions, advantages, weights)
    rows = np.array([0, 2])
    part = policy_problem(lambda x: x[rows], categorical, logits, actions[rows], advantages[rows], weights[rows])
    for name in ("surrogate", "divergence"):
        value, gradient = jax.value_and_grad(getattr(whole, name))(moved)
        expected, expected_gradient = jax.value_and_grad(getattr(part, name))(moved)
        np.testing.assert_allclose(value, expected, rtol=1e-14)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-14)
        np.testing.assert_array_equal(gradient[1], np.zeros(ACTIONS))
    np.testing.assert_allclose(whole.matvec(moved), part.matvec(moved), rtol=1e-14)


# The search


@pytest.mark.parametrize("rejected", [0, 1, 4, 9])
@pytest.mark.parametrize("shrink", [0.5, 0.8])
def test_the_first_accepted_candidate_is_taken(rejected, shrink):
    limit = shrink**rejected * 1.0001
    search = backtracking_search(lambda trial: trial.kl <= limit, shrink)
    params, step = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}, {"a": jnp.array([0.5, -1.0]), "b": jnp.array(4.0)}
    found = search(lambda candidate, fraction: Trial(candidate["b"], fraction, fraction), params, step)
    np.testing.assert_allclose(found.params["a"], np.array([1, 2]) + shrink**rejected * np.array([0.5, -1]), rtol=1e-12)
    np.testing.assert_allclose(found.trial.improvement, 3 + shrink**rejected * 4, rtol=1e-12)
    np.testing.assert_allclose(found.fraction, shrink**rejected, rtol=1e-12)
    assert (bool(found.accepted), int(found.rejected)) == (True, rejected)


@pytest.mark.parametrize("trials", [1, 7])
def test_nothing_accepted_leaves_the_parameters_exactly(trials):
    search = backtracking_search(lambda trial: trial.improvement > 0, trials=trials)
    params = {"a": jnp.array([0.1, -0.0])}
    for value in (-1.0, np.nan):
        step = {"a": jnp.array([value, np.inf])}
        found = search(lambda _, fraction, value=value: Trial(*[fraction * value] * 3), params, step)
        np.testing.assert_array_equal(found.params["a"], params["a"])
        assert np.signbit(found.params["a"][1])
        assert (bool(found.accepted), float(found.fraction), int(found.rejected)) == (False, 0.0, trials)
        assert [float(x) for x in found.trial] == [0, 0, 0]


def test_full_step_takes_everything():
    found = full_step(lambda x, fraction: Trial(x, x, x), jnp.array(1.0), jnp.array(np.inf))
    assert (float(found.params), bool(found.accepted), int(found.rejected)) == (np.inf, True, 0)


@pytest.mark.parametrize(
    ("improvement", "expected", "kl", "share", "accepted"),
    [
        (0.5, 1.0, 0.1, 0.0, True),
        (0.5, 1.0, 0.1000001, 0.0, False),
        (0.0, 1.0, 0.05, 0.0, False),
        (-0.1, 1.0, 0.05, 0.0, False),
        (0.5, 1.0, 0.05, 0.5, True),
        (0.49, 1.0, 0.05, 0.5, False),
        (0.1, -1.0, 0.05, 0.5, True),
        (-0.1, -1.0, 0.05, 0.5, False),
        (np.nan, 1.0, 0.05, 0.0, False),
        (0.5, 1.0, np.nan, 0.0, False),
        (0.5, np.nan, 0.05, 0.5, False),
    ],
)
def test_acceptance_of_trpo(improvement, expected, kl, share, accepted):
    trial = Trial(*(jnp.array(x) for x in (improvement, expected, kl)))
    assert bool(improves_within(0.1, share)(trial)) == accepted


# Optax


@functools.partial(jax.jit, static_argnums=0)
def optimized(optimizer, logits):
    problem = tabular(logits)
    gradient = jax.grad(problem.surrogate)(logits)
    updates, _ = optimizer.update(gradient, optimizer.init(logits), logits, **problem._asdict())
    return optax.apply_updates(logits, updates)


@pytest.mark.parametrize(("damping", "rejected"), [(0.1, 0), (1e-3, 1)])
def test_the_optimizers_chained_are_a_step(damping, rejected):
    logits, radius = start(5), 0.3
    direction, search = natural_direction(radius, damping, 50, 1e-12), backtracking_search(improves_within(radius))
    new, metrics = step(logits, radius, damping)
    chain = optax.chain(natural_gradient(direction), line_search(search))
    np.testing.assert_allclose(optimized(chain, logits), new, rtol=1e-10, atol=1e-12)
    assert metrics["rejected"] == rejected


def test_the_optimizer_alone_is_a_step_without_search_and_chains():
    logits = start(0)
    direction = natural_direction(1.5, 0.1, 50, 1e-12)
    unsearched, _ = step(logits, 1.5, search=full_step)
    np.testing.assert_allclose(optimized(natural_gradient(direction), logits), unsearched, rtol=1e-10, atol=1e-12)
    half = optax.chain(natural_gradient(direction), optax.scale(0.5))
    np.testing.assert_allclose(optimized(half, logits), (logits + unsearched) / 2, rtol=1e-10, atol=1e-12)
    never = optax.chain(natural_gradient(direction), line_search(backtracking_search(lambda trial: False)))
    np.testing.assert_array_equal(optimized(never, logits), logits)


# Bad input


def no_trial(params, fraction):
    return Trial(fraction, fraction, fraction)


VECTOR = jnp.zeros(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: improves_within(0.0), "improves_within: kl_radius is 0.0, wanted a number greater than 0"),
        (lambda: improves_within(0.1, -1.0), "improves_within: share is -1.0, wanted a number of at least 0"),
        (lambda: backtracking_search(no_trial, 1.0), "shrink is 1.0, wanted a number between 0 and 1"),
        (lambda: backtracking_search(no_trial, 0), "shrink is 0, wanted a number between 0 and 1"),
        (lambda: backtracking_search(no_trial, trials=0), "backtracking_search: trials is 0, wanted a whole number"),
        (lambda: full_step(no_trial, {"w": VECTOR}, VECTOR), r"step is PyTreeDef\(\*\), params is PyTreeDef\(\{'w'"),
        (lambda: full_step(no_trial, VECTOR, jnp.zeros(3)), r"step has shape \(3,\), params has \(2,\)"),
        (
            lambda: policy_problem(lambda x: x, categorical, start(0), np.zeros(3, int), np.zeros(3), np.ones(2)),
            r"policy_problem: advantages has shape \(3,\), weights has \(2,\)",
        ),
        (
            lambda: policy_problem(lambda x: x, categorical, start(0), np.zeros(3, int), np.zeros(2), np.ones(2)),
            r"policy_problem: log_probs has shape \(3,\), weights has \(2,\)",
        ),
        (
            lambda: line_search(full_step).update(VECTOR, optax.EmptyState(), VECTOR),
            "line_search: params, surrogate or divergence is missing; give update all three",
        ),
    ],
)
def test_errors_say_what_got_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()
