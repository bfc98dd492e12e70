"""What TRPO's line search is for: the quadratic step alone, tried beside it on the same updates.

Two runs for every environment, radius and seed, one that takes what the line search accepts and one that takes the
whole quadratic step. In both, both are evaluated at every update, and the policy's return is measured after it.
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
    TASKS,
    Task,
    arguments,
    band,
    interval,
    label,
    new_figure,
    percent,
    returns_of_policy,
    said,
    short,
    table,
    write,
)
from rlax_llm.credit.streams import gae, lambda_return
from rlax_llm.envs.registry import make
from rlax_llm.loops.control import Collecting, control_loop
from rlax_llm.loops.scaling import no_scaling, unit_return
from rlax_llm.loops.updates import Learning, natural_update
from rlax_llm.models.actor_critic import perceptron
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import Evaluate, Search, SearchRule, Trial, backtracking_search, full_step, improves_within


class Settings(NamedTuple):
    """Of both runs; ``cases`` are pairs of a KL radius, nats, and the damping of the Fisher matrix."""

    seeds: int = 16
    updates: int = 40
    environments: int = 8
    horizon_steps: int = 256
    cases: tuple[tuple[float, float], ...] = ((0.01, 0.1), (0.1, 0.1), (0.01, 0.01), (0.1, 0.01))
    shrink: float = 0.8
    trials: int = 10
    gae_lambda: float = 0.95
    critic_learning_rate: float = 1e-3
    critic_epochs: int = 5
    critic_minibatches: int = 8
    hidden: tuple[int, ...] = (32, 32)
    test_episodes: int = 20


def beside_the_whole_step(search: SearchRule) -> SearchRule:
    """The same search; its trial holds two candidates, ``[2]`` each: the whole step and the one it accepted."""

    def both(evaluate: Evaluate, params: Any, step: Any) -> Search:
        found, whole = search(evaluate, params, step), full_step(evaluate, params, step)
        return found._replace(trial=Trial(*(jnp.stack(pair) for pair in zip(whole.trial, found.trial))))

    return both


def training(settings: Settings, task: Task) -> Callable[..., dict[str, jax.Array]]:
    """``(key, radius and damping, whether every whole step is taken) → metrics [U]``."""
    environment = make(task.name)
    policy = perceptron(environment, settings.hidden)
    scaling = unit_return() if task.scales_rewards else no_scaling
    collecting = Collecting(settings.environments, settings.horizon_steps, task.discount, reward_scaling=scaling)
    learning = Learning(settings.critic_epochs, settings.critic_minibatches, target=lambda_return(settings.gae_lambda))
    evaluate = returns_of_policy(environment, policy, settings.test_episodes, task.limit_steps)

    def train(key: jax.Array, case: jax.Array, whole: jax.Array) -> dict[str, jax.Array]:
        radius, damping = case
        accept = improves_within(radius)
        search = backtracking_search(lambda trial: whole | accept(trial), settings.shrink, settings.trials)
        update = natural_update(
            policy,
            gae(settings.gae_lambda),
            natural_direction(radius, damping),
            beside_the_whole_step(search),
            optax.adam(settings.critic_learning_rate),
            learning,
        )
        init, step = control_loop(environment, policy, update, collecting)
        init_key, run_key, test_key = jax.random.split(key, 3)

        def one(state: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
            state, metrics = step(state, key)
            returns = evaluate(state.params, test_key)
            kept = {name: metrics[name] for name in ("kl", "improvement", "accepted", "fraction", "rejected")}
            return state, kept | {"return": returns.mean(), "error": returns.std() / jnp.sqrt(returns.size - 1)}

        return jax.lax.scan(one, init(init_key), jax.random.split(run_key, settings.updates))[1]

    return train


def run_all(settings: Settings, task: Task) -> dict[str, np.ndarray]:
    """Metrics ``[S, C, 2, U, …]``: by seed, case, and search (0) or whole step (1)."""
    run = jax.vmap(jax.vmap(training(settings, task), (None, None, 0)), (None, 0, None))
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    return jax.device_get(
        jax.jit(jax.vmap(run, (0, None, None)))(keys, jnp.array(settings.cases), jnp.array([False, True]))
    )


def _monotone(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By seed ``[S, …]``: shares of updates after which the return was lower."""
    returns, errors = metrics["return"], metrics["error"]
    change = np.diff(returns, axis=-1)
    noise = np.sqrt(errors[..., 1:] ** 2 + errors[..., :-1] ** 2)
    tenth = max(1, returns.shape[-1] // 10)
    return {
        "return fell": (change < 0).mean(-1),
        "return fell by more than two standard errors": (change < -2 * noise).mean(-1),
        "return at the end": returns[..., -tenth:].mean(-1),
    }


def shares(metrics: Mapping[str, np.ndarray], radius: float, row: int) -> dict[str, Any]:
    """What the numbers say of one case."""
    along = {name: x[:, row, 0] for name, x in metrics.items()}
    kl, improvement = along["kl"], along["improvement"]
    breaks, worsens = kl[..., 0] > radius, improvement[..., 0] <= 0
    bad, accepted = breaks | worsens, along["accepted"]
    sound = accepted & (kl[..., 1] <= radius) & (improvement[..., 1] > 0)
    repaired = [one[wrong].mean() if wrong.any() else np.nan for one, wrong in zip(sound, bad)]
    measured = {
        "whole step breaks the limit": breaks.mean(-1),
        "whole step worsens the surrogate": worsens.mean(-1),
        "whole step does either": bad.mean(-1),
        "KL of the whole step over the radius": (kl[..., 0] / radius).mean(-1),
        "repaired by the search": np.array(repaired),
        "search found nothing": 1 - accepted.mean(-1),
        "fraction taken": along["fraction"].mean(-1),
        "candidates turned down": along["rejected"].mean(-1),
    }
    result: dict[str, Any] = {name: interval(x) for name, x in measured.items()}
    result["largest KL of a whole step over the radius"] = short((kl[..., 0] / radius).max())
    result["largest accepted KL over the radius"] = short((kl[..., 1] / radius).max())
    result["updates"], result["whole steps that do either"] = int(bad.size), int(bad.sum())
    result["of these repaired"] = int((bad & sound).sum())
    for number, name in enumerate(("search", "whole step")):
        result[name] = {key: interval(x[:, row, number]) for key, x in _monotone(metrics).items()}
    return result


def named(case: tuple[float, float]) -> str:
    """A case in words."""
    return "δ = {:g}, damping {:g}".format(*case)


def measure(settings: Settings, tasks: Sequence[Task]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics by environment, and the numbers."""
    metrics = {task.name: run_all(settings, task) for task in tasks}
    measured = {
        name: {named(case): shares(x, case[0], row) for row, case in enumerate(settings.cases)}
        for name, x in metrics.items()
    }
    return metrics, {"settings": settings._asdict(), "tasks": [t._asdict() for t in tasks], "environments": measured}


def draw(settings: Settings, metrics: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """A row for an environment: KL of the two candidates, shares, returns."""
    figure, panels = new_figure("TRPO: the quadratic step alone, and the line search", 3, len(metrics))
    updates = np.arange(1, settings.updates + 1)
    kinds = ("breaks the limit", "worsens the surrogate")
    for row, (name, x) in enumerate(metrics.items()):
        left, middle, right = panels[3 * row : 3 * row + 3]
        for place, (case, color) in enumerate(zip(settings.cases, COLORS)):
            over = x["kl"][:, place, 0] / case[0]
            band(left, updates, over[..., 0], named(case), color)
            band(left, updates, over[..., 1], None, color, linestyle=":")
            for number, style in enumerate(("-", "--")):
                band(
                    right,
                    updates,
                    x["return"][:, place, number],
                    None if number else named(case),
                    color,
                    linestyle=style,
                )
            for kind, shift, strength in zip(kinds, (-0.15, 0.15), (1.0, 0.45)):
                share = numbers["environments"][name][named(case)][f"whole step {kind}"]
                mean, low, high = (100 * share[key] for key in ("mean", "low", "high"))
                word = None if place else kind
                error = [[mean - low], [high - mean]]
                middle.bar(place + shift, mean, 0.28, color=color, alpha=strength, yerr=error, label=word)
        left.axhline(1, color="black", linewidth=0.8)
        left.set_ylim(0, None)
        label(left, f"{name}: KL of the whole step (dotted: accepted)", "update", "KL over δ (1: the limit)")
        middle.set_xticks(range(len(settings.cases)), [named(c).replace(", ", ",\n") for c in settings.cases])
        middle.set_ylim(0, 1.3 * middle.get_ylim()[1])
        label(middle, "What the whole step would do", "", "share of updates, %")
        middle.tick_params(axis="x", labelsize=7.5)
        label(right, "Return (dashed: whole steps taken)", "update", "undiscounted return")
    return figure


def _separation(cell: tuple[str, str, Mapping[str, Any]]) -> float:
    """How far the intervals of the last returns of the two runs are apart, in their own widths."""
    one, two = (cell[2][run]["return at the end"] for run in ("search", "whole step"))
    return abs(one["mean"] - two["mean"]) / (one["high"] - one["low"] + two["high"] - two["low"])


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s = numbers["settings"]
    cells = [(name, case, x) for name, cases in numbers["environments"].items() for case, x in cases.items()]
    updates, bad, repaired = (
        sum(x[key] for *_, x in cells) for key in ("updates", "whole steps that do either", "of these repaired")
    )
    either, fell = "whole step does either", "return fell by more than two standard errors"
    least, most = (pick(cells, key=lambda cell: cell[2][either]["mean"]) for pick in (min, max))
    better = [x["search"][fell]["mean"] < x["whole step"][fell]["mean"] for *_, x in cells]
    clear: dict[float, list[float]] = {}
    places: dict[str, list[float]] = {}
    for (radius, _), (name, _, x) in zip(s["cases"] * len(numbers["environments"]), cells):
        clear.setdefault(radius, []).append(x["search"][fell]["mean"])
        places.setdefault(f"{name} at δ = {radius:g}", []).append(x["search"][fell]["mean"])
    close = " and ".join(place for place, falls in places.items() if max(falls) < 0.05)
    does = "did what is claimed" if bad and repaired == bad else "did not do what is claimed"
    monotony = (
        f"improvement was close to monotone (clear falls after less than 5 % of updates) on {close or 'none'} only"
    )
    widest = max(cells, key=_separation)
    over = max(x["largest KL of a whole step over the radius"] for *_, x in cells)
    accepted = max(x["largest accepted KL over the radius"] for *_, x in cells)
    rows = [
        [name, case]
        + [percent(x[f"whole step {key}"]) for key in ("breaks the limit", "worsens the surrogate")]
        + [f"{x['of these repaired']} of {x['whole steps that do either']}", percent(x["search found nothing"])]
        + [said(x["fraction taken"])]
        for name, case, x in cells
    ]
    monotone = [
        [name, case]
        + [percent(x[run][key]) for key in ("return fell", fell) for run in ("search", "whole step")]
        + [said(x[run]["return at the end"], 0) for run in ("search", "whole step")]
        for name, case, x in cells
    ]
    head = ["environment", "case", "fell, search", "fell, whole", "clearly, search", "clearly, whole"]
    return f"""# What TRPO's line search repairs

![KL of both candidates, shares of updates, returns](figure.png)

**The line search {does}; {monotony}.** On the updates of TRPO itself the quadratic step alone would have broken the KL
limit or worsened the surrogate in {bad:,} of {updates:,} ({100 * bad / updates:.1f} %), from
{percent(least[2][either])} ({least[0]}, {least[1]}) to {percent(most[2][either])} ({most[0]}, {most[1]}); the largest
KL was {over:.1f} times the radius δ.
The usual damping of the Fisher matrix (0.1) shortens the step and so does part of the search's work beforehand.
Of these {bad:,} the line search repaired {repaired:,}: it found a smaller step that improves the surrogate within the
limit; the largest KL that it accepted is {accepted:.4f} of the radius.

{table(["environment", "case", "over the limit", "worsens it", "repaired", "nothing found", "fraction"], rows)}

Between two updates the return of the stochastic policy, measured on {s["test_episodes"]} episodes from the same starts,
fell clearly (by more than two standard errors; about 2 % are expected from noise alone) after
{"; ".join(f"{100 * min(x):.1f} to {100 * max(x):.1f} % of the updates at δ = {r:g}" for r, x in clear.items())}, with
the line search. Separate runs that took every whole step had more clear falls in {sum(better)} of {len(better)}
settings: step by step the search does not make the return more monotone. It matters most at {widest[0]},
{widest[1]}, where runs with it end at {said(widest[2]["search"]["return at the end"], 0)} and those without at
{said(widest[2]["whole step"]["return at the end"], 0)}.

{table([*head, "return, search", "return, whole"], monotone)}

Mean and 95 % interval over {s["seeds"]} seeds, {s["updates"]} updates of {s["environments"]} × {s["horizon_steps"]}
steps each; up to {s["trials"]} candidates, each {s["shrink"]} of the one before.
`python -m experiments.trpo_line_search`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(2, 3, 2, 32, ((0.1, 0.01),), critic_epochs=1, critic_minibatches=1, hidden=(8,), test_episodes=2)
    settings = quick if options.quick else Settings()
    tasks = TASKS[:1] if options.quick else TASKS
    metrics, numbers = measure(settings, tasks)
    write(options.out, draw(settings, metrics, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
