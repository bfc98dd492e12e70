"""Returns and advantages of one stream ``[T]`` of steps; ``vmap`` gives ``[T, B]`` (control) or ``[B, T]`` (tokens).

Step t holds the reward of the action taken there, ``values[t]`` of the state in which it was taken and
``next_values[t]`` of the state that it led to. There is no ``done``: an episode that *terminates* at t has
``discounts[t] = 0``; one that is *truncated* at t has ``traces[t] = 0`` and a bootstrapped ``next_values[t]``. So a
stream may hold several episodes. Every argument for each step may also be one scalar for all. No gradient is stopped
here: ``lax.stop_gradient`` is the caller's.

The six weights Ψ of the policy gradient ``Σ_t Ψ[t] ∇log π(a[t]|s[t])`` (arXiv 1506.02438, section 2):

| Ψ | here |
|---|---|
| 1. total return | ``total_return(rewards, discounts)`` |
| 2. return to go | ``discounted_returns(rewards, discounts)`` |
| 3. return to go minus a baseline | ``discounted_returns(rewards, discounts) - values`` |
| 4. Q(s, a) | ``td_targets(rewards, discounts, next_values)``, or a critic's own Q |
| 5. advantage Q − V | ``gae(rewards, discounts, values, next_values, traces)`` |
| 6. TD residual | ``td_errors(rewards, discounts, values, next_values)`` |
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.recurrence import cut_product, reverse_affine_scan

PerStep = jax.Array | float


@check_arguments
def stream(where: str, rewards: jax.Array, **others: PerStep) -> list[jax.Array]:
    """The arguments of one stream in their common dtype, float32 or wider, once their shapes are right.

    Args:
        where: the function that asks, for the message.
        rewards: ``[T]``.
        others: by name, each ``[T]`` or a scalar.

    Returns:
        ``rewards`` and the others in their order.

    Raises:
        ValueError: for a ``rewards`` that is not ``[T]``, another argument that is neither that nor a scalar.

    >>> stream("gae", jnp.zeros(3), discounts=0.9, values=jnp.zeros(4))
    Traceback (most recent call last):
    ValueError: gae: values has shape (4,), rewards has (3,); give arrays of one shape: of the values v of T + 1 ...
    """
    checks.rank(where, "rewards", rewards, 1, "[T]")
    checks.same_shape(where, rewards=rewards, **{name: x for name, x in others.items() if jnp.ndim(x)})
    dtype = jnp.promote_types(jnp.result_type(rewards, *others.values()), jnp.float32)
    return [jnp.asarray(x, dtype) for x in (rewards, *others.values())]


@check_arguments
def discounted_returns(rewards: jax.Array, discounts: PerStep = 1.0, bootstrap: PerStep = 0.0) -> jax.Array:
    """Return to go ``G[t] = r[t] + γ[t] · G[t+1]`` with ``G[T] = bootstrap`` (Sutton and Barto, 2018, section 3.3).

    Limiting cases: ``γ = 0`` gives the rewards; ``γ = 1`` their sums to the end. A stream that is truncated in its
    middle needs ``lambda_returns``, which has traces.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        bootstrap: scalar, the value of the state after the stream's end; 0 where it is terminal.

    Returns:
        ``[T]`` in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> discounted_returns(jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.0, 0.5]), 2.0).tolist()
    [2.0, 2.0, 5.0]
    """
    rewards, discounts = stream("discounted_returns", rewards, discounts=discounts)
    return reverse_affine_scan(rewards, discounts, bootstrap)


@check_arguments
def total_return(rewards: jax.Array, discounts: PerStep = 1.0) -> jax.Array:
    """The return from the start of the step's own episode, the same number at all of its steps.

    Form 1 of the policy gradient's weight (arXiv 1506.02438, section 2), the one with the highest variance: it also
    counts rewards from before the action. Limiting case: ``discounted_returns`` at an episode's first step.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.

    Returns:
        ``[T]`` in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> total_return(jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 0.0, 1.0])).tolist()
    [3.0, 3.0, 4.0]
    """
    rewards, discounts = stream("total_return", rewards, discounts=discounts)
    ends = jnp.broadcast_to(discounts, rewards.shape) == 0
    starts = jnp.where(jnp.roll(ends, 1), jnp.arange(len(rewards)), 0)
    return discounted_returns(rewards, discounts)[jax.lax.cummax(starts)]


@check_arguments
def td_targets(rewards: jax.Array, discounts: PerStep, next_values: PerStep) -> jax.Array:
    """One-step target ``r[t] + γ[t] · V(s[t+1])``: a critic's estimate of Q(s, a) (Sutton and Barto, 2018, eq. 6.2).

    Limiting cases: the reward where ``γ[t] = 0``, whatever the next value, NaN included; ``lambda_returns`` with
    traces of 0; ``n_step_returns`` with ``n = 1``.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        next_values: ``[T]`` or a scalar, the value of the state that each step led to.

    Returns:
        ``[T]`` in the rewards' units, in float32 or wider.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> td_targets(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0]), jnp.array([4.0, 9.0])).tolist()
    [3.0, 2.0]
    """
    rewards, discounts, next_values = stream("td_targets", rewards, discounts=discounts, next_values=next_values)
    return rewards + cut_product(discounts, next_values)


@check_arguments
def td_errors(rewards: jax.Array, discounts: PerStep, values: PerStep, next_values: PerStep) -> jax.Array:
    """TD residual ``δ[t] = r[t] + γ[t] · V(s[t+1]) − V(s[t])`` (arXiv 1506.02438, section 3).

    Form 6 of the policy gradient's weight. Limiting cases: ``gae`` with traces of 0; with the true values its
    expectation is the advantage of the action, and 0 over the policy's own actions.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]`` or a scalar, the value of the state in which each step was taken.
        next_values: ``[T]`` or a scalar, the value of the state that each step led to.

    Returns:
        ``[T]`` in the rewards' units, in float32 or wider.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> td_errors(jnp.array([1.0, 2.0]), 0.5, jnp.array([1.0, 4.0]), jnp.array([4.0, 0.0])).tolist()
    [2.0, -2.0]
    """
    given = {"discounts": discounts, "values": values, "next_values": next_values}
    rewards, discounts, values, next_values = stream("td_errors", rewards, **given)
    return td_targets(rewards, discounts, next_values) - values


@check_arguments
def lambda_returns(rewards: jax.Array, discounts: PerStep, next_values: jax.Array, traces: PerStep = 1.0) -> jax.Array:
    """λ-return ``G[t] = r[t] + γ[t] · ((1 − λ[t]) · V(s[t+1]) + λ[t] · G[t+1])``, bootstrapped at the end.

    Reference: Sutton and Barto (2018), section 12.1; λ is per step here, and the stream's last step bootstraps from
    ``next_values[T − 1]``. Limiting cases: ``λ = 0`` is ``td_targets``; ``λ = 1`` is ``discounted_returns`` with that
    bootstrap; ``gae + values`` where ``next_values[t] = values[t+1]`` at all steps that are not cut.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        next_values: ``[T]``, the value of the state that each step led to.
        traces: λ, ``[T]`` or a scalar; 0 where the episode is truncated.

    Returns:
        ``[T]`` in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> lambda_returns(jnp.array([1.0, 2.0]), 0.5, jnp.array([4.0, 8.0]), 0.5).tolist()
    [3.5, 6.0]
    """
    return reverse_affine_scan(*_lambda_step("lambda_returns", rewards, discounts, next_values, traces))


@check_arguments
def n_step_returns(
    rewards: jax.Array, discounts: PerStep, next_values: jax.Array, n: int, traces: PerStep = 1.0
) -> jax.Array:
    """n rewards, then the value of the state after them (Sutton and Barto, 2018, eq. 7.1).

    ``G[t] = r[t] + γ[t] r[t+1] + … + γ[t] ⋯ γ[t+m−1] · next_values[t+m−1]`` with ``m = min(n, T − t)``: the last n − 1
    steps of the stream have fewer than n rewards left and bootstrap from ``next_values[T − 1]``. Limiting cases:
    ``n = 1`` is ``td_targets``; ``n ≥ T`` is ``lambda_returns``, which with traces of 1 is ``discounted_returns``.
    Time and memory are those of n streams.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        next_values: ``[T]``, the value of the state that each step led to.
        n: static, at least 1, steps.
        traces: λ, ``[T]`` or a scalar; 0 where the episode is truncated. Between 0 and 1: the λ-return cut at n steps.

    Returns:
        ``[T]`` in the rewards' units.

    Raises:
        ValueError: at trace time, for an ``n`` below 1, a wrong rank or shapes that differ.

    >>> n_step_returns(jnp.array([1.0, 2.0, 4.0]), 0.5, jnp.array([16.0, 8.0, 4.0]), 2).tolist()
    [4.0, 5.0, 6.0]
    """
    if n < 1:
        raise ValueError(f"n_step_returns: n is {n}, wanted a whole number of at least 1; n = 1 is the TD target.")
    offsets, factors, _ = _lambda_step("n_step_returns", rewards, discounts, next_values, traces)
    steps = len(rewards)
    if n >= steps:
        return lambda_returns(rewards, discounts, next_values, traces)
    # Window t is the stream t … t + n − 1, and after the end of the stream steps that change nothing.
    window = jnp.arange(n)[:, None] + jnp.arange(steps)
    offsets = jnp.pad(offsets, (0, n - 1))[window]
    factors = jnp.pad(factors, (0, n - 1), constant_values=1)[window]
    return reverse_affine_scan(offsets, factors, next_values[jnp.minimum(window[-1], steps - 1)])[0]


@check_arguments
def multistep_errors(
    rewards: jax.Array,
    discounts: PerStep,
    values: PerStep,
    next_values: PerStep,
    traces: PerStep,
    weights: PerStep = 1.0,
) -> jax.Array:
    """Sum of weighted TD errors along decaying traces, ``e[t] = w[t] · δ[t] + γ[t] · c[t] · e[t+1]``.

    Every estimator on values and TD errors is one of these; ρ is the importance ratio π/μ of the step's own action:

    | estimator | weights | traces |
    |---|---|---|
    | ``td_errors`` | 1 | 0 |
    | ``gae`` | 1 | λ |
    | per-decision importance sampling | ρ[t] | λ · ρ[t] |
    | ``vtrace`` | min(ρ̄, ρ[t]) | λ · min(c̄, ρ[t]) |
    | Q(λ), ``values`` = Q(s, a), ``next_values`` = E_π Q | 1 | λ |
    | tree backup, the same | 1 | λ · π(a[t+1] given s[t+1]) |
    | ``retrace``, the same | 1 | λ · min(1, ρ[t+1]) |

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]`` or a scalar, the value of the state (or state and action) of each step.
        next_values: ``[T]`` or a scalar, the value of the state that each step led to.
        traces: c, ``[T]`` or a scalar; 0 where the episode is truncated. ``traces[t]`` leads from t to t + 1.
        weights: w, ``[T]`` or a scalar.

    Returns:
        ``[T]`` in the rewards' units; the targets of the values are ``values`` plus this.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> multistep_errors(jnp.array([1.0, 2.0]), 1.0, 0.0, 0.0, 0.5, jnp.array([1.0, 2.0])).tolist()
    [3.0, 4.0]
    """
    given = {"discounts": discounts, "traces": traces, "weights": weights}
    rewards, discounts, traces, weights = stream("multistep_errors", rewards, **given)
    errors = td_errors(rewards, discounts, values, next_values)
    return reverse_affine_scan(weights * errors, (discounts, traces))


@check_arguments
def gae(rewards: jax.Array, discounts: PerStep, values: PerStep, next_values: PerStep, traces: PerStep) -> jax.Array:
    """Generalized advantage estimation, ``A[t] = δ[t] + γ[t] · λ[t] · A[t+1]`` (arXiv 1506.02438, eq. 16).

    Limiting cases: ``λ = 0`` is the TD error (bias of the values, least variance); ``λ = 1`` is the return minus the
    value (no bias, most variance). The critic's targets are ``A + values``, to be taken before any whitening.

    Args:
        rewards: ``[T]``.
        discounts: γ, ``[T]`` or a scalar; 0 where the episode terminates.
        values: ``[T]`` or a scalar, the value of the state in which each step was taken.
        next_values: ``[T]`` or a scalar, the value of the state that each step led to; where the episode is truncated
            that of the state it was cut off in, not of the next episode's first.
        traces: λ, ``[T]`` or a scalar; 0 where the episode is truncated.

    Returns:
        ``[T]`` advantages in the rewards' units.

    Raises:
        ValueError: at trace time, for a wrong rank or shapes that differ.

    >>> rewards, values, next_values = jnp.array([[1.0, 2.0], [1.0, 4.0], [4.0, 8.0]])
    >>> gae(rewards, 0.5, values, next_values, 0.5).tolist()  # nothing ends
    [2.5, 2.0]
    >>> gae(rewards, jnp.array([0.0, 0.5]), values, next_values, 0.5).tolist()  # terminates after step 0
    [0.0, 2.0]
    >>> gae(rewards, 0.5, values, next_values, jnp.array([0.0, 0.5])).tolist()  # is truncated after step 0
    [2.0, 2.0]
    """
    given = {"discounts": discounts, "values": values, "next_values": next_values, "traces": traces}
    return multistep_errors(*stream("gae", rewards, **given))


def _lambda_step(
    where: str, rewards: jax.Array, discounts: PerStep, next_values: jax.Array, traces: PerStep
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The λ-return as the recurrence's offsets, factors and end."""
    checks.same_shape(where, rewards=rewards, next_values=next_values)
    given = {"discounts": discounts, "next_values": next_values, "traces": traces}
    rewards, discounts, next_values, traces = stream(where, rewards, **given)
    factors = jnp.broadcast_to(discounts * traces, rewards.shape)
    return td_targets(rewards, discounts - factors, next_values), factors, next_values[-1]
