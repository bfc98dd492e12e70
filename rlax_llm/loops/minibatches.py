"""The rows of each optimizer step, where a batch is learned from more than once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core.shuffling import permutation


def minibatch_rows(rows: int, key: jax.Array, epochs: int = 1, minibatches: int = 1, group_size: int = 1) -> jax.Array:
    """In every epoch each row once, groups together, in an order of the epoch's own.

    Args:
        rows: of the batch.
        key: randomness; one minibatch needs none.
        epochs: times that each row is taken.
        minibatches: optimizer steps in an epoch; with the group size a divisor of the rows.
        group_size: rows that stay together.

    Returns:
        ``[epochs · minibatches, rows / minibatches]`` int32.

    >>> minibatch_rows(3, jax.random.key(0), epochs=2).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    if minibatches == 1:  # one gradient of everything does not depend on the order
        return jnp.broadcast_to(jnp.arange(rows), (epochs, rows))
    groups = jax.vmap(lambda key: permutation(key, rows // group_size))(jax.random.split(key, epochs))
    order = groups[..., None] * group_size + jnp.arange(group_size)
    return order.reshape(epochs * minibatches, -1)
