"""Learning from completions of a policy some updates old: without a correction, with a clip, and with weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
from experiments.staleness.words import Words, accuracy, log_probs, sampling
from rlax_llm.core.types import Metrics
from rlax_llm.loops.group import GroupLearning, group_loop
from rlax_llm.loops.language import delayed_sampling, language_loop
from rlax_llm.policy.corrections import truncated_importance
from rlax_llm.recipes import group as recipes

RIGHT, ESS, ENTROPY, CLIP = "accuracy", "sampler/ess", "entropy", "clip_fraction"
NONE, CLIPPED, WEIGHTED = "no correction", "clipped ratio", "truncated weights"
MARGIN = 0.05
"""Less accuracy than this is learning as on-policy does."""


class Settings(NamedTuple):
    """``delays`` in updates; ``groups`` of ``group_size`` completions a step, from which one update is made."""

    seeds: int = 16
    delays: tuple[int, ...] = (0, 1, 4, 16)
    steps: int = 320
    points: int = 32
    groups: int = 8
    group_size: int = 16
    learning_rate: float = 3e-2
    ceiling: float = 2.0
    task: Words = Words()


def bounds(settings: Settings) -> dict[str, tuple[float, float]]:
    """Least and largest weight of a token.

    Where both are 1 nothing is corrected: the learner's own log-probabilities are taken for the old ones, as if the
    batch were fresh.
    """
    return {NONE: (1.0, 1.0), WEIGHTED: (0.0, settings.ceiling)}


def run(settings: Settings, between: tuple[Any, Any] | None, delay: jax.Array, key: jax.Array) -> Metrics:
    """A run's metrics at ``points`` of its steps, means over those since the one before.

    ``between`` two bounds are the weights; None takes the log-probabilities of the policy that drew for the old ones,
    so that GRPO's clip is around that policy.
    """
    task, keys = settings.task, jax.random.split(key, 3)
    right = task.spellings(keys[0])
    fresh = sampling(task, right, settings.groups, settings.group_size)
    collector = delayed_sampling(fresh, delay, max(settings.delays))
    correction = None if between is None else truncated_importance(floor=between[0], ceiling=between[1])
    learning = GroupLearning(correction=correction)
    update = group_loop(partial(log_probs, task), recipes.grpo(0), optax.adam(settings.learning_rate), learning)
    init, step = language_loop(collector, update)
    exact = accuracy(task, right)

    def window(state: Any, keys: jax.Array) -> tuple[Any, Metrics]:
        state, metrics = jax.lax.scan(step, state, keys)
        told = {name: metrics[name].mean() for name in (ESS, ENTROPY, CLIP) if name in metrics}
        return state, told | {RIGHT: exact(state.learner.params)}

    of_points = jax.random.split(keys[2], (settings.points, settings.steps // settings.points))
    return jax.lax.scan(window, init(task.start(keys[1])), of_points)[1]


def measure(settings: Settings) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Curves ``[delays, seeds, points]`` by correction, and the numbers."""
    keys, delays = jax.random.split(jax.random.key(0), settings.seeds), jnp.asarray(settings.delays)

    def over_delays(between: tuple[Any, Any] | None) -> Metrics:
        over_seeds = jax.vmap(partial(run, settings, between), (None, 0))
        return jax.vmap(over_seeds, (0, None))(delays, keys)

    names, pairs = zip(*bounds(settings).items())
    weighed = jax.jit(jax.vmap(over_delays))(tuple(jnp.asarray(side) for side in zip(*pairs)))
    curves = {name: jax.tree.map(lambda x, i=i: np.asarray(x[i]), weighed) for i, name in enumerate(names)}
    curves[CLIPPED] = jax.tree.map(np.asarray, jax.jit(partial(over_delays, None))())
    curves = {name: curves[name] for name in (NONE, CLIPPED, WEIGHTED)}
    ends = {name: ending(metrics[RIGHT]) for name, metrics in curves.items()}
    whole = {name: metrics[RIGHT].mean(-1) for name, metrics in curves.items()}
    return curves, {
        "settings": plain(settings),
        "end": by_delay(settings, ends),
        "whole": by_delay(settings, whole),
        "against": {
            "end": by_delay(settings, {name: values - values[:1] for name, values in ends.items()}),
            "whole": by_delay(settings, {name: values - values[:1] for name, values in whole.items()}),
        },
        "entropy": by_delay(settings, {name: metrics[ENTROPY].mean(-1) for name, metrics in curves.items()}),
        "ess": by_delay(settings, {WEIGHTED: curves[WEIGHTED][ESS].mean(-1)}),
        "clip": by_delay(settings, {CLIPPED: curves[CLIPPED][CLIP].mean(-1)}),
    }


def ending(values: np.ndarray) -> np.ndarray:
    """The mean of the last quarter of the points."""
    return values[..., -max(values.shape[-1] // 4, 1) :].mean(-1)


def by_delay(settings: Settings, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Intervals over seeds of ``[delays, seeds]``, by correction and delay."""
    delays = [str(delay) for delay in settings.delays]
    return {name: {delay: interval(x) for delay, x in zip(delays, rows)} for name, rows in values.items()}


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """Accuracy over the steps, a panel for each correction."""
    figure, panels = new_figure("Learning from completions k updates old", len(curves))
    steps = (np.arange(settings.points) + 1) * settings.steps / settings.points
    for panel, (name, metrics) in zip(panels, curves.items()):
        for delay, values, color in zip(settings.delays, metrics[RIGHT], COLORS):
            band(panel, steps, values, f"k = {delay}", color)
        panel.set_ylim(0, 1)
        label(panel, name.capitalize(), "steps", "accuracy", legend=panel is panels[0])
    return figure


def fails_from(numbers: Mapping[str, Any], name: str) -> str | None:
    """The least delay from which on every one ends lower than on-policy, if any does."""
    against = numbers["against"]["end"][name]
    delays = [delay for delay in against if delay != "0"]
    lower = [against[delay]["high"] < 0 for delay in delays]
    return next((delay for place, delay in enumerate(delays) if all(lower[place:])), None)


def verdicts(numbers: Mapping[str, Any]) -> dict[str, bool]:
    """Whether the weights keep what age takes away, by paired differences to a delay of 0."""
    against = numbers["against"]
    late = [delay for delay in against["end"][WEIGHTED] if delay != "0"]

    def near(part: str) -> bool:
        return all(against[part][WEIGHTED][delay]["low"] > -MARGIN for delay in late)

    return {
        f"with truncated weights k = {', '.join(late)} end at most {MARGIN} lower than k = 0": near("end"),
        f"and are at most {MARGIN} lower over the whole run": near("whole"),
        f"without a correction k = {late[-1]} ends lower": fails_from(numbers, NONE) is not None,
    }


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, parts = numbers["settings"], verdicts(numbers)
    names, delays = list(numbers["end"]), [str(delay) for delay in s["delays"]]
    lost = {name: fails_from(numbers, name) for name in names}
    fails = "; ".join(f"{name}: {'no k' if k is None else f'from k = {k}'}" for name, k in lost.items())
    heads = ["", *(f"k = {delay}" for delay in delays)]

    def rows(measured: Mapping[str, Any], some: Sequence[str] = delays) -> list[list[str]]:
        return [[name, *(said(by[delay]) for delay in some)] for name, by in measured.items()]

    against = numbers["against"]
    return f"""# Learning from completions k updates old

![Accuracy over the steps for each k, without a correction, with a clipped ratio and with truncated weights](figure.png)

**The claim {verdict_of(parts.values())}**: {each(parts)}. Ending lower than on-policy: {fails}.

Every step draws from the policy that there was k updates before (`delayed_sampling`) and makes one update of it. *No
correction* takes the batch for a fresh one. The *clipped ratio* is that of the learner to the policy that drew, and
GRPO's clip is around the latter, as where no correction is asked for. *Truncated weights* multiply each token by
min(π/π_drew, {s["ceiling"]:g}) and leave the clip around the learner's own policy (the decoupled objective). For k = 0
all are one.

Accuracy, the mean of the last quarter of {s["steps"]} steps (exact, over all words):

{table(heads, rows(numbers["end"]))}

Less that of k = 0, by pairs of seeds:

{table(["", *heads[2:]], rows(against["end"], delays[1:]))}

The same of the mean over the whole run, which also says how fast it learns:

{table(["", *heads[2:]], rows(against["whole"], delays[1:]))}

Entropy, nats per letter, the mean over the whole run. What the clip leaves out of an old batch is what the policy has
moved most on already, so it moves more slowly, is certain later, and may end higher for it:

{table(heads, rows(numbers["entropy"]))}

What is left of the sample, (Σρ)² / (n Σρ²) over tokens, and the share of tokens that the clip leaves out:

{table(heads, rows({"effective share": numbers["ess"][WEIGHTED], "clipped": numbers["clip"][CLIPPED]}))}

{s["task"]["words"]} words of {s["task"]["length"]} letters out of {s["task"]["letters"]}, {s["groups"]} groups of
{s["group_size"]} a step, Adam at {s["learning_rate"]:g}; mean and 95 % interval over {s["seeds"]} seeds, each with a
language of its own, all seeds and delays one program. `python -m experiments.staleness`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    few = Settings(2, (0, 1), 4, 2, 2, 2, task=Words(3, 3, 2, 4))
    settings = few if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
