"""Iterations of control as compiled chunks: a loop of one seed, and what became of it in numbers over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.control.program import ControlProgram
from rlax_llm.core.trees import all_finite
from rlax_llm.host.failures import NotFinite
from rlax_llm.host.spread import spread
from rlax_llm.loops.control import ControlState


class Bad(NamedTuple):
    """First iteration at which something was not finite, −1 where it always was; one for each seed.

    Attributes:
        parameters: the policy's or the optimizer's.
        rewards: of the environments.
        directions: of TRPO, which leaves the parameters as they are where it has none.
    """

    parameters: jax.Array
    rewards: jax.Array
    directions: jax.Array


def seed_keys(seed: int, seeds: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys ``[seeds]`` of the beginning, of the iterations and of the evaluation.

    Args:
        seed: draws them.
        seeds: their number.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(jax.random.split(jax.random.key(seed), seeds))
    return keys[:, 0], keys[:, 1], keys[:, 2]


def chunk(program: ControlProgram, most: int) -> Callable:
    """Up to ``most`` iterations of one seed as one function: ``(state, key, first, count) → (state, metrics, Bad)``.

    The number of iterations is an argument of the compiled program, so the last chunk needs no program of its own, and
    an iteration's key follows from its number, so the cut into chunks changes no number.

    Args:
        program: of one seed.
        most: the length of the metrics; those from ``count`` on are 0.
    """

    def advance(state: ControlState, key: jax.Array, first: jax.Array, count: jax.Array) -> tuple:
        shapes = jax.eval_shape(program.step, state, key)[1]
        metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)

        def one(index: jax.Array, now: tuple) -> tuple:
            state, metrics, bad = now
            state, found = program.step(state, jax.random.fold_in(key, first + index))
            metrics = jax.tree.map(lambda all_, x: all_.at[index].set(x), metrics, found)
            wrong = Bad(
                ~all_finite((state.params, state.update)),
                ~all_finite((state.discounted, state.runner.returns)),
                ~all_finite(found.get("cg_residual", 0.0)),
            )
            bad = jax.tree.map(lambda old, now: jnp.where((old < 0) & now, first + index, old), bad, wrong)
            return state, metrics, bad

        nothing = Bad(*[jnp.int32(-1)] * len(Bad._fields))
        return jax.lax.fori_loop(0, count, one, (state, metrics, nothing))

    return advance


def check_finite(bad: Bad) -> None:
    """Raise where a seed has left the finite numbers: naming the first to do so, and what.

    Args:
        bad: of a chunk, ``[S]`` each.

    Raises:
        NotFinite: one has.
    """
    found = [
        (int(iteration), int(seed), what)
        for what, iterations in (("reward", bad.rewards), ("parameter", bad.parameters), ("step", bad.directions))
        for seed, iteration in enumerate(np.asarray(iterations))
        if iteration >= 0
    ]
    if found:
        iteration, seed, what = min(found, key=lambda x: (x[0], x[2] != "reward", x[1]))
        advice = "look at the environment" if what == "reward" else "lower learning_rate or max_grad_norm"
        raise NotFinite(f"a {what} of seed {seed} is not finite after iteration {iteration + 1}; {advice}.")


def per_seed(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each seed's mean over the iterations of a chunk; of the episodes' numbers, over the episodes.

    Args:
        metrics: ``[S, C]`` each.

    Returns:
        ``[S]`` each; NaN where no episode ended.

    >>> found = per_seed({"episodes": np.array([[1, 3]]), "episode_return": np.array([[2.0, 6.0]])})
    >>> found["episode_return"].tolist(), found["episodes"].tolist()
    ([5.0], [4.0])
    """
    episodes = metrics["episodes"].astype(np.float64)
    total = episodes.sum(1)
    means = {name: values.astype(np.float64).mean(1) for name, values in metrics.items()}
    for name in ("episode_return", "episode_length"):
        if name in metrics:
            summed = np.where(episodes > 0, metrics[name] * episodes, 0.0).sum(1)
            means[name] = np.where(total > 0, summed / np.maximum(total, 1), np.nan)
    return means | {"episodes": total}


def spread_of(name: str, values: Any) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of a number over seeds, under names of their own.

    >>> spread_of("x", [1.0, 3.0])["x"], sorted(spread_of("x", [1.0, 3.0]))
    (2.0, ['x', 'x_interval', 'x_std'])
    """
    found = spread(values)
    return {name: found.mean, f"{name}_std": found.std, f"{name}_interval": list(found.interval)}
