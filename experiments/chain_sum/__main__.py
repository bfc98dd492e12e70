"""SmolLM2-135M-Instruct learns reasoning-gym's chain_sum by GRPO, DAPO and Dr.GRPO from one start.

The start is the instruct model after a few steps of SFT on worked answers: before, it answers in prose, and no group of
samples holds a right one. Every run is a command of ``rlax-llm``, kept under ``runs/chain_sum``: a finished one is read
again, an interrupted one goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.command_runs import lines, run, told
from experiments.common import COLORS, arguments, interval, label, new_figure, percent, plain, table, write

RECIPES = {"GRPO": "grpo", "DAPO": "dapo", "Dr.GRPO": "dr_grpo"}
CURVES = ("accuracy", "held_out_accuracy", "frac_reward_zero_std", "entropy")


class Settings(NamedTuple):
    """Counts, and the task.

    Attributes:
        task: as ``--task`` takes it.
        sft_steps: of the start.
        steps: of each recipe.
        batch_size: prompts per step.
        group_size: completions each.
        held_out: prompts.
        eval_every: steps.
        dynamic_rounds: of DAPO.
        samples: completions of each held-out prompt at temperature 1, beside the greedy one.
    """

    task: str = "reasoning-gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=2"
    sft_steps: int = 32
    steps: int = 48
    batch_size: int = 8
    group_size: int = 8
    held_out: int = 256
    eval_every: int = 24
    dynamic_rounds: int = 4
    samples: int = 4


def commands(settings: Settings, place: Path) -> dict[str, list[str]]:
    """The start, and each recipe from it."""
    shared = ["--task", settings.task, "--max-prompt-tokens", "64", "--max-new-tokens", "12", "--lora-rank", "16"]
    shared += ["--no-remat", "--eval-size", str(settings.held_out), "--save-every", "0"]
    start = ["sft", "--model", "smollm2", *shared, "--steps", str(settings.sft_steps), "--batch-size", "16"]
    start += ["--learning-rate", "1e-3", "--schedule", "linear", "--eval-every", "0"]
    sizes = ["--batch-size", str(settings.batch_size), "--group-size", str(settings.group_size)]
    rate = ["--learning-rate", "3e-4", "--steps", str(settings.steps), "--eval-every", str(settings.eval_every)]
    updates = ["--epochs", "1", "--minibatches", "2"]
    dapo = ["--dynamic-rounds", str(settings.dynamic_rounds), "--overlong-filter", "--overlong-buffer", "4"]
    runs = {"start": start}
    for recipe in RECIPES.values():
        begin = ["grpo", "--recipe", recipe, "--model", str(place / "start" / "model")]
        runs[recipe] = [*begin, *shared, *sizes, *rate, *updates, *(dapo if recipe == "dapo" else [])]
    return runs


def evaluations(settings: Settings, place: Path) -> dict[str, list[str]]:
    """Each model's samples on the held-out prompts."""
    shared = ["--task", settings.task, "--max-prompt-tokens", "64", "--max-new-tokens", "12", "--temperature", "1"]
    shared += ["--size", str(settings.held_out), "--samples", str(settings.samples)]
    return {name: ["eval", "--model", str(place / name / "model"), *shared] for name in ("start", *RECIPES.values())}


def held_out(path: Path, step: int) -> list[dict[str, Any]]:
    """The greedy completions of the held-out prompts at a step."""
    return [row for row in lines(path / "completions.jsonl") if row.get("held_out") and row["step"] == step]


def sampled(path: Path, settings: Settings) -> np.ndarray:
    """The share of its samples that is right, for each held-out prompt."""
    right = [row["reward"] > 0.99 for row in lines(path / "completions.jsonl")]
    return np.array(right, float).reshape(-1, settings.samples).mean(1)


def measured(path: Path, settings: Settings) -> dict[str, Any]:
    """Held-out accuracy before and after, prompt by prompt; curves; some completions."""
    before, after = (held_out(path, step) for step in (0, settings.steps))
    right = [np.array([row["reward"] > 0.99 for row in rows], float) for rows in (before, after)]
    metrics = lines(path / "metrics.jsonl")
    return {
        "before": interval(right[0]),
        "after": interval(right[1]),
        "gain": interval(right[1] - right[0]),
        "curves": {key: [[row["step"], row[key]] for row in metrics if row.get(key) is not None] for key in CURVES},
        "samples": [
            [x["prompt"][-1]["content"].split("\n")[0].split(": ")[-1], x["completion"], y["completion"], y["reward"]]
            for x, y in zip(before[:8], after[:8], strict=True)
        ],
        "rounds": interval([row["sampling/rounds"] for row in metrics if "sampling/rounds" in row]),
    }


def measure(settings: Settings, place: Path) -> dict[str, Any]:
    """Train what is not yet trained, and measure all."""
    place.mkdir(parents=True, exist_ok=True)
    runs = commands(settings, place)
    for name, command in runs.items():
        run(command, place / name)
    drawn = {}
    for name, command in evaluations(settings, place).items():
        run(command, place / f"{name}_sampled")
        drawn[name] = sampled(place / f"{name}_sampled", settings)
    return {
        "settings": plain(settings),
        "recipes": {name: measured(place / recipe, settings) for name, recipe in RECIPES.items()},
        "sampled": {
            name: {
                "before": interval(drawn["start"]),
                "after": interval(drawn[recipe]),
                "gain": interval(drawn[recipe] - drawn["start"]),
            }
            for name, recipe in RECIPES.items()
        },
        "commands": [told(command, place) for command in runs.values()],
    }


def smoothed(values: Sequence[float], window: int = 8) -> np.ndarray:
    """Means over the last ``window`` steps."""
    sums = np.cumsum([0.0, *values])
    first = np.maximum(np.arange(1, len(sums)) - window, 0)
    return (sums[1:] - sums[first]) / (np.arange(1, len(sums)) - first)


def draw(numbers: Mapping[str, Any]) -> Any:
    """Accuracy of the samples and on held-out prompts, wasted groups, entropy."""
    figure, panels = new_figure("SmolLM2-135M learns chain_sum", 4)
    heads = ("Samples, mean of 8 steps", "Held-out prompts, greedy", "Groups without a difference", "Entropy")
    for panel, key, head in zip(panels, CURVES, heads):
        for (name, one), color in zip(numbers["recipes"].items(), COLORS):
            steps, values = np.array(one["curves"][key], float).T
            panel.plot(steps, values if key == "held_out_accuracy" else smoothed(values), color=color, label=name)
        unit = "nats a token" if key == "entropy" else "share"
        label(panel, head, "steps", unit, legend=panel is panels[0])
    return figure


def samples(recipes: Mapping[str, Any]) -> str:
    """Answers to the same prompts before and after."""
    written = {name: one["samples"] for name, one in recipes.items()}
    rows = [
        [f"`{row[0]}`", *(f"`{text.strip()}`" for text in (row[1], *(rows[place][2] for rows in written.values())))]
        for place, row in enumerate(next(iter(written.values())))
    ]
    return table(["", "before", *written], rows)


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, recipes = numbers["settings"], numbers["recipes"]
    kinds = ("before", "after", "gain")
    rows = [
        [name, *(percent(numbers["sampled"][name][x]) for x in kinds), *(percent(one[x]) for x in kinds)]
        for name, one in recipes.items()
    ]
    risen = {
        how: [name for name in recipes if by[name]["gain"]["low"] > 0]
        for how, by in (("of its samples", numbers["sampled"]), ("greedily", recipes))
    }
    verdict = "; ".join(f"the share that is right {how} rises by {', '.join(x) or 'none'}" for how, x in risen.items())
    prompts = s["batch_size"]
    rounds = recipes["DAPO"]["rounds"]["mean"]
    return f"""# chain_sum with SmolLM2-135M-Instruct

![Accuracy of samples and on held-out prompts, wasted groups, entropy](figure.png)

From one start, on {s["held_out"]} held-out sums: {verdict}.

{table(["recipe", "samples before", "after", "gain, prompt by prompt", "greedy before", "after", "gain"], rows)}

`{s["task"]}`; {s["steps"]} steps of {prompts} prompts with {s["group_size"]} completions each, two optimizer steps
on each batch, adapters of rank 16, temperature 1, on two processor cores. DAPO is all of it: the higher upper clip, the
token mean, dynamic sampling ({rounds:.1f} rounds a step on average, {s["dynamic_rounds"]} at most), soft overlong
punishment and overlong filtering; it had more completions for it. The answers are integers, which is what DAPO turns
its data into. The start is the instruct model after {s["sft_steps"]} steps of SFT on 16 answers each; asked without
that, it answers in prose. One seed each; the intervals are over prompts and say nothing of other seeds.
`python -m experiments.chain_sum` (with the extra `tasks`).

## Greedy answers on held-out prompts

{samples(recipes)}

## Commands

DATA is `runs/chain_sum`.

{chr(10).join(numbers["commands"])}
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    task = "reasoning-gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1"
    settings = Settings(task, 1, 1, 2, 2, 4, 1, 1, 2) if options.quick else Settings()
    place = options.out / "runs" if options.quick else Path("runs") / "chain_sum"
    numbers = measure(settings, place)
    write(options.out, draw(numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
