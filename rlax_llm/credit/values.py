"""Losses of a value function, elementwise ``(values, targets) → loss``, and how much it explains.

Targets are constants: returns, or advantages + values. Weigh the losses as those of the policy, ``Σ weights · loss``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.masked import at_least_float32, masked_variance

ValueLoss = Callable[[jax.Array, jax.Array], jax.Array]
ClippedValueLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@check_arguments
def squared_value_loss(values: jax.Array, targets: jax.Array) -> jax.Array:
    """``½ (V − R)²``, whose slope is the error itself.

    Args:
        values: any shape, in the rewards' units.
        targets: same shape.

    Returns:
        Same shape.

    Raises:
        ValueError: for shapes that differ.

    >>> squared_value_loss(jnp.array([1.0, 2.0]), jnp.array([3.0, 2.0])).tolist()
    [2.0, 0.0]
    """
    checks.same_shape("squared_value_loss", values=values, targets=targets)
    return 0.5 * jnp.square(at_least_float32(values) - targets)


@check_arguments
def clipped_value_loss(eps: float) -> ClippedValueLoss:
    """PPO's pessimistic value loss ``max(½ (V − R)², ½ (clamp(V, V_old − eps, V_old + eps) − R)²)``.

    Limiting cases: ``squared_value_loss`` for a wide ``eps``, and wherever ``|V − V_old| ≤ eps``; no gradient where V
    has left the interval in the direction of the target. It is OpenAI Baselines' (the PPO paper, arXiv 1707.06347,
    has no such term), and ``eps`` is in the rewards' units, so that it depends on their scale.

    Args:
        eps: half-width around the old values, in the rewards' units.

    Returns:
        A function ``(values, old_values, targets) → loss``, elementwise.

    Raises:
        ValueError: for a half-width that is not positive; at trace time, for shapes that differ.

    >>> clipped_value_loss(0.5)(jnp.array([2.0, 2.0]), jnp.array([0.0, 2.0]), jnp.array([3.0, 3.0])).tolist()
    [3.125, 0.5]
    """
    checks.positive("clipped_value_loss", eps=eps)

    def loss(values: jax.Array, old_values: jax.Array, targets: jax.Array) -> jax.Array:
        checks.same_shape("clipped_value_loss", values=values, old_values=old_values, targets=targets)
        values = at_least_float32(values)
        old_values = at_least_float32(old_values)
        low = old_values - eps
        high = old_values + eps
        # On the border itself jnp.clip has half the slope; it belongs to the interval.
        held = jnp.where((low <= values) & (values <= high), values, jnp.clip(values, low, high))
        return jnp.maximum(squared_value_loss(values, targets), squared_value_loss(held, targets))

    return loss


@check_arguments
def huber_value_loss(delta: float = 1.0) -> ValueLoss:
    """Quadratic near the target and linear beyond: ``½ e²`` for ``|e| ≤ delta``, else ``delta (|e| − ½ delta)``.

    Limiting cases: ``squared_value_loss`` for a wide ``delta``; the slope is never beyond ``±delta``. Huber (1964).

    Args:
        delta: error at which the loss turns linear, in the rewards' units.

    Returns:
        A function ``(values, targets) → loss``, elementwise.

    Raises:
        ValueError: for a ``delta`` that is not positive; at trace time, for shapes that differ.

    >>> huber_value_loss(1.0)(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])).tolist()
    [0.125, 2.5]
    """
    checks.positive("huber_value_loss", delta=delta)

    def loss(values: jax.Array, targets: jax.Array) -> jax.Array:
        checks.same_shape("huber_value_loss", values=values, targets=targets)
        error = at_least_float32(values) - targets
        near = jnp.abs(error) <= delta
        within = jnp.where(near, error, 0.0)
        return jnp.where(
            near, squared_value_loss(within, jnp.zeros_like(within)), delta * (jnp.abs(error) - 0.5 * delta)
        )

    return loss


@check_arguments
def explained_variance(values: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Share of the targets' variance that the values account for, ``1 − Var(R − V) / Var(R)``, over the mask.

    Limiting cases: 1 for ``V = R + c``, 0 for any constant V, below 0 for values that are worse than a constant. Where
    the targets do not vary the ratio means nothing, and 0 is returned.

    Args:
        values: any shape.
        targets: same shape.
        mask: same shape, bool.

    Returns:
        Scalar, at most 1.

    Raises:
        ValueError: for shapes that differ.

    >>> float(explained_variance(jnp.array([1.0, 3.0]), jnp.array([0.0, 4.0]), jnp.array([True, True])))
    0.75
    """
    checks.same_shape("explained_variance", values=values, targets=targets, mask=mask)
    total = masked_variance(targets, mask)
    residual = masked_variance(at_least_float32(targets) - values, mask)
    return jnp.where(total > 0, 1 - residual / jnp.where(total > 0, total, 1.0), 0.0)


@check_arguments
def symlog(x: jax.Array) -> jax.Array:
    """``sign(x) log(1 + |x|)``: nearly x near 0, logarithmic far out (DreamerV3, arXiv 2301.04104).

    Args:
        x: any shape.

    Returns:
        Same shape; ``symexp`` is its inverse.

    >>> float(symlog(jnp.array(0.0)))
    0.0
    """
    # With sign(x) and |x| the slope at 0 would come out as 0; it is 1.
    up = jnp.where(x < 0, 0.0, x)
    down = jnp.where(x < 0, x, 0.0)
    return jnp.where(x < 0, -jnp.log1p(-down), jnp.log1p(up))


@check_arguments
def symexp(x: jax.Array) -> jax.Array:
    """``sign(x) (exp|x| − 1)``, the inverse of ``symlog``.

    Args:
        x: any shape.

    Returns:
        Same shape.

    >>> float(symexp(jnp.array(0.0)))
    0.0
    """
    up = jnp.where(x < 0, 0.0, x)
    down = jnp.where(x < 0, x, 0.0)
    return jnp.where(x < 0, -jnp.expm1(-down), jnp.expm1(up))


@check_arguments
def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Probabilities on the two bins that enclose x, of which the expectation is x (arXiv 2301.04104).

    Limiting cases: one-hot where x is a bin; beyond the outermost bins, one-hot on the nearest.

    Args:
        x: any shape ``[...]``.
        bins: ``[K]``, strictly increasing.

    Returns:
        ``[..., K]``, sums to 1 over the last axis.

    >>> two_hot(jnp.array([0.25, 5.0]), jnp.array([-1.0, 0.0, 1.0])).tolist()
    [[0.0, 0.75, 0.25], [0.0, 0.0, 1.0]]
    """
    bins = at_least_float32(bins)
    x = jnp.clip(at_least_float32(x), bins[0], bins[-1])[..., None]
    gaps = jnp.diff(bins)
    # How far x has gone from each bin to the next, 0 to 1: a bin holds what came to it and did not go on.
    gone = jnp.clip((x - bins[:-1]) / gaps, 0.0, 1.0)
    arrived = jnp.concatenate([jnp.ones_like(x), gone], -1)
    return arrived - jnp.concatenate([gone, jnp.zeros_like(x)], -1)


def _increasing(where: str, bins: jax.Array) -> None:
    if np.ndim(bins) != 1 or np.size(bins) < 2 or not np.all(np.diff(np.asarray(bins, np.float64)) > 0):
        raise ValueError(f"{where}: bins are {np.asarray(bins).tolist()}, wanted at least two numbers that increase.")


@check_arguments
def two_hot_value_loss(bins: jax.Array, transform: Callable[[jax.Array], jax.Array] = symlog) -> ValueLoss:
    """Cross-entropy of a categorical value head with the two-hot target (DreamerV3, arXiv 2301.04104).

    ``−Σ_k two_hot(transform(R))_k log softmax(logits)_k``. Limiting case: least where the softmax is the two-hot code.

    Args:
        bins: ``[K]``, strictly increasing, in units of ``transform``'s result; a concrete array.
        transform: elementwise; ``two_hot_value`` takes its inverse.

    Returns:
        A function ``(logits [..., K], targets [...]) → loss [...]``, nats.

    Raises:
        ValueError: for bins that do not increase; at trace time, for logits that are not one more axis of K.

    >>> loss = two_hot_value_loss(jnp.array([-1.0, 0.0, 1.0]))
    >>> bool(jnp.isclose(loss(jnp.zeros(3), jnp.array(0.0)), jnp.log(3.0)))
    True
    """
    _increasing("two_hot_value_loss", bins)

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        wanted = (*jnp.shape(targets), len(bins))
        if jnp.shape(logits) != wanted:
            raise ValueError(
                f"two_hot_value_loss: logits has shape {jnp.shape(logits)}, wanted {wanted}; "
                "give one logit a bin on the last axis."
            )
        log_probs = jax.nn.log_softmax(at_least_float32(logits))
        return -(two_hot(transform(at_least_float32(targets)), bins) * log_probs).sum(-1)

    return loss


@check_arguments
def two_hot_value(bins: jax.Array, inverse: Callable[[jax.Array], jax.Array] = symexp) -> Callable:
    """The value of a categorical head, ``inverse(Σ_k softmax(logits)_k · bins_k)``.

    Args:
        bins: ``[K]``, strictly increasing; a concrete array.
        inverse: of the loss's ``transform``.

    Returns:
        A function ``logits [..., K] → values [...]``.

    Raises:
        ValueError: for bins that do not increase.

    >>> float(two_hot_value(jnp.array([-1.0, 0.0, 1.0]))(jnp.zeros(3)))
    0.0
    """
    _increasing("two_hot_value", bins)
    return lambda logits: inverse((jax.nn.softmax(at_least_float32(logits)) * bins).sum(-1))
