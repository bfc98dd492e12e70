"""The six weights of the policy gradient: their bias, exact, and their variance, exact and on CartPole.

In small random decision processes every trajectory is enumerated, so that the mean and the variance of the gradient of
one episode are exact for any values: the true ones, or those that TD learned from some episodes. On CartPole the
variance is measured at policies from one training, with the critic that belongs to each.

All is undiscounted: with γ < 1 the first form belongs to another objective than the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.common import (
    COLORS,
    arguments,
    band,
    interval,
    label,
    new_figure,
    said,
    short,
    table,
    trajectory_of,
    write,
)
from experiments.policy_gradient_weights.processes import (
    ACTIONS,
    FORMS,
    STATES,
    STEPS,
    exact_moments,
    learned_values,
    some_process,
    true_gradient,
    true_values,
)
from rlax_llm.credit.streams import lambda_return
from rlax_llm.envs.environment import Environment, Step
from rlax_llm.envs.registry import make
from rlax_llm.loops.collect import rollout, start_runner
from rlax_llm.loops.control import Collecting, control_loop
from rlax_llm.loops.updates import Learning, gradient_update
from rlax_llm.models.actor_critic import Params, perceptron
from rlax_llm.recipes.control import a2c


class Settings(NamedTuple):
    """Of both measurements."""

    processes: int = 64
    episodes_of_critic: tuple[int, ...] = (0, 10, 30, 100, 300, 1000, 3000)
    seeds: int = 16
    checkpoints: tuple[int, ...] = (0, 16_384, 49_152, 98_304)
    environments: int = 8
    horizon_steps: int = 128
    learning_rate: float = 3e-3
    hidden: tuple[int, ...] = (32, 32)
    limit_steps: int = 200
    episodes: int = 256


def measure_processes(settings: Settings) -> dict[str, np.ndarray]:
    """Exact bias and variance: with the true values ``[M, 6]`` and with learned ones ``[M, E, 6]``."""

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> dict[str, jax.Array]:
        process_key, learn_key = jax.random.split(key)
        process = some_process(process_key)
        bias, variance = exact_moments(process, true_values(process))
        critics = jnp.stack([learned_values(process, n, learn_key) for n in settings.episodes_of_critic])
        learned_bias, learned_variance = jax.vmap(lambda values: exact_moments(process, values))(critics)
        return {
            "bias": bias,
            "variance": variance,
            "learned bias": learned_bias,
            "learned variance": learned_variance,
            "length": jnp.linalg.norm(true_gradient(process)),
        }

    return jax.device_get(run(jax.random.split(jax.random.key(0), settings.processes)))


def finite(environment: Environment) -> Environment:
    """The same with a limit of steps that is an end, and rewards that sum to about 1."""

    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        taken = environment.step(key, state, action)
        over = taken.terminated | taken.truncated
        return taken._replace(reward=taken.reward / 100, terminated=over, truncated=jnp.zeros_like(over))

    return environment._replace(step=step)


def cartpole(settings: Settings) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """``key →`` by checkpoint: variance by form ``[C, 6]``, mean return and the critic's explained variance ``[C]``."""
    environment = finite(make("CartPole-v1", max_steps_in_episode=settings.limit_steps))
    policy = perceptron(environment, settings.hidden)
    learning = Learning(1, 1, target=lambda_return(0.95), value_coef=1.0)
    update = gradient_update(policy, a2c(0.95), optax.adam(settings.learning_rate), learning)
    collecting = Collecting(settings.environments, settings.horizon_steps, 1.0)
    init, step = control_loop(environment, policy, update, collecting)

    def gradients(params: Params, observations: jax.Array, actions: jax.Array, weights: jax.Array) -> jax.Array:
        """Of one episode ``[T]`` for weights ``[6, T]``: ``[6, P]``."""

        def log_probs(actor: Params) -> jax.Array:
            return policy.distribution.log_prob(policy.act(params | {"actor": actor}, (), observations)[0], actions)

        pull = jax.vjp(log_probs, params["actor"])[1]
        return jax.vmap(lambda weight: ravel_pytree(pull(weight)[0])[0])(weights)

    def moments(params: Params, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        start_key, run_key = jax.random.split(key)
        runner = start_runner(environment, policy, settings.episodes, start_key)
        steps = rollout(environment, policy, lambda x: x, params, runner, run_key, settings.limit_steps)[1]
        first = jnp.cumsum(steps.terminated, 0) - steps.terminated == 0
        stream = trajectory_of(policy, params, steps, 1.0)
        weights = jnp.stack([jax.vmap(credit, 1, 1)(stream) * first for credit in FORMS.values()])
        found = jax.vmap(gradients, (None, 1, 1, 2))(params, steps.observations, steps.actions, weights)
        spread = [jnp.var(x, where=first, axis=None) for x in (weights[2], weights[1])]
        returns = 100 * (steps.rewards * first).sum(0).mean()
        return found.var(0).sum(-1), returns, 1 - spread[0] / spread[1]

    def run(key: jax.Array) -> tuple[jax.Array, ...]:
        init_key, run_key, test_key = jax.random.split(key, 3)
        state, found, before = init(init_key), [], 0
        for checkpoint in settings.checkpoints:
            updates = (checkpoint - before) // (settings.environments * settings.horizon_steps)
            keys = jax.random.split(jax.random.fold_in(run_key, checkpoint), updates)
            state = jax.lax.scan(lambda s, k: (step(s, k)[0], None), state, keys)[0] if updates else state
            found.append(moments(state.params, test_key))
            before = checkpoint
        return tuple(jnp.stack(x) for x in zip(*found))

    return run


def measure(settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Samples, and the numbers."""
    samples = measure_processes(settings)
    keys = jax.random.split(jax.random.key(1), settings.seeds)
    variance, returns, explained = jax.device_get(jax.jit(lambda keys: jax.lax.map(cartpole(settings), keys))(keys))
    samples["cartpole"] = variance / variance[..., :1]
    samples["ratio"] = samples["variance"] / samples["variance"][:, :1]
    processes, games = {}, {}
    for column, name in enumerate(FORMS):
        by_critic = zip(settings.episodes_of_critic, samples["learned bias"][..., column].T)
        processes[name] = {
            "bias, true V": interval(samples["bias"][:, column]),
            "variance over form 1's, true V": interval(samples["ratio"][:, column]),
            "bias by episodes of the critic": {str(n): interval(x) for n, x in by_critic},
        }
        by_policy = zip(settings.checkpoints, samples["cartpole"][..., column].T)
        games[name] = {str(n): interval(x) for n, x in by_policy}
    return samples, {
        "settings": settings._asdict(),
        "largest bias of any form, true V": short(samples["bias"].max()),
        "largest bias of forms 1 to 3, learned V": short(samples["learned bias"][..., :3].max()),
        "length of the true gradient": interval(samples["length"]),
        "processes": processes,
        "cartpole variance over form 1's": games,
        "cartpole return": {str(n): interval(x) for n, x in zip(settings.checkpoints, returns.T)},
        "cartpole variance explained": {str(n): interval(x) for n, x in zip(settings.checkpoints, explained.T)},
    }


def draw(settings: Settings, samples: Mapping[str, np.ndarray]) -> Any:
    """Bias over the critic's learning, then the variance in the processes and on CartPole."""
    figure, panels = new_figure("Six weights of the policy gradient", 3)
    places = np.arange(len(settings.episodes_of_critic))
    for column, (name, color) in enumerate(zip(FORMS, COLORS)):
        style = {"linestyle": ":"} if column < 3 else {"marker": "o"}
        band(panels[0], places, samples["learned bias"][..., column], name, color, **style)
        band(panels[1], [column - 0.3, column + 0.3], np.repeat(samples["ratio"][:, [column]], 2, 1), None, color)
        ratio = samples["cartpole"][..., column]
        band(panels[2], np.arange(ratio.shape[1]), ratio, name, color, marker="o")
    panels[0].set_xticks(places, settings.episodes_of_critic)
    label(panels[0], "Bias, exact, random processes", "episodes that V was learned from", "length of the bias, rewards")
    panels[1].set_xticks(range(len(FORMS)), [name[0] for name in FORMS])
    panels[1].set_ylim(0, None)
    label(panels[1], "Variance, exact, with the true V", "form", "share of form 1's", legend=False)
    panels[2].set_yscale("log")
    panels[2].set_xticks(range(len(settings.checkpoints)), [f"{n // 1000}" for n in settings.checkpoints])
    label(panels[2], "Variance, CartPole, with the learned V", "steps of training, thousands", "share of form 1's")
    return figure


def listed(measured: Iterable[Mapping[str, float]]) -> str:
    """Means, one after the other."""
    return ", ".join(f"{x['mean']:.2f}" for x in measured)


def overlap(one: Mapping[str, float], two: Mapping[str, float]) -> str:
    """A remark where the lower and the higher of two intervals overlap."""
    return "" if one["high"] < two["low"] else " (intervals overlap)"


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, processes, games = numbers["settings"], numbers["processes"], numbers["cartpole variance over form 1's"]
    names, last = list(processes), str(s["checkpoints"][-1])
    exact = {name: x["variance over form 1's, true V"] for name, x in processes.items()}
    same = numbers["largest bias of any form, true V"] < 1e-4
    adds = all(processes[name]["bias by episodes of the critic"]["0"]["low"] > 1e-3 for name in names[3:])
    orders = {"in the processes": list(exact.values()), "on CartPole": [x[last] for x in games.values()]}
    rises = [
        f"form {row + 2} has more than form {row + 1} {where}{overlap(one, two)}"
        for where, order in orders.items()
        for row, (one, two) in enumerate(pairwise(order))
        if two["mean"] > one["mean"]
    ]
    held = f"held{' in part' if rises else ''}" if same and adds else "did not hold"
    order = f"The variance does not fall at every step of the list: {'; '.join(rises)}." if rises else ""
    untrained = str(s["checkpoints"][0])
    few, many = (str(n) for n in (s["episodes_of_critic"][0], s["episodes_of_critic"][-1]))
    learned = ", ".join(
        f"form {name[0]} {said(processes[name]['bias by episodes of the critic'][few])} with a critic of zeros and "
        f"{said(processes[name]['bias by episodes of the critic'][many], 3)} after {int(many):,} episodes"
        for name in names[3:]
    )
    rows = [
        [name, said(exact[name], 3)]
        + [said(processes[name]["bias by episodes of the critic"][str(n)], 3) for n in s["episodes_of_critic"][::3]]
        + [said(games[name][str(n)], 3) for n in s["checkpoints"][::3]]
        for name in names
    ]
    critics = [f"bias, V of {n:,} episodes" for n in s["episodes_of_critic"][::3]]
    policies = [f"CartPole, {n:,} steps" for n in s["checkpoints"][::3]]
    returns = ", ".join(said(x, 0) for x in numbers["cartpole return"].values())
    explained = ", ".join(said(x) for x in numbers["cartpole variance explained"].values())
    return f"""# Six weights of the policy gradient: variance and bias

![Bias and variance by form](figure.png)

**The claim {held}.** With the true V all six forms have the same expected gradient: over {s["processes"]} random
processes, every trajectory enumerated, the largest bias of any is
{numbers["largest bias of any form, true V"]:.0e} (the gradient's length is
{said(numbers["length of the true gradient"])}). A learned V leaves forms 1 to 3 unbiased whatever it is (largest bias
{numbers["largest bias of forms 1 to 3, learned V"]:.0e}) and adds bias to the others (4 and 6 differ by a
baseline, so theirs is the same): {learned}. The variance of one
episode's gradient with the true V is {listed(exact.values())} of form 1's for forms 1 to 6; on CartPole with the
learned critic after {int(last):,} steps it is
{listed(x[last] for x in games.values())}. {order} A baseline needs a critic that knows something: with an untrained
one on CartPole form 3 has {said(games[names[2]][untrained])}.

{table(["form", "variance, true V", *critics, *policies], rows)}

Mean and 95 % interval, over {s["processes"]} processes ({STATES} states, {ACTIONS} actions, {STEPS} steps) and over
{s["seeds"]} seeds on CartPole (episodes of at most {s["limit_steps"]} steps, the limit an end, no discount;
{s["episodes"]} episodes at each policy, traces of the covariance as shares of form 1's). The policies, from A2C, have
mean returns {returns}, and their critics explain {explained} of the variance of the return to go (below 0: worse than a
constant). Form 4 is r + V(s′) and form 5 GAE: a critic's estimates of Q and of Q − V.
`python -m experiments.policy_gradient_weights`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    quick = Settings(4, (0, 10), 2, (0, 64), 2, 32, 3e-3, (8,), 20, 8)
    settings = quick if options.quick else Settings()
    samples, numbers = measure(settings)
    write(options.out, draw(settings, samples), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
