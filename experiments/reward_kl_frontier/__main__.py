"""RLHF-PPO and DPO from the same preferences: how much reward each buys with how much KL, and what it costs.

A small decoder is the reference; pairs of its completions are judged. PPO learns from a reward model of the pairs, DPO
from the pairs; each at several β. Reward and KL are sums over all completions, and so is the best that can be had.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import COLORS, arguments, interval, label, new_figure, plain, said, table, write
from experiments.letters import (
    Exact,
    Language,
    PpoSettings,
    exact,
    judged_pairs,
    optimum,
    ppo_loop,
    ppo_step,
    reference,
    repeated,
    reward_model,
    some_pairs,
)
from rlax_llm.core.types import PairedCompletions
from rlax_llm.loops.preference import preference_loop
from rlax_llm.recipes.preference import dpo

METHODS = ("PPO", "DPO")
BATCH = 32
"""Pairs of an optimizer step."""


class Settings(NamedTuple):
    """``betas`` of PPO are in scores of the reward model, whose unit is a nat of the judge; so are DPO's.

    Attributes:
        seeds: independent references, pairs and runs.
        pairs: that reward model and DPO learn from.
        passes: over the pairs, of each.
        betas: one run each.
        learning_rate: of DPO, falling to 0.
        measured: points of a run at which reward and KL are summed.
        ppo: steps, completions, epochs.
        language: prompts, completions, reference.
    """

    seeds: int = 16
    pairs: int = 16384
    passes: int = 2
    betas: tuple[float, ...] = (0.3, 0.8, 2.0)
    learning_rate: float = 5e-4
    measured: int = 3
    ppo: PpoSettings = PpoSettings()
    language: Language = Language()

    @property
    def dpo_steps(self) -> int:
        """Optimizer steps of DPO, and of the reward model."""
        return self.passes * self.pairs // BATCH


def frontier(settings: Settings) -> Callable[[jax.Array], dict[str, Exact]]:
    """``key → {"PPO", "DPO": [betas, measured], "optimum": [β]}``."""
    language = settings.language
    betas = jnp.asarray(settings.betas)

    def run(key: jax.Array) -> dict[str, Exact]:
        imitation, judge, fit, order = jax.random.split(key, 4)
        base = reference(language, imitation)
        pairs = judged_pairs(language, base, judge, settings.pairs)
        scorer = reward_model(language, base, pairs, fit, settings.dpo_steps)

        def by_ppo(beta: jax.Array) -> Exact:
            loop = ppo_loop(language, settings.ppo, beta)
            step = ppo_step(language, settings.ppo, loop, scorer, base)

            def several(state: Any, keys: jax.Array) -> tuple[Any, Exact]:
                state = jax.lax.scan(lambda state, key: (step(state, key)[0], None), state, keys)[0]
                return state, exact(language, state.params["policy"], base)

            keys = jax.random.split(order, (settings.measured, settings.ppo.steps // settings.measured))
            return jax.lax.scan(several, loop[0]({"policy": base, "value": scorer}), keys)[1]

        def by_dpo(beta: jax.Array) -> Exact:
            rate = optax.linear_schedule(settings.learning_rate, 0.0, settings.dpo_steps)
            loop = preference_loop(language.log_probs(2), dpo(beta), optax.adam(rate))

            def batch(key: jax.Array) -> PairedCompletions:
                return some_pairs(pairs, key, BATCH)

            def several(state: Any, key: jax.Array) -> tuple[Any, Exact]:
                steps = settings.dpo_steps // settings.measured
                state = repeated(loop[1], state, key, steps, batch, reference=base)
                return state, exact(language, state.params, base)

            return jax.lax.scan(several, loop[0](base), jax.random.split(order, settings.measured))[1]

        best = optimum(language, base, jnp.append(jnp.geomspace(0.03, 3.0, 40), 1e6))  # the last is the reference
        return {"PPO": jax.lax.map(by_ppo, betas), "DPO": jax.lax.map(by_dpo, betas), "optimum": best}

    return run


def passes(settings: Settings) -> dict[str, int]:
    """Completions put through a decoder by each method: a forward pass counts once, a gradient three times."""
    fit = 2 * BATCH * settings.dpo_steps
    ppo = settings.ppo
    # Sampled, scored, the reference's and the values before; then both models in every epoch.
    step = ppo.rows * (4 + 2 * 3 * ppo.epochs)
    return {"PPO": 3 * fit + ppo.steps * step, "DPO": (1 + 3) * fit}


def measure(settings: Settings) -> tuple[dict[str, Exact], dict[str, Any]]:
    """``[S, betas, measured]`` by method, and the numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(frontier(settings)))(keys))
    best = found["optimum"]
    methods = {}
    for name in METHODS:
        reward, kl = (x[..., -1] for x in found[name])
        bought = np.stack([np.interp(kl[i], best.kl[i, ::-1], best.reward[i, ::-1]) for i in range(settings.seeds)])
        methods[name] = [
            {
                "beta": beta,
                "reward": interval(reward[:, place]),
                "kl": interval(kl[:, place]),
                "share of the best at this KL": interval(reward[:, place] / bought[:, place]),
            }
            for place, beta in enumerate(settings.betas)
        ]
    numbers = {"settings": plain(settings), "methods": methods, "passes": passes(settings)}
    return found, numbers | {"before": interval(best.reward[:, -1])}


def draw(settings: Settings, found: Mapping[str, Exact]) -> Any:
    """Reward over KL: ends of the runs, and the ways there."""
    figure, panels = new_figure("Reward and KL to the reference", 2)
    best = jax.tree.map(lambda x: x.mean(0), found["optimum"])
    for panel in panels:
        panel.plot(best.kl, best.reward, color="black", linewidth=1, linestyle="--", label="best possible")
    for name, color in zip(METHODS, COLORS):
        reward, kl = found[name]
        panels[0].plot(kl[..., -1].T, reward[..., -1].T, "o", color=color, markersize=2.5, alpha=0.35)
        panels[0].plot(kl[..., -1].mean(0), reward[..., -1].mean(0), "o-", color=color, label=name)
        for place in range(len(settings.betas)):
            ways = (np.append(0.0, kl[:, place].mean(0)), reward[:, place].mean(0))
            ways = (ways[0], np.append(best.reward[-1], ways[1]))
            panels[1].plot(*ways, ".-", color=color, linewidth=1, label=name if place == 0 else None)
    label(panels[0], "At the end of training, each β; small dots are seeds", "KL, nats a completion", "true reward")
    label(panels[1], "On the way, mean over seeds", "KL, nats a completion", "true reward")
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, methods, cost = numbers["settings"], numbers["methods"], numbers["passes"]
    share = "share of the best at this KL"
    rises = all(one["reward"]["low"] > numbers["before"]["high"] for one in methods["PPO"])
    wins = all(dpo[share]["mean"] >= ppo[share]["mean"] for ppo, dpo in zip(methods["PPO"], methods["DPO"]))
    verdict = "held" if rises and wins else "held for PPO alone" if rises else "did not hold"
    rows = [
        [name, f"{one['beta']:g}", said(one["kl"]), said(one["reward"]), said(one[share])]
        for name in METHODS
        for one in methods[name]
    ]
    best = {name: max(one[share]["mean"] for one in methods[name]) for name in METHODS}
    return f"""# The reward that a KL buys

![Reward over KL for PPO, DPO and the best policies](figure.png)

**The claim {verdict}.** PPO on the reward model raised the true reward at every β, from {said(numbers["before"])}, and
a larger β kept it closer to the reference. Of the reward that the best policy has at the same KL, PPO reached up to
{100 * best["PPO"]:.0f} %, DPO on the same pairs up to {100 * best["DPO"]:.0f} %, with {cost["DPO"] / cost["PPO"]:.2f}
times the passes through a decoder ({cost["DPO"]:,} against {cost["PPO"]:,} completions, a gradient counted three times;
PPO's with its reward model's). What lies below the dashed line is lost to errors of the reward model and to
optimization.

{table(["method", "β", "KL, nats a completion", "true reward", share], rows)}

Mean and 95 % interval over {s["seeds"]} seeds. {s["pairs"]:,} pairs of the reference's completions, judged by
σ({s["language"]["sharpness"]:g} · difference of rewards); {s["passes"]} passes over them for the reward model and for
DPO; PPO of {s["ppo"]["steps"]} steps of {s["ppo"]["rows"]} completions, {s["ppo"]["epochs"]} epochs, its value model
begun as the reward model. β in nats of the judge per nat of KL. `python -m experiments.reward_kl_frontier`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    tiny = Language(letters=3, length=2, hidden=8, layers=1, imitation_steps=4)
    quick = Settings(2, 32, 1, (0.5, 1.0), measured=1, ppo=PpoSettings(steps=2, rows=8), language=tiny)
    settings = quick if options.quick else Settings()
    found, numbers = measure(settings)
    write(options.out, draw(settings, found), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
