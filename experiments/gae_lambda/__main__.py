"""GAE's λ: the return after a budget, and the bias and variance of the advantage estimate at a fixed policy.

The bias is against a Monte-Carlo truth: from each of some states every action is taken many times, and the policy goes
on to the end. An offset that is the same for all actions of a state is a baseline and biases no gradient, so it is
taken out: ``bias(s, a) = Â(s, a) − Σ_a π(a|s) Â(s, a) − A(s, a)``, of the mean estimate.
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
    returns_of_policy,
    said,
    table,
    trajectory_of,
    write,
)
from rlax_llm.credit.streams import gae, lambda_return
from rlax_llm.envs.environment import Discrete
from rlax_llm.envs.registry import make
from rlax_llm.loops.collect import Runner, Steps, rollout
from rlax_llm.loops.control import Collecting, ControlState, control_loop
from rlax_llm.loops.scaling import no_scaling, unit_return
from rlax_llm.loops.updates import Learning, gradient_update
from rlax_llm.models.actor_critic import ActorCritic, perceptron
from rlax_llm.recipes.control import ppo


class Settings(NamedTuple):
    """Of the runs and of the measurement at a fixed policy."""

    seeds: int = 16
    lambdas: tuple[float, ...] = (0.0, 0.6, 0.9, 0.95, 0.99, 1.0)
    steps: int = 49_152
    environments: int = 8
    horizon_steps: int = 128
    learning_rate: float = 1e-3
    epochs: int = 4
    minibatches: int = 4
    hidden: tuple[int, ...] = (32, 32)
    test_episodes: int = 32
    measured_after_steps: int = 16_384
    continuations: int = 64
    continuation_steps: int = 400


def trained(settings: Settings, task: Task, steps: int) -> tuple[ActorCritic, Callable[..., ControlState]]:
    """The policy, and PPO ``(key, λ) → state`` after ``steps``."""
    environment = make(task.name)
    policy = perceptron(environment, settings.hidden)
    scaling = unit_return() if task.scales_rewards else no_scaling
    collecting = Collecting(settings.environments, settings.horizon_steps, task.discount, reward_scaling=scaling)
    updates = steps // (settings.environments * settings.horizon_steps)

    def train(key: jax.Array, lambda_: jax.Array) -> ControlState:
        learning = Learning(settings.epochs, settings.minibatches, target=lambda_return(lambda_))
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(settings.learning_rate, eps=1e-5))
        init, step = control_loop(
            environment, policy, gradient_update(policy, ppo(lambda_), optimizer, learning), collecting
        )
        init_key, run_key = jax.random.split(key)
        return jax.lax.scan(lambda s, k: (step(s, k)[0], None), init(init_key), jax.random.split(run_key, updates))[0]

    return policy, train


def returns_over_lambda(settings: Settings, task: Task) -> np.ndarray:
    """Return of the stochastic policy after the budget, ``[S, Λ]``."""
    policy, train = trained(settings, task, settings.steps)
    evaluate = returns_of_policy(make(task.name), policy, settings.test_episodes, task.limit_steps)

    def run(key: jax.Array, lambda_: jax.Array) -> jax.Array:
        train_key, test_key = jax.random.split(key)
        return evaluate(train(train_key, lambda_).params, test_key).mean()

    over = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
    return np.asarray(jax.jit(over)(jax.random.split(jax.random.key(0), settings.seeds), jnp.array(settings.lambdas)))


def estimates(settings: Settings, task: Task) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """``key → (advantage estimates [K, N, A, Λ], π(a|s) [N, A])`` at N states of a policy that has begun to learn."""
    # The time limit is far away: the true value is of the state alone.
    environment = make(task.name, max_steps_in_episode=1_000_000)
    policy, train = trained(settings, task, settings.measured_after_steps)
    assert isinstance(environment.actions, Discrete)
    actions, repeats, number = environment.actions.n, settings.continuations, settings.environments

    def tiled(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf[None, :, None], (repeats, number, actions, *leaf.shape[1:])).reshape(
            -1, *leaf.shape[1:]
        )

    def measure(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        train_key, first_key, rest_key = jax.random.split(key, 3)
        state = train(train_key, jnp.float32(0.95))
        params, runner = state.params, state.runner
        probabilities = jax.nn.softmax(policy.act(params, (), runner.observations)[0])
        states, observations = jax.tree.map(tiled, (runner.states, runner.observations))
        streams = repeats * number * actions
        chosen = jnp.arange(streams) % actions
        first = jax.vmap(environment.step)(jax.random.split(first_key, streams), states, chosen)
        zeros = jnp.zeros(streams)
        fresh = Runner(first.state, first.observation, zeros == 1, (), zeros, jnp.zeros(streams, jnp.int32))
        length = settings.continuation_steps
        steps = rollout(environment, policy, lambda x: x, params, fresh, rest_key, length)[1]
        opening = Steps(observations, zeros == 0, steps.parameters[0], chosen, first.reward, first.terminated,
                        first.truncated, first.observation, (), zeros, steps.lengths[0])  # fmt: skip
        stream = trajectory_of(
            policy, params, jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), opening, steps), task.discount
        )
        found = [jax.vmap(gae(x), 1, 1)(stream)[0] for x in settings.lambdas]
        return jnp.stack(found, -1).reshape(repeats, number, actions, -1), probabilities

    return measure


def bias_and_variance(samples: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared bias and variance by λ, ``[Λ]`` each, means over states and the policy's actions.

    λ = 1 is the truth, since its estimate only differs from it by an offset; each continuation is compared with itself,
    and the square is the product of two halves, which noise does not inflate.
    """
    weights = probabilities[None, :, :, None]
    difference = samples - samples[..., -1:]
    difference = difference - (weights * difference).sum(2, keepdims=True)
    half = len(samples) // 2
    one, other = difference[:half].mean(0), difference[half:].mean(0)
    share = weights[0] / len(probabilities)
    return (share * one * other).sum((0, 1)), (share * samples.var(0, ddof=1)).sum((0, 1))


def measure(settings: Settings, tasks: Sequence[Task]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Samples ``[S, Λ]`` by what they are of, and the numbers."""
    keys = jax.random.split(jax.random.key(1), settings.seeds)
    found = jax.device_get(jax.jit(lambda keys: jax.lax.map(estimates(settings, tasks[0]), keys))(keys))
    bias, variance = (np.stack(x) for x in zip(*(bias_and_variance(*one) for one in zip(*found))))
    samples = {"squared bias": bias, "variance": variance}
    samples |= {task.name: returns_over_lambda(settings, task) for task in tasks}
    measured = {
        name: {f"{x:g}": interval(column) for x, column in zip(settings.lambdas, rows.T)}
        for name, rows in samples.items()
    }
    best, ahead = {}, {}
    for task in tasks:
        top = samples[task.name].mean(0).argmax()
        best[task.name] = f"{settings.lambdas[top]:g}"
        others = zip(settings.lambdas, samples[task.name].T)
        ahead[task.name] = {f"{x:g}": interval(samples[task.name][:, top] - column) for x, column in others}
    everything = {"settings": settings._asdict(), "tasks": [t._asdict() for t in tasks], "measured": measured}
    return samples, everything | {"best": best, "best ahead of": ahead}


def draw(settings: Settings, tasks: Sequence[Task], samples: Mapping[str, np.ndarray]) -> Any:
    """Bias and variance, then the return in each environment."""
    figure, panels = new_figure("GAE: bias and variance over λ", 1 + len(tasks))
    places = np.arange(len(settings.lambdas))
    for name, color in zip(("variance", "squared bias"), COLORS):
        band(panels[0], places, samples[name], f"{name}, one sample" if name == "variance" else name, color, marker="o")
    panels[0].set_yscale("symlog", linthresh=0.1)
    panels[0].set_ylim(0, None)
    label(panels[0], "Advantage estimate, CartPole-v1", "λ", "discounted return, squared")
    for panel, task in zip(panels[1:], tasks):
        band(panel, places, samples[task.name], None, COLORS[2], marker="o")
        title = f"{task.name}: PPO after {settings.steps:,} steps"
        label(panel, title, "λ", "undiscounted return", legend=False)
    for panel in panels:
        panel.set_xticks(places, [f"{x:g}" for x in settings.lambdas])
    return figure


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, measured = numbers["settings"], numbers["measured"]
    bias, variance = measured["squared bias"], measured["variance"]
    lambdas = list(bias)
    trades = bias["0"]["low"] > 0 and variance["0"]["high"] < variance["1"]["low"]
    beaten = {name: [x for x in ("0", "1") if numbers["best ahead of"][name][x]["low"] > 0] for name in numbers["best"]}
    clear = [name for name, ends in beaten.items() if len(ends) == 2]
    everywhere = "" if len(clear) == len(beaten) else f", for the return clearly on {' and '.join(clear)} only"
    verdict = f"held{everywhere}" if trades and clear else "held for the estimate only" if trades else "did not hold"
    returns = "; ".join(
        f"on {name} the best λ is {best}, with {said(measured[name][best], 0)} against {said(measured[name]['0'], 0)} "
        f"at λ = 0 and {said(measured[name]['1'], 0)} at λ = 1 (the interval of the difference excludes 0 for "
        f"{' and '.join(f'λ = {x}' for x in beaten[name]) or 'neither'})"
        for name, best in numbers["best"].items()
    )
    rows = [
        [x, said(bias[x]), said(variance[x], 1), *(said(measured[name][x], 0) for name in numbers["best"])]
        for x in lambdas
    ]
    return f"""# GAE: λ trades bias for variance

![Bias, variance and return over λ](figure.png)

**The claim {verdict}.** At a fixed policy (CartPole, PPO after {s["measured_after_steps"]:,} steps, with the critic
that it had) the variance of the advantage estimate, given state and action, grows from {said(variance["0"], 1)} at
λ = 0 (CartPole is deterministic once the action is chosen) to {said(variance["1"], 1)} at λ = 1, and its squared bias
falls from {said(bias["0"])} to 0 (at λ = 1 it is 0 by construction: what is left of the critic is a baseline). The
return after a budget of {s["steps"]:,} steps: {returns}.

{table(["λ", "squared bias", "variance", *(f"return, {name}" for name in numbers["best"])], rows)}

Mean and 95 % interval over {s["seeds"]} seeds (each its own policy and critic). Truth by Monte Carlo:
{s["environments"]} states × 2 actions × {s["continuations"]} continuations of {s["continuation_steps"]} steps for each
seed; the bias is of the difference between actions, for an offset common to them biases no gradient. The critic is
learned, so the numbers belong to its quality. PPO: {s["environments"]} × {s["horizon_steps"]} steps a rollout,
{s["epochs"]} epochs of {s["minibatches"]} minibatches, Adam at {s["learning_rate"]:g}; the critic's target has the
same λ; the best λ is chosen on the same seeds. `python -m experiments.gae_lambda`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(2, (0.0, 1.0), 128, 2, 32, 1e-3, 1, 1, (8,), 2, 64, 4, 20)
    settings, tasks = (quick, TASKS[:1]) if options.quick else (Settings(), TASKS)
    samples, numbers = measure(settings, tasks)
    write(options.out, draw(settings, tasks, samples), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
