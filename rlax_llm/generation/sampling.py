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
from rlax_llm.mapping import map_in_cache

BLOCK = 256  # tokens; near √V for the vocabularies in use
HALVINGS = 30  # of some 13 nats: finer than float32 tells two logits apart


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
        thresholds, top_p = jnp.full(logits.shape[:1], -jnp.inf), self.top_p or 1.0
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            thresholds = top_k_threshold(tempered, self.top_k, top_p)
        elif top_p < 1:
            thresholds = top_p_threshold(tempered, top_p)
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


def top_k_threshold(tempered: jax.Array, top_k: int, top_p: float = 1.0) -> jax.Array:
    """Threshold ``[B]`` of the ``top_k < V`` largest of ``tempered [B, V]``, or of the nucleus ``top_p`` in them.

    Ties with the last one kept are kept. Limiting cases: ``top_p`` 1 keeps all ``top_k``; ``top_p_threshold`` where
    ``top_k`` is V.

    >>> top_k_threshold(jnp.array([[3.0, 1.0, 2.0, 0.0]]), 2).tolist()
    [1.5]
    >>> top_k_threshold(jnp.array([[3.0, 1.0, 2.0, 0.0]]), 2, 0.5).tolist()
    [2.5]
    """
    largest = _largest(tempered, top_k + 1)
    thresholds = _halfway(largest[:, -2], largest[:, -1])
    if top_p >= 1:
        return thresholds
    high = largest[:, :1]
    total = jnp.where(tempered >= thresholds[:, None], jnp.exp(tempered - high), 0.0).sum(-1, keepdims=True)
    last = (jnp.cumsum(jnp.exp(largest - high), -1) < top_p * total).sum(-1, keepdims=True)
    kept, cut = (jnp.take_along_axis(largest, jnp.minimum(last + i, top_k), -1)[:, 0] for i in (0, 1))
    return jnp.where(last[:, 0] < top_k, jnp.maximum(_halfway(kept, cut), thresholds), thresholds)


def top_p_threshold(tempered: jax.Array, top_p: float) -> jax.Array:
    """Threshold ``[B]`` of the smallest set of likeliest tokens whose mass is at least ``top_p < 1``, and ties.

    Found by bisection, each row's passes in cache: a sort of a large vocabulary costs several times more.

    >>> top_p_threshold(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), 0.6).round(1).tolist() == [float(jnp.float32(-1.4))]
    True
    """
    return map_in_cache(lambda row: _nucleus(row, top_p), (tempered,), 2 * tempered.shape[-1])


class _Bracket(NamedTuple):
    """Where the last token kept is: relative logits, and the masses of the tokens from there up."""

    low: jax.Array
    high: jax.Array
    mass_low: jax.Array
    mass_high: jax.Array
    halvings: jax.Array


def _nucleus(tempered: jax.Array, top_p: float) -> jax.Array:
    """Halfway below the largest logit of ``tempered [V]`` at which the mass from there up is at least ``top_p``."""
    weights = jnp.exp(tempered - tempered.max())
    total = weights.sum()

    def several(bracket: _Bracket) -> jax.Array:
        """A token weighs at least exp(low): a lighter bracket than two of them holds one."""
        mass = bracket.mass_low - bracket.mass_high
        return (mass > 1.5 * jnp.exp(bracket.low)) & (bracket.halvings < HALVINGS)

    def halve(bracket: _Bracket) -> _Bracket:
        middle = 0.5 * (bracket.low + bracket.high)
        mass = jnp.where(weights >= jnp.exp(middle), weights, 0.0).sum()
        enough, count = mass >= top_p * total, bracket.halvings + 1
        upper = _Bracket(middle, bracket.high, mass, bracket.mass_high, count)
        lower = _Bracket(bracket.low, middle, bracket.mass_low, mass, count)
        return jax.tree.map(lambda x, y: jnp.where(enough, x, y), upper, lower)

    # Tokens lighter than (1 − top_p) total / V are cut: all of them together weigh less than the cut may.
    low = jnp.log((1 - top_p) * total / tempered.shape[-1]) - 1e-3
    start = _Bracket(low, jnp.float32(1e-3), total, jnp.zeros_like(total), jnp.int32(0))
    above = weights >= jnp.exp(jax.lax.while_loop(several, halve, start).low)
    last = jnp.where(above, tempered, jnp.inf).min()
    cut = jnp.where(above, -jnp.inf, tempered).max()
    return jnp.where(jnp.isfinite(cut), _halfway(last, cut), -jnp.inf)
