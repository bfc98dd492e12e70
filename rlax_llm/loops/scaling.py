"""Running statistics that bring observations and rewards to a common scale, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks


class Moments(NamedTuple):
    """Mean and variance of everything seen.

    Attributes:
        samples: scalar, how many.
        mean: elementwise.
        variance: elementwise, over ``samples``.
    """

    samples: jax.Array
    mean: jax.Array
    variance: jax.Array


class Scaling(NamedTuple):
    """How a quantity is scaled.

    Attributes:
        init: ``shape → state``.
        update: ``(state, samples [N, *shape]) → state``.
        apply: ``(state, x […, *shape]) → like x``.
    """

    init: Callable[[tuple[int, ...]], Any]
    update: Callable[[Any, jax.Array], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


no_scaling: Scaling = Scaling(lambda shape: (), lambda state, samples: state, lambda state, x: x)


def merge_moments(moments: Moments, samples: jax.Array) -> Moments:
    """The moments of two sets of samples together (Chan, Golub, LeVeque, 1979): exact, in any cut.

    Args:
        moments: of the samples so far.
        samples: ``[N, …]`` more.

    Returns:
        Moments of all.

    >>> none = Moments(jnp.array(0.0), jnp.array(0.0), jnp.array(1.0))
    >>> [float(x) for x in merge_moments(none, jnp.array([1.0, 3.0]))]
    [2.0, 2.0, 1.0]
    """
    count, mean, variance = moments
    more, total = samples.shape[0], count + samples.shape[0]
    shift = samples.mean(0) - mean
    squares = variance * count + samples.var(0) * more + jnp.square(shift) * count * more / total
    return Moments(total, mean + shift * more / total, squares / total)


def _moments(shape: tuple[int, ...]) -> Moments:
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def standardization(limit: float = 10.0, eps: float = 1e-8) -> Scaling:
    """``clip((x − mean) / √(var + eps), ±limit)``: for observations.

    Args:
        limit: of the result, in standard deviations.
        eps: added to the variance.

    Raises:
        ValueError: for a limit or eps that is not positive.

    >>> scaling = standardization()
    >>> float(scaling.apply(scaling.init(()), jnp.array(50.0)))
    10.0
    """
    checks.positive("standardization", limit=limit, eps=eps)

    def apply(moments: Moments, x: jax.Array) -> jax.Array:
        return jnp.clip((x - moments.mean) * jax.lax.rsqrt(moments.variance + eps), -limit, limit)

    return Scaling(_moments, merge_moments, apply)


def unit_return(limit: float = 10.0, eps: float = 1e-8) -> Scaling:
    """``clip(x / √(var + eps), ±limit)``: for rewards, where the samples are running discounted returns.

    The mean is not subtracted: a reward's sign means something.

    Args:
        limit: of the result.
        eps: added to the variance.

    Raises:
        ValueError: for a limit or eps that is not positive.

    >>> scaling = unit_return()
    >>> float(scaling.apply(Moments(jnp.array(1.0), jnp.array(5.0), jnp.array(4.0)), jnp.array(3.0)))
    1.5
    """
    checks.positive("unit_return", limit=limit, eps=eps)

    def apply(moments: Moments, x: jax.Array) -> jax.Array:
        return jnp.clip(x * jax.lax.rsqrt(moments.variance + eps), -limit, limit)

    return Scaling(_moments, merge_moments, apply)
