"""GRPO from completions that int8 weights, keys and values drew, beside those of the learner's own numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.answers import Language, Training, base, trained
from experiments.common import (
    COLORS,
    arguments,
    band,
    each,
    interval,
    label,
    new_figure,
    plain,
    said,
    table,
    verdict_of,
    write,
)
from rlax_llm.loops.group import GroupLearning
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.recipes import group as recipes

ACCURACY, ENTROPY, KL = "policy/accuracy", "policy/entropy", "sampler/kl_k3"
KEYS = (ACCURACY, ENTROPY, KL)
HEADS = ("accuracy", "entropy", "KL of sampler and learner")
EXACT, INT8, BFLOAT16 = "exact", "int8", "bfloat16"


class Settings(NamedTuple):
    """``ceiling`` of the weights that correct; ``margin`` of accuracy within which two samplers teach alike."""

    seeds: int = 16
    ceiling: float = 2.0
    margin: float = 0.05
    language: Language = Language()
    training: Training = Training()


def measure(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves by sampler, and the numbers: all from the same starts and keys."""
    language, keys = settings.language, jax.random.split(jax.random.key(0), (2, settings.seeds))
    starts = jax.jit(jax.vmap(lambda key: base(language, key)))(keys[0])
    learning = GroupLearning(correction=truncated_importance(ceiling=settings.ceiling))
    curves = {}
    for name in (EXACT, INT8, BFLOAT16):
        narrow = None if name == EXACT else name
        drawn = replace(language.config, sampler_dtype=narrow, cache_dtype=narrow)
        run = trained(language, settings.training, recipes.grpo(0), learning, drawn=drawn)
        curves[name] = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys[1], starts)[1])
    ends = {name: {key: ending(metrics[key]) for key in KEYS} for name, metrics in curves.items()}
    return curves, {
        "settings": plain(settings),
        "ends": {name: {key: interval(values) for key, values in by.items()} for name, by in ends.items()},
        "against": {
            name: {key: interval(values - ends[EXACT][key]) for key, values in by.items()}
            for name, by in ends.items()
            if name != EXACT
        },
        "start": interval(curves[EXACT][ACCURACY][:, 0]),
    }


def ending(values: np.ndarray) -> np.ndarray:
    """The mean of the last quarter of the points, one a seed."""
    return np.nanmean(values[:, -max(values.shape[1] // 4, 1) :], 1)


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """Accuracy, entropy and the distance of sampler and learner over the steps."""
    figure, panels = new_figure("A narrow sampler", 3)
    steps = (np.arange(settings.training.points) + 1) * settings.training.steps / settings.training.points
    for panel, key, head, unit in zip(panels, KEYS, HEADS, ("share", "nats a token", "nats a token"), strict=True):
        for (name, metrics), color in zip(curves.items(), COLORS, strict=False):
            band(panel, steps, metrics[key], name, color)
        label(panel, head[0].upper() + head[1:], "steps", unit, legend=panel is panels[0])
    return figure


def verdicts(numbers: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the interval of each paired difference lies within the margin."""
    margin = numbers["settings"]["margin"]
    found = {name: by[ACCURACY] for name, by in numbers["against"].items()}
    return {
        f"{name} teaches as the exact sampler": -margin < by["low"] and by["high"] < margin
        for name, by in found.items()
    }


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, parts = numbers["settings"], verdicts(numbers)
    rows = [[name, *(said(by[key], 6 if key == KL else 2) for key in KEYS)] for name, by in numbers["ends"].items()]
    paired = [[name, *(said(by[key], 3) for key in KEYS[:2])] for name, by in numbers["against"].items()]
    return f"""# A narrow sampler

![Accuracy, entropy and the distance of sampler and learner over the steps](figure.png)

**The claim {verdict_of(parts.values())}** (the 95 % interval of the paired difference in accuracy lies within
{s["margin"]} on both sides): {each(parts)}.

Weights, keys and values of the sampler in the number format; the learner keeps float32, and weighs tokens by its ratio
to the sampler, at most {s["ceiling"]}. Fresh completions that the learner's own numbers draw; the last quarter of
{s["training"]["steps"]} steps; accuracy at the first point {said(numbers["start"])}.

{table(["", *HEADS], rows)}

Less the exact sampler, by pairs of seeds:

{table(["", *HEADS[:2]], paired)}

{s["training"]["groups"]} groups of {s["training"]["group_size"]} a step; mean and 95 % interval over {s["seeds"]}
seeds, each sampler one program. `python -m experiments.narrow_sampling`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    few, short = Language(imitation_steps=20), Training(4, 4, 4, points=2)
    settings = Settings(2, language=few, training=short) if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
