"""Group policy gradients' three biases: groups without a difference, the sequence mean's length, the std's difficulty.

And a fourth thing that wears out: the policy's entropy, under the clip and under one that is higher above than below.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.answers import PROMPT, Language, Training, base, lengths, right, trained
from experiments.common import (
    COLORS,
    arguments,
    band,
    bars,
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
from rlax_llm.core.trees import dot
from rlax_llm.core.types import Groups
from rlax_llm.credit.groups import centered, per_group, z_score
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import GroupLearning, group_advantages, group_loop
from rlax_llm.loops.language import fresh_sampling
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.policy.trust_regions import clip, unclipped
from rlax_llm.policy.weightings import fixed_length, sequence_mean, token_mean
from rlax_llm.recipes import group as recipes

GRPO = recipes.grpo(0)
CLIPS = {"clip 0.2": clip(0.2), "0.2 / 0.28": clip(0.2, 0.28), "0.2 / 0.6": clip(0.2, 0.6), "none": unclipped}


class Settings(NamedTuple):
    """``prompts`` groups make each gradient of the first part; ``learning`` is that of the second."""

    seeds: int = 16
    prompts: int = 1024
    group_size: int = 8
    epochs: int = 4
    minibatches: int = 2
    language: Language = Language()
    training: Training = Training()


def weightings(language: Language) -> dict[str, Any]:
    """The three, by name."""
    return {"sequence mean": sequence_mean, "token mean": token_mean, "constant": fixed_length(language.longest)}


def behind_the_answer(weighting: Any) -> Any:
    """The same weights, without those of the answer: what learns is the tokens that no score depends on."""
    return lambda mask: weighting(mask) * (jnp.arange(mask.shape[1]) > PROMPT)


def gradient(settings: Settings, params: Any, groups: Groups, weighting: Any) -> Any:
    """What a step of plain descent would add to the parameters, at a rate of 1, by the tokens behind the answer."""
    log_probs = group_log_probs(settings.language.config, (settings.group_size, PROMPT))
    init, step = group_loop(log_probs, GRPO._replace(weighting=behind_the_answer(weighting)), optax.sgd(1.0))
    moved = step(init(params), groups)[0].params
    return jax.tree.map(jnp.subtract, moved, params)


def pushes(settings: Settings, params: Any, groups: Groups) -> dict[str, Any]:
    """How fast each weighting's gradient changes the expected lengths, tokens per unit of step, right and wrong."""
    # The decoder has reverse derivatives alone.
    slopes = [jax.grad(lambda p, i=i: lengths(settings.language, p)[i])(params) for i in (0, 1)]
    found = {}
    for name, weighting in weightings(settings.language).items():
        step = gradient(settings, params, groups, weighting)
        both = [dot(slope, step) / optax.global_norm(step) for slope in slopes]
        # What moves right and wrong alike is mostly the sample's noise, and is no bias against wrong ones.
        found[name] = jnp.stack([both[0], both[1], both[1] - both[0]])
    return found


def pull(groups: Groups) -> dict[str, jax.Array]:
    """Mean size of an advantage, by how many of a group's completions are right."""
    solved = groups.scores.sum(-1).astype(int)
    sizes = {}
    for name, estimator in (("divided by the std", z_score), ("centered", centered)):
        credit = group_advantages(per_group(estimator), groups.completions, groups.scores)[:, 0]
        size = jnp.abs(credit).reshape(groups.scores.shape).mean(-1)
        count = groups.scores.shape[1] + 1
        total = jax.ops.segment_sum(size, solved, count)
        sizes[name] = total / jnp.maximum(jax.ops.segment_sum(jnp.ones_like(size), solved, count), 1)
    return sizes


def at_the_start(settings: Settings) -> Any:
    """``(key, base) →`` what one large batch of the base shows."""
    language = settings.language
    request = Request(Categorical(), (language.stop,), language.longest, settings.group_size)
    collector = fresh_sampling(language.config, language.prompts, right, request, settings.prompts)

    def run(key: jax.Array, start: Any) -> dict[str, Any]:
        groups = collector.collect((), start, key, 0)[1]
        same = jnp.repeat(groups.scores[:, :1], settings.group_size, 1)  # every group made uninformative
        nothing = optax.global_norm(gradient(settings, start, groups._replace(scores=same), sequence_mean))
        return {"push": pushes(settings, start, groups), "pull": pull(groups), "same": nothing}

    return run


def measure(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves of the training runs by clip, and the numbers."""
    language, keys = settings.language, jax.random.split(jax.random.key(0), (2, settings.seeds))
    starts = jax.jit(jax.vmap(lambda key: base(language, key)))(keys[0])
    first = jax.jit(lambda pair: jax.lax.map(lambda one: at_the_start(settings)(*one), pair))((keys[1], starts))
    learning = GroupLearning(settings.epochs, settings.minibatches)
    curves = {}
    for name, region in CLIPS.items():
        run = trained(language, settings.training, GRPO._replace(trust_region=region), learning)
        curves[name] = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys[1], starts)[1])
    # GRPO's own weighting is the sequence mean, and its run is there already.
    grown = {"sequence mean": curves["clip 0.2"]}
    for name, weighting in list(weightings(language).items())[1:]:
        run = trained(language, settings.training, GRPO._replace(weighting=weighting), learning)
        grown[name] = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(keys[1], starts)[1])
    wrong = {name: _part(x, "length_wrong", -1) - _part(x, "length_wrong", 0) for name, x in grown.items()}
    push = {name: np.asarray(values) for name, values in first["push"].items()}
    numbers = {
        "settings": plain(settings),
        "same": float(np.max(first["same"])),
        "push_right": {name: interval(values[:, 0]) for name, values in push.items()},
        "push_wrong": {name: interval(values[:, 1]) for name, values in push.items()},
        "push_apart": {name: interval(values[:, 2]) for name, values in push.items()},
        "growth": {name: interval(values) for name, values in wrong.items()},
        "growth_less": {
            name: interval(wrong["sequence mean"] - values) for name, values in wrong.items() if name != "sequence mean"
        },
        "pull": {name: [interval(column) for column in np.asarray(x).T] for name, x in first["pull"].items()},
        "wasted": {part: interval(_part(curves["clip 0.2"], "frac_reward_zero_std", part)) for part in (0, -1)},
        "ends": {
            key: {name: interval(_part(metrics, key, -1)) for name, metrics in curves.items()}
            for key in ("entropy", "accuracy_hard", "clip_fraction_high")
        },
        "entropy_gain": {
            name: interval(_part(curves[name], "entropy", -1) - _part(curves["clip 0.2"], "entropy", -1))
            for name in CLIPS
            if name != "clip 0.2"
        },
        "entropy_start": interval(_part(curves["clip 0.2"], "entropy", 0)),
    }
    return curves, numbers


def _part(metrics: Mapping[str, np.ndarray], key: str, place: int) -> np.ndarray:
    """A metric in the first or the last sixth of the points, one value a seed."""
    points = metrics[key].shape[1] // 6 or 1
    part = metrics[key][:, :points] if place == 0 else metrics[key][:, -points:]
    return np.nanmean(part, 1)


def draw(settings: Settings, curves: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """Wasted groups, the push on length, the pull of a group, entropy."""
    figure, panels = new_figure("What group policy gradients do besides learning", 4)
    steps = (np.arange(settings.training.points) + 1) * settings.training.steps / settings.training.points
    band(panels[0], steps, curves["clip 0.2"]["frac_reward_zero_std"], None, COLORS[0])
    label(panels[0], "Groups without a difference in score", "steps", "share", legend=False)
    names = list(numbers["push_apart"])
    bars(panels[1], names, [numbers["push_apart"][name] for name in names], COLORS)
    panels[1].axhline(0, color="black", linewidth=0.8)
    label(panels[1], "First push on length: wrong less right", "", "tokens per unit of step", legend=False)
    for (name, sizes), color in zip(numbers["pull"].items(), COLORS):
        values = [one["mean"] / max(x["mean"] for x in sizes) for one in sizes]
        panels[2].plot(np.arange(len(values)) / (len(values) - 1), values, "o-", color=color, label=name)
    label(panels[2], "Size of a group's advantages", "share of the group that is right", "of the largest")
    for (name, metrics), color in zip(curves.items(), COLORS):
        band(panels[3], steps, metrics["entropy"], name, color)
    label(panels[3], "Entropy, by the clip below / above", "steps", "nats a token")
    return figure


def verdicts(numbers: Mapping[str, Any]) -> dict[str, bool]:
    """What the field says of these algorithms, and whether the numbers bear it out."""
    apart, ends, gain = numbers["push_apart"], numbers["ends"], numbers["entropy_gain"]
    return {
        "groups whose scores are equal give no gradient": numbers["same"] == 0,
        "entropy falls": ends["entropy"]["clip 0.2"]["high"] < numbers["entropy_start"]["low"],
        "a higher upper clip keeps more of it": gain["0.2 / 0.28"]["low"] > 0,
        "the sequence mean pushes wrong answers to be longer than right ones": apart["sequence mean"]["low"] > 0,
        "in training wrong answers grow under it": numbers["growth"]["sequence mean"]["low"] > 0,
        "in training they grow more under it than under the token mean and a constant": all(
            x["low"] > 0 for x in numbers["growth_less"].values()
        ),
        "at the start the token mean and a constant push both alike": all(
            apart[name]["low"] <= 0 <= apart[name]["high"] for name in ("token mean", "constant")
        ),
    }


def pulls(numbers: Mapping[str, Any]) -> dict[str, float]:
    """How much larger the advantages of a group with one right completion are than those of a half right one."""
    half = numbers["settings"]["group_size"] // 2
    return {name: x[1]["mean"] / x[half]["mean"] for name, x in numbers["pull"].items()}


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, ends, wasted, ratio = numbers["settings"], numbers["ends"], numbers["wasted"], pulls(numbers)
    parts = verdicts(numbers)
    weights = ("push_apart", "push_wrong", "push_right", "growth")
    rows = [[name, *(said(numbers[kind][name], 3) for kind in weights)] for name in numbers["growth"]]
    kept = ("entropy", "accuracy_hard", "clip_fraction_high")
    clips = [[name, *(said(ends[key][name], 3) for key in kept)] for name in ends["entropy"]]
    return f"""# What group policy gradients do besides learning

![Share of wasted groups, push on length, size of advantages, entropy](figure.png)

**The claim {verdict_of(parts.values())}.** {each(parts)}.

**Groups without a difference.** With every score replaced by its group's first, the gradient's norm is
{numbers["same"]:g} for every seed. In training the share of such groups rises from {said(wasted["0"])} to
{said(wasted["-1"])} of {s["training"]["groups"]} a step.

**Length.** What a step along each objective's gradient, measured at the base on {s["prompts"]} groups of
{s["group_size"]}, does to the expected length of completions with a wrong and with a right answer (exact, and to first
order). Only the gradient of the tokens behind the answer is taken: no score depends on them, so in expectation they
have nothing to learn. Beside it, by how many tokens wrong answers grow in training, from its first to its last sixth.

{table(["weighting", "wrong less right, tokens per unit of step", "wrong", "right", "growth of wrong ones"], rows)}

**Difficulty.** The advantages of a group of {s["group_size"]} with one right completion are
{ratio["divided by the std"]:.2f} times as large as those of a group of which half is right where they are divided by
the std, and {ratio["centered"]:.2f} times where they are centered alone: the std lifts the prompts that are nearly
always or nearly never solved.

**Entropy.** Training with {s["epochs"]} epochs of {s["minibatches"]} minibatches; entropy, accuracy on hard prompts
and the share of tokens held by the upper clip in the last sixth of {s["training"]["steps"]} steps. At first the entropy
is {said(numbers["entropy_start"], 3)}.

{table(["clip", "entropy, nats a token", "accuracy, hard", "upper clip"], clips)}

Mean and 95 % interval over {s["seeds"]} seeds, each with a base of its own. `python -m experiments.group_biases`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    few, short = Language(imitation_steps=20), Training(4, 4, 4, points=2)
    settings = Settings(2, 32, 4, 2, 1, few, short) if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
