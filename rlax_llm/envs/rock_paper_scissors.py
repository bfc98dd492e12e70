"""Rock-paper-scissors against an opponent that adapts: the game that only a mixed strategy does not lose.

The opponent remembers an exponentially decayed share of the agent's actions and answers it. The agent sees a constant,
so that its policy is a mixed strategy and nothing else: three probabilities. A deterministic one loses nearly every
round; for the uniform one every answer is worth 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.envs.environment import Discrete, Environment, Step

Response = Callable[[jax.Array, jax.Array], jax.Array]

PAYOFFS = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], np.float32)
"""``PAYOFFS[i, j]``: reward of action i against action j; 0 is rock, 1 paper, 2 scissors."""


class Memory(NamedTuple):
    """State of the game: what the opponent remembers.

    Attributes:
        shares: ``[3]``, the decayed share of each of the agent's actions; they sum to 1.
        steps: int32, rounds played.
    """

    shares: jax.Array
    steps: jax.Array


def response_values(probabilities: jax.Array) -> jax.Array:
    """What each action is worth to the opponent of a mixed strategy, ``Σ_i PAYOFFS[j, i] · p_i``.

    Args:
        probabilities: ``[3]``, of the agent's actions.

    Returns:
        ``[3]``, the opponent's expected reward in one round; its sum is 0.

    Raises:
        ValueError: for another shape.

    >>> response_values(jnp.array([1.0, 0.0, 0.0])).tolist()
    [0.0, 1.0, -1.0]
    """
    if jnp.shape(probabilities) != (3,):
        raise ValueError(
            f"response_values: probabilities has shape {jnp.shape(probabilities)}, wanted (3,); vmap over the others."
        )
    # No matrix product: its rounding would break ties.
    return (PAYOFFS * probabilities).sum(1)


def exploitability(probabilities: jax.Array) -> jax.Array:
    """Expected loss for each round against a best response, ``max_j(Σ_i PAYOFFS[j, i] · p_i)``.

    Limiting cases: 0 at (1/3, 1/3, 1/3) and nowhere else; 1, the largest, for a deterministic strategy.

    Args:
        probabilities: ``[3]``, of the agent's actions.

    Returns:
        Scalar in [0, 1], in rewards a round.

    Raises:
        ValueError: for another shape.

    >>> float(exploitability(jnp.array([0.0, 1.0, 0.0]))), float(exploitability(jnp.full(3, 1 / 3)))
    (1.0, 0.0)
    """
    return response_values(probabilities).max()


def best_response(key: jax.Array, shares: jax.Array) -> jax.Array:
    """The action worth most against ``shares``, ties at random (fictitious play where they are plain means).

    Args:
        key: decides ties.
        shares: ``[3]``, of the agent's actions.

    Returns:
        Scalar int32, the opponent's action.

    >>> int(best_response(jax.random.key(0), jnp.array([0.2, 0.2, 0.6])))
    0
    """
    values = response_values(shares)
    return jax.random.categorical(key, jnp.where(values == values.max(), 0.0, -jnp.inf)).astype(jnp.int32)


def softmax_response(temperature: float) -> Response:
    """Opponent that draws an action in proportion to ``exp(value / temperature)``.

    Limiting cases: ``best_response`` as the temperature goes to 0, a uniform opponent as it grows.

    Args:
        temperature: greater than 0, in rewards.

    Returns:
        A response.

    Raises:
        ValueError: for a temperature that is not greater than 0.

    >>> int(softmax_response(0.01)(jax.random.key(0), jnp.array([0.2, 0.2, 0.6])))
    0
    """
    checks.positive("softmax_response", temperature=temperature)
    return lambda key, shares: jax.random.categorical(key, response_values(shares) / temperature).astype(jnp.int32)


def rock_paper_scissors(horizon_steps: int = 100, rate: float = 0.1, respond: Response = best_response) -> Environment:
    """Rounds of rock-paper-scissors against an opponent that answers what the agent has played.

    ``shares ← (1 − rate) · shares + rate · onehot(action)``, starting at thirds; the opponent plays
    ``respond(key, shares)`` of the rounds before. Limiting cases: ``rate = 1`` answers the last action alone, and
    ``rate → 0`` never learns, so that every strategy is worth 0.

    Args:
        horizon_steps: rounds of an episode, which is then truncated; the next opponent remembers nothing.
        rate: of forgetting, in (0, 1].
        respond: the opponent, ``(key, shares [3]) → action``.

    Returns:
        The environment: a reward of 1 for a win, 0 for a draw, −1 for a loss; the observation is always ``[1]``.

    Raises:
        ValueError: for a horizon below one round or a rate outside (0, 1].

    >>> game = rock_paper_scissors()
    >>> state, observation = game.reset(jax.random.key(0))
    >>> float(game.step(jax.random.key(1), state, jnp.array(0)).reward) in (-1.0, 0.0, 1.0)
    True
    """
    checks.at_least_one("rock_paper_scissors", horizon_steps=horizon_steps)
    if isinstance(rate, (int, float)) and not 0 < rate <= 1:
        raise ValueError(f"rock_paper_scissors: rate is {rate}, wanted a number in (0, 1].")
    observation = np.ones(1, np.float32)

    def reset(key: jax.Array) -> tuple[Memory, jax.Array]:
        return Memory(jnp.full(3, 1 / 3, jnp.float32), jnp.zeros((), jnp.int32)), jnp.asarray(observation)

    def step(key: jax.Array, state: Memory, action: jax.Array) -> Step:
        reward = jnp.asarray(PAYOFFS)[action, respond(key, state.shares)]
        shares = (1 - rate) * state.shares + rate * jax.nn.one_hot(action, 3, dtype=jnp.float32)
        after = Memory(shares, state.steps + 1)
        return Step(after, jnp.asarray(observation), reward, jnp.zeros((), bool), after.steps >= horizon_steps)

    spec = jax.ShapeDtypeStruct(observation.shape, observation.dtype)
    return Environment("RockPaperScissors", reset, step, spec, Discrete(3))
