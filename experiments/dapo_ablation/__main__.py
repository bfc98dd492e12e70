"""DAPO's parts, one at a time on top of GRPO, and all of them together."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.answers import Language, Training, Wrapper, base, right, trained
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
from rlax_llm.core.types import Completions
from rlax_llm.credit.shaping import overlong_filter, soft_overlong_punishment
from rlax_llm.loops.group import GroupLearning, every_completion
from rlax_llm.loops.language import Collector, dynamic_sampling
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.trust_regions import clip
from rlax_llm.policy.weightings import token_mean
from rlax_llm.recipes import group as recipes

ACCURACY, ENTROPY, WASTED = "policy/accuracy", "policy/entropy", "frac_reward_zero_std"
CUT, LENGTH, ROUNDS = "policy/truncated", "policy/length_wrong", "sampling/rounds"
KEYS = (ACCURACY, ENTROPY, WASTED, CUT, LENGTH, ROUNDS)
HEADS = ("accuracy", "entropy", "wasted groups", "truncated", "length of wrong answers", "rounds of sampling")


class Settings(NamedTuple):
    """``most_rounds`` of dynamic sampling; ``buffer`` tokens of soft punishment."""

    seeds: int = 16
    epochs: int = 4
    minibatches: int = 2
    most_rounds: int = 6
    buffer: int = 6
    language: Language = Language()
    training: Training = Training()


class Variant(NamedTuple):
    """What a run differs in."""

    objective: Objective = recipes.grpo(0)
    wrap: Wrapper = lambda inner: inner
    reward: Callable[..., jax.Array] = right
    teaching: Callable[..., jax.Array] = every_completion


def punished(settings: Settings, completions: Completions, columns: dict[str, jax.Array]) -> jax.Array:
    """Right or wrong, less what the last tokens before the limit cost."""
    lengths = completions.mask.sum(-1)
    cost = soft_overlong_punishment(lengths, settings.language.longest, settings.buffer)
    return right(completions, columns) + cost


def variants(settings: Settings) -> dict[str, Variant]:
    """GRPO, each part alone on top of it, and DAPO."""
    grpo, higher = recipes.grpo(0), clip(0.2, 0.28)
    resample: Callable[[Collector], Collector] = partial(dynamic_sampling, most_rounds=settings.most_rounds)
    reward = partial(punished, settings)
    return {
        "GRPO": Variant(),
        "clip-higher": Variant(grpo._replace(trust_region=higher)),
        "dynamic sampling": Variant(wrap=resample),
        "token mean": Variant(grpo._replace(weighting=token_mean)),
        "overlong punishment": Variant(reward=reward),
        "overlong filter": Variant(teaching=overlong_filter),
        "DAPO, all parts": Variant(recipes.dapo(), resample, reward),
    }


def measure(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves by variant, and the numbers."""
    language, keys = settings.language, jax.random.split(jax.random.key(0), (2, settings.seeds))
    starts = jax.jit(jax.vmap(lambda key: base(language, key)))(keys[0])
    curves = {}
    for name, variant in variants(settings).items():
        learning = GroupLearning(settings.epochs, settings.minibatches, teaching=variant.teaching)
        run = trained(language, settings.training, variant.objective, learning, variant.wrap, variant.reward)
        curves[name] = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys[1], starts)[1])
        curves[name].setdefault(ROUNDS, np.ones_like(curves[name][ACCURACY]))
    ends = {name: {key: ending(metrics[key]) for key in KEYS} for name, metrics in curves.items()}
    first = ends["GRPO"]
    return curves, {
        "settings": plain(settings),
        "ends": {name: {key: interval(values) for key, values in by.items()} for name, by in ends.items()},
        "against": {
            name: {key: interval(values - first[key]) for key, values in by.items()}
            for name, by in ends.items()
            if name != "GRPO"
        },
        "start": {key: interval(curves["GRPO"][key][:, 0]) for key in KEYS},
    }


def ending(values: np.ndarray) -> np.ndarray:
    """The mean of the last quarter of the points, one a seed."""
    return np.nanmean(values[:, -max(values.shape[1] // 4, 1) :], 1)


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """Accuracy, entropy, wasted groups and truncated completions over the steps."""
    figure, panels = new_figure("DAPO's parts on top of GRPO", 4)
    steps = (np.arange(settings.training.points) + 1) * settings.training.steps / settings.training.points
    units = ("share", "nats a token", "share", "share")
    for panel, key, head, unit in zip(panels, KEYS, HEADS, units):
        for (name, metrics), color in zip(curves.items(), (*COLORS, "black", "tab:olive")):
            band(panel, steps, metrics[key], name, color)
        label(panel, head.capitalize(), "steps", unit, legend=panel is panels[0])
    return figure


def verdicts(numbers: Mapping[str, Any]) -> dict[str, bool]:
    """Whether each part does what it is for, by the paired difference to GRPO."""
    against = numbers["against"]
    return {
        "clip-higher keeps entropy": against["clip-higher"][ENTROPY]["low"] > 0,
        "dynamic sampling wastes fewer groups": against["dynamic sampling"][WASTED]["high"] < 0,
        "the token mean shortens wrong answers": against["token mean"][LENGTH]["high"] < 0,
        "the punishment cuts truncation": against["overlong punishment"][CUT]["high"] < 0,
        "all together are more accurate": against["DAPO, all parts"][ACCURACY]["low"] > 0,
    }


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, parts = numbers["settings"], verdicts(numbers)
    rows = [[name, *(said(by[key]) for key in KEYS)] for name, by in numbers["ends"].items()]
    paired = [[name, *(said(by[key]) for key in KEYS)] for name, by in numbers["against"].items()]
    start = ", ".join(f"{head} {said(numbers['start'][key])}" for head, key in zip(HEADS[:4], KEYS))
    return f"""# DAPO's parts, one at a time

![Accuracy, entropy, wasted groups and truncated completions over the steps](figure.png)

**The claim {verdict_of(parts.values())}** (paired differences to GRPO, whose interval must lie on the right side of 0):
{each(parts)}.

Fresh completions of all prompts, whatever was picked to learn from; the last quarter of {s["training"]["steps"]}
steps; at first {start}. Wasted groups are those without a difference in
score among what was learned from: with dynamic sampling, places that stayed empty. In DAPO the punishment of length
counts as a difference.

{table(["", *HEADS], rows)}

Less GRPO, by pairs of seeds:

{table(["", *HEADS], paired)}

{s["training"]["groups"]} groups of {s["training"]["group_size"]} a step, {s["epochs"]} epochs of {s["minibatches"]}
minibatches, at most {s["most_rounds"]} rounds of dynamic sampling, a buffer of {s["buffer"]} of
{s["language"]["longest"]} tokens; mean and 95 % interval over {s["seeds"]} seeds, each variant one program.
`python -m experiments.dapo_ablation`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    few, short = Language(imitation_steps=20), Training(4, 4, 4, points=2)
    settings = Settings(2, 2, 1, 2, 6, few, short) if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
