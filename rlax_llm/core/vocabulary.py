"""Softmaxes over a vocabulary, a few rows at a time: what is computed of logits without ever holding all ``[N, V]``.

Under a mesh each device takes its own rows, and its own part of the vocabulary where that divides: it says to the
others only maxima and sums over its part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.core.caps import soft_cap
from rlax_llm.core.heads import Head, head_logits, parts_of
from rlax_llm.core.mesh import ROWS, TENSOR, dividing, max_over, place_along, sum_over
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.seen import penalized, repetition_slope, tally
from rlax_llm.core.token_sets import members_of

ROWS_OF_A_CHUNK = 128  # the fewest in a chunk, large enough for a full-speed matmul
LOGITS = 2**22  # numbers in a chunk of a small vocabulary, 16 MB


class Rows(NamedTuple):
    """Some rows: hidden states ``[N, D]``, chosen tokens ``[N]``, what the sampler kept, and what was there before
    ``[N, T]``; the last two may be None.
    """

    hidden: jax.Array
    targets: jax.Array
    kept: jax.Array | None
    history: jax.Array | None = None


class Softmax(NamedTuple):
    """What all rows share: the head ``[V, D]``, the temperature, what is added to the logits, ``[V]`` or None,
    penalties ``[3]`` or None, and the cap of the head's logits or None.

    Under a mesh a device sees a part of the vocabulary.
    """

    head: Head
    temperature: jax.Array
    bias: jax.Array | None
    penalties: jax.Array | None = None
    cap: jax.Array | None = None

    def vocabulary(self) -> jax.Array:
        """The tokens of this part, ``[V]``."""
        size = self.head.shape[0]
        return jnp.arange(size) + place_along(TENSOR) * size


def log_sum_exp(logits: jax.Array) -> jax.Array:
    """Over the whole vocabulary, ``[N]``; −inf of a row of nothing else.

    Args:
        logits: ``[N, V]`` of this part of the vocabulary.
    """
    top = max_over(logits.max(-1), TENSOR)
    finite = jnp.where(top == -jnp.inf, 0.0, top)
    return jnp.log(sum_over(jnp.exp(logits - finite[:, None]).sum(-1), TENSOR)) + finite


def normalizers(logits: jax.Array) -> jax.Array:
    """``log_sum_exp``, 0 of a row of nothing but banned tokens, which only padding is: −inf would be NaN in a gradient.

    Args:
        logits: ``[N, V]`` of this part of the vocabulary.
    """
    total = log_sum_exp(logits)
    return jnp.where(total == -jnp.inf, 0.0, total)


class Logits(NamedTuple):
    """Of one chunk, in at least float32: tempered logits, −inf where the sampler kept no token; and by how much they
    change with the head's, without the temperature, or None for 1.
    """

    tempered: jax.Array
    slope: jax.Array | None


def chunk_logits(rows: Rows, softmax: Softmax) -> Logits:
    """The logits of some rows over this part of the vocabulary.

    Args:
        rows: of one chunk.
        softmax: what they share.
    """
    head, temperature, bias, penalties, cap = softmax
    logits = head_logits(rows.hidden, head, temperature.dtype)
    slope = None
    if cap is not None:
        logits, slope = soft_cap(logits, cap)
    logits = logits if bias is None else logits + bias
    if penalties is not None and rows.history is not None:
        seen = tally(rows.history, head.shape[0], place_along(TENSOR) * head.shape[0])
        given = Penalties(*penalties)
        repeated = repetition_slope(logits, given, seen)
        slope = repeated if slope is None else slope * repeated
        logits = penalized(logits, given, seen)
    # Divided in float32, as the sampler does: hidden states divided in bfloat16 would move log-probabilities by 0.1.
    return Logits(_cut(logits / temperature, rows, softmax), slope)


def _cut(logits: jax.Array, rows: Rows, softmax: Softmax) -> jax.Array:
    head = softmax.head
    if rows.kept is None:
        return logits
    if rows.kept.dtype == jnp.uint32:
        members = _members(rows.kept, head.shape[0])
    else:
        members = logits - log_sum_exp(logits)[:, None] >= rows.kept[:, None]
    # The chosen token is one of them, whatever the last bit of its logit says now.
    return jnp.where(members | (softmax.vocabulary() == rows.targets[:, None]), logits, -jnp.inf)


def _members(kept: jax.Array, size: int) -> jax.Array:
    """Which tokens of this part of the vocabulary are in the sets, ``[N, size]``."""
    if 32 * kept.shape[-1] - size < 32:  # the part is the whole
        return members_of(kept, size)
    first = place_along(TENSOR) * size
    tokens = first + jnp.arange(size)
    return (kept[:, tokens // 32] >> (tokens % 32).astype(jnp.uint32)) & 1 == 1


def chunked(vocabulary: int, rows: Any) -> Any:
    """Reshape ``[N, …]`` to ``[chunks, rows, …]``, padded with zeros.

    Args:
        vocabulary: numbers that are held of each row.
        rows: any pytree of arrays ``[N, …]``.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    together = min(max(ROWS_OF_A_CHUNK, LOGITS // vocabulary), count)
    pad = -count % together

    def split(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, together, *x.shape[1:])

    return jax.tree.map(split, rows)


def specs(count: int, softmax: Softmax) -> tuple[PartitionSpec, tuple[Any, ...]]:
    """Where rows lie, and each of a softmax's parts, where they divide; whole without a mesh.

    Args:
        count: N.
        softmax: of all rows.
    """
    vocabulary, one = dividing(softmax.head.shape[:1], (TENSOR,)), PartitionSpec()
    return dividing((count,), (ROWS,)), (parts_of(softmax.head, vocabulary, one), one, vocabulary, one, one)
