"""Optimizers by name: steps transcribed in NumPy, what the learning rate and the decay mean to all, narrow moments."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.shared_settings import MOMENTS, OPTIMIZERS, OptimizerSettings

RATE, DECAY, B1, EPS = 0.1, 0.5, 0.9, 1e-8


def build(name, **others):
    settings = OptimizerSettings(optimizer=name, learning_rate=RATE, max_grad_norm=float("inf"), **others)
    return build_optimizer(settings, optax.constant_schedule(RATE))


def parameters():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "layers": jax.random.normal(keys[0], (2, 6, 4)),
        "embed": jax.random.normal(keys[1], (5, 4)),
        "norm": jax.random.normal(keys[2], (4,)),
    }


def walked(optimizer, gradients):
    params = parameters()
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def gradients(steps):
    return [{name: jnp.sin(7 * x + step) for name, x in parameters().items()} for step in range(steps)]


def adamw(rows, theta, stored=lambda x: x):
    """Loshchilov and Hutter 2019, algorithm 2, with moments that are stored after each step."""
    mu, nu = np.zeros_like(theta), np.zeros_like(theta)
    for step, g in enumerate(rows, start=1):
        mu, nu = B1 * mu + (1 - B1) * g, 0.99 * nu + 0.01 * g**2
        direction = mu / (1 - B1**step) / (np.sqrt(nu / (1 - 0.99**step)) + EPS)
        theta = theta - RATE * (direction + DECAY * theta)
        mu, nu = stored(mu), stored(nu)
    return theta


def lion(rows, theta):
    """Chen et al. 2023, algorithm 2."""
    mu = np.zeros_like(theta)
    for g in rows:
        theta = theta - RATE * (np.sign(B1 * mu + (1 - B1) * g) + DECAY * theta)
        mu = 0.99 * mu + 0.01 * g
    return theta


def sgd(rows, theta):
    for g in rows:
        theta = theta - RATE * (g + DECAY * theta)
    return theta


def adafactor(rows, theta):
    """Shazeer and Stern 2018, algorithm 4, of parameters too small to factor: updates clipped at a mean square of 1."""
    nu = np.zeros_like(theta)
    for step, g in enumerate(rows, start=1):
        rest = 1 - step**-0.8
        nu = rest * nu + (1 - rest) * (g**2 + 1e-30)
        direction = g / np.sqrt(nu)
        direction = direction / max(1, np.sqrt(np.mean(direction**2)))
        theta = theta - RATE * (direction + DECAY * theta)
    return theta


def muon(rows, theta):
    """Jordan 2024, of one matrix: Nesterov's momentum, five steps of Newton and Schulz, as long as Adam's step."""
    mu = np.zeros_like(theta)
    for step, g in enumerate(rows, start=1):
        mu = 0.95 * mu + 0.05 * g
        x = 0.95 * mu / (1 - 0.95 ** (step + 1)) + 0.05 * g / (1 - 0.95**step)
        x = x.T if x.shape[0] > x.shape[1] else x
        x = x / (np.linalg.norm(x) + EPS)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
        x = x if x.shape == theta.shape else x.T
        theta = theta - RATE * (0.2 * np.sqrt(max(theta.shape)) * x + DECAY * theta)
    return theta


def transcribed(step, name="norm"):
    rows = [np.asarray(g[name], np.float64) for g in gradients(3)]
    return step(rows, np.asarray(parameters()[name], np.float64))


@pytest.mark.parametrize(("name", "step"), [("adamw", adamw), ("lion", lion), ("sgd", sgd), ("adafactor", adafactor)])
def test_steps_are_those_of_the_papers(name, step):
    found = walked(build(name, weight_decay=DECAY), gradients(3))[0]
    for leaf in ("layers", "embed", "norm"):
        np.testing.assert_allclose(found[leaf], transcribed(step, leaf), rtol=2e-5, atol=2e-6)


def test_muon_takes_each_layer_by_itself_and_adamw_the_rest():
    found = walked(build("muon", weight_decay=DECAY), gradients(3))[0]
    rows = np.asarray([g["layers"] for g in gradients(3)], np.float64)
    layers = [muon(rows[:, i], np.asarray(parameters()["layers"][i], np.float64)) for i in range(2)]
    np.testing.assert_allclose(found["layers"], np.stack(layers), rtol=1e-4, atol=1e-5)
    for leaf in ("embed", "norm"):
        np.testing.assert_allclose(found[leaf], transcribed(adamw, leaf), rtol=2e-5, atol=2e-6)


def test_biases_of_experts_are_no_matrices_for_muon():
    leaves = {"q": jnp.ones((1, 2, 3)), "expert_up_bias": jnp.ones((1, 2, 3)), "q_bias": jnp.ones((1, 3))}
    given = {"layers": leaves}
    moved = build("muon", weight_decay=0.0)
    updates, _ = moved.update(given, moved.init(given), given)
    steps = {name: np.abs(leaf) for name, leaf in updates["layers"].items()}
    np.testing.assert_allclose(steps["expert_up_bias"], steps["q_bias"][0, 0], rtol=1e-5)  # Adam's first is of one size
    assert np.abs(steps["q"] / steps["q_bias"][0, 0] - 1).max() > 0.1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_gradient_only_the_decay_is_left(name):
    nothing = jax.tree.map(jnp.zeros_like, parameters())
    found = walked(build(name, weight_decay=DECAY), [nothing])[0]
    for leaf, before in parameters().items():
        np.testing.assert_allclose(found[leaf], (1 - RATE * DECAY) * before, rtol=1e-6)


def test_moments_are_rounded_after_each_step_and_computed_with_as_float32():
    found, _ = walked(build("adamw", weight_decay=DECAY, moments_dtype="bfloat16"), gradients(3))
    rounded = transcribed(lambda rows, theta: adamw(rows, theta, lambda x: x.astype(ml_dtypes.bfloat16).astype(float)))
    assert np.abs(rounded - transcribed(adamw)).max() > 1e-4
    np.testing.assert_allclose(found["norm"], rounded, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", MOMENTS)
def test_narrow_moments_take_half_the_bytes(name):
    def taken(dtype):
        state = build(name, moments_dtype=dtype).init(parameters())
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)

    assert 2 * taken("bfloat16") == taken("float32") > 0


@pytest.mark.parametrize("name", ["sgd", "adafactor", "own.py:mine"])
def test_narrow_moments_of_none_are_refused(name):
    with pytest.raises(ValueError, match=f"moments_dtype is bfloat16 with optimizer {name}, wanted one of adamw, lion"):
        OptimizerSettings(optimizer=name, learning_rate=RATE, moments_dtype="bfloat16")


@pytest.mark.parametrize(("name", "hint"), [("adam", "did you mean 'adamw'"), ("zzz", "there are adamw, adafactor")])
def test_an_unknown_name(name, hint):
    with pytest.raises(ValueError, match=f"optimizer '{name}' is unknown; {hint}"):
        build(name)


@pytest.mark.parametrize(("bound", "wanted"), [(0.0, (300, 400)), (float("inf"), (300, 400)), (1.0, (0.6, 0.8))])
def test_a_norm_of_0_or_infinity_is_no_bound(bound, wanted):
    settings = OptimizerSettings(optimizer="sgd", learning_rate=1.0, max_grad_norm=bound)
    made = build_optimizer(settings, lambda _: 1.0)
    grads = jnp.array([300.0, 400.0])
    updates, _ = made.update(grads, made.init(grads), grads)
    np.testing.assert_allclose(-np.asarray(updates), wanted, rtol=1e-6)
