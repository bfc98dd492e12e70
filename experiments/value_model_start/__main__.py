"""What RLHF-PPO's value model starts as: the reward model, its body alone, the policy, or a decoder from scratch.

A reward model has learned to score whole completions; the states before a token were never its business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import COLORS, arguments, band, interval, label, new_figure, plain, said, table, write
from experiments.letters import (
    Language,
    PpoSettings,
    exact,
    judged_pairs,
    ppo_loop,
    ppo_step,
    reference,
    reward_model,
)
from rlax_llm.models import decoder
from rlax_llm.models.scalar import init_scalar

STARTS = ("reward model", "its body", "policy", "scratch")
MEASURED = ("value_loss", "explained_variance", "rlhf_reward")


class Settings(NamedTuple):
    """``measured_every`` steps of PPO the policy's reward is summed over all completions."""

    seeds: int = 16
    pairs: int = 16384
    beta: float = 0.8
    measured_every: int = 5
    ppo: PpoSettings = PpoSettings(steps=100)
    language: Language = Language()


def training(settings: Settings) -> Callable[[jax.Array], dict[str, Any]]:
    """``key → {start: {quantity: [points]}}``, each a mean over the steps up to the point."""
    language, points = settings.language, settings.ppo.steps // settings.measured_every

    def run(key: jax.Array) -> dict[str, Any]:
        imitation, judge, fit, scratch, order = jax.random.split(key, 5)
        base = reference(language, imitation)
        scorer = reward_model(
            language, base, judged_pairs(language, base, judge, settings.pairs), fit, settings.pairs // 16
        )
        nothing = jax.nn.initializers.zeros
        bodies = (scorer, base, decoder.init_decoder(language.config, scratch))
        starts = (scorer, *(init_scalar(body, key, nothing) for body in bodies))
        loop = ppo_loop(language, settings.ppo, settings.beta)
        step = ppo_step(language, settings.ppo, loop, scorer, base)

        def several(state: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            state, metrics = jax.lax.scan(step, state, keys)
            return state, {name: metrics[name].mean() for name in MEASURED}

        keys = jax.random.split(order, (points, settings.measured_every))

        def one(start: Any) -> dict[str, jax.Array]:
            state, curves = jax.lax.scan(several, loop[0]({"policy": base, "value": start}), keys)
            return curves | exact(language, state.params["policy"], base)._asdict()

        found = jax.lax.map(one, jax.tree.map(lambda *x: jnp.stack(x), *starts))
        return {name: jax.tree.map(lambda x, place=place: x[place], found) for place, name in enumerate(STARTS)}

    return run


def measure(settings: Settings) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Curves ``[S, points]`` by start, and the numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    curves = jax.tree.map(np.asarray, jax.jit(jax.vmap(training(settings)))(keys))
    points = settings.ppo.steps // settings.measured_every
    parts = {"first quarter": slice(0, points // 4), "last quarter": slice(points - points // 4, points)}
    quarters = {
        f"{quantity}, {part}": {name: curves[name][key][:, places].mean(-1) for name in STARTS}
        for part, places in parts.items()
        for key, quantity in zip(MEASURED, ("value loss", "explained variance", "penalized score"))
    }
    ends = {"true reward at the end": "reward", "KL at the end": "kl"}
    measured = quarters | {what: {name: curves[name][key] for name in STARTS} for what, key in ends.items()}
    numbers = {what: {name: interval(values) for name, values in by.items()} for what, by in measured.items()}
    ahead = {
        what: {
            first: {name: interval(by[first] - by[name]) for name in STARTS if name != first} for first in STARTS[:2]
        }
        for what, by in quarters.items()
    }
    return curves, {"settings": plain(settings), "measured": numbers, "ahead": ahead}


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """The three quantities over the steps."""
    figure, panels = new_figure("What the value model of RLHF-PPO starts as", 3)
    texts = (
        ("Loss of the value model", "squared score, halved"),
        ("Explained variance of the returns", "share"),
        ("Score less β · KL", "score"),
    )
    for panel, quantity, (title, unit) in zip(panels, MEASURED, texts):
        for name, color in zip(STARTS, COLORS):
            steps = (1 + np.arange(curves[name][quantity].shape[1])) * settings.measured_every
            band(panel, steps, curves[name][quantity], name, color)
        label(panel, title, "PPO steps", unit)
    panels[1].set_ylim(-0.5, 1.0)
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, measured, ahead = numbers["settings"], numbers["measured"], numbers["ahead"]

    others = STARTS[2:]

    def against(what: str, first: str, names: Sequence[str] = others) -> str:
        return ", ".join(f"{said(ahead[what][first][name])} against {name}" for name in names)

    early, late = (f"explained variance, {part} quarter" for part in ("first", "last"))
    wins = {
        first: all(ahead[what][first][name]["low"] > 0 for what in (early, late) for name in others)
        for first in STARTS[:2]
    }
    whole, body = STARTS[:2]
    verdict = "held" if wins[whole] else "held for the reward model's body" if wins[body] else "did not hold"
    rows = [[what, *(said(by[name]) for name in STARTS)] for what, by in measured.items()]
    return f"""# What the value model starts as

![Value loss, explained variance and reward over the steps](figure.png)

**The claim {verdict}.** Begun as the whole reward model, the value model's share of explained variance differed by
{against(early, whole)} over the first quarter of training, and by {against(late, whole)} over the last. What a reward
model says of half a completion was never trained. Begun as its body, with a score of 0 in the place of its own, the
differences were {against(early, body)} over the first quarter, and {against(late, body)} over the last. The policy's
penalized score over the first quarter differed by {against("penalized score, first quarter", whole)} for the whole
reward model, by {against("penalized score, first quarter", body)} for its body.

{table(["", *STARTS], rows)}

Mean and 95 % interval over {s["seeds"]} seeds, differences seed by seed. RLHF-PPO of {s["ppo"]["steps"]} steps of
{s["ppo"]["rows"]} completions, {s["ppo"]["epochs"]} epochs each, both models by Adam at
{s["ppo"]["learning_rate"]:g}, falling to 0; β = {s["beta"]:g}; scores of a reward model of {s["pairs"]:,} pairs. The
four differ in nothing but the value model's first parameters; all but the first begin with values of 0.
`python -m experiments.value_model_start`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, layers=1, imitation_steps=4)
    quick = Settings(2, pairs=32, measured_every=1, ppo=PpoSettings(steps=4, rows=8), language=tiny)
    settings = quick if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
