"""What the recipes reach on the classic control tasks, at the settings that ``rlax-llm control`` has for them.

Goals are those that the field quotes for the tasks: CartPole-v1 475 by 500,000 steps, Acrobot-v1 −100, Pendulum-v1
−250. Peers' returns are read from the benchmark's results, where they were run at their own settings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import COLOURS, arguments, band, interval, label, new_figure, said, table, windowed, write
from rlax_llm.train.compiling import compiled_with_effort
from rlax_llm.train.control import evaluate_greedily
from rlax_llm.train.control_config import ControlConfig, build
from rlax_llm.train.seeds import cores_as_devices, on_devices, over_seeds, state_numbers

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "control.jsonl"
EPISODES, LIMIT_STEPS = 32, 1000


class Task(NamedTuple):
    """A line of the table; ``goal`` is the return that the field quotes, None where it quotes none."""

    env: str
    recipe: str
    steps: int
    goal: float | None


TASKS = (
    Task("CartPole-v1", "ppo", 500_000, 475.0),
    Task("CartPole-v1", "ppo-penalty", 500_000, 475.0),
    Task("CartPole-v1", "trpo", 100_000, 475.0),
    Task("Acrobot-v1", "ppo", 500_000, -100.0),
    Task("Pendulum-v1", "ppo", 200_000, -250.0),
    Task("Pendulum-v1", "trpo", 100_000, -340.0),
    Task("MountainCarContinuous-v0", "ppo", 300_000, 90.0),
)


def measure(task: Task, seeds: int, points: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Learning curves ``[S, points]`` and what came out."""
    program = build(ControlConfig(env=task.env, recipe=task.recipe, seeds=seeds, total_steps=task.steps))
    greedy = evaluate_greedily(
        program.environment, program.policy, program.collecting._replace(environments=EPISODES), LIMIT_STEPS
    )

    def run(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        init_key, run_key, greedy_key = jax.random.split(key, 3)
        keys = jax.random.split(run_key, program.iterations)
        state, metrics = jax.lax.scan(program.step, program.init(init_key), keys)
        return {name: metrics[name] for name in ("episodes", "episode_return")}, greedy(state, greedy_key)[0].mean()

    keys = on_devices(jax.random.split(jax.random.key(0), seeds), seeds)
    numbers = state_numbers(jax.eval_shape(program.init, keys[0]))
    compiled = compiled_with_effort(jax.jit(over_seeds(run, seeds, numbers)).lower(keys))
    begun = time.perf_counter()
    metrics, greedy_returns = jax.block_until_ready(compiled(keys))
    seconds = time.perf_counter() - begun
    curves = windowed(metrics, min(points, program.iterations))
    return curves, task._asdict() | {
        "return": interval(curves[:, -max(1, curves.shape[1] // 10) :].mean(1)),
        "greedy": interval(greedy_returns),
        "seconds": round(seconds, 1),
    }


def peers(path: Path, env: str) -> str:
    """``name return (greedy return, steps)`` of each side of the benchmark's widest line for the task."""
    if not path.exists():
        return ""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {}
    for line in sorted((x for x in lines if x["environment"] == env), key=lambda x: x["seeds"]):
        for name, value in line["return_mean"].items():
            if name != "ours" and value is not None:
                greedy = line["greedy_mean"][name]
                more = "" if greedy is None else f", greedy {greedy:,.0f}"
                found[name] = (
                    f"{name} {value:,.0f}{more} ({line['seeds_run'][name]} × {line['steps_run'][name]:,} steps)"
                )
    return "; ".join(found.values()).replace("-", "−")


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    rows = [
        [x["env"], x["recipe"], f"{x['steps']:,}", said(x["return"], 0), said(x["greedy"], 0), f"{x['goal']:,.0f}"]
        for x in numbers["tasks"]
    ]
    met = [f"{x['recipe']} on {x['env']}" for x in numbers["tasks"] if x["greedy"]["mean"] >= x["goal"]]
    missed = [f"{x['recipe']} on {x['env']}" for x in numbers["tasks"] if x["greedy"]["mean"] < x["goal"]]
    beside = "\n".join(f"- {env}: {text}" for env, text in numbers["peers"].items() if text)
    return f"""# Returns on classic control

![Learning curves of all tasks](figure.png)

By the greedy policy at the end, the quoted return is met by {len(met)} of {len(numbers["tasks"])}:
{", ".join(met) or "none"}. Missed: {", ".join(missed) or "none"}.

{table(["task", "recipe", "steps", "return, last tenth of training", "greedy", "quoted"], rows)}

Mean and 95 % interval over {numbers["seeds"]} seeds; settings are those of `rlax-llm control --env TASK --recipe NAME`.
`python -m experiments.control_returns`.

{"Peers, at their own settings (from the benchmark's results):" if beside else ""}

{beside}
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tasks = (Task("CartPole-v1", "ppo", 2048, 475.0),) if options.quick else TASKS
    seeds, points = (2, 2) if options.quick else (16, 40)
    cores_as_devices(seeds)
    found = [measure(task, seeds, points) for task in tasks]
    figure, panels = new_figure(
        "Returns over training, mean and 95 % interval", min(len(tasks), 4), -(-len(tasks) // 4)
    )
    for panel, task, (curves, _) in zip(panels, tasks, found):
        x = (np.arange(curves.shape[1]) + 0.5) * task.steps / curves.shape[1] / 1000
        band(panel, x, curves, task.recipe, COLOURS[0])
        panel.axhline(task.goal, color=COLOURS[1], linewidth=1, linestyle="--")
        label(panel, f"{task.env}, {task.recipe}", "environment steps, thousands", "undiscounted return", legend=False)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    numbers = {"seeds": seeds, "tasks": [x for _, x in found]}
    numbers["peers"] = {env: peers(PEERS, env) for env in dict.fromkeys(task.env for task in tasks)}
    write(options.out, figure, numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
