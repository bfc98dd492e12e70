"""The command ``control``: a program over seeds, run in compiled chunks, that leaves a run directory."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.control.program import ControlProgram, ControlSettings, build
from rlax_llm.commands.control.settings import ControlRunSettings
from rlax_llm.commands.settings import as_dict
from rlax_llm.core.trees import all_finite
from rlax_llm.envs.rendering import DRAWINGS, GRIDS, gif
from rlax_llm.host import checkpoints
from rlax_llm.host.closing import closing, done_all
from rlax_llm.host.compiling import compile_with_effort
from rlax_llm.host.control_curves import draw_control_curves
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.progress import Column, Progress, say
from rlax_llm.host.run_directory import RunDirectory, writing
from rlax_llm.host.session import versions
from rlax_llm.host.spread import spread
from rlax_llm.loops.control import ControlState, evaluate_greedily
from rlax_llm.loops.seeds import cores_as_devices, on_devices, over_seeds, state_numbers

COLUMNS = (Column("episode_return", "return", "{:.1f}"), Column("steps_per_second", "steps/s", "{:,.0f}"))
_FINAL_SHARE = 0.1
_SECONDS_BETWEEN_SAVES = 60.0


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


class Compiled(NamedTuple):
    """A program over seeds, ready to run.

    Attributes:
        advance: ``(state, first, count) → (state, metrics [S, C], Bad [S])``: iterations ``first … first + count − 1``.
        state: before the first of all.
        seconds: that tracing and compiling took.
    """

    advance: Callable[[ControlState, int, int], tuple[ControlState, dict[str, jax.Array], Bad]]
    state: ControlState
    seconds: float


def seed_keys(settings: ControlRunSettings) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys ``[seeds]`` of the beginning, of the iterations and of the evaluation.

    Args:
        settings: give the seed and their number.
    """
    seeds = jax.random.split(jax.random.key(settings.seed), settings.seeds)
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(seeds)
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


def compiled(program: ControlProgram, settings: ControlRunSettings, most: int) -> Compiled:
    """The program over the configuration's seeds.

    Args:
        program: of one seed.
        settings: give the seeds.
        most: iterations of a chunk.
    """
    start, seeds = time.perf_counter(), settings.seeds
    begin_keys, step_keys, _ = on_devices(seed_keys(settings), seeds)
    numbers = state_numbers(jax.eval_shape(program.init, begin_keys[0]))
    state = _compiled(over_seeds(program.init, seeds), begin_keys)(begin_keys)
    one = chunk(program, most)

    def advance(state: ControlState, keys: jax.Array, first: jax.Array, count: jax.Array) -> tuple:
        # First and count are the same for all seeds: mapped, each seed's loop would have a length of its own.
        return over_seeds(lambda state, key: one(state, key, first, count), seeds, numbers)(state, keys)

    run = _compiled(advance, state, step_keys, jnp.int32(0), jnp.int32(0), donate_argnums=0)
    seconds = time.perf_counter() - start
    return Compiled(
        lambda state, first, count: run(state, step_keys, jnp.int32(first), jnp.int32(count)), state, seconds
    )


def _compiled(function: Callable, *arguments: Any, **how: Any) -> Callable:
    return compile_with_effort(jax.jit(function, **how).lower(*arguments))


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


class ControlRun:
    """One process's part in a run; ``position`` counts the iterations that are done, over all processes."""

    def __init__(self, settings: ControlSettings):
        self.started = self.saved = time.perf_counter()
        self.settings, self.plan = settings, settings.run
        self.env, self.recipe = settings.environment.env, settings.objective.recipe
        cores_as_devices(self.plan.seeds)
        self.program = build(self.settings)
        if self.plan.render and self.env not in (*DRAWINGS, *GRIDS):
            raise ValueError(
                f"control: cannot render {self.env}; leave render out, or take one of {[*DRAWINGS, *GRIDS]}."
            )
        self.position, self.run_seconds, self.run_iterations = 0, 0.0, 0
        self.state: ControlState | None = None
        self.compile_seconds = 0.0
        self.greedy: dict[str, Any] = {}
        self.stopped: str | None = None
        if self.plan.resume is None:
            out = self.plan.out or f"runs/control-{time.strftime('%Y%m%d-%H%M%S')}"
            self.directory = RunDirectory.create(out, as_dict(self.settings))
            text = json.dumps(as_dict(self.settings), indent=2, ensure_ascii=False) + "\n"
            with writing(self.directory.path / "config.json"):
                (self.directory.path / "config.json").write_text(text, encoding="utf-8")
        else:
            self.directory = RunDirectory.reopen(self.plan.resume)
            self.directory.hold()
            self.position = checkpoints.latest(self.directory.checkpoints_path) or 0
            self.directory.truncate_to(self.position)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one seed."""
        return self.settings.environment.rollout_steps

    def train(self, stop: Callable[[], bool]) -> None:
        """Iterations from the position to the last, or until ``stop``."""
        iterations = self.program.iterations
        most = min(self.plan.log_every, iterations)
        title = f"{self.recipe} · {self.env}"
        with Progress(iterations, title, COLUMNS, first_step=self.position) as progress:
            ready = compiled(self.program, self.plan, most)
            self.compile_seconds, state = ready.seconds, ready.state
            if self.position:
                state = checkpoints.restore(self.directory.checkpoints_path, self.position, state)
            self.state = state
            while self.position < iterations and not stop():
                count = min(most, iterations - self.position)
                start = time.perf_counter()
                state, metrics, bad = jax.block_until_ready(ready.advance(state, self.position, count))
                seconds = time.perf_counter() - start
                self.state = state
                self._refuse_not_finite(jax.tree.map(np.asarray, bad))
                row = self._row({name: np.asarray(values)[:, :count] for name, values in metrics.items()})
                row["steps_per_second"] = count * self.steps_per_iteration * self.plan.seeds / seconds
                self.position, self.run_iterations = self.position + count, self.run_iterations + count
                self.run_seconds += seconds
                self.directory.log_metrics(self.position, row)
                progress.update(self.position, row)
                if self._save_is_due(self.position - count):
                    self._save()

    def _save_is_due(self, before: int) -> bool:
        """Whether a chunk, begun at iteration ``before``, ended where a checkpoint is due."""
        every = self.plan.save_every
        if every is None:
            return time.perf_counter() - self.saved >= _SECONDS_BETWEEN_SAVES
        return bool(every) and before // every != self.position // every

    def _row(self, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
        """A line of ``metrics.jsonl``."""
        done = self.position + next(iter(metrics.values())).shape[1]
        row: dict[str, Any] = {"environment_steps": done * self.steps_per_iteration}
        values = per_seed(metrics)
        for name, numbers in values.items():
            row |= spread_of(name, numbers)
        return row | {"episode_return_seeds": values["episode_return"]}

    def _refuse_not_finite(self, bad: Bad) -> None:
        """Raise where a seed has left the finite numbers: naming the first to do so, and what."""
        found = [
            (int(iteration), int(seed), what)
            for what, iterations in (("reward", bad.rewards), ("parameter", bad.parameters), ("step", bad.directions))
            for seed, iteration in enumerate(iterations)
            if iteration >= 0
        ]
        if found:
            iteration, seed, what = min(found, key=lambda x: (x[0], x[2] != "reward", x[1]))
            self.state = None
            self.stopped = f"a {what} of seed {seed} is not finite after iteration {iteration + 1}"
            advice = "look at the environment" if what == "reward" else "lower learning_rate or max_grad_norm"
            raise RunFailed(f"control: {self.stopped}; {advice}. What was written is in {self.directory.path}.")

    def evaluate(self) -> None:
        """Greedy episodes by the trained policies, and a picture of one where that is asked for."""
        if self.state is None or not self.plan.eval_steps:
            return
        collecting = self.program.collecting._replace(environments=self.plan.eval_episodes)
        evaluate = evaluate_greedily(self.program.environment, self.program.policy, collecting, self.plan.eval_steps)
        keys = on_devices(seed_keys(self.plan)[2], self.plan.seeds)
        mapped = over_seeds(lambda state, key: evaluate(state, key)[0], self.plan.seeds)
        returns = np.asarray(_compiled(mapped, self.state, keys)(self.state, keys))
        means = returns.mean(1)
        self.greedy = spread_of("greedy_return", means) | {"greedy_return_seeds": means}
        if self.plan.render:
            best = int(means.argmax())
            state = jax.tree.map(lambda x: x[best], self.state)
            states = _compiled(evaluate, state, keys[best])(state, keys[best])[1]
            states = jax.tree.map(lambda x: np.asarray(x)[:, 0], states)
            gif(self.env, _until_still(states), self.directory.path / "episode.gif")

    def finish(self, failed: str | None) -> None:
        """Write checkpoint, figure and summary.

        Args:
            failed: what an error says that has ended the run, or None.
        """
        self.stopped = self.stopped or failed
        done_all(self._save, self._draw, lambda: self.directory.write_summary(self.summary()))

    def _save(self) -> None:
        # An error inside a chunk leaves nothing of the donated state.
        alive = self.state is not None and not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
        if alive and self.position and checkpoints.latest(self.directory.checkpoints_path) != self.position:
            checkpoints.save(self.directory.checkpoints_path, self.position, self.state)
            self.saved = time.perf_counter()

    def _draw(self) -> None:
        title = f"control · {self.recipe} · {self.env} · {self.plan.seeds} seeds"
        draw_control_curves(self.directory.curves_path, self.directory.metrics(), title)

    def summary(self) -> dict[str, Any]:
        """What came out."""
        steps = self.position * self.steps_per_iteration
        summary: dict[str, Any] = {"command": "control", "env": self.env, "recipe": self.recipe}
        summary |= {"seeds": self.plan.seeds, "iterations": self.position, "environment_steps": steps}
        summary |= {"finished": self.position >= self.program.iterations and self.stopped is None}
        summary |= {"stopped": self.stopped}
        rows = [row for row in self.directory.metrics() if row["environment_steps"] > (1 - _FINAL_SHARE) * steps]
        seeds = [[math.nan if x is None else x for x in row["episode_return_seeds"]] for row in rows]
        if seeds:
            final = _mean_of_known(np.array(seeds))
            summary |= spread_of("final_return", final) | {"final_return_seeds": final}
        summary |= self.greedy
        if self.run_seconds:
            rate = self.run_iterations * self.steps_per_iteration * self.plan.seeds / self.run_seconds
            summary["steps_per_second"] = round(rate, 1)
        devices = jax.devices()
        summary |= {
            "compile_seconds": round(self.compile_seconds, 2),
            "devices": f"{len(devices)} {devices[0].platform}",
        }
        return summary | {"wall_seconds": round(time.perf_counter() - self.started, 1), "versions": versions()}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _until_still(states: Any) -> Any:
    """An episode's states without the repetitions of the last."""
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(states)]
    moves = np.any([(leaf[1:] != leaf[:-1]).any(1) for leaf in leaves], axis=0)
    last = int(np.flatnonzero(moves).max(initial=-1)) + 1
    return jax.tree.map(lambda x: x[: last + 1], states)


def run_control(settings: ControlSettings) -> RunDirectory:
    """Train over seeds in one program, evaluate greedily, and leave a run directory.

    A signal ends the run after its chunk; an error ends it too. What was done so far is written in either case.

    Args:
        settings: of the command.

    Returns:
        The run directory.

    Raises:
        ImportError: where the environment's package is missing.
        ValueError: for settings that cannot work, and a run that leaves the finite numbers.
    """
    run = ControlRun(settings)
    with closing(run.directory, settings.run.resume is None, run.finish) as stop:
        run.train(stop)
        if not stop():
            run.evaluate()
    say(_farewell(run))
    return run.directory


def _farewell(run: ControlRun) -> str:
    """What a person wants to know at the end of a run."""
    summary, told = run.summary(), []
    for key, name in (("final_return", "return of the last episodes"), ("greedy_return", "greedy return")):
        if key in summary:
            low, high = summary[f"{key}_interval"]
            told += [f"{name} {summary[key]:.1f}" + ("" if math.isnan(low) else f" (95 % {low:.1f} to {high:.1f})")]
    told += [f"{run.position} iterations of {run.plan.seeds} seeds in {summary['wall_seconds']:.0f} s"]
    lines = [", ".join(told), f"written to {run.directory.path}"]
    if not summary["finished"]:
        lines += [f"Go on with: rlax-llm control --resume {run.directory.path}"]
    return "\n".join(lines)
