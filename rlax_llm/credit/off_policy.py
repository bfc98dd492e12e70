"""Multi-step targets from a behavior policy's steps, for one stream ``[T]`` as in ``returns``.

``log_ratio[t]`` is ``log π(a[t]|s[t]) − log μ(a[t]|s[t])``, the policy that learns over the one that acted. Both
estimators here, and tree backup, Q(λ) and per-decision importance sampling, are ``multistep_errors``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line
from rlax_llm.core.recurrence import cut_product
from rlax_llm.credit.returns import PerStep, multistep_errors, stream, td_targets


class VTrace(NamedTuple):
    """What ``vtrace`` gives.

    Attributes:
        targets: ``[T]``, what the values learn.
        advantages: ``[T]``, importance weight included: the loss is ``−advantages · log π``.
    """

    targets: jax.Array
    advantages: jax.Array


@check_arguments
def truncated_ratio(log_ratio: jax.Array, ceiling: float = 1.0) -> jax.Array:
    """``min(ceiling, exp(log_ratio))``, without overflow and with derivative 0 above the ceiling.

    Limiting cases: the ratio itself for an infinite ceiling; ``min(1, π/μ)`` for 1.

    Args:
        log_ratio: any shape, nats.
        ceiling: absolute, above 0.

    Returns:
        The same shape, float32 or wider.

    Raises:
        ValueError: for a ceiling that is not positive.

    >>> truncated_ratio(jnp.array([-jnp.inf, 0.0, 3.0, 1000.0])).tolist()
    [0.0, 1.0, 1.0, 1.0]
    """
    checks.positive("truncated_ratio", ceiling=ceiling)
    log_ratio = jnp.asarray(log_ratio, jnp.promote_types(jnp.result_type(log_ratio), jnp.float32))
    return exp_then_line(jnp.minimum(log_ratio, jnp.log(ceiling)))


def _following(x: jax.Array) -> jax.Array:
    """``x[t+1]``, and 0 after the end."""
    # A concatenation would, under vmap over any axis but the first, turn the arrays over.
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(-1, 1, 0)])


@check_arguments
def vtrace(
    rewards: jax.Array,
    discounts: PerStep,
    values: jax.Array,
    next_values: jax.Array,
    log_ratio: jax.Array,
    traces: PerStep = 1.0,
    weight_ceiling: float = 1.0,
    trace_ceiling: float = 1.0,
) -> VTrace:
    """V-trace targets and policy-gradient advantages (IMPALA, arXiv 1802.01561, section 4).

    With ``ρ[t] = min(weight_ceiling, π/μ)``, ``c[t] = λ[t] · min(trace_ceiling, π/μ)`` and the TD errors δ:
    ``targets[t] = V[t] + e[t]`` with ``e[t] = ρ[t] δ[t] + γ[t] c[t] e[t+1]``, and
    ``advantages[t] = ρ[t] · (r[t] + γ[t] · (V[t+1] + λ[t] e[t+1]) − V[t])``, the paper's with its own λ = 1.

    ``weight_ceiling`` decides which policy the values converge to (π for ∞, close to μ for 0), ``trace_ceiling`` only
    how fast. Limiting cases: with equal ceilings the advantages are the errors ``targets − values``, which on policy
    (and ceilings of at least 1) are ``gae``; infinite ceilings are per-decision importance sampling; ratios of 0 leave
    the values as they are and give advantages of 0.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]``, the value of the state in which each step was taken.
        next_values: ``[T]``, the value of the state that each step led to.
        log_ratio: ``[T]``, nats.
        traces: λ, ``[T]`` or a scalar; 0 where the episode is truncated.
        weight_ceiling: ρ̄, absolute, above 0 and not below ``trace_ceiling`` (the paper's assumption).
        trace_ceiling: c̄, absolute, above 0.

    Returns:
        ``VTrace(targets, advantages)``, each ``[T]`` in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank, shapes that differ or a ceiling that is not positive.

    >>> rewards, values, next_values, log_ratio = jnp.array([[1.0, 2.0], [1.0, 4.0], [4.0, 8.0], [9.0, 9.0]])
    >>> [x.tolist() for x in vtrace(rewards, 0.5, values, next_values, log_ratio)]
    [[4.0, 6.0], [3.0, 2.0]]
    """
    checks.positive("vtrace", weight_ceiling=weight_ceiling, trace_ceiling=trace_ceiling)
    checks.same_shape("vtrace", rewards=rewards, values=values, next_values=next_values, log_ratio=log_ratio)
    given = {"discounts": discounts, "values": values, "traces": traces}
    rewards, discounts, values, traces = stream("vtrace", rewards, **given)
    weights = truncated_ratio(log_ratio, weight_ceiling)
    cut = traces * truncated_ratio(log_ratio, trace_ceiling)
    targets = values + multistep_errors(rewards, discounts, values, next_values, cut, weights)
    after = next_values + cut_product(traces, _following(targets - values))
    return VTrace(targets, weights * (td_targets(rewards, discounts, after) - values))


@check_arguments
def retrace(
    rewards: jax.Array,
    discounts: PerStep,
    values: jax.Array,
    next_values: jax.Array,
    log_ratio: jax.Array,
    traces: PerStep = 1.0,
) -> jax.Array:
    """Retrace(λ) targets of action values (arXiv 1606.02647).

    ``targets[t] = Q[t] + δ[t] + γ[t] c[t+1] δ[t+1] + γ[t] γ[t+1] c[t+1] c[t+2] δ[t+2] + …`` with
    ``δ[t] = r[t] + γ[t] E_π Q(s[t+1], ·) − Q[t]`` and ``c[t] = λ min(1, π/μ)``. The action at t itself is not
    corrected for, only those after it, so ``log_ratio[0]`` is never read; ``traces[t]`` leads from t to t + 1, as in
    ``gae``. Limiting cases: ``λ = 0`` is the one-step expected-Sarsa target ``td_targets``; on policy it is the
    λ-return on action values.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]``, Q of the state and action of each step.
        next_values: ``[T]``, ``Σ_a π(a|s) Q(s, a)`` of the state that each step led to.
        log_ratio: ``[T]``, nats.
        traces: λ, ``[T]`` or a scalar; 0 where the episode is truncated.

    Returns:
        ``[T]`` targets in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> rewards, values, next_values, log_ratio = jnp.array([[1.0, 2.0], [1.0, 4.0], [4.0, 8.0], [9.0, 9.0]])
    >>> retrace(rewards, 0.5, values, next_values, log_ratio).tolist()
    [4.0, 6.0]
    """
    checks.same_shape("retrace", rewards=rewards, values=values, next_values=next_values, log_ratio=log_ratio)
    rewards, values, traces = stream("retrace", rewards, values=values, traces=traces)
    cut = cut_product(traces, _following(truncated_ratio(log_ratio)))
    return values + multistep_errors(rewards, discounts, values, next_values, cut)
