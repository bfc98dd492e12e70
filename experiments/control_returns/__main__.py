"""What the recipes reach on the tasks that the field quotes returns for, at the settings of ``rlax-llm control``.

Each task is a run of that command, kept under ``--runs``: a finished one is read again instead of being repeated, an
interrupted one goes on. Peers' returns are those that ``benchmarks/control.py`` measured, at their own settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import COLORS, arguments, label, new_figure, plain, said, short, table, write
from rlax_llm.commands.control.program import ControlSettings
from rlax_llm.commands.control.run import run_control
from rlax_llm.host.run_directory import RunDirectory

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "control_returns.jsonl"


class Task(NamedTuple):
    """A line of the table; ``goal`` is the greedy return that the field quotes, None where it quotes none."""

    env: str
    recipe: str
    steps: int
    goal: float | None


class Settings(NamedTuple):
    """Seeds of every task, and the tasks."""

    seeds: int = 16
    tasks: tuple[Task, ...] = (
        Task("CartPole-v1", "ppo", 500_000, 475.0),
        Task("CartPole-v1", "ppo_penalty", 500_000, 475.0),
        Task("CartPole-v1", "trpo", 100_000, 475.0),
        Task("Acrobot-v1", "ppo", 500_000, -100.0),
        Task("Pendulum-v1", "ppo", 200_000, -250.0),
        Task("Pendulum-v1", "trpo", 100_000, -340.0),
        Task("MountainCarContinuous-v0", "ppo", 300_000, 90.0),
        Task("Breakout-MinAtar", "ppo", 10_000_000, None),
        Task("Asterix-MinAtar", "ppo", 10_000_000, None),
    )


def finished_run(task: Task, seeds: int, place: Path) -> RunDirectory:
    """The task's run: read, gone on with, or begun."""
    config = ControlSettings.of(env=task.env, recipe=task.recipe, seeds=seeds, steps=task.steps, out=str(place))
    if not is_finished(place):
        run_control(config.changed(resume=str(place)) if place.exists() else config)
    if not is_finished(place):
        sys.exit(f"{task.env}, {task.recipe} was interrupted; the same command goes on with it")
    return RunDirectory.reopen(place)


def is_finished(place: Path) -> bool:
    """Whether a run has reached its last step."""
    summary = place / "summary.json"
    return summary.exists() and bool(json.loads(summary.read_text(encoding="utf-8"))["finished"])


def measured(task: Task, directory: RunDirectory) -> dict[str, Any]:
    """A run's returns and learning curve."""
    summary = json.loads(directory.summary_path.read_text(encoding="utf-8"))
    rows = [row for row in directory.metrics() if row["episode_return"] is not None]
    numbers = {name: interval_of(summary, name) for name in ("final_return", "greedy_return")}
    curve = [[row["environment_steps"], short(row["episode_return"])] for row in rows]
    bands = [[short(x) for x in row["episode_return_interval"]] for row in rows]
    return task._asdict() | numbers | {"curve": curve, "bands": bands}


def interval_of(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Mean and 95 % interval of a summary's number."""
    low, high = summary[f"{name}_interval"]
    return {"mean": short(summary[name]), "low": short(low), "high": short(high)}


def peers(path: Path) -> dict[str, list[str]]:
    """By environment, what the benchmark's other sides reached: name, return in training, greedy return, runs."""
    found: dict[str, list[str]] = {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines() if path.exists() else ()):
        for name, value in line["return_mean"].items():
            if name == "ours" or value is None:
                continue
            greedy = line["greedy_mean"][name]
            runs = f"{line['seeds_run'][name]} × {line['steps_run'][name]:,} steps"
            reached = f"{value:,.0f}" + ("" if greedy is None else f", greedy {greedy:,.0f}")
            found.setdefault(line["environment"], []).append(f"{name} {reached} ({runs})".replace("-", "−"))
    return found


def draw(settings: Settings, tasks: Sequence[Mapping[str, Any]]) -> Any:
    """A learning curve for each task, with the quoted return."""
    columns = min(len(tasks), 3)
    title = f"Return of the training episodes, mean and 95 % interval over {settings.seeds} seeds"
    figure, panels = new_figure(title, columns, -(-len(tasks) // columns))
    for panel, task in zip(panels, tasks):
        steps, returns = zip(*task["curve"])
        panel.plot([step / 1000 for step in steps], returns, color=COLORS[0], linewidth=1.8)
        panel.fill_between([step / 1000 for step in steps], *zip(*task["bands"]), color=COLORS[0], alpha=0.18)
        if task["goal"] is not None:
            panel.axhline(task["goal"], color=COLORS[1], linewidth=1, linestyle="--")
        title = f"{task['env']}, {task['recipe']}"
        label(panel, title, "environment steps, thousands", "undiscounted return", legend=False)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    tasks, beside = numbers["tasks"], numbers["peers"]
    rows = [
        [
            *(x["env"], x["recipe"], f"{x['steps']:,}", said(x["final_return"], 1), said(x["greedy_return"], 1)),
            "" if x["goal"] is None else f"{x['goal']:,.0f}".replace("-", "−"),
        ]
        for x in tasks
    ]
    quoted = [x for x in tasks if x["goal"] is not None]
    missed = [f"{x['recipe']} on {x['env']}" for x in quoted if x["greedy_return"]["mean"] < x["goal"]]
    verdict = f"{len(quoted) - len(missed)} of {len(quoted)}" + (f"; not by {', '.join(missed)}" if missed else "")
    others = "\n\n".join(f"{env}: {'; '.join(lines)}." for env, lines in beside.items())
    head = ["task", "recipe", "steps", "return, last tenth of training", "greedy", "quoted"]
    return f"""# Returns on control tasks

![Learning curves of all tasks](figure.png)

The greedy policy at the end reaches the return that the field quotes in {verdict}.

{table(head, rows)}

Mean and 95 % interval over {numbers["settings"]["seeds"]} seeds; each line is `rlax-llm control --env TASK --recipe
NAME --seeds {numbers["settings"]["seeds"]}` at the settings that the command has for the task. Greedy returns are of 16
episodes a seed. `python -m experiments.control_returns`.

## Beside them

Peers at their own settings for the task, as the heads of `benchmarks/peers` say: return at the end of training, greedy
return, runs (`benchmarks/results/control_returns.jsonl`). rejax's for Pendulum update after every 10,000 steps and are
made for longer runs.

{others or "Not measured."}
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    settings = Settings(2, (Task("CartPole-v1", "ppo", 4096, 475.0),)) if options.quick else Settings()
    runs = options.out / "runs" if options.quick else Path("runs") / "control_returns"
    tasks = [
        measured(task, finished_run(task, settings.seeds, runs / f"{task.env}-{task.recipe}"))
        for task in settings.tasks
    ]
    numbers = {"settings": plain(settings), "tasks": tasks, "peers": peers(PEERS)}
    write(options.out, draw(settings, tasks), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
