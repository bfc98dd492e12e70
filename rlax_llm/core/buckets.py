"""A distribution over a vocabulary as K of its tokens and one bucket for all the others: what a teacher costs to store.

The bucket's log-probability is a sum over the other tokens and no ``1 − Σ``, so that a small tail keeps its digits. No
``[N, V]`` array is held, as in ``log_probs``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.divergences import Divergence, Predictions, softmax_of
from rlax_llm.core.heads import head_slopes, no_slopes, slopes_of_all
from rlax_llm.core.mesh import ROWS, TENSOR, dividing, max_over, per_device, place_along, sum_over
from rlax_llm.core.vocabulary import Rows, Softmax, chunk_logits, chunked, log_sum_exp, normalizers, specs


class TopTokens(NamedTuple):
    """K tokens of a distribution and the rest of it.

    Attributes:
        ids: ``[N, K]`` int32, different tokens.
        log_probs: ``[N, K + 1]``, theirs and last that of all others together, nats; −inf where there are no others.
    """

    ids: jax.Array
    log_probs: jax.Array


class _Asked(NamedTuple):
    """Rows and the tokens asked for, ``[N, K]``."""

    rows: Rows
    ids: jax.Array


def _within(ids: jax.Array, size: int) -> jax.Array:
    """Places in this part of the vocabulary; ``size``, which is none, of a token of another part."""
    places = ids - place_along(TENSOR) * size
    return jnp.where((places >= 0) & (places < size), places, size)


def _others(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """The logits without the tokens asked for, −inf there."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return logits.at[rows, _within(ids, logits.shape[-1])].set(-jnp.inf, mode="drop")


def _buckets(asked: _Asked, softmax: Softmax) -> tuple[jax.Array, jax.Array]:
    """``[R, K + 1]`` log-probabilities, and normalizers ``[R]``, of one chunk."""
    logits = chunk_logits(asked.rows, softmax).tempered
    normalizer, size = normalizers(logits), logits.shape[-1]
    places = _within(asked.ids, size)
    found = jnp.take_along_axis(logits, jnp.minimum(places, size - 1), -1)
    own = max_over(jnp.where(places < size, found, -jnp.inf), TENSOR)
    tail = log_sum_exp(_others(logits, asked.ids))
    return jnp.concatenate([own, tail[:, None]], -1) - normalizer[:, None], normalizer


def _forward(asked: _Asked, softmax: Softmax) -> tuple[jax.Array, tuple]:
    def own(asked: _Asked, softmax: Softmax) -> tuple[jax.Array, jax.Array]:
        count = asked.ids.shape[0]
        found = jax.lax.map(lambda chunk: _buckets(chunk, softmax), chunked(softmax.head.shape[0], asked))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

    row, shared = specs(asked.ids.shape[0], softmax)
    found, normalizer = per_device(own, (row, Softmax(*shared)), row)(asked, softmax)
    return found, (asked, softmax, found, normalizer)


class _Back(NamedTuple):
    """What the way back reads of each row."""

    asked: _Asked
    found: jax.Array
    normalizer: jax.Array
    bars: jax.Array


def _slopes(chunk: _Back, softmax: Softmax) -> jax.Array:
    """``∂ / ∂ logit_v``: a token asked for has its own bar, each other its share of the tail's; less p_v times all."""
    logits = chunk_logits(chunk.asked.rows, softmax)
    log_p = logits.tempered - chunk.normalizer[:, None]
    tail = chunk.found[:, -1:]
    share = jnp.exp(_others(log_p, chunk.asked.ids) - jnp.where(tail > -jnp.inf, tail, 0.0))
    rows = jnp.arange(log_p.shape[0])[:, None]
    slope = (
        (share * chunk.bars[:, -1:])
        .at[rows, _within(chunk.asked.ids, log_p.shape[-1])]
        .add(chunk.bars[:, :-1], mode="drop")
    )
    slope = (slope - jnp.exp(log_p) * chunk.bars.sum(-1, keepdims=True)) / softmax.temperature
    return slope if logits.slope is None else slope * logits.slope


def _own_slopes(own: _Back, softmax: Softmax) -> tuple[jax.Array, Any]:
    head = softmax.head

    def step(total: Any, chunk: _Back) -> tuple[Any, jax.Array]:
        hidden = chunk.asked.rows.hidden
        slope = _slopes(chunk, softmax).astype(hidden.dtype)
        hidden_slope, total = head_slopes(slope, hidden, head, total)
        return total, sum_over(hidden_slope, TENSOR)

    start = no_slopes(head, softmax.temperature.dtype)
    total, hidden = jax.lax.scan(step, start, chunked(head.shape[0], own))
    return hidden.reshape(-1, hidden.shape[-1])[: own.bars.shape[0]], slopes_of_all(head, total)


def _backward(residuals: tuple, bars: jax.Array) -> tuple:
    asked, softmax, found, normalizer = residuals
    row, shared = specs(asked.ids.shape[0], softmax)
    back = per_device(_own_slopes, (row, Softmax(*shared)), (row, shared[0]))
    # A tail that is not there has no slope, whatever is asked of it.
    bars = jnp.where(found > -jnp.inf, bars, 0.0)
    hidden, head = back(_Back(asked, found, normalizer, bars), softmax)
    nothing = cast(Any, None)
    return _Asked(Rows(hidden, nothing, None), nothing), Softmax(head, nothing, None)


@jax.custom_vjp
def _bucket_log_probs(asked: _Asked, softmax: Softmax) -> jax.Array:
    return _forward(asked, softmax)[0]


_bucket_log_probs.defvjp(_forward, _backward)


@check_arguments
def bucket_log_probs(predictions: Predictions, ids: jax.Array) -> jax.Array:
    """``log p`` of K tokens of each row, and last of all the others together.

    Limiting cases: ``token_log_probs`` for K = 1; the whole ``log_softmax`` and −inf for all tokens.

    Args:
        predictions: N rows; gradients reach ``hidden`` and ``head``.
        ids: ``[N, K]`` int32, the tokens of a row all different.

    Returns:
        ``[N, K + 1]`` nats, in at least float32.

    Raises:
        ValueError: at trace time, for ids of another number of rows.

    >>> found = bucket_log_probs(Predictions(jnp.zeros((1, 2)), jnp.ones((4, 2))), jnp.array([[1]]))
    >>> jnp.exp(found).round(4).tolist()
    [[0.25, 0.75]]
    """
    rows = predictions.hidden.shape[0]
    if ids.ndim != 2 or ids.shape[0] != rows:
        raise ValueError(
            f"bucket_log_probs: ids has shape {ids.shape}, wanted [N, K] with N = {rows}, the rows; give K tokens each."
        )
    own = Rows(predictions.hidden, jnp.zeros(rows, jnp.int32), None)
    return _bucket_log_probs(_Asked(own, ids), softmax_of(predictions))


@check_arguments
def top_tokens(predictions: Predictions, k: int) -> TopTokens:
    """The K likeliest tokens of each row, the likeliest first, and the rest as one; without a gradient.

    Limiting case: all tokens for K = V. Under a mesh each device takes its own rows, with the whole head.

    Args:
        predictions: N rows.
        k: from 1 to V.

    Raises:
        ValueError: at trace time, for a k out of its range.

    >>> head = jnp.log(jnp.array([[1.0], [5.0], [2.0]]))
    >>> found = top_tokens(Predictions(jnp.ones((1, 1)), head), 2)
    >>> found.ids.tolist(), jnp.exp(found.log_probs).round(4).tolist()
    ([[1, 2]], [[0.625, 0.25, 0.125]])
    """
    size = predictions.head.shape[0]
    if not 1 <= k <= size:
        raise ValueError(f"top_tokens: k is {k}, wanted from 1 to the {size} tokens of the vocabulary.")

    def own(hidden: jax.Array, softmax: Softmax) -> TopTokens:
        found = jax.lax.map(partial(_top_of_chunk, k, softmax), chunked(size, hidden))
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1])[: hidden.shape[0]], found)

    row = dividing(predictions.hidden.shape[:1], (ROWS,))
    given = jax.lax.stop_gradient((predictions.hidden, softmax_of(predictions)))
    return jax.lax.stop_gradient(per_device(own, (row, PartitionSpec()), row)(*given))


def _top_of_chunk(k: int, softmax: Softmax, hidden: jax.Array) -> TopTokens:
    logits = chunk_logits(Rows(hidden, jnp.zeros(hidden.shape[:1], jnp.int32), None), softmax).tempered
    log_p = logits - normalizers(logits)[:, None]
    found, ids = jax.lax.top_k(log_p, k)
    tail = log_sum_exp(_others(log_p, ids))
    return TopTokens(ids.astype(jnp.int32), jnp.concatenate([found, tail[:, None]], -1))


@check_arguments
def top_token_divergences(student: Predictions, teacher: TopTokens, divergence: Divergence) -> Any:
    """A divergence over the teacher's K tokens and one bucket for the rest, for each row.

    A lower bound of ``token_divergences`` that grows with K. Limiting cases: equal to it for K = V, and where all other
    tokens have one ratio of student to teacher; with ``reverse_kl`` it is ``kl.top_k_kl``.

    Args:
        student: N rows; gradients reach ``hidden`` and ``head``.
        teacher: of a live teacher by ``top_tokens``, or as it was stored. No gradient.
        divergence: ``(log p, log q) → term``, elementwise; or to any pytree of terms.

    Returns:
        ``[N]`` nats, in at least float32, or the pytree of such.

    Raises:
        ValueError: at trace time, for a teacher of another number of rows, or without its tail.

    >>> from rlax_llm.core.divergences import reverse_kl
    >>> student = Predictions(jnp.ones((1, 1)), jnp.log(jnp.array([[2.0], [1.0], [1.0]])))
    >>> teacher = TopTokens(jnp.array([[0]]), jnp.log(jnp.array([[0.25, 0.75]])))
    >>> print(f"{top_token_divergences(student, teacher, reverse_kl)[0]:.4f}")
    0.1438
    """
    if teacher.log_probs.shape != (*teacher.ids.shape[:-1], teacher.ids.shape[-1] + 1):
        raise ValueError(
            f"top_token_divergences: teacher.log_probs has shape {teacher.log_probs.shape} and ids has shape "
            f"{teacher.ids.shape}, wanted one more than the tokens; the last is that of all other tokens."
        )
    own = bucket_log_probs(student, teacher.ids)
    there = own > -jnp.inf
    given = jax.lax.stop_gradient(teacher.log_probs)
    terms = divergence(jnp.where(there, own, 0.0), jnp.where(there, given, 0.0))
    return jax.tree.map(lambda term: jnp.where(there, term, 0.0).sum(-1), terms)
