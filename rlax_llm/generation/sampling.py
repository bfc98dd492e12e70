"""Drawing one token a row from logits, with the log-probability of the distribution that was drawn from.

Drawing inverts the cumulative distribution in two levels (a block of the vocabulary, then a token in it): two uniform
numbers a row instead of V Gumbel variables. Top-k and top-p are a *threshold* on the tempered logits, found
without sorting the vocabulary and placed halfway between the last kept and the first cut logit, so that the learner,
whose logits differ in the last bits, cuts the same tokens. Ties at the cut are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm import checks

BLOCK = 256  # tokens; near √V for the vocabularies in use
NUCLEUS = 256  # tokens; a nucleus that fits is found without a pass per bisection


class Draw(NamedTuple):
    """One draw a row.

    Attributes:
        tokens: ``[B]`` int32.
        log_probs: ``[B]`` float32, nats, of the distribution drawn from.
        thresholds: ``[B]`` float32, smallest tempered logit kept; −inf where nothing was cut.
    """

    tokens: jax.Array
    log_probs: jax.Array
    thresholds: jax.Array


Sampler = Callable[[jax.Array, jax.Array], Draw]


def greedy(key: jax.Array, logits: jax.Array) -> Draw:
    """The most likely token, the first of ties; its log-probability is that of the full distribution.

    Limiting case: ``Categorical(temperature → 0)`` draws the same token.

    Args:
        key: not read.
        logits: ``[B, V]``.

    >>> greedy(None, jnp.array([[0.0, 2.0, 1.0]])).tokens.tolist()
    [1]
    """
    del key
    tokens = jnp.argmax(logits, -1)
    log_probs = jnp.take_along_axis(logits, tokens[:, None], -1)[:, 0] - jax.nn.logsumexp(logits, -1)
    return Draw(tokens.astype(jnp.int32), log_probs, jnp.full(tokens.shape, -jnp.inf))


@dataclass(frozen=True)
class Categorical:
    """Draw from ``softmax(logits / temperature)``, cut to the ``top_k`` likeliest, then to a nucleus of mass ``top_p``.

    Attributes:
        temperature: > 0, dimensionless.
        top_k: tokens kept, or None for all.
        top_p: mass kept, in (0, 1], of what ``top_k`` left; or None for all.

    >>> draw = Categorical(top_k=1)(jax.random.key(0), jnp.array([[0.0, 2.0, 1.0]]))
    >>> draw.tokens.tolist(), draw.log_probs.tolist(), draw.thresholds.tolist()
    ([1], [0.0], [1.5])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        checks.positive("Categorical", temperature=self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Categorical: top_k is {self.top_k}, wanted at least 1, or None to keep every token.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Categorical: top_p is {self.top_p}, wanted a number in (0, 1], or None for no cut.")

    def __call__(self, key: jax.Array, logits: jax.Array) -> Draw:
        """Draw one token for each row of ``logits [B, V]``."""
        tempered = logits.astype(jnp.float32) / self.temperature
        thresholds = jnp.full(logits.shape[:1], -jnp.inf)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            thresholds = top_k_threshold(tempered, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            thresholds = top_p_threshold(tempered, self.top_p, thresholds)
        return inverse_cdf(key, tempered, thresholds)


def inverse_cdf(key: jax.Array, tempered: jax.Array, thresholds: jax.Array) -> Draw:
    """Draw from ``softmax(tempered)`` restricted to logits at or above the threshold, by two-level inversion.

    Args:
        key: a typed PRNG key.
        tempered: ``[B, V]`` float32.
        thresholds: ``[B]`` float32.

    >>> inverse_cdf(jax.random.key(0), jnp.array([[0.0, 9.0]]), jnp.array([5.0])).tokens.tolist()
    [1]
    """
    vocabulary = tempered.shape[-1]
    kept = jnp.where(tempered >= thresholds[:, None], tempered, -jnp.inf)
    top = kept.max(-1)
    weights = jnp.exp(kept - top[:, None])
    block = min(BLOCK, vocabulary)
    padded = jnp.pad(weights, ((0, 0), (0, -vocabulary % block))).reshape(weights.shape[0], -1, block)
    masses = padded.sum(-1)
    first, second = jax.random.uniform(key, (2, weights.shape[0]))
    chosen = _invert(first, masses)
    inside = jnp.take_along_axis(padded, chosen[:, None, None], 1)[:, 0]
    tokens = (chosen * block + _invert(second, inside)).astype(jnp.int32)
    logit = jnp.take_along_axis(tempered, tokens[:, None], -1)[:, 0]
    return Draw(tokens, logit - top - jnp.log(masses.sum(-1)), thresholds)


def _invert(uniform: jax.Array, weights: jax.Array) -> jax.Array:
    """Index ``[B]`` drawn in proportion to ``weights [B, n]``; never one of weight 0, whatever the rounding."""
    cumulative = jnp.cumsum(weights, -1)
    index = (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1)
    index = jnp.minimum(index, weights.shape[-1] - 1)
    hit = jnp.take_along_axis(weights, index[:, None], -1)[:, 0] > 0
    return jnp.where(hit, index, jnp.argmax(weights, -1))


def _largest(tempered: jax.Array, count: int) -> jax.Array:
    """The largest logits in order. Behind a barrier: XLA folds a slice of them into its top-k and then sorts all."""
    return jax.lax.optimization_barrier(jax.lax.top_k(tempered, count)[0])


def _halfway(last: jax.Array, cut: jax.Array) -> jax.Array:
    """Between the smallest kept and the largest cut logit; the kept one itself where the two are tied."""
    return jnp.where(last > cut, jnp.maximum(0.5 * (last + cut), jnp.nextafter(cut, last)), last)


def top_k_threshold(tempered: jax.Array, top_k: int) -> jax.Array:
    """Threshold ``[B]`` that keeps the ``top_k < V`` largest of ``tempered [B, V]``, and ties with the last of them.

    >>> top_k_threshold(jnp.array([[3.0, 1.0, 2.0, 0.0]]), 2).tolist()
    [1.5]
    """
    largest = _largest(tempered, top_k + 1)
    return _halfway(largest[:, -2], largest[:, -1])


def top_p_threshold(tempered: jax.Array, top_p: float, thresholds: jax.Array) -> jax.Array:
    """Threshold ``[B]`` of the smallest set of likeliest tokens whose mass is at least ``top_p``, and ties.

    The mass is relative to what ``thresholds`` (a top-k cut, or −inf) left. The nucleus of a language model is small:
    it is looked for among the likeliest tokens, and by bisection only where a row's is larger.

    >>> top_p_threshold(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.6, jnp.array([-jnp.inf])).round(1).tolist() == [
    ...     float(jnp.float32(-1.4))]
    True
    """
    high = tempered.max(-1)
    weights = jnp.where(tempered >= thresholds[:, None], jnp.exp(tempered - high[:, None]), 0.0)
    wanted = top_p * weights.sum(-1)
    largest = _largest(tempered, min(NUCLEUS, tempered.shape[-1]))
    masses = jnp.where(largest >= thresholds[:, None], jnp.exp(largest - high[:, None]), 0.0)
    last = (jnp.cumsum(masses, -1) < wanted[:, None]).sum(-1, keepdims=True)
    found = jnp.all(last < largest.shape[-1] - 1)

    def among_largest() -> jax.Array:
        kept, cut = (jnp.take_along_axis(largest, last + i, -1, mode="clip")[:, 0] for i in (0, 1))
        return _halfway(kept, cut)

    return jnp.maximum(jax.lax.cond(found, among_largest, lambda: _bisected(tempered, weights, wanted)), thresholds)


def _bisected(tempered: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """Halfway below the largest logit at which the mass of ``weights`` from there up is at least ``wanted``."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        middle = 0.5 * (bounds[0] + bounds[1])
        enough = jnp.where(tempered >= middle[:, None], weights, 0.0).sum(-1) >= wanted
        return jnp.where(enough, middle, bounds[0]), jnp.where(enough, bounds[1], middle)

    low = jnp.where(weights > 0, tempered, jnp.inf).min(-1)
    above = tempered >= jax.lax.fori_loop(0, 40, halve, (low, tempered.max(-1) + 1))[0][:, None]
    last = jnp.where(above, tempered, jnp.inf).min(-1)
    cut = jnp.where(above, -jnp.inf, tempered).max(-1)
    return jnp.where(jnp.isfinite(cut), _halfway(last, cut), -jnp.inf)
