"""Rock-paper-scissors: a greedy player of values is exploited, a policy-gradient player finds the mixed strategy.

The opponent plays the best response to the decayed shares of the player's own actions. Three players start from
strategies far from (1/3, 1/3, 1/3): tabular Q-learning, A2C from the library, and A2C twice more where the opponent is
so slow that strategy and opponent chase each other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import COLORS, arguments, band, interval, label, new_figure, said, table, write
from rlax_llm.core.distributions import categorical
from rlax_llm.credit.streams import lambda_return
from rlax_llm.envs.environment import Environment
from rlax_llm.envs.rock_paper_scissors import exploitability, rock_paper_scissors
from rlax_llm.loops.control import Collecting, control_loop
from rlax_llm.loops.updates import Learning, gradient_update, no_normalization
from rlax_llm.models.actor_critic import ActorCritic, Params, policy_from_apply
from rlax_llm.recipes.control import a2c

SPREAD = 1.5
"""Standard deviation of the logits at the start."""

NEVER = 1_000_000_000
"""Rounds: an opponent that is never replaced remembers over updates."""


class Settings(NamedTuple):
    """Of every player; the same number of rounds for all."""

    seeds: int = 32
    updates: int = 300
    environments: int = 8
    rounds: int = 100
    discount: float = 0.9
    gae_lambda: float = 0.95
    learning_rate: float = 0.03
    fast_rate: float = 0.1
    slow_rate: float = 0.0005
    test_rounds: int = 1000
    q_step: float = 0.05
    q_exploration: float = 0.1


def mixed_strategy() -> ActorCritic:
    """Three logits and one value: the policy of a player that sees nothing."""

    def init(key: jax.Array) -> Params:
        return {"actor": SPREAD * jax.random.normal(key, (3,)), "critic": jnp.zeros(())}

    def policy(params: Params, observations: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params["actor"], (*observations.shape[:-1], 3))

    def values(params: Params, observations: jax.Array) -> jax.Array:
        return jnp.broadcast_to(params["critic"], observations.shape[:-1])

    return policy_from_apply(init, policy, values, categorical)


def policy_gradient(settings: Settings, key: jax.Array, rate: Any, horizon_steps: Any, last: jax.Array) -> jax.Array:
    """A2C's strategy after each update, ``[U + 1, 3]``, against an opponent that forgets at ``rate``.

    Its learning rate falls to the share ``last`` of itself.
    """
    environment, policy = rock_paper_scissors(horizon_steps, rate), mixed_strategy()
    schedule = optax.linear_schedule(settings.learning_rate, last * settings.learning_rate, settings.updates)
    credit = settings.gae_lambda
    learning = Learning(1, 1, target=lambda_return(credit), normalize=no_normalization)
    update = gradient_update(policy, a2c(credit), optax.adam(schedule), learning)
    collecting = Collecting(settings.environments, settings.rounds, settings.discount)
    init, step = control_loop(environment, policy, update, collecting)

    def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        state = step(state, key)[0]
        return state, jax.nn.softmax(state.params["actor"])

    init_key, run_key = jax.random.split(key)
    state = init(init_key)
    strategies = jax.lax.scan(one, state, jax.random.split(run_key, settings.updates))[1]
    return jnp.concatenate([jax.nn.softmax(state.params["actor"])[None], strategies])


def q_learning(settings: Settings, environment: Environment, key: jax.Array) -> jax.Array:
    """The greedy strategy of an epsilon-greedy Q-learner of one state, as often as ``policy_gradient`` reports."""
    start_key, reset_key, run_key = jax.random.split(key, 3)
    fresh, _ = environment.reset(reset_key)

    def round_(now: tuple, key: jax.Array) -> tuple[tuple, None]:
        q, state = now
        explore_key, action_key, step_key = jax.random.split(key, 3)
        explores = jax.random.bernoulli(explore_key, settings.q_exploration)
        action = jnp.where(explores, jax.random.randint(action_key, (), 0, 3), jnp.argmax(q))
        step = environment.step(step_key, state, action)
        target = step.reward + settings.discount * q.max()
        q = q.at[action].add(settings.q_step * (target - q[action]))
        state = jax.tree.map(lambda new, old: jnp.where(step.truncated, old, new), step.state, fresh)
        return (q, state), None

    def report(now: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        keys = jax.random.split(key, settings.environments * settings.rounds)
        now = jax.lax.scan(round_, now, keys)[0]
        return now, jax.nn.one_hot(jnp.argmax(now[0]), 3)

    q = SPREAD * jax.random.normal(start_key, (3,))
    strategies = jax.lax.scan(report, (q, fresh), jax.random.split(run_key, settings.updates))[1]
    return jnp.concatenate([jax.nn.one_hot(jnp.argmax(q), 3)[None], strategies])


def reward_of(environment: Environment, rounds: int, strategy: jax.Array, key: jax.Array) -> jax.Array:
    """Mean reward a round of a fixed strategy ``[3]`` against an opponent that begins to adapt to it."""
    reset_key, run_key = jax.random.split(key)

    def one(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        action_key, step_key = jax.random.split(key)
        action = jax.random.categorical(action_key, jnp.log(strategy))
        step = environment.step(step_key, state, action)
        return step.state, step.reward

    return jax.lax.scan(one, environment.reset(reset_key)[0], jax.random.split(run_key, rounds))[1].mean()


def measure(settings: Settings) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Strategies ``[S, U + 1, 3]`` by player, and the numbers."""
    fast, slow = (settings.fast_rate, settings.rounds), (settings.slow_rate, NEVER)
    learners = {
        "policy gradient": (*fast, 0.0),
        "slow opponent, constant learning rate": (*slow, 1.0),
        "slow opponent, falling learning rate": (*slow, 0.0),
    }
    columns = [jnp.array(column) for column in zip(*learners.values())]
    opponent, test = rock_paper_scissors(settings.rounds, settings.fast_rate), rock_paper_scissors(NEVER)

    @jax.jit
    @jax.vmap
    def run(key: jax.Array) -> tuple:
        play_key, test_key = jax.random.split(key)
        learned = jax.vmap(partial(policy_gradient, settings, play_key))(*columns)
        paths = jnp.concatenate([q_learning(settings, opponent, play_key)[None], learned])
        return paths, jax.vmap(lambda path: reward_of(test, settings.test_rounds, path[-1], test_key))(paths)

    found = jax.device_get(run(jax.random.split(jax.random.key(0), settings.seeds)))
    paths, rewards = (dict(zip(("Q-learning", *learners), np.moveaxis(x, 1, 0))) for x in found)
    measured = {name: measured_path(path, rewards[name]) for name, path in paths.items()}
    return paths, {"settings": settings._asdict(), "players": measured}


def measured_path(path: np.ndarray | jax.Array, rewards: np.ndarray) -> dict[str, Any]:
    """What is said of strategies ``[S, U + 1, 3]``."""
    exploited, path = jax.vmap(exploitability), jnp.asarray(path)
    late = path[:, path.shape[1] // 2 :]
    return {
        "exploitability at the start": interval(exploited(path[:, 0])),
        "exploitability of the last strategy": interval(exploited(path[:, -1])),
        "exploitability, mean over the second half": interval(jax.vmap(exploited)(late).mean(1)),
        "exploitability of the average strategy of the second half": interval(exploited(late.mean(1))),
        "largest distance of a probability from 1/3, last strategy": interval(jnp.abs(path[:, -1] - 1 / 3).max(-1)),
        "reward a round of the last strategy": interval(rewards),
    }


def draw(settings: Settings, paths: Mapping[str, np.ndarray]) -> Any:
    """Exploitability over rounds, and the strategies in their triangle."""
    figure, panels = new_figure("Rock-paper-scissors against an opponent that adapts", 3)
    rounds = np.arange(settings.updates + 1) * settings.environments * settings.rounds / 1000
    for (name, path), color in zip(paths.items(), COLORS):
        loss = jax.vmap(jax.vmap(exploitability))(jnp.asarray(path))
        band(panels[0], rounds, loss, name if name != "Q-learning" else "Q-learning, greedy", color)
    label(panels[0], "Exploitability", "rounds played, thousands", "loss a round to a best response, rewards")
    panels[0].set_ylim(-0.03, 1.45)
    names = list(paths)
    triangle(panels[1], paths, (names[0], names[1]), "Three seeds: fast opponent")
    triangle(panels[2], paths, (names[2], names[3]), "One seed: slow opponent", 1)
    return figure


def triangle(panel: Any, paths: Mapping[str, np.ndarray], names: Sequence[str], title: str, shown: int = 3) -> None:
    """Paths of the first ``shown`` seeds in the simplex of strategies."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
    for name, corner, move in zip(("rock", "paper", "scissors"), corners, ((0, -0.08), (0, -0.08), (0, 0.03))):
        panel.text(*(corner + move), name, ha="center", fontsize=8.5)
    panel.plot(*corners[[0, 1, 2, 0]].T, color="#9aa3ad", linewidth=1)
    for name in names:
        color = COLORS[list(paths).index(name)]
        for seed, path in enumerate(paths[name][:shown]):
            x, y = (path @ corners).T
            panel.plot(x, y, color=color, linewidth=0.9, alpha=0.8, label=None if seed else name)
            panel.plot(x[-1], y[-1], "o", color=color, markersize=5)
    panel.plot(*corners.mean(0), "+", color="black", markersize=11, label="(1/3, 1/3, 1/3)")
    label(panel, f"{title} (dot: the last)", "", "")
    panel.legend(fontsize=7.5, frameon=False, loc="upper left")
    panel.set(aspect="equal", xlim=(-0.1, 1.1), ylim=(-0.12, 1.2), xticks=[], yticks=[])
    panel.spines[:].set_visible(False)


def report(numbers: Mapping[str, Any]) -> str:
    """The text that goes with the numbers."""
    s, players = numbers["settings"], numbers["players"]
    q, gradient, orbit, settled = players.values()
    last, average, reward = list(q)[1], list(q)[3], list(q)[5]
    held = q[last]["low"] > 0.9 and gradient[last]["high"] < 0.05 and gradient[reward]["high"] > -0.02
    verdict = "The claim held**, on one condition" if held else "The claim did not hold**"
    rows = [
        [name, *(said(player[key], 3) for key in (last, list(q)[2], average, reward))]
        for name, player in players.items()
    ]
    keys = (last, list(q)[2], average, reward)
    rows = [[name, *(said(player[key], 3) for key in keys)] for name, player in players.items()]
    return f"""# Rock-paper-scissors: a mixed strategy needs a stochastic policy

![Exploitability over training, and the strategies in the simplex](figure.png)

**{verdict}. Q-learning ends in a deterministic greedy strategy whatever it has learned: its
exploitability is {said(q[last])}, and the opponent that adapts leaves it {said(q[reward])} rewards a round. It changes
its mind for ever, so that the *average* of its greedy strategies is exploited by {said(q[average], 3)} only; but no
strategy that it ever held is that average. The policy gradient (A2C, no entropy bonus, no averaging, a learning rate
that falls to 0) starts at {said(gradient["exploitability at the start"])}; its last strategy is exploited by
{said(gradient[last], 4)}, its probabilities are within {said(gradient[list(q)[4]], 4)} of 1/3, and it earns
{said(gradient[reward], 3)} a round.

The condition: the opponent adapts faster than the policy (it remembers about {1 / s["fast_rate"]:.0f} rounds; an update
reads {s["rounds"]} in a row), so that the return shows what the opponent does to a strategy. Against one that remembers
about {1 / s["slow_rate"]:,.0f} rounds the same player with a constant learning rate *orbits* the mixed strategy: the
last strategy is exploited by {said(orbit[last])}, the average of the strategies of the second half by
{said(orbit[average], 3)}. With a learning rate that falls to 0 the orbit shrinks, to {said(settled[last], 3)} for the
last strategy: there plain policy gradient converges only because its steps do.

{table(["player", "exploitability, last", "its mean, second half", "of the average strategy", "reward a round"], rows)}

Mean and 95 % interval over {s["seeds"]} seeds; {s["updates"] * s["environments"] * s["rounds"]:,} rounds of training
each; the reward is that of the last strategy in {s["test_rounds"]:,} rounds against the fast opponent.
`python -m experiments.rock_paper_scissors`; settings in `numbers.json`.
"""


def main(given: Sequence[str] | None = None) -> None:
    """Run it."""
    options = arguments(__file__, __doc__, given)
    settings = Settings(seeds=3, updates=6, environments=2, rounds=20) if options.quick else Settings()
    paths, numbers = measure(settings)
    write(options.out, draw(settings, paths), numbers, report)


if __name__ == "__main__":
    main(sys.argv[1:])
