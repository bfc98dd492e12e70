"""When a generation has enough: so many groups of completions are whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Enough(NamedTuple):
    """How many groups may be unfinished where a generation ends.

    Attributes:
        waiting: ``[P]`` bool, the groups of which some completion waits for a slot.
        size: scalar int32, completions of a group.
        spare: scalar int32, groups that may be unfinished.
    """

    waiting: jax.Array
    size: Any
    spare: Any


def too_few(enough: Enough, going: jax.Array, rows: jax.Array) -> jax.Array:
    """Whether more groups are unfinished than may be, a scalar bool.

    Args:
        enough: of the generation.
        going: ``[B]`` bool, the rows that draw a further token.
        rows: ``[B]`` int32, which completion each is.

    >>> enough = Enough(jnp.array([False, False, True]), 2, 1)  # completions 4 and 5 wait
    >>> bool(too_few(enough, jnp.array([True, False]), jnp.array([1, 2])))
    True
    >>> bool(too_few(enough, jnp.array([False, False]), jnp.array([1, 2])))
    False
    """
    group = jnp.where(going, rows // enough.size, enough.waiting.shape[0])  # what lies beyond is dropped
    unfinished = enough.waiting.at[group].set(True, mode="drop")
    return unfinished.sum(dtype=jnp.int32) > enough.spare
