"""Random permutations without a sort."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks

ROUNDS = 16


def permutation(key: jax.Array, n: int) -> jax.Array:
    """A keyed bijection of ``0 … n − 1``, the swap-or-not shuffle (Hoang, Morris, Rogaway, 2012), 16 rounds.

    In a round with a random k, x and its partner ``k − x mod n`` change places or stay, as a hash of the pair says.
    Arithmetic on whole arrays only, where ``jax.random.permutation`` sorts, which is slow on a CPU. It mixes
    minibatches; its permutations are not all equally likely, and it is no cipher.

    Args:
        key: randomness.
        n: ≥ 1, static.

    Returns:
        ``[n]`` int32.

    Raises:
        ValueError: for an n below 1.

    >>> sorted(permutation(jax.random.key(0), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    checks.at_least_one("permutation", n=n)
    if n == 1:  # the rounds, all of them constant then, were seen to fail in a compiler
        return jnp.zeros(1, jnp.int32)
    offsets, seeds = jax.random.bits(key, (2, ROUNDS), jnp.uint32)
    size = jnp.uint32(n)
    x = jnp.arange(n, dtype=jnp.uint32)
    for round_ in range(ROUNDS):
        offset = offsets[round_] % size
        partner = jnp.where(offset >= x, offset - x, offset + size - x)
        bits = (jnp.maximum(x, partner) + seeds[round_]) * jnp.uint32(0x9E3779B1)
        bits = (bits ^ (bits >> 15)) * jnp.uint32(0x85EBCA77)
        x = jnp.where(bits >> 31 == 1, partner, x)
    return x.astype(jnp.int32)
