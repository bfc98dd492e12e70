from __future__ import annotations

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.core.distributions import categorical, gaussian
from rlax_llm.envs.environment import Box, Discrete, Environment
from rlax_llm.envs.probes import matching
from rlax_llm.loops.control import Collecting, control_loop
from rlax_llm.loops.updates import Learning, gradient_update
from rlax_llm.models.actor_critic import distribution_over, perceptron, policy_from_apply, recurrent
from rlax_llm.models.initializers import orthogonal
from rlax_llm.recipes.control import a2c

THREE = Discrete(3)


def shaped(shape: tuple[int, ...], actions: Discrete | Box = THREE, dtype=jnp.float32) -> Environment:
    """An environment of which only the shapes are read."""

    def unused(*_):
        raise AssertionError

    return Environment("shapes", unused, unused, jax.ShapeDtypeStruct(shape, dtype), actions)


VECTOR, IMAGE, BOX = shaped((4,)), shaped((5, 6, 2), dtype=jnp.uint8), shaped((3,), Box((-1.0, -2.0), (1.0, 2.0)))
NUMBER = shaped((), Discrete(2))
ENVIRONMENTS = {"vector": VECTOR, "image": IMAGE, "box": BOX, "number": NUMBER}
KINDS = {
    "perceptron": functools.partial(perceptron, hidden=(8, 8)),
    "shared": functools.partial(perceptron, hidden=(8,), shared=(8,)),
    "recurrent": functools.partial(recurrent, hidden=8, memory=5),
}


def observed(environment: Environment, *leading: int, seed: int = 0) -> jax.Array:
    numbers = 5 * np.random.default_rng(seed).normal(size=(*leading, *environment.observation.shape))
    return jnp.asarray(np.abs(numbers) if environment is IMAGE else numbers, environment.observation.dtype)


# Orthogonal weights


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 4), (6, 3), (3, 6), (64, 64), (4, 64), (300, 200)])
def test_the_short_side_is_orthonormal_times_the_scale(shape):
    x = np.asarray(jax.jit(lambda key: orthogonal(3.0)(key, shape))(jax.random.key(0)), np.float64)
    assert x.shape == shape
    product = x.T @ x if shape[0] >= shape[1] else x @ x.T
    np.testing.assert_allclose(product, 9 * np.eye(min(shape)), atol=2e-4)


def test_keys_and_dtype():
    init = orthogonal()
    first, again, other = (init(jax.random.key(seed), (4, 3)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert init(jax.random.key(0), (4, 3), jnp.bfloat16).dtype == jnp.bfloat16


def moments(x: np.ndarray) -> dict[str, np.ndarray]:
    """Those which tell the uniform distribution from others: first, second, fourth and mixed."""
    return {
        "mean": x.mean(0),
        "square": np.square(x).mean(0),
        "fourth power": np.power(x, 4).mean(0),
        "in a column": (x[:, 0, 0] ** 2 * x[:, 1, 0] ** 2).mean(),
        "in a row": (x[:, 0, 0] ** 2 * x[:, 0, 1] ** 2).mean(),
        "diagonal": (x[:, 0, 0] ** 2 * x[:, 1, 1] ** 2).mean(),
        "square of four": (x[:, 0, 0] * x[:, 0, 1] * x[:, 1, 0] * x[:, 1, 1]).mean(),
        "pair": (x[:, 0, 0] * x[:, 1, 1]).mean(),
    }


@pytest.mark.parametrize("shape", [(4, 4), (5, 3)])
def test_matrices_are_uniform_over_the_orthogonal_ones(shape):
    """As is the textbook's: QR with the diagonal of R made positive (Mezzadri, 2007)."""
    draws, n = 20000, max(shape)
    keys = jax.random.split(jax.random.key(0), draws)
    found = moments(np.asarray(jax.jit(jax.vmap(lambda key: orthogonal()(key, shape)))(keys), np.float64))
    gaussians = np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(jax.random.split(keys[0], draws)))
    q, r = np.linalg.qr(gaussians.astype(np.float64))
    oracle = moments(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None])
    exact = {
        "mean": 0,
        "square": 1 / n,
        "fourth power": 3 / (n * (n + 2)),
        "in a column": 1 / (n * (n + 2)),
        "in a row": 1 / (n * (n + 2)),
        "diagonal": (n + 1) / ((n - 1) * n * (n + 2)),
        "square of four": -1 / ((n - 1) * n * (n + 2)),
        "pair": 0,
    }
    # Five standard errors of a number in [−1, 1] whose variance is at most 1/n.
    bound = 5 / np.sqrt(n * draws)
    for name, wanted in exact.items():
        np.testing.assert_allclose(oracle[name], wanted + np.zeros_like(oracle[name]), atol=bound, err_msg=name)
        np.testing.assert_allclose(found[name], oracle[name], atol=1.5 * bound, err_msg=name)
        np.testing.assert_allclose(found[name], wanted + np.zeros_like(found[name]), atol=bound, err_msg=name)


def test_reflections_come_as_often_as_rotations():
    keys = jax.random.split(jax.random.key(1), 4000)
    x = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal()(key, (4, 4))))(keys))
    np.testing.assert_allclose((np.linalg.det(x) > 0).mean(), 0.5, atol=5 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_only_matrices_can_be_orthogonal(shape):
    with pytest.raises(ValueError, match=r"^orthogonal: shape is .*, wanted a matrix \(rows, columns\)\.$"):
        orthogonal()(jax.random.key(0), shape)


def test_many_seeds_at_once_end():
    """A QR decomposition mapped over seeds in one program was seen to hang."""
    policy = perceptron(VECTOR)
    params = jax.jit(jax.vmap(policy.init))(jax.random.split(jax.random.key(0), 64))
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 3 and leaf.shape[1:] == (64, 64)]
    assert len(kernels) == 2
    for kernel in kernels:
        np.testing.assert_allclose(kernel.transpose(0, 2, 1) @ kernel, np.tile(2 * np.eye(64), (64, 1, 1)), atol=1e-3)
        assert len(np.unique(kernel[:, 0, 0])) == 64


# Networks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_shapes(kind, name):
    environment, batch, steps = ENVIRONMENTS[name], 3, 4
    policy = KINDS[kind](environment)
    params = policy.init(jax.random.key(0))
    carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), policy.carry)
    acted, after = policy.act(params, carry, observed(environment, batch))
    starts = jnp.zeros((steps, batch), bool)
    parameters, values = policy.evaluate(params, carry, observed(environment, steps, batch), starts)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, carry)
    assert values.shape == (steps, batch) and values.dtype == jnp.float32
    size = environment.actions.n if isinstance(environment.actions, Discrete) else 2
    for leading, found in [((batch,), acted), ((steps, batch), parameters)]:
        assert {leaf.shape for leaf in jax.tree.leaves(found)} == {(*leading, size)}
    actions = policy.distribution.sample(jax.random.key(1), acted)
    assert actions.shape == ((batch,) if isinstance(environment.actions, Discrete) else (batch, 2))
    assert policy.distribution.log_prob(acted, actions).shape == (batch,)


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("perceptron", {"actor", "critic"}),
        ("shared", {"actor", "critic", "torso"}),
        ("recurrent", {"actor", "critic", "torso"}),
    ],
)
def test_entries_of_the_parameters_say_what_is_shared(kind, entries):
    policy = KINDS[kind](VECTOR)
    params = policy.init(jax.random.key(0))
    assert set(params) == entries
    carry = jax.tree.map(lambda leaf: leaf[None], policy.carry)
    given = carry, observed(VECTOR, 2, 1), jnp.zeros((2, 1), bool)

    def moved_by(entry):
        new = params | {entry: jax.tree.map(lambda x: x + 0.3, params[entry])}
        both = zip(policy.evaluate(new, *given), policy.evaluate(params, *given))
        return [bool(np.abs(new - old).max() > 1e-4) for new, old in both]

    assert moved_by("actor") == [True, False]
    assert moved_by("critic") == [False, True]
    assert "torso" not in params or moved_by("torso") == [True, True]


@pytest.mark.parametrize("name", ["vector", "box"])
def test_the_first_policy_is_nearly_uniform_and_its_scales_are_as_stated(name):
    policy = perceptron(ENVIRONMENTS[name], hidden=(16, 16))
    params = policy.init(jax.random.key(0))
    parameters, _ = policy.act(params, (), observed(ENVIRONMENTS[name], 20))
    if name == "box":
        mean, log_std = parameters
        assert np.abs(mean).max() < 0.1
        np.testing.assert_array_equal(log_std, 0)
    else:
        np.testing.assert_allclose(jax.nn.softmax(parameters), 1 / 3, atol=0.03)
    scales = {}
    for entry in ("actor", "critic"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params[entry]):
            where = entry + jax.tree_util.keystr(path)
            if leaf.ndim == 2:
                singular = np.linalg.svd(np.asarray(leaf), compute_uv=False)
                np.testing.assert_allclose(singular, singular[0], rtol=1e-3)
                scales[where] = round(float(singular[0]), 3)
            else:
                np.testing.assert_array_equal(leaf, 0)
    heads = {where: scale for where, scale in scales.items() if "head" in where}
    assert sorted(heads.values()) == [0.01, 1.0]
    assert {scale for where, scale in scales.items() if where not in heads} == {1.414}
    np.testing.assert_allclose(next(scale for where, scale in heads.items() if where.startswith("actor")), 0.01)


def test_a_perceptron_is_its_formula():
    policy = perceptron(VECTOR, hidden=(6, 5), activation=jax.nn.relu, shared=(7,))
    params = policy.init(jax.random.key(0))
    x = observed(VECTOR, 3)

    def layers(x, params):
        for layer in (params["layers"][i] for i in sorted(params["layers"])):
            x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
        return x

    features = layers(np.asarray(x), params["torso"])
    for entry, found in zip(("actor", "critic"), policy.evaluate(params, (), x[None], jnp.zeros((1, 3), bool))):
        last = layers(features, params[entry]["torso"])
        head = params[entry]["head"]
        head = head["head"] if entry == "actor" else head
        expected = last @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(found[0], expected if entry == "actor" else expected[:, 0], rtol=1e-5, atol=1e-6)


def test_the_distribution_is_that_of_the_actions():
    assert distribution_over(Discrete(4)) is categorical
    assert distribution_over(BOX.actions) is gaussian


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_a_stream_is_acting_step_by_step(kind):
    policy = KINDS[kind](VECTOR)
    params = policy.init(jax.random.key(0))
    steps, batch = 9, 4
    observations = observed(VECTOR, steps, batch)
    starts = np.random.default_rng(1).uniform(size=(steps, batch)) < 0.3
    starts[0] = [True, False, False, True]
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), policy.carry)
    # A memory in the middle of an episode, which an episode's first step must not see.
    first = carry = jax.tree.map(lambda leaf: leaf + 0.7, start)
    expected = []
    for t in range(steps):
        fresh = jax.tree.map(lambda new, old, t=t: jnp.where(starts[t][:, None], new, old), start, carry)
        parameters, carry = policy.act(params, fresh, observations[t])
        expected.append(parameters)
    parameters, _ = policy.evaluate(params, first, observations, jnp.asarray(starts))
    np.testing.assert_allclose(parameters, jnp.stack(expected), rtol=1e-5, atol=1e-6)
    half = policy.evaluate(params, first, observations[:5], jnp.asarray(starts[:5]))
    np.testing.assert_allclose(half[0], parameters[:5], rtol=1e-5, atol=1e-6)


def test_memory_reaches_back_to_the_episodes_start_and_no_further():
    policy = recurrent(VECTOR, 8, 5)
    params = policy.init(jax.random.key(0))
    observations, start = observed(VECTOR, 6, 1), policy.carry[None]
    starts = jnp.zeros((6, 1), bool).at[3].set(True)

    def outputs(changed):
        parameters, values = policy.evaluate(params, start, observations.at[changed].add(3.0), starts)
        return np.concatenate([parameters, values[..., None]], -1)[:, 0]

    for changed, affected in [(0, [0, 1, 2]), (2, [2]), (3, [3, 4, 5]), (4, [4, 5])]:
        difference = np.abs(outputs(changed) - outputs(slice(0, 0))).max(-1)
        assert np.flatnonzero(difference > 0).tolist() == affected


def test_a_linen_module_trains_in_the_loop():
    probe = matching()

    class Network(flax.linen.Module):
        width: int

        @flax.linen.compact
        def __call__(self, x):
            return flax.linen.Dense(self.width)(jnp.tanh(flax.linen.Dense(16)(x)))

    # The adapter
    nets, example = {"actor": Network(2), "critic": Network(1)}, jnp.zeros(2)
    policy = policy_from_apply(
        lambda key: {name: net.init(jax.random.fold_in(key, net.width), example) for name, net in nets.items()},
        lambda params, x: nets["actor"].apply(params["actor"], x),
        lambda params, x: nets["critic"].apply(params["critic"], x)[..., 0],
        categorical,
    )
    learning = Learning(epochs=1, minibatches=1)
    update = gradient_update(policy, a2c(), optax.adam(3e-2), learning)
    init, step = control_loop(probe.environment, policy, update, Collecting(16, 8, probe.discount))
    run = jax.jit(lambda key: jax.lax.scan(step, init(key), jax.random.split(key, 80)))
    state, metrics = run(jax.random.key(0))
    assert metrics["episode_return"][0] < 0.5 < 0.9 < metrics["episode_return"][-1]
    seen = jnp.asarray(probe.observations, jnp.float32)
    np.testing.assert_array_equal(jnp.argmax(policy.act(state.params, (), seen)[0], -1), probe.best_actions)
