"""PPO-clip and PPO-penalty against TRPO: return for each environment step, and seconds for each update.

Equal for all: network, rollouts, advantages, epochs and minibatches of the critic. TRPO adds one natural-gradient step
on the whole rollout; PPO takes the actor along in the critic's minibatches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
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
    said,
    short,
    table,
    windowed,
    write,
)
from rlax_llm.core.kl import doubling_coef
from rlax_llm.credit.streams import gae, lambda_return
from rlax_llm.envs.environment import Environment
from rlax_llm.envs.registry import make
from rlax_llm.loops.control import Collecting, ControlState, control_loop
from rlax_llm.loops.scaling import no_scaling, unit_return
from rlax_llm.loops.updates import Learning, Penalty, Update, gradient_update, natural_update
from rlax_llm.models.actor_critic import ActorCritic, perceptron
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.recipes.control import ppo, ppo_penalty


class Settings(NamedTuple):
    """Of all three."""

    seeds: int = 16
    updates: int = 40
    environments: int = 8
    horizon_steps: int = 256
    gae_lambda: float = 0.95
    epochs: int = 5
    minibatches: int = 16
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    kl_radius: float = 0.01
    damping: float = 0.1
    cg_iterations: int = 10
    shrink: float = 0.8
    eps: float = 0.2
    kl_target: float = 0.01
    points: int = 20
    repeats: int = 15
    widths: tuple[str, ...] = ("one seed", "all seeds")


def setup(settings: Settings, task: Task) -> tuple[Environment, ActorCritic, Collecting]:
    """What all three share."""
    environment = make(task.name)
    scaling = unit_return() if task.scales_rewards else no_scaling
    collecting = Collecting(settings.environments, settings.horizon_steps, task.discount, reward_scaling=scaling)
    return environment, perceptron(environment, settings.hidden), collecting


def updates_of(settings: Settings, policy: ActorCritic) -> dict[str, Update]:
    """Name → update."""
    lambda_ = settings.gae_lambda
    learning = Learning(settings.epochs, settings.minibatches, target=lambda_return(lambda_))
    optimizer = optax.adam(settings.learning_rate)
    search = backtracking_search(improves_within(settings.kl_radius), settings.shrink)
    direction = natural_direction(settings.kl_radius, settings.damping, settings.cg_iterations)
    penalty = Penalty(doubling_coef(settings.kl_target))
    return {
        "TRPO": natural_update(policy, gae(lambda_), direction, search, optimizer, learning),
        "PPO-clip": gradient_update(policy, ppo(lambda_, settings.eps), optimizer, learning),
        "PPO-penalty": gradient_update(policy, ppo_penalty(lambda_), optimizer, learning, penalty),
    }


Run = Callable[[jax.Array], tuple[ControlState, dict[str, jax.Array]]]


def training(settings: Settings, task: Task, update: Update) -> Run:
    """``key → (state, metrics [U])``."""
    environment, policy, collecting = setup(settings, task)
    init, step = control_loop(environment, policy, update, collecting)

    def train(key: jax.Array) -> tuple[ControlState, dict[str, jax.Array]]:
        init_key, run_key = jax.random.split(key)
        return jax.lax.scan(step, init(init_key), jax.random.split(run_key, settings.updates))

    return train


def captured(settings: Settings, task: Task, state: ControlState, key: jax.Array) -> Any:
    """The ``ControlBatch`` that an update would see next."""
    environment, policy, collecting = setup(settings, task)

    def keep(params: Any, state: Any, rollout: Any, key: jax.Array) -> tuple[Any, Any, dict[str, Any]]:
        return params, state, {"rollout": rollout}

    step = control_loop(environment, policy, Update(lambda params: (), keep), collecting)[1]
    return step(state._replace(update=()), key)[1]["rollout"]


def seconds(settings: Settings, task: Task, state: ControlState) -> dict[str, dict[str, float]]:
    """Median seconds of one compiled update on the same rollout: of one seed, and of all seeds in one program."""
    policy = setup(settings, task)[1]
    keys = jax.random.split(jax.random.key(3), settings.seeds)
    capture = jax.jit(jax.vmap(lambda state, key: captured(settings, task, state, key)))
    rollouts = jax.block_until_ready(capture(state, keys))
    programs = {}
    for name, update in updates_of(settings, policy).items():
        many = jax.block_until_ready((state.params, jax.vmap(update.init)(state.params), rollouts, keys))
        one = jax.tree.map(lambda x: x[0], many)
        both = {"one seed": (jax.jit(update.step), one), "all seeds": (jax.jit(jax.vmap(update.step)), many)}
        programs |= {(name, width): both[width] for width in settings.widths}
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in programs}
    for _ in range(settings.repeats + 1):
        for name, (program, given) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*given))
            taken[name].append(time.perf_counter() - start)
    medians: dict[str, dict[str, float]] = {}
    for (name, width), times in taken.items():
        medians.setdefault(name, {})[width] = short(statistics.median(times[1:]))
    return medians


def measure_task(settings: Settings, task: Task) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Curves of return ``[S, points]`` by name, and the numbers of one environment."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    runs = {
        name: jax.block_until_ready(jax.jit(jax.vmap(training(settings, task, update)))(keys))
        for name, update in updates_of(settings, setup(settings, task)[1]).items()
    }
    curves = {name: windowed(metrics, settings.points) for name, (_, metrics) in runs.items()}
    late = {name: curve[:, -max(1, settings.points // 5) :].mean(1) for name, curve in curves.items()}
    costs = seconds(settings, task, runs["TRPO"][0])
    measured = {
        name: {
            "mean return over training": interval(np.nanmean(curve, 1)),
            "return in the last fifth": interval(late[name]),
            "ahead of TRPO in the last fifth": interval(late[name] - late["TRPO"]),
            "ahead of TRPO over training": interval(np.nanmean(curve, 1) - np.nanmean(curves["TRPO"], 1)),
            "seconds an update": costs[name],
            "share of TRPO's seconds": {
                width: short(value / costs["TRPO"][width]) for width, value in costs[name].items()
            },
        }
        for name, curve in curves.items()
    }
    metrics = runs["TRPO"][1]
    # The products of conjugate gradients, one more for the length of the step, and the forward passes of the search.
    measured["TRPO"]["Fisher-vector products an update"] = interval(metrics["cg_iterations"].mean(-1) + 1)
    measured["TRPO"]["candidates an update"] = interval(metrics["rejected"].mean(-1) + metrics["accepted"].mean(-1))
    measured["PPO-penalty"]["KL of an update"] = interval(runs["PPO-penalty"][1]["kl"].mean(-1))
    measured["PPO-penalty"]["coefficient at the end"] = interval(runs["PPO-penalty"][1]["kl_coef"][:, -1])
    return curves, measured


def draw(settings: Settings, curves: Mapping[str, Any], numbers: Mapping[str, Any]) -> Any:
    """Learning curves and costs."""
    figure, panels = new_figure("PPO against TRPO: same network, rollouts and critic", 1 + len(curves))
    steps = (np.arange(settings.points) + 0.5) * settings.updates / settings.points
    steps = steps * settings.environments * settings.horizon_steps / 1000
    for panel, (task, by_name) in zip(panels, curves.items()):
        for (name, curve), color in zip(by_name.items(), COLORS):
            band(panel, steps, curve, name, color)
        label(panel, f"{task}: episodes that ended", "environment steps, thousands", "undiscounted return")
    panel = panels[-1]
    for shift, (task, by_name) in zip((-0.2, 0.2), numbers["environments"].items()):
        for place, (name, color) in enumerate(zip(by_name, COLORS)):
            height = 1000 * by_name[name]["seconds an update"]["one seed"]
            word = task if place == 0 else None
            panel.bar(place + shift, height, 0.38, color=color, alpha=1 if shift < 0 else 0.5, label=word)
    panel.set_xticks(range(3), list(numbers["environments"][next(iter(curves))]))
    label(panel, "Compiled update alone, one seed", "", "milliseconds, median")
    return figure


def measure(settings: Settings, tasks: Sequence[Task]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves by environment, and the numbers."""
    found = {task.name: measure_task(settings, task) for task in tasks}
    curves, measured = ({name: pair[side] for name, pair in found.items()} for side in (0, 1))
    return curves, {
        "settings": settings._asdict(),
        "tasks": [task._asdict() for task in tasks],
        "backend": jax.default_backend(),
        "environments": measured,
    }


def _sentence(task: str, by_name: Mapping[str, Any]) -> str:
    """What one environment says."""
    last, ahead, cost = "return in the last fifth", "ahead of TRPO in the last fifth", "share of TRPO's seconds"
    parts = []
    for name in ("PPO-clip", "PPO-penalty"):
        x = by_name[name]
        word = "behind" if x[ahead]["high"] < 0 else "ahead" if x[ahead]["low"] > 0 else "level"
        parts.append(
            f"{name} {said(x[last], 0)}, {word} (difference {said(x[ahead], 0)}), at "
            f"{' and '.join(f'{share:.2f} ({width})' for width, share in x[cost].items())} of its seconds an update"
        )
    return f"On {task} TRPO ends at {said(by_name['TRPO'][last], 0)}; {'; '.join(parts)}."


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, environments = numbers["settings"], numbers["environments"]
    cells = {
        f"{name} on {task}": by_name[name]
        for task, by_name in environments.items()
        for name in ("PPO-clip", "PPO-penalty")
    }
    behind = [name for name, x in cells.items() if x["ahead of TRPO in the last fifth"]["high"] < 0]
    cheaper = [share for x in cells.values() for share in x["share of TRPO's seconds"].values()]
    held = f"held, but for the return of {' and '.join(behind)}" if behind else "held"
    verdict = "did not hold" if max(cheaper) >= 1 or len(behind) == len(cells) else held
    over, last = "mean return over training", "return in the last fifth"
    rows = [
        [task, name, said(x[over], 0), said(x[last], 0)]
        + [f"{1000 * x['seconds an update'][width]:.2f}" for width in s["widths"]]
        for task, by_name in environments.items()
        for name, x in by_name.items()
    ]
    products = {task: by_name["TRPO"]["Fisher-vector products an update"] for task, by_name in environments.items()}
    candidates = {task: by_name["TRPO"]["candidates an update"] for task, by_name in environments.items()}
    rate = ", ".join(f"{said(x, 1)} on {task}" for task, x in products.items())
    tried = ", ".join(f"{said(x, 2)} on {task}" for task, x in candidates.items())
    head = ["environment", "recipe", over, last, *(f"ms an update, {width}" for width in s["widths"])]
    return f"""# PPO against TRPO: return and cost of an update

![Learning curves and cost](figure.png)

**The claim {verdict}.** {" ".join(_sentence(*pair) for pair in environments.items())} In all, PPO's update takes
{min(cheaper):.2f} to {max(cheaper):.2f} of TRPO's time ("all seeds" are {s["seeds"]} in one program); the critic's
{s["epochs"]} epochs are in each of them.

TRPO's actor step is one gradient, Fisher-vector products ({rate}; conjugate gradients and one for the step's length)
and candidates of the line search ({tried}), all on the whole rollout; PPO's is {s["epochs"]} epochs of gradients on
minibatches, {s["epochs"] * s["minibatches"]} optimizer steps, taken together with the critic's. So the fraction depends
on how many epochs PPO takes of the actor; these are the numbers for {s["epochs"]}.

{table(head, rows)}

Mean and 95 % interval over {s["seeds"]} seeds, {s["updates"]} updates of {s["environments"]} × {s["horizon_steps"]}
steps; hidden layers {s["hidden"]}, Adam at {s["learning_rate"]:g}, {s["minibatches"]} minibatches; TRPO: radius
{s["kl_radius"]}, damping {s["damping"]}; PPO-clip: ε = {s["eps"]}; PPO-penalty: KL target {s["kl_target"]} nats.
Times are medians of {s["repeats"]} interleaved repeats of the compiled update alone on the same rollout, on
{numbers["backend"].upper()}. `python -m experiments.ppo_against_trpo`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(2, 4, 2, 64, epochs=1, minibatches=2, hidden=(8,), points=2, repeats=1, widths=("one seed",))
    settings, tasks = (quick, TASKS[:1]) if options.quick else (Settings(), TASKS)
    curves, numbers = measure(settings, tasks)
    write(options.out, draw(settings, curves, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
