"""Actor-critics against REINFORCE on CartPole, return for each environment step.

Everything is equal but the weight of the policy gradient and what the critic is trained on: network, rollouts, one Adam
step a rollout, no entropy bonus, no normalization of the weights. Each weight has the best of a few lengths of rollout
and pairs of learning rates: what bootstraps may learn from shorter rollouts, and so more often.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import COLORS, arguments, band, bars, interval, label, new_figure, said, table, windowed, write
from rlax_llm.core.types import Trajectory
from rlax_llm.credit.streams import (
    Credit,
    gae,
    lambda_return,
    q_value,
    return_minus_baseline,
    return_to_go,
    td_residual,
)
from rlax_llm.envs.registry import make
from rlax_llm.loops.control import Collecting, control_loop
from rlax_llm.loops.scaling import unit_return
from rlax_llm.loops.updates import Learning, gradient_update, no_normalization
from rlax_llm.models.actor_critic import perceptron
from rlax_llm.recipes.control import reinforce


class Settings(NamedTuple):
    """Of all weights; ``steps`` for each seed and each choice of a rollout's length and of the two learning rates, the
    actor's and the critic's."""

    seeds: int = 16
    steps: int = 65_536
    environments: int = 8
    horizons: tuple[int, ...] = (8, 64)
    discount: float = 0.99
    hidden: tuple[int, ...] = (32, 32)
    learning_rates: tuple[tuple[float, float], ...] = ((3e-3, 3e-2), (1e-2, 1e-2), (1e-2, 3e-2), (3e-2, 3e-2))
    points: int = 32


def without_critic(trajectory: Trajectory) -> jax.Array:
    """The return to go where nothing follows a cut: no critic is read."""
    return return_to_go(trajectory._replace(next_values=jnp.zeros_like(trajectory.next_values)))


WEIGHTS: dict[str, tuple[Credit, Credit]] = {
    "REINFORCE, no critic": (without_critic, return_to_go),
    "REINFORCE, critic behind cuts": (return_to_go, return_to_go),
    "REINFORCE with baseline": (return_minus_baseline, return_to_go),
    "actor-critic, Q = r + γV": (q_value, q_value),
    "actor-critic, TD residual": (td_residual, q_value),
    "A2C, λ = 0.95": (gae(0.95), lambda_return(0.95)),
}
"""Name → weight of the policy gradient, and what the critic is trained on."""


def one_of(credits: Sequence[Credit], index: jax.Array) -> Credit:
    """A credit by a traced number, so that one program trains all."""
    return lambda trajectory: jnp.stack([credit(trajectory) for credit in credits])[index]


def training(
    settings: Settings, horizon_steps: int
) -> Callable[[jax.Array, jax.Array, jax.Array], dict[str, jax.Array]]:
    """``(key, number of the weight, learning rate) → metrics [U]``."""
    environment = make("CartPole-v1")
    policy = perceptron(environment, settings.hidden)
    collecting = Collecting(settings.environments, horizon_steps, settings.discount, reward_scaling=unit_return())
    updates = settings.steps // (settings.environments * horizon_steps)
    weights, targets = zip(*WEIGHTS.values())

    def train(key: jax.Array, index: jax.Array, rates: jax.Array) -> dict[str, jax.Array]:
        learning = Learning(1, 1, target=one_of(targets, index), normalize=no_normalization)
        networks: dict[Any, Any] = {"actor": optax.adam(rates[0]), "critic": optax.adam(rates[1])}
        optimizer = optax.multi_transform(networks, {"actor": "actor", "critic": "critic"})
        update = gradient_update(policy, reinforce(one_of(weights, index)), optimizer, learning)
        init, step = control_loop(environment, policy, update, collecting)
        init_key, run_key = jax.random.split(key)
        metrics = jax.lax.scan(step, init(init_key), jax.random.split(run_key, updates))[1]
        return {name: metrics[name] for name in ("episodes", "episode_return", "explained_variance")}

    return train


def measure(settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Curves of mean return ``[S, points]`` by weight at its best choice, and the numbers."""
    keys = jax.random.split(jax.random.key(0), settings.seeds)

    def of_horizon(steps: int) -> np.ndarray:
        over_rates = jax.vmap(training(settings, steps), (None, None, 0))
        over_weights = jax.vmap(over_rates, (None, 0, None))
        run = jax.jit(jax.vmap(over_weights, (0, None, None)))
        return windowed(run(keys, jnp.arange(len(WEIGHTS)), jnp.array(settings.learning_rates)), settings.points)

    returns = np.concatenate([of_horizon(steps) for steps in settings.horizons], 2)
    choices = [(steps, *rates) for steps in settings.horizons for rates in settings.learning_rates]
    average, late = np.nanmean(returns, -1), np.nanmean(returns[..., -settings.points // 10 :], -1)
    best = average.mean(0).argmax(-1)
    curves = {name: returns[:, row, best[row]] for row, name in enumerate(WEIGHTS)}
    reference = average[:, 1, best[1]]
    measured = {
        name: {
            "horizon, learning rates": choices[best[row]],
            "mean return over training": interval(average[:, row, best[row]]),
            "ahead of REINFORCE": interval(average[:, row, best[row]] - reference),
            "return at the end": interval(late[:, row, best[row]]),
            "mean return over training by choice": [interval(x) for x in average[:, row].T],
        }
        for row, name in enumerate(WEIGHTS)
    }
    return curves, {"settings": settings._asdict(), "weights": measured}


def draw(settings: Settings, curves: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> Any:
    """Learning curves, and their means."""
    figure, panels = new_figure("Actor-critic against REINFORCE on CartPole-v1", 2)
    steps = (np.arange(settings.points) + 0.5) * settings.steps / settings.points / 1000
    for (name, curve), color in zip(curves.items(), COLORS):
        band(panels[0], steps, curve, name, color)
    label(panels[0], "Return of the episodes that ended", "environment steps, thousands", "undiscounted return")
    panels[0].set_ylim(0, 1.45 * panels[0].get_ylim()[1])
    panels[0].legend(fontsize=7.5, frameon=False, ncol=2, loc="upper left")
    measured = numbers["weights"]
    names = [textwrap.fill(name, 12) for name in measured]
    bars(panels[1], names, [x["mean return over training"] for x in measured.values()], COLORS)
    panels[1].tick_params(axis="x", labelsize=7)
    label(panels[1], "Mean over training, 95 % interval", "", "undiscounted return", legend=False)
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, weights = numbers["settings"], numbers["weights"]
    over, ahead, end = "mean return over training", "ahead of REINFORCE", "return at the end"
    names = list(weights)
    plain, cut, baseline, q, td, a2c = weights.values()
    better = [name for name in names[3:] if weights[name][ahead]["low"] > 0]
    worse = [name for name in names[3:] if weights[name][ahead]["high"] < 0]
    verdict = "held" if len(better) == 3 else f"held for {' and '.join(better)} only" if better else "did not hold"
    behind = f" Behind it: {'; '.join(worse)}." if worse else ""
    tried = "; ".join("{:g}, {:g}".format(*pair) for pair in s["learning_rates"])
    rows = [
        [
            name,
            "{} · {:g}, {:g}".format(*x["horizon, learning rates"]),
            said(x[over], 0),
            said(x[ahead], 0),
            said(x[end], 0),
        ]
        for name, x in weights.items()
    ]
    return f"""# Actor-critic against REINFORCE, for each environment step

![Learning curves and their means](figure.png)

**The claim {verdict}**, by mean return over {s["steps"]:,} steps against REINFORCE with the return to go
({said(cut[over], 0)}; {said(plain[over], 0)} where not even a cut rollout is completed by the critic).{behind} A2C has
{said(a2c[over], 0)}; REINFORCE with the same critic as a baseline only has {said(baseline[over], 0)}, which shows how
much of the gain is the baseline's. The weights of one step lean on the critic alone: Q = r + γV, trained on TD targets,
has {said(q[over], 0)}, and the TD residual {said(td[over], 0)} (each choice is in `numbers.json`).

{table(["weight", "rollout · learning rates", over, ahead, end], rows)}

Mean and 95 % interval over {s["seeds"]} seeds; differences are taken seed by seed. Each weight has the best of rollouts
of {" or ".join(map(str, s["horizons"]))} steps and of the learning rates (actor, critic) {tried}, chosen on the same
seeds. {s["environments"]} environments, one Adam step a rollout, hidden layers {s["hidden"]}, γ = {s["discount"]},
rewards scaled by the running deviation of the returns. `python -m experiments.actor_critic`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(2, 2048, 4, (64,), hidden=(8,), learning_rates=((1e-2, 1e-2),), points=2)
    settings = quick if options.quick else Settings()
    curves, numbers = measure(settings)
    write(options.out, draw(settings, curves, numbers), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
