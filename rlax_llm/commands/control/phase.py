"""Training in an environment as a phase: a step is a compiled chunk of iterations of every seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.control.chunks import check_finite, chunk, per_seed, seed_keys, spread_of
from rlax_llm.commands.control.program import ControlProgram
from rlax_llm.commands.control.settings import ControlRunSettings
from rlax_llm.envs.rendering import gif
from rlax_llm.host.compiling import compile_with_effort
from rlax_llm.host.phase import Done, Evaluation, Phase
from rlax_llm.host.progress import Column
from rlax_llm.loops.control import ControlState, evaluate_greedily
from rlax_llm.loops.seeds import on_devices, over_seeds, state_numbers


class ControlPhase(Phase):
    """Iterations of a program over seeds.

    An iteration's key follows from its number, so the cut into chunks changes no number.

    Args:
        title: of the progress display.
        program: of one seed.
        run: how many seeds, and how often a look is taken.

    Attributes:
        seconds: that chunks took in this process.
        iterations: done in this process.
        compile_seconds: that tracing and compiling took in this process.
    """

    columns = (Column("episode_return", "return", "{:.1f}"), Column("steps_per_second", "steps/s", "{:,.0f}"))
    exports = False

    def __init__(self, title: str, program: ControlProgram, run: ControlRunSettings):
        self.title, self.program, self.run = title, program, run
        self.most = min(run.log_every, program.iterations)
        self.steps_per_iteration = program.collecting.environments * program.collecting.horizon_steps
        self.keys = on_devices(seed_keys(run.seed, run.seeds), run.seeds)
        self.seconds = self.compile_seconds = 0.0
        self.iterations = 0
        self._advance: Callable | None = None

    def init(self, params: Any) -> ControlState:
        """Every seed's state before the first iteration; the seeds draw their policies."""
        del params
        return self._compiled(over_seeds(self.program.init, self.run.seeds), self.keys[0])(self.keys[0])

    def _compiled(self, function: Callable, *arguments: Any, **how: Any) -> Callable:
        start = time.perf_counter()
        done = compile_with_effort(jax.jit(function, **how).lower(*arguments))
        self.compile_seconds += time.perf_counter() - start
        return done

    def _chunks(self, state: ControlState) -> Callable:
        """``(state, keys, first, count) → (state, metrics [S, C], Bad [S])``, iterations from ``first`` on."""
        seeds = self.run.seeds
        numbers = state_numbers(jax.eval_shape(self.program.init, self.keys[0][0]))
        one = chunk(self.program, self.most)

        def advance(state: ControlState, keys: jax.Array, first: jax.Array, count: jax.Array) -> tuple:
            # First and count are the same for all seeds: mapped, each seed's loop would have a length of its own.
            return over_seeds(lambda state, key: one(state, key, first, count), seeds, numbers)(state, keys)

        return self._compiled(advance, state, self.keys[1], jnp.int32(0), jnp.int32(0), donate_argnums=0)

    def step(self, state: ControlState, index: int) -> Done:
        """A chunk of iterations from ``index`` on."""
        if self._advance is None:
            self._advance = self._chunks(state)
        count = min(self.most, self.program.iterations - index)
        start = time.perf_counter()
        found = self._advance(state, self.keys[1], jnp.int32(index), jnp.int32(count))
        state, metrics, bad = jax.block_until_ready(found)
        seconds = time.perf_counter() - start
        check_finite(bad)
        self.seconds += seconds
        self.iterations += count
        row = self._row({name: np.asarray(values)[:, :count] for name, values in metrics.items()}, index + count)
        row["steps_per_second"] = count * self.steps_per_iteration * self.run.seeds / seconds
        return Done(state, row, steps=count)

    def _row(self, metrics: dict[str, np.ndarray], done: int) -> dict[str, Any]:
        """A line of ``metrics.jsonl``."""
        row: dict[str, Any] = {"environment_steps": done * self.steps_per_iteration}
        values = per_seed(metrics)
        for name, numbers in values.items():
            row |= spread_of(name, numbers)
        return row | {"episode_return_seeds": values["episode_return"]}

    def _greedy(self) -> Callable:
        collecting = self.program.collecting._replace(environments=self.run.eval_episodes)
        return evaluate_greedily(self.program.environment, self.program.policy, collecting, self.run.eval_steps)

    def evaluate(self, state: ControlState) -> Evaluation:
        """Returns of greedy episodes, means of each seed and their spread."""
        evaluate = self._greedy()
        mapped = over_seeds(lambda state, key: evaluate(state, key)[0], self.run.seeds)
        returns = np.asarray(self._compiled(mapped, state, self.keys[2])(state, self.keys[2]))
        means = returns.mean(1)
        return Evaluation(spread_of("greedy_return", means) | {"greedy_return_seeds": means})

    def render(self, state: ControlState, seed: int, env: str, path: Path) -> None:
        """Write a greedy episode of one seed as a picture.

        Args:
            state: of every seed.
            seed: its place.
            env: the environment's name.
            path: of the picture.
        """
        one = jax.tree.map(lambda x: x[seed], state)
        key = self.keys[2][seed]
        states = self._compiled(self._greedy(), one, key)(one, key)[1]
        gif(env, until_still(jax.tree.map(lambda x: np.asarray(x)[:, 0], states)), path)


def until_still(states: Any) -> Any:
    """An episode's states without the repetitions of the last."""
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(states)]
    moves = np.any([(leaf[1:] != leaf[:-1]).any(1) for leaf in leaves], axis=0)
    last = int(np.flatnonzero(moves).max(initial=-1)) + 1
    return jax.tree.map(lambda x: x[: last + 1], states)
