"""Policies with a critic for control: what a loop needs of them, and multilayer and recurrent perceptrons.

A policy is an ``ActorCritic``, a record of pure functions. ``perceptron`` and ``recurrent`` make one from NNX modules;
``policy_from_apply`` from any ``init`` and ``apply``, Linen's among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rlax_llm.core.distributions import Distribution, categorical, gaussian
from rlax_llm.core.types import Params
from rlax_llm.envs.environment import Box, Discrete, Environment
from rlax_llm.models.functional import pure_functions
from rlax_llm.models.initializers import orthogonal_kernels

Carry = Any
Parameters = Any


class ActorCritic(NamedTuple):
    """A stochastic policy and its critic as pure functions.

    Attributes:
        init: ``key → params``, a dict; where policy and critic share nothing its entries are ``actor`` and ``critic``.
        carry: the memory at the start of an episode, of one environment; ``()`` without memory.
        act: ``(params, carry [B…], observations [B…]) → (parameters [B…], carry)``, one step; the caller puts the
            initial memory back where an episode starts.
        evaluate: ``(params, carry [B…], observations [L, B…], starts [L, B]) → (parameters [L, B…], values [L, B])``,
            along streams; ``starts`` is True where an observation is the first of its episode.
        distribution: of the actions, over ``parameters``.
    """

    init: Callable[[jax.Array], Params]
    carry: Carry
    act: Callable[[Params, Carry, jax.Array], tuple[Parameters, Carry]]
    evaluate: Callable[[Params, Carry, jax.Array, jax.Array], tuple[Parameters, jax.Array]]
    distribution: Distribution


_LATER = jax.nn.initializers.zeros  # all matrices are drawn at once, by _orthogonal


def _orthogonal(key: jax.Array, params: Params) -> Params:
    """All matrices of a policy: singular values 0.01 at the actor's head, 1 at the critic's, √2 elsewhere."""

    def scale(path: str) -> float:
        if "layers" in path:
            return float(np.sqrt(2))
        return 0.01 if "actor" in path else 1.0

    return orthogonal_kernels(key, params, scale)


class _Perceptron(nnx.Module):
    """Hidden layers of equal activation; the input is flattened after its leading axes."""

    def __init__(self, widths: Sequence[int], activation: Callable, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(a, b, kernel_init=_LATER, rngs=rngs) for a, b in pairwise(widths)])
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


class _Actor(nnx.Module):
    """From features to the parameters of a distribution over ``actions``."""

    def __init__(self, width: int, actions: Discrete | Box, rngs: nnx.Rngs):
        size = actions.n if isinstance(actions, Discrete) else len(actions.low)
        self.head = nnx.Linear(width, size, kernel_init=_LATER, rngs=rngs)
        self.log_std = None if isinstance(actions, Discrete) else nnx.Param(jnp.zeros(size))

    def __call__(self, features: jax.Array) -> Parameters:
        head = self.head(features)
        return head if self.log_std is None else (head, jnp.broadcast_to(self.log_std[...], head.shape))


class _Stack(nnx.Module):
    """A torso and what follows it."""

    def __init__(self, torso: nnx.Module, head: nnx.Module):
        self.torso = torso
        self.head = head

    def __call__(self, x: jax.Array) -> Any:
        return self.head(self.torso(x))


def distribution_over(actions: Discrete | Box) -> Distribution:
    """The distribution that goes with a kind of action: categorical, or a Gaussian with a diagonal covariance.

    Args:
        actions: an environment's.

    >>> distribution_over(Discrete(2)) is categorical
    True
    """
    return categorical if isinstance(actions, Discrete) else gaussian


def _flattened(environment: Environment) -> tuple[int, Callable[[jax.Array], jax.Array]]:
    shape = environment.observation.shape

    def flatten(observations: jax.Array) -> jax.Array:
        leading = observations.shape[: observations.ndim - len(shape)]
        return observations.reshape(*leading, -1).astype(jnp.float32)

    return int(np.prod(shape, dtype=int)), flatten


def _value_head(width: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width, 1, kernel_init=_LATER, rngs=rngs)


def perceptron(
    environment: Environment,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    shared: Sequence[int] = (),
) -> ActorCritic:
    """Multilayer perceptrons for actor and critic, orthogonal weights (√2; 0.01 and 1 at the heads).

    Args:
        environment: gives the shapes.
        hidden: widths of the layers of each of the two networks.
        activation: elementwise.
        shared: widths of the layers in front of both; where there are any, the policy moves when the critic learns.

    Returns:
        A policy without memory.

    >>> from rlax_llm.envs.probes import constant_reward
    >>> policy = perceptron(constant_reward().environment, hidden=(8,))
    >>> sorted(policy.init(jax.random.key(0)))
    ['actor', 'critic']
    """
    size, flatten = _flattened(environment)
    torso_init, torso = pure_functions(lambda rngs: _Perceptron((size, *shared), activation, rngs))
    widths = (shared[-1] if shared else size, *hidden)
    actor_init, actor = pure_functions(
        lambda rngs: _Stack(_Perceptron(widths, activation, rngs), _Actor(widths[-1], environment.actions, rngs))
    )
    critic_init, critic = pure_functions(
        lambda rngs: _Stack(_Perceptron(widths, activation, rngs), _value_head(widths[-1], rngs))
    )

    def init(key: jax.Array) -> Params:
        params = {"actor": actor_init(key), "critic": critic_init(key)}
        return _orthogonal(key, params | {"torso": torso_init(key)} if shared else params)

    def features(params: Params, observations: jax.Array) -> jax.Array:
        x = flatten(observations)
        return torso(params["torso"], x) if shared else x

    def policy(params: Params, observations: jax.Array) -> Parameters:
        return actor(params["actor"], features(params, observations))

    def values(params: Params, observations: jax.Array) -> jax.Array:
        return critic(params["critic"], features(params, observations))[..., 0]

    return policy_from_apply(init, policy, values, distribution_over(environment.actions))


def policy_from_apply(
    init: Callable[[jax.Array], Params],
    policy: Callable[[Params, jax.Array], Parameters],
    values: Callable[[Params, jax.Array], jax.Array],
    distribution: Distribution,
) -> ActorCritic:
    """A policy without memory from plain functions; any Flax module's ``init`` and ``apply`` fit.

    Args:
        init: ``key → params``, with the entries ``actor`` and ``critic`` where the two share nothing (TRPO wants that).
        policy: ``(params, observations […]) → parameters […]``.
        values: ``(params, observations […]) → […]``.
        distribution: over ``parameters``.

    >>> policy = policy_from_apply(lambda key: {}, lambda p, x: x, lambda p, x: x.sum(-1), categorical)
    >>> policy.act({}, (), jnp.ones((3, 2)))[0].shape
    (3, 2)
    """

    def act(params: Params, carry: Carry, observations: jax.Array) -> tuple[Parameters, Carry]:
        return policy(params, observations), carry

    def evaluate(params: Params, carry: Carry, observations: jax.Array, starts: jax.Array) -> tuple:
        return policy(params, observations), values(params, observations)

    return ActorCritic(init, (), act, evaluate, distribution)


def recurrent(environment: Environment, hidden: int = 64, memory: int = 64) -> ActorCritic:
    """A layer, a gated recurrent unit (arXiv 1406.1078) and two linear heads: a policy that remembers its episode.

    Args:
        environment: gives the shapes.
        hidden: width of the layer in front of the unit.
        memory: width of the unit.

    Returns:
        A policy whose carry is ``[memory]``; actor and critic share everything but their heads.

    >>> from rlax_llm.envs.probes import constant_reward
    >>> recurrent(constant_reward().environment, 8, 4).carry.shape
    (4,)
    """
    size, flatten = _flattened(environment)
    embed_init, embed = pure_functions(lambda rngs: _Perceptron((size, hidden), jnp.tanh, rngs))
    cell_init, cell = pure_functions(lambda rngs: nnx.GRUCell(hidden, memory, rngs=rngs))
    actor_init, actor = pure_functions(lambda rngs: _Actor(memory, environment.actions, rngs))
    critic_init, critic = pure_functions(lambda rngs: _value_head(memory, rngs))
    start = jnp.zeros(memory)

    inits = {"actor": actor_init, "critic": critic_init, "embed": embed_init, "cell": cell_init}

    def embedded(params: Params, observations: jax.Array) -> jax.Array:
        return embed(params["torso"]["embed"], flatten(observations))

    def remember(params: Params, carry: Carry, x: jax.Array) -> Carry:
        return cell(params["torso"]["cell"], carry, x)[0]

    def act(params: Params, carry: Carry, observations: jax.Array) -> tuple[Parameters, Carry]:
        carry = remember(params, carry, embedded(params, observations))
        return actor(params["actor"], carry), carry

    def evaluate(params: Params, carry: Carry, observations: jax.Array, starts: jax.Array) -> tuple:
        steps = (starts, embedded(params, observations))
        memories = _memories(partial(remember, params), start, carry, steps)
        return actor(params["actor"], memories), critic(params["critic"], memories)[..., 0]

    distribution = distribution_over(environment.actions)
    return ActorCritic(partial(_init_recurrent, inits), start, act, evaluate, distribution)


def _init_recurrent(inits: Mapping[str, Callable[[jax.Array], Params]], key: jax.Array) -> Params:
    cell_key, key = jax.random.split(key)
    params = {"actor": inits["actor"](key), "critic": inits["critic"](key), "torso": {"embed": inits["embed"](key)}}
    params = _orthogonal(key, params)
    return params | {"torso": params["torso"] | {"cell": inits["cell"](cell_key)}}


def _memories(
    remember: Callable[[Carry, jax.Array], Carry], start: jax.Array, carry: Carry, steps: tuple[jax.Array, jax.Array]
) -> Carry:
    """The memory after each step, started afresh where an episode begins."""

    def step(carry: Carry, now: tuple[jax.Array, jax.Array]) -> tuple[Carry, Carry]:
        begins, x = now
        carry = remember(jnp.where(begins[:, None], start, carry), x)
        return carry, carry

    return jax.lax.scan(step, carry, steps)[1]
