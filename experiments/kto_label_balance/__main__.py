"""KTO from labels alone, with as many desirable completions as undesirable ones, and with far fewer of either.

A small decoder is the reference; a judge calls its completions desirable or not. The number of labels stays, their
balance changes, and so do the weights of the two classes: both 1, or such that the classes count alike.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import (
    COLORS,
    arguments,
    bars,
    interval,
    label,
    new_figure,
    plain,
    said,
    table,
    verdict_of,
    write,
)
from experiments.letters import Language, drawn, exact, reference, repeated, some_prompts, true_reward
from rlax_llm.core.types import Completions, LabeledCompletions
from rlax_llm.loops.labels import label_loop
from rlax_llm.preference.unpaired import kto, mismatched_rows

WEIGHTS = ("alike", "as they come")


class Settings(NamedTuple):
    """``odds`` are desirable to undesirable labels; batches of ``batch_size`` have them too, on average.

    Attributes:
        seeds: independent references, labels and runs.
        labels: that each run learns from.
        passes: over the labels.
        batch_size: labels of a step.
        odds: one run each.
        beta: of KTO.
        learning_rate: falling to 0.
        language: prompts, completions, reference.
    """

    seeds: int = 16
    labels: int = 4096
    passes: int = 4
    batch_size: int = 64
    odds: tuple[tuple[int, int], ...] = ((16, 1), (4, 1), (1, 1), (1, 4), (1, 16))
    beta: float = 0.3
    learning_rate: float = 5e-4
    language: Language = Language()


def judged(language: Language, params: Any, key: jax.Array, wanted: jax.Array) -> Completions:
    """A completion of each label ``wanted [N]``: of many that the policy draws, one the judge labels so.

    The judge calls a completion desirable with probability σ(sharpness · reward).
    """
    which, draw, judge, pick = jax.random.split(key, 4)
    pool = drawn(language, params, some_prompts(language, which, 2 * len(wanted)), draw)
    desirable = jax.random.bernoulli(judge, jax.nn.sigmoid(language.sharpness * true_reward(pool)))
    picks = [jax.random.choice(pick, len(desirable), wanted.shape, p=1.0 * fits) for fits in (desirable, ~desirable)]
    chosen = jnp.where(wanted, *picks)
    return jax.tree.map(lambda x: x[chosen], pool)


def some_labels(rows: Completions, desirable: jax.Array, key: jax.Array, count: int) -> LabeledCompletions:
    """``count`` rows, each followed by its prompt with the next row's completion, and the labels."""
    chosen = jax.random.randint(key, (count,), 0, len(desirable))
    own = jax.tree.map(lambda x: x[chosen], rows)
    other = own.tokens[mismatched_rows(count)]
    mixed = own._replace(tokens=jnp.where(own.mask, other, own.tokens))
    both = jax.tree.map(lambda x, y: jnp.stack([x, y], 1).reshape(-1, *x.shape[1:]), own, mixed)
    return LabeledCompletions(both, desirable[chosen])


def training(settings: Settings) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """``key → [odds, weights, (reward, kl)]`` at the end of training, and the reference's reward."""
    language, steps = settings.language, settings.passes * settings.labels // settings.batch_size

    def run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        imitation, label_key, order = jax.random.split(key, 3)
        base = reference(language, imitation)

        def one(share: jax.Array, weights: jax.Array) -> jax.Array:
            wanted = jnp.arange(settings.labels) < share * settings.labels
            rows = judged(language, base, label_key, wanted)
            rate = optax.linear_schedule(settings.learning_rate, 0.0, steps)
            init, step = label_loop(
                language.log_probs(), kto(settings.beta), optax.adam(rate), 1, weights[0], weights[1]
            )

            def batch(key: jax.Array) -> LabeledCompletions:
                return some_labels(rows, wanted, key, settings.batch_size)

            state = repeated(step, init(base), order, steps, batch, reference=base)
            return jnp.stack(exact(language, state.params, base))

        shares = jnp.array([good / (good + bad) for good, bad in settings.odds])
        alike = jnp.stack([0.5 / shares, 0.5 / (1 - shares)], 1)
        both = jnp.tile(shares, 2), jnp.concatenate([alike, jnp.ones_like(alike)])
        found = jax.lax.map(lambda x: one(*x), both).reshape(2, len(shares), 2).swapaxes(0, 1)
        return found, exact(language, base, base).reward

    return run


def measure(settings: Settings) -> dict[str, Any]:
    """The numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    found, before = jax.tree.map(np.asarray, jax.jit(jax.vmap(training(settings)))(keys))
    lines = {
        weights: [
            {
                "odds": list(odds),
                "reward": interval(found[:, place, column, 0]),
                "kl": interval(found[:, place, column, 1]),
                "gain": interval(found[:, place, column, 0] - before),
            }
            for place, odds in enumerate(settings.odds)
        ]
        for column, weights in enumerate(WEIGHTS)
    }
    return {"settings": plain(settings), "before": interval(before), "weights": lines}


def draw(settings: Settings, numbers: Mapping[str, Any]) -> Any:
    """Reward and KL at each balance."""
    figure, panels = new_figure("KTO at several balances of labels", 2)
    names = [f"{good}:{bad}" for good, bad in settings.odds]
    for weights, color in zip(WEIGHTS, COLORS):
        lines = numbers["weights"][weights]
        for panel, quantity in zip(panels, ("reward", "kl")):
            bars(panel, names, [line[quantity] for line in lines], [color] * len(names))
            panel.plot([line[quantity]["mean"] for line in lines], color=color, linewidth=1, label=weights)
    panels[0].axhline(numbers["before"]["mean"], color="black", linewidth=1, linestyle=":", label="reference")
    label(panels[0], "True reward after training, classes weighted …", "desirable : undesirable", "true reward")
    label(panels[1], "KL to the reference", "desirable : undesirable", "nats a completion", legend=False)
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, before = numbers["settings"], numbers["before"]
    alike, given = (numbers["weights"][name] for name in WEIGHTS)
    verdict = verdict_of(line["gain"]["low"] > 0 for line in alike)
    rows = [
        [f"{one['odds'][0]}:{one['odds'][1]}", *(said(x[what]) for x in (one, other) for what in ("reward", "kl"))]
        for one, other in zip(alike, given)
    ]
    even = next(line for line in alike if line["odds"][0] == line["odds"][1])
    worst = min(alike, key=lambda line: line["reward"]["mean"])
    good, bad = given[-1]["odds"]
    head = ["desirable : undesirable", *(f"{w}: {what}" for w in WEIGHTS for what in ("reward", "KL"))]
    return f"""# KTO and the balance of its labels

![Reward and KL at each balance](figure.png)

**The claim {verdict}.** From {s["labels"]:,} labels, no pairs, the true reward rose from {said(before)} to
{said(even["reward"])} where both kinds are equally many. With classes weighted so that they count alike the worst
balance, {worst["odds"][0]}:{worst["odds"][1]}, still gained {said(worst["gain"])}. With weights of 1 the commoner kind
has its way: at {good}:{bad} the reward ended at {said(given[-1]["reward"])}, at a KL of {said(given[-1]["kl"])} nats.

{table(head, rows)}

Mean and 95 % interval over {s["seeds"]} seeds; KL in nats a completion. Labels are drawn with σ of
{s["language"]["sharpness"]:g} · reward; {s["passes"]} passes in batches of {s["batch_size"]}, β = {s["beta"]:g},
Adam at {s["learning_rate"]:g}, falling to 0. `python -m experiments.kto_label_balance`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, layers=1, imitation_steps=4)
    quick = Settings(2, 32, 1, 16, ((1, 1), (1, 3)), language=tiny)
    settings = quick if options.quick else Settings()
    numbers = measure(settings)
    write(options.out, draw(settings, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
