"""One optimizer step on a policy loss, as a pure ``(init, step)`` pair: the body of every loop here.

The weights are taken over the whole batch and the loss is a sum, so micro-batches change the memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.trees import check_trainable, join_trees
from rlax_llm.core.types import Completions, PolicyBatch
from rlax_llm.policy.objectives import Objective, policy_loss
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.policy.weightings import token_mean

Params = Any
LogProbs = Callable[[Params, Completions], tuple[jax.Array, jax.Array]]
Metrics = dict[str, jax.Array]
Loop = tuple[Callable[[Params], "TrainState"], Callable[..., tuple["TrainState", Metrics]]]


class TrainState(NamedTuple):
    """What an optimizer step changes.

    Attributes:
        params: what is trained, any pytree; what is not is a step's ``frozen``.
        opt_state: the optimizer's.
        step: scalar int32, optimizer steps taken.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array


def _split(batch: Any, micro_batches: int) -> Any:
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % micro_batches:
        raise ValueError(f"micro_batches is {micro_batches}, wanted a divisor of the batch's {rows} rows.")
    return jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)


def summed_gradient(
    loss: Callable[[Params, Any], tuple[jax.Array, Metrics]], params: Params, batch: Any, micro_batches: int
) -> tuple[Params, Metrics]:
    """Gradient and metrics of a loss that is a sum over rows, one micro-batch in memory at a time.

    Args:
        loss: ``(params, rows) → (scalar, metrics)``, both sums over the rows.
        params: any pytree.
        batch: arrays with the rows on axis 0.
        micro_batches: divides the number of rows.

    Returns:
        The gradient and the summed metrics; equal for every ``micro_batches`` up to rounding.
    """
    gradient = jax.grad(loss, has_aux=True)
    if micro_batches == 1:
        return gradient(params, batch)

    def add(total: Any, rows: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, rows)), None

    parts = _split(batch, micro_batches)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def initial_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first step.

    Args:
        optimizer: any Optax transformation.
        params: any pytree.

    Raises:
        ValueError: for parameters narrower than float32.
    """
    check_trainable("init", params)
    return TrainState(params, optimizer.init(params), jnp.int32(0))


def descend(optimizer: optax.GradientTransformation, state: TrainState, gradient: Params) -> TrainState:
    """The state one optimizer step further.

    Args:
        optimizer: the one that the state was made with.
        state: before the step.
        gradient: of the loss, like ``state.params``.
    """
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state, state.step + 1)


def fixed_log_probs(log_probs: LogProbs, params: Params, completions: Completions, micro_batches: int = 1) -> jax.Array:
    """Log-probabilities of completions without a gradient, one micro-batch in memory at a time: a reference's.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        params: what ``log_probs`` reads, whole.
        completions: ``[B, T]``.
        micro_batches: divides the number of rows.

    Returns:
        ``[B, T]``, nats.
    """
    parts = jax.lax.map(lambda rows: log_probs(params, rows)[0], _split(completions, micro_batches))
    return jax.lax.stop_gradient(parts.reshape(completions.mask.shape))


@check_arguments
def policy_loop(
    log_probs: LogProbs, objective: Objective, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> Loop:
    """``init(params)`` and ``step(state, completions, advantages, ref_log_probs=None, frozen=None, …)``.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        objective: five functions.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in; a part must hold whole groups.

    Returns:
        The pair. ``step`` takes ``advantages [B, T]``, and in ``frozen`` the parameters that are not trained, to be
        joined with those that are; ``factors [B, T]`` multiply the weights (a correction for the sampler), and
        ``entropy_coef`` times the mean entropy of a token is taken off the loss. It returns the new state and scalar
        metrics: those of ``policy_loss``, ``entropy`` (nats a token) and ``grad_norm`` before any clipping.
    """

    def step(
        state: TrainState,
        completions: Completions,
        advantages: jax.Array,
        ref_log_probs: jax.Array | None = None,
        frozen: Params | None = None,
        factors: jax.Array | None = None,
        entropy_coef: float | jax.Array = 0.0,
    ) -> tuple[TrainState, Metrics]:
        weights = objective.weighting(completions.mask)
        weights = weights if factors is None else weights * factors
        uniform = token_mean(completions.mask)

        def loss(params: Params, rows: tuple) -> tuple[jax.Array, Metrics]:
            taken, advantages, weights, uniform, ref_log_probs = rows
            current, entropy = log_probs(join_trees(params, frozen), taken)
            batch = PolicyBatch(current, taken.log_probs, advantages, taken.mask, weights, ref_log_probs, uniform)
            value, metrics = policy_loss(objective, batch)
            entropy = jnp.where(taken.mask, uniform * entropy, 0.0).sum()
            return value - entropy_coef * entropy, metrics | {"entropy": jax.lax.stop_gradient(entropy)}

        rows = (completions, advantages, weights, uniform, ref_log_probs)
        gradient, metrics = summed_gradient(loss, state.params, rows, micro_batches)
        return descend(optimizer, state, gradient), metrics | {"grad_norm": optax.global_norm(gradient)}

    return partial(initial_state, optimizer), step


@check_arguments
def supervised_loop(log_probs: LogProbs, optimizer: optax.GradientTransformation, micro_batches: int = 1) -> Loop:
    """``init(params)`` and ``step(state, completions, frozen=None)``: maximum likelihood, by the token mean.

    It is the policy loss with advantage 1, the score function and behavior log-probabilities of 0.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in.

    Returns:
        The pair; metrics are ``loss`` (nats a token), ``entropy`` and ``grad_norm``.
    """
    objective = Objective(lambda scored: scored.scores, token_ratio, score_function, token_mean)
    init, policy_step = policy_loop(log_probs, objective, optimizer, micro_batches)

    def step(state: TrainState, completions: Completions, frozen: Params | None = None) -> tuple[TrainState, Metrics]:
        given = completions._replace(log_probs=jnp.zeros(completions.tokens.shape))
        state, metrics = policy_step(state, given, jnp.ones(completions.tokens.shape), frozen=frozen)
        return state, {"loss": metrics["policy_loss"], "entropy": metrics["entropy"], "grad_norm": metrics["grad_norm"]}

    return init, step
