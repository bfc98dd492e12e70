"""What RLHF-PPO's value model starts as: the reward model, the policy with a new score, or a decoder from scratch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import COLOURS, arguments, band, interval, label, new_figure, plain, said, table, write
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

STARTS = ("reward model", "policy", "scratch")
MEASURED = ("value_loss", "explained_variance", "rlhf_reward")


class Settings(NamedTuple):
    """``measured_every`` steps of PPO the policy's reward is summed over all completions."""

    seeds: int = 16
    pairs: int = 8192
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
        starts = (scorer, *(init_scalar(x, key, nothing) for x in (base, decoder.init(language.config, scratch))))
        loop = ppo_loop(language, settings.ppo, settings.beta)
        step = ppo_step(language, settings.ppo, loop, scorer, base)

        def several(state: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            state, metrics = jax.lax.scan(step, state, keys)
            return state, {name: metrics[name].mean() for name in MEASURED}

        keys = jax.random.split(order, (points, settings.measured_every))
        found = {}
        for name, start in zip(STARTS, starts):
            state, curves = jax.lax.scan(several, loop[0]({"policy": base, "value": start}), keys)
            found[name] = curves | exact(language, state.params["policy"], base)._asdict()
        return found

    return run


def measure(settings: Settings) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Curves ``[S, points]`` by start, and the numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    curves = jax.tree.map(np.asarray, jax.jit(jax.vmap(training(settings)))(keys))
    half = settings.ppo.steps // settings.measured_every // 2

    def quarter(name: str, quantity: str) -> np.ndarray:
        return curves[name][quantity][:, : half // 2].mean(-1)

    numbers = {
        name: {
            "value loss, first quarter": interval(quarter(name, "value_loss")),
            "explained variance, first quarter": interval(quarter(name, "explained_variance")),
            "penalised score, first quarter": interval(quarter(name, "rlhf_reward")),
            "penalised score, last quarter": interval(curves[name]["rlhf_reward"][:, -half // 2 :].mean(-1)),
            "true reward at the end": interval(curves[name]["reward"]),
            "KL at the end": interval(curves[name]["kl"]),
        }
        for name in STARTS
    }
    ahead = {
        name: {
            quantity: interval(quarter(STARTS[0], quantity) - quarter(name, quantity))
            for quantity in ("explained_variance", "rlhf_reward")
        }
        for name in STARTS[1:]
    }
    return curves, {"settings": plain(settings), "starts": numbers, "ahead": ahead}


def draw(settings: Settings, curves: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """The three quantities over the steps."""
    figure, panels = new_figure("What the value model of RLHF-PPO starts as", 3)
    texts = (
        ("Loss of the value model", "squared score, halved"),
        ("Explained variance of the returns", "share"),
        ("Score less β · KL", "score"),
    )
    for panel, quantity, (title, unit) in zip(panels, MEASURED, texts):
        for name, colour in zip(STARTS, COLOURS):
            steps = (1 + np.arange(curves[name][quantity].shape[1])) * settings.measured_every
            band(panel, steps, curves[name][quantity], name, colour)
        label(panel, title, "PPO steps", unit)
    panels[1].set_ylim(-0.5, 1.0)
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, starts, ahead = numbers["settings"], numbers["starts"], numbers["ahead"]
    fits = [ahead[name]["explained_variance"]["low"] > 0 for name in STARTS[1:]]
    pays = [ahead[name]["rlhf_reward"]["low"] > 0 for name in STARTS[1:]]
    parts = [
        f"against {name} its values explained {said(ahead[name]['explained_variance'])} more of the variance of the "
        f"returns over the first quarter of training, and the penalised score was {said(ahead[name]['rlhf_reward'])} "
        f"higher ({'a difference' if paid else 'no difference'} that the seeds tell from 0)"
        for name, paid in zip(STARTS[1:], pays)
    ]
    verdict = "held" if all(fits) and all(pays) else "held for the values only" if all(fits) else "did not hold"
    rows = [[quantity, *(said(starts[name][quantity], 3) for name in STARTS)] for quantity in starts[STARTS[0]]]
    return f"""# What the value model starts as

![Value loss, explained variance and reward over the steps](figure.png)

**The claim {verdict}.** With the value model begun as the reward model: {"; ".join(parts)}.

{table(["", *STARTS], rows)}

Mean and 95 % interval over {s["seeds"]} seeds, differences seed by seed. RLHF-PPO of {s["ppo"]["steps"]} steps of
{s["ppo"]["rows"]} completions, {s["ppo"]["epochs"]} epochs each, both models by Adam at
{s["ppo"]["learning_rate"]:g}, falling to 0; β = {s["beta"]:g}; scores of a reward model of {s["pairs"]:,} pairs. The
three differ in nothing but the value model's first parameters (the last two begin with values of 0).
`python -m experiments.value_model_start`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, layers=1, imitation_steps=4)
    quick = Settings(2, pairs=32, measured_every=1, ppo=PpoSettings(steps=8, rows=8), language=tiny)
    settings = quick if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
