"""Returns over the tokens of one completion ``[T]``: of several turns, and of great length."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.recurrence import reverse_affine_scan
from rlax_llm.credit.returns import PerStep, gae, stream


@check_arguments
def decoupled_gae(
    rewards: jax.Array,
    discounts: PerStep,
    values: PerStep,
    next_values: PerStep,
    traces: PerStep,
    value_traces: PerStep = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Advantages with the policy's λ, the critic's targets with one of its own (VAPO, arXiv 2504.05118).

    Over thousands of tokens λ < 1 leaves the critic nothing of a score at the end, so its own is 1, while the policy's
    stays below 1 against variance. Limiting case: equal traces give ``gae`` and ``gae + values``.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]`` or a scalar, the value of the state in which each step was taken.
        next_values: ``[T]`` or a scalar, the value of the state that each step led to.
        traces: the policy's λ, ``[T]`` or a scalar; 0 where the episode is truncated.
        value_traces: the critic's λ. A scalar is cut where an array of ``traces`` is 0, so that no target reads across
            a truncation; an array ``[T]`` is taken as it is, with its own zeros. (A policy's λ of 0 everywhere goes in
            as a scalar, which cuts nothing.)

    Returns:
        Advantages ``[T]`` and the critic's targets ``[T]``, in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> [x.tolist() for x in decoupled_gae(jnp.array([0.0, 1.0]), 1.0, jnp.zeros(2), jnp.zeros(2), 0.5)]
    [[0.5, 1.0], [1.0, 1.0]]
    >>> decoupled_gae(jnp.zeros(2), 1.0, 0.0, jnp.array([5.0, 0.0]), jnp.array([0.0, 1.0]))[1].tolist()  # truncated
    [5.0, 0.0]
    """
    if jnp.ndim(traces) and not jnp.ndim(value_traces):
        value_traces = jnp.where(jnp.asarray(traces) == 0, 0.0, value_traces)
    advantages = gae(rewards, discounts, values, next_values, traces)
    return advantages, gae(rewards, discounts, values, next_values, value_traces) + values


@check_arguments
def length_adaptive_trace(length: PerStep, alpha: float = 0.05) -> jax.Array:
    """The policy's λ for a completion of that length, ``λ = 1 − 1/(α · length)`` (VAPO, arXiv 2504.05118).

    The coefficients of the TD errors, ``Σ λ^t ≈ 1/(1 − λ)``, then sum to about α · length instead of to a constant.
    Limiting cases: 1 for an endless completion; 0 where ``α · length ≤ 1``, where the equation is negative.

    Args:
        length: tokens the policy chose, a scalar or any shape.
        alpha: α > 0, per token.

    Returns:
        The same shape, between 0 and 1.

    Raises:
        ValueError: for an ``alpha`` that is not positive.

    >>> length_adaptive_trace(jnp.array([0, 10, 40, 80]), 0.05).tolist()
    [0.0, 0.0, 0.5, 0.75]
    """
    checks.positive("length_adaptive_trace", alpha=alpha)
    return 1 - 1 / jnp.maximum(alpha * jnp.asarray(length), 1.0)


class TokenSteps(NamedTuple):
    """The arguments of ``gae``, in its order: ``gae(*steps)``.

    Attributes:
        rewards: ``[T]``.
        discounts: ``[T]``, 0 where the episode terminates.
        values: ``[T]``, of the state in which each step was taken.
        next_values: ``[T]``, of the state that each step led to.
        traces: ``[T]``, 0 where the episode is truncated.
    """

    rewards: jax.Array
    discounts: jax.Array
    values: jax.Array
    next_values: jax.Array
    traces: jax.Array


@check_arguments
def token_steps(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    discount: PerStep = 1.0,
    trace: PerStep = 1.0,
    bootstrap: PerStep = 0.0,
) -> TokenSteps:
    """One completion as a stream of *chosen* tokens: credit passes over all others undecayed.

    Prompt, padding and observation tokens (a tool's output between two turns) are no actions. At a chosen token the
    next value is that of the next chosen one; at every other position the TD error is 0 and ``γ · λ`` is 1, so that
    ``gae(*token_steps(...))`` at chosen tokens is GAE over the chosen tokens alone. A reward on an unchosen token
    counts, undecayed, for the last chosen one before it, which earned it; before the first there is none, and the
    reward is dropped. Advantages at unchosen positions are the next chosen token's, for no loss to read.

    Limiting case: all chosen gives ``discounts = γ``, ``traces = λ`` and ``next_values[t] = values[t+1]``. Peers
    differ: some decay over observations, some cut the chain there, and those that skip them lose the rewards on them.

    Args:
        rewards: ``[T]``.
        values: ``[T]``, ``values[t]`` of the state ``tokens[:t]``; read at chosen tokens only.
        mask: ``[T]`` bool, True where the policy chose.
        discount: γ, a scalar or ``[T]``, of a chosen token.
        trace: λ, the same. 0 becomes the smallest positive number: the stream is cut nowhere, and the critic of
            ``decoupled_gae`` reads on.
        bootstrap: scalar, the value after the last token: 0 where the policy stopped, a critic's where it was cut off.

    Returns:
        ``TokenSteps``, each ``[T]``.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> mask = jnp.array([False, True, False, True])
    >>> steps = token_steps(jnp.array([0.0, 0.0, 1.0, 2.0]), jnp.array([9.0, 1.0, 9.0, 2.0]), mask, trace=0.5)
    >>> (steps.rewards.tolist(), steps.next_values.tolist())
    ([0.0, 1.0, 0.0, 2.0], [1.0, 2.0, 2.0, 0.0])
    >>> gae(*steps).tolist()
    [2.0, 2.0, 0.0, 0.0]
    """
    checks.same_shape("token_steps", rewards=rewards, values=values, mask=mask)
    given = {"values": values, "discount": discount, "trace": trace}
    rewards, values, discount, trace = stream("token_steps", rewards, **given)
    chosen = jnp.asarray(mask, bool)
    carry = jnp.where(chosen, 0.0, 1.0)
    earned = reverse_affine_scan(jnp.where(chosen, 0.0, rewards), carry)
    value = reverse_affine_scan(jnp.where(chosen, values, 0.0), carry, bootstrap)
    return TokenSteps(
        jnp.where(chosen, rewards + _following(earned, 0.0), 0.0),
        jnp.where(chosen, discount, 1.0),
        value,
        jnp.where(chosen, _following(value, bootstrap), value),
        # No token of a completion is a truncation, which a trace of exactly 0 would tell ``decoupled_gae``.
        jnp.where(chosen, jnp.maximum(trace, jnp.finfo(trace.dtype).tiny), 1.0),
    )


def _following(x: jax.Array, last: PerStep) -> jax.Array:
    """``x[t+1]``, and ``last`` after the end."""
    return jnp.append(x[1:], last)
