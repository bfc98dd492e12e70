"""BEMA by loops, and where it is the weights themselves or their plain average."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlax_llm.loops.averages import Bema, averaged_params, averaging
from rlax_llm.loops.minibatches import optimizer_step

pytestmark = pytest.mark.usefixtures("float64")

START = {"w": np.array([0.5, -1.0]), "b": np.array(2.0)}


def run(bema: Bema, steps: int):
    """Weights and average after some steps of SGD, and the weights on the way."""
    random, optimizer = np.random.default_rng(0), averaging(optax.sgd(0.1), bema)
    params = {name: jnp.asarray(x) for name, x in START.items()}
    state, on_the_way = optimizer.init(params), []
    for _ in range(steps):
        gradient = {name: jnp.asarray(random.normal(size=x.shape)) for name, x in START.items()}
        params, state = optimizer_step(optimizer, gradient, params, state)
        on_the_way.append(params)
    return params, averaged_params(params, state, bema), on_the_way


def literal(bema: Bema, on_the_way) -> dict[str, np.ndarray]:
    """arXiv 2508.00180, algorithm 1."""
    found = {}
    for name, start in START.items():
        mean = start
        for t, params in enumerate(on_the_way, 1):
            beta = (bema.lag + t) ** -bema.ema_power
            mean = (1 - beta) * mean + beta * np.asarray(params[name])
        last = np.asarray(on_the_way[-1][name])
        found[name] = mean + (bema.lag + len(on_the_way)) ** -bema.bias_power * (last - start)
    return found


@pytest.mark.parametrize("bema", [Bema(), Bema(0.7, 0.4, 3.0)])
def test_it_is_the_papers(bema):
    _, average, on_the_way = run(bema, 6)
    chex.assert_trees_all_close(average, literal(bema, on_the_way), rtol=1e-6)


def test_training_is_not_changed_and_limits():
    plain, params, state = optax.sgd(0.1), START, optax.sgd(0.1).init(START)
    random = np.random.default_rng(0)
    for _ in range(4):
        gradient = {name: random.normal(size=x.shape) for name, x in START.items()}
        params, state = optimizer_step(plain, gradient, params, state)
    last, average, _ = run(Bema(ema_power=0.0, bias_power=60.0), 4)
    chex.assert_trees_all_close(last, params, rtol=1e-6)
    chex.assert_trees_all_close(average, last, rtol=1e-6)
    optimizer = averaging(plain, Bema())
    chex.assert_trees_all_close(averaged_params(START, optimizer.init(START)), START, rtol=1e-6)
    assert averaged_params(START, state) is START


@pytest.mark.parametrize(
    ("bema", "message"),
    [(Bema(ema_power=-1.0), "averaging: ema_power is -1"), (Bema(lag=0.5), "averaging: lag − 1 is")],
)
def test_bad_input_is_named(bema, message):
    with pytest.raises(ValueError, match=message):
        averaging(optax.sgd(1.0), bema)
