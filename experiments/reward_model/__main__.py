"""Reward models from preferences: how many pairs it takes to judge new ones, with the LM head replaced by a score.

A small decoder that imitates texts is the start; pairs of its own completions are judged by a Bradley-Terry judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import COLORS, arguments, interval, label, new_figure, percent, plain, said, table, write
from experiments.letters import (
    Language,
    drawn,
    judged_pairs,
    pair_accuracy,
    reference,
    reward_model,
    true_reward,
)
from rlax_llm.core.types import Completions
from rlax_llm.models import decoder

STARTS = ("reference", "scratch")
MEASURED = ("training pairs", "held-out pairs", "correlation with the true reward")


class Settings(NamedTuple):
    """``passes`` over each number of ``pairs``; ``held_out`` pairs are never trained on."""

    seeds: int = 16
    pairs: tuple[int, ...] = (256, 1024, 4096, 16384)
    held_out: int = 4096
    passes: int = 2
    language: Language = Language()


def judge_accuracy(pairs: Completions) -> jax.Array:
    """Share of pairs that the true reward orders as the judge did, ties by half: the most that a model can reach."""
    rewards = true_reward(pairs).reshape(-1, 2)
    return (rewards[:, 0] > rewards[:, 1]).mean() + 0.5 * (rewards[:, 0] == rewards[:, 1]).mean()


def learning(settings: Settings) -> Callable[[jax.Array], dict[str, Any]]:
    """``key → {"ceiling": …, start: [pairs, 3]}``, the columns being ``MEASURED``."""
    language = settings.language

    def run(key: jax.Array) -> dict[str, Any]:
        imitation, other, fresh, train, new, fit = jax.random.split(key, 6)
        base = reference(language, imitation)
        held_out = judged_pairs(language, base, fresh, settings.held_out)
        every = judged_pairs(language, base, train, max(settings.pairs))
        texts = drawn(language, base, language.prompts, new, 64)
        starts = jax.tree.map(lambda *x: jnp.stack(x), base, decoder.init_decoder(language.config, other))

        def one(start: Any, count: int) -> jax.Array:
            pairs = jax.tree.map(lambda x: x[: 2 * count], every)
            model = reward_model(language, start, pairs, fit, settings.passes * count // 32)
            scores = language.scores(64)(model, texts)
            accuracies = [pair_accuracy(language, model, rows) for rows in (pairs, held_out)]
            return jnp.stack([*accuracies, jnp.corrcoef(scores, true_reward(texts))[0, 1]])

        def each(start: Any) -> jax.Array:
            return jnp.stack([one(start, count) for count in settings.pairs])

        return dict(zip(STARTS, jax.lax.map(each, starts))) | {"ceiling": judge_accuracy(held_out)}

    return run


def measure(settings: Settings) -> dict[str, Any]:
    """The numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(learning(settings)))(keys))
    return {
        "settings": plain(settings),
        "ceiling": interval(found["ceiling"]),
        "starts": {
            name: [
                {what: interval(found[name][:, place, column]) for column, what in enumerate(MEASURED)}
                for place in range(len(settings.pairs))
            ]
            for name in STARTS
        },
    }


def draw(settings: Settings, numbers: Mapping[str, Any]) -> Any:
    """Accuracies, and correlations, over the number of pairs."""
    figure, panels = new_figure("Reward models of a small language", 2)
    for name, color in zip(STARTS, COLORS):
        curves = {what: [one[what] for one in numbers["starts"][name]] for what in MEASURED}
        for panel, what, style in ((0, MEASURED[1], "-"), (0, MEASURED[0], ":"), (1, MEASURED[2], "-")):
            curve = curves[what]
            text = f"from {name}" + (", its training pairs" if what == MEASURED[0] else "")
            panels[panel].plot(settings.pairs, [x["mean"] for x in curve], style, color=color, label=text)
            sides = ([x[side] for x in curve] for side in ("low", "high"))
            panels[panel].fill_between(settings.pairs, *sides, color=color, alpha=0.18, linewidth=0)
    panels[0].axhline(numbers["ceiling"]["mean"], color="black", linewidth=1, linestyle="--", label="the true reward")
    panels[0].set_ylim(0.48, 0.95)
    for panel in panels:
        panel.set_xscale("log", base=2)
    label(panels[0], "Held-out pairs ordered as the judge did", "pairs trained on", "share")
    label(panels[1], "Score and true reward of new texts", "pairs trained on", "correlation")
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, ceiling, starts = numbers["settings"], numbers["ceiling"], numbers["starts"]
    first, last = starts["reference"][0][MEASURED[1]], starts["reference"][-1][MEASURED[1]]
    verdict = "held" if first["low"] > 0.5 and last["low"] > first["high"] else "did not hold"
    rows = [
        [f"{count:,}", *(said(starts[name][place][what], 3) for name in STARTS for what in MEASURED[1:])]
        for place, count in enumerate(s["pairs"])
    ]
    head = ["pairs", *(f"from {name}: {what}" for name in STARTS for what in MEASURED[1:])]
    return f"""# Reward models

![Accuracy and correlation over the number of pairs](figure.png)

**The claim {verdict}.** A decoder whose LM head is replaced by a score, trained on pairs with the Bradley-Terry loss,
orders new pairs as the judge did: {percent(first)} of them after {s["pairs"][0]:,} pairs, {percent(last)} after
{s["pairs"][-1]:,}. The judge errs: the true reward itself orders {percent(ceiling)} as the judge did. What the decoder
has learned from texts is worth pairs: from scratch the same {s["pairs"][-1]:,} give
{percent(starts["scratch"][-1][MEASURED[1]])}.

{table(head, rows)}

Mean and 95 % interval over {s["seeds"]} seeds. Completions of {s["language"]["length"]} letters to prompts of two,
drawn from a {s["language"]["layers"]}-layer decoder, {s["language"]["hidden"]} wide, that imitates texts; a judge
prefers by σ({s["language"]["sharpness"]:g} · difference of rewards); {s["passes"]} passes over the pairs,
{s["held_out"]:,} held out. `python -m experiments.reward_model`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, layers=1, imitation_steps=4)
    settings = Settings(2, (64,), 32, 1, tiny) if options.quick else Settings()
    numbers = measure(settings)
    write(options.out, draw(settings, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
