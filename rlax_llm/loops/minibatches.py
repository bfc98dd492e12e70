"""Learning from one batch more than once: epochs of minibatches, and the optimizer's step in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core.shuffling import permutation
from rlax_llm.core.types import Params

Carry = TypeVar("Carry")


class Passes(NamedTuple):
    """How often the rows of a batch are learned from.

    Attributes:
        epochs: times that each row is taken.
        minibatches: optimizer steps in an epoch; with the group size a divisor of the rows.
        group_size: rows that stay together.
    """

    epochs: int = 1
    minibatches: int = 1
    group_size: int = 1


def minibatch_rows(rows: int, key: jax.Array, passes: Passes) -> jax.Array:
    """In every epoch each row once, groups together, in an order of the epoch's own.

    Args:
        rows: of the batch.
        key: randomness; one minibatch needs none.
        passes: epochs, minibatches and group size.

    Returns:
        ``[epochs · minibatches, rows / minibatches]`` int32.

    >>> minibatch_rows(3, jax.random.key(0), Passes(epochs=2)).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    if passes.minibatches == 1:  # one gradient of everything does not depend on the order
        return jnp.broadcast_to(jnp.arange(rows), (passes.epochs, rows))
    keys = jax.random.split(key, passes.epochs)
    groups = jax.vmap(lambda key: permutation(key, rows // passes.group_size))(keys)
    order = groups[..., None] * passes.group_size + jnp.arange(passes.group_size)
    return order.reshape(passes.epochs * passes.minibatches, -1)


def take_rows(batch: Any, order: jax.Array) -> Any:
    """Rows of every array of a batch, which has them on axis 0.

    Args:
        batch: any pytree of arrays.
        order: ``[R]`` int32.

    >>> take_rows({"x": jnp.arange(3) * 10}, jnp.array([2, 0]))["x"].tolist()
    [20, 0]
    """
    return jax.tree.map(lambda x: x[order], batch)


def epochs(
    learn: Callable[[Carry, Any], tuple[Carry, Any]],
    start: Carry,
    batch: Any,
    rows: int,
    passes: Passes,
    key: jax.Array | None,
    take: Callable[[Any, jax.Array], Any] = take_rows,
) -> tuple[Carry, Any]:
    """``learn`` on every minibatch of every epoch, one after the other.

    Limiting case: one epoch of one minibatch is ``learn`` on the batch as it is.

    Args:
        learn: ``(carry, minibatch) → (carry, report)``.
        start: what it carries at first, such as parameters and the optimizer's state.
        batch: any pytree of arrays.
        rows: of the batch.
        passes: epochs, minibatches and group size.
        key: orders the rows; not read for one minibatch.
        take: ``(batch, order) → minibatch``, for batches whose rows are on another axis than 0.

    Returns:
        What is carried at the end, and the reports ``[epochs · minibatches, …]``.

    >>> end, seen = epochs(lambda total, x: (total + x.sum(), x.max()), 0, jnp.arange(4), 4, Passes(2), None)
    >>> int(end), seen.tolist()
    (12, [3, 3])
    """
    if passes.epochs * passes.minibatches == 1:
        end, report = learn(start, batch)
        return end, jax.tree.map(lambda x: x[None], report)
    if passes.minibatches == 1:
        return jax.lax.scan(lambda now, _: learn(now, batch), start, length=passes.epochs)
    if key is None:
        raise ValueError("epochs: several minibatches are drawn at random and key is None; give one.")
    orders = minibatch_rows(rows, key, passes)
    return jax.lax.scan(lambda now, order: learn(now, take(batch, order)), start, orders)


def optimizer_step(
    optimizer: optax.GradientTransformation, gradient: Params, params: Params, opt_state: optax.OptState
) -> tuple[Params, optax.OptState]:
    """Parameters and optimizer state one step further.

    Args:
        optimizer: any Optax transformation.
        gradient: of the loss, like ``params``.
        params: any pytree.
        opt_state: the optimizer's, of these parameters.

    >>> optimizer = optax.sgd(0.5)
    >>> params = jnp.array(1.0)
    >>> float(optimizer_step(optimizer, jnp.array(2.0), params, optimizer.init(params))[0])
    0.0
    """
    updates, new_state = optimizer.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), new_state


def lost_share(gradient: Params, before: Params, after: Params) -> jax.Array:
    """Share of the parameters with a gradient that a step left exactly as they were: ``θ + Δ`` was rounded to ``θ``.

    Limiting cases: of a learning rate of 0 it is 1; where no parameter has a gradient it is 0.

    Args:
        gradient: like the parameters.
        before: the parameters before the step.
        after: those after it.

    >>> one, tiny = jnp.ones(4), jnp.array([0.0, 1e-9, 1e-9, 0.5])
    >>> float(lost_share(tiny, one, one + tiny))
    0.6666666865348816
    """

    def lost(slope: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
        return _count((slope != 0) & (old == new))

    total = sum(jax.tree.leaves(jax.tree.map(lambda slope: _count(slope != 0), gradient)))
    return sum(jax.tree.leaves(jax.tree.map(lost, gradient, before, after))) / jnp.maximum(total, 1.0)


def _count(where: jax.Array) -> jax.Array:
    """How many are True: by rows as whole numbers, since a float32 counts ones to 2²⁴ and no further."""
    return where.sum(-1, dtype=jnp.int32).astype(jnp.float32).sum() if where.ndim else where.astype(jnp.float32)
