"""Small random decision processes in which every trajectory is enumerated: moments of the gradient without noise."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.types import Trajectory
from rlax_llm.credit.streams import Credit, gae, q_value, return_minus_baseline, return_to_go, td_residual, total_return

STATES, ACTIONS, STEPS = 3, 2, 4

FORMS: dict[str, Credit] = {
    "1 total return": total_return,
    "2 return to go": return_to_go,
    "3 minus baseline": return_minus_baseline,
    "4 Q = r + V(s′)": q_value,
    "5 GAE, λ = 0.95": gae(0.95),
    "6 TD residual": td_residual,
}
"""The forms of the GAE paper's section 2; the fourth and the fifth as a critic estimates them."""


class Process(NamedTuple):
    """A decision process of ``STEPS`` steps, and a policy for it.

    Attributes:
        transitions: ``[S, A, S]``.
        rewards: ``[S, A]``.
        logits: ``[S, A]``, the policy's parameters.
    """

    transitions: jax.Array
    rewards: jax.Array
    logits: jax.Array


def some_process(key: jax.Array) -> Process:
    """Transitions uniform over the simplex, rewards and logits normal."""
    keys = jax.random.split(key, 3)
    transitions = jax.random.dirichlet(keys[0], jnp.ones(STATES), (STATES, ACTIONS))
    return Process(transitions, *(jax.random.normal(k, (STATES, ACTIONS)) for k in keys[1:]))


def true_values(process: Process) -> jax.Array:
    """V of each step and state under the policy, ``[STEPS + 1, S]``; 0 behind the last step."""
    policy, values = jax.nn.softmax(process.logits), [jnp.zeros(STATES)]
    for _ in range(STEPS):
        values.insert(0, (policy * (process.rewards + process.transitions @ values[0])).sum(1))
    return jnp.stack(values)


def all_trajectories(process: Process) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States and actions ``[N, STEPS]`` of every trajectory, and its probability ``[N]``."""
    states = np.array(list(product(range(STATES), repeat=STEPS)))
    actions = np.array(list(product(range(ACTIONS), repeat=STEPS)))
    s, a = np.repeat(states, len(actions), 0), np.tile(actions, (len(states), 1))
    chosen = jax.nn.softmax(process.logits)[s, a].prod(1)
    moved = process.transitions[s[:, :-1], a[:, :-1], s[:, 1:]].prod(1)
    return jnp.asarray(s), jnp.asarray(a), chosen * moved / STATES


def streams(process: Process, values: jax.Array, s: jax.Array, a: jax.Array) -> Trajectory:
    """What a critic with ``values [STEPS + 1, S]`` says of trajectories."""
    times = jnp.arange(STEPS)
    following = jnp.concatenate([s[:, 1:], s[:, -1:]], 1)
    ends = jnp.broadcast_to(jnp.where(times == STEPS - 1, 0.0, 1.0), s.shape)
    values, next_values = values[times, s], values[times + 1, following]
    return Trajectory(process.rewards[s, a], ends, jnp.ones(s.shape), values, next_values)


def true_gradient(process: Process) -> jax.Array:
    """Of the expected return with respect to the logits, ``[S · A]``."""
    return jax.grad(lambda logits: true_values(process._replace(logits=logits))[0].mean())(process.logits).ravel()


def exact_moments(process: Process, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Length of the bias of the mean gradient and trace of the covariance of one episode's, by form, ``[6]`` each."""
    s, a, probabilities = all_trajectories(process)
    policy = jax.nn.softmax(process.logits)
    at_state = jax.nn.one_hot(s, STATES)[..., None]
    score = (at_state * (jax.nn.one_hot(a, ACTIONS) - policy[s])[:, :, None]).reshape(*s.shape, -1)
    stream = streams(process, values, s, a)
    truth = true_gradient(process)

    def moments(credit: Credit) -> tuple[jax.Array, jax.Array]:
        gradients = jnp.einsum("nt,ntp->np", jax.vmap(credit)(stream), score)
        mean = probabilities @ gradients
        spread = probabilities @ jnp.square(gradients - mean).sum(1)
        return jnp.linalg.norm(mean - truth), spread

    bias, variance = zip(*(moments(credit) for credit in FORMS.values()))
    return jnp.stack(bias), jnp.stack(variance)


def learned_values(process: Process, episodes: int, key: jax.Array) -> jax.Array:
    """TD(0) from 0 over sampled episodes, each value with steps ``(1 + visits)^−0.8``: ``[STEPS + 1, S]``."""
    s, a, probabilities = all_trajectories(process)
    drawn = jax.random.categorical(key, jnp.log(probabilities), shape=(episodes,))
    times = jnp.arange(STEPS)

    def learn(now: tuple, row: jax.Array) -> tuple[tuple, None]:
        values, visits = now
        stream = jax.tree.map(lambda x: x[0], streams(process, values, s[row][None], a[row][None]))
        size = (1.0 + visits[times, s[row]]) ** -0.8
        values = values.at[times, s[row]].add(size * td_residual(stream))
        return (values, visits.at[times, s[row]].add(1)), None

    start = (jnp.zeros((STEPS + 1, STATES)), jnp.zeros((STEPS + 1, STATES)))
    return jax.lax.scan(learn, start, drawn)[0][0]
