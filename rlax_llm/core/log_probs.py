"""Token log-probabilities and entropies from hidden states, without ever holding all logits ``[N, V]``.

The forward pass keeps one chunk of logits at a time; the custom derivative recomputes each chunk and never forms more
of the gradient. Values and gradients are those of the plain ``log_softmax``. Under a mesh each device takes its own
rows, and its own part of the vocabulary where that divides: it says to the others only sums over its part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.heads import Head, head_slopes, no_slopes, slopes_of_all
from rlax_llm.core.mesh import ROWS, TENSOR, max_over, per_device, place_along, sum_over
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.token_sets import are_bits, words
from rlax_llm.core.vocabulary import Rows, Softmax, chunk_logits, chunked, log_sum_exp, normalizers, specs


class _Found(NamedTuple):
    """What the forward pass finds of each row, all in nats: log-probability, entropy, normalizer of the logits."""

    log_prob: jax.Array
    entropy: jax.Array
    normalizer: jax.Array


def _statistics(rows: Rows, softmax: Softmax) -> _Found:
    logits = chunk_logits(rows, softmax).tempered
    normalizer = normalizers(logits)
    chosen = _chosen(logits, rows.targets)
    # −Σ p log p, not normalizer − Σ p · logit: that would lose the digits of a small entropy of large logits.
    log_p = logits - normalizer[:, None]
    entropy = -(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0.0)).sum(-1)
    return _Found(chosen - normalizer, sum_over(entropy, TENSOR), normalizer)


def _chosen(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The logit of each row's target, which one part of the vocabulary has."""
    size = logits.shape[-1]
    within = targets - place_along(TENSOR) * size
    found = jnp.take_along_axis(logits, jnp.clip(within, 0, size - 1)[:, None], -1)[:, 0]
    return max_over(jnp.where((within >= 0) & (within < size), found, -jnp.inf), TENSOR)


def _forward(rows_given: tuple, softmax_given: tuple) -> tuple:
    rows, softmax = Rows(*rows_given), Softmax(*softmax_given)

    def own(rows: Rows, *shared: Any) -> _Found:
        softmax = Softmax(*shared)
        count = rows.targets.shape[0]
        found = jax.lax.map(lambda chunk: _statistics(chunk, softmax), chunked(softmax.head.shape[0], rows))
        return jax.tree.map(lambda x: x.reshape(-1)[:count], found)

    row, shared = specs(rows.targets.shape[0], softmax)
    found = per_device(own, (row, *shared), row)(rows, *softmax)
    return (found.log_prob, found.entropy), (rows, softmax, found)


class _Chunk(NamedTuple):
    """Some rows on the way back: what the forward pass read and found, and the slopes of its two results."""

    rows: Rows
    found: _Found
    log_prob_bar: jax.Array
    entropy_bar: jax.Array


def _logit_slopes(chunk: _Chunk, softmax: Softmax) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``∂ log p_y / ∂ logit_v = 1[v = y] − p_v`` and ``∂ H / ∂ logit_v = −p_v (log p_v + H)``; the finite log p; and
    the slope of ``Logits``.
    """
    logits = chunk_logits(chunk.rows, softmax)
    log_p = logits.tempered - chunk.found.normalizer[:, None]
    finite = jnp.where(jnp.isfinite(log_p), log_p, 0.0)
    surprise = finite + chunk.found.entropy[:, None]
    slope = -jnp.exp(log_p) * (chunk.log_prob_bar[:, None] + chunk.entropy_bar[:, None] * surprise)
    hit = softmax.vocabulary() == chunk.rows.targets[:, None]
    return (slope + jnp.where(hit, chunk.log_prob_bar[:, None], 0.0)) / softmax.temperature, finite, logits.slope


def _backward(residuals: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    rows, softmax, found = residuals
    row, shared = specs(rows.targets.shape[0], softmax)
    back = per_device(_own_slopes, (row, *shared), (row, *shared[:2]))
    hidden, head, temperature = back(_Chunk(rows, found, *cotangents), *softmax)
    return (hidden, None, None, None), (head, temperature, None, None, None)


def _own_slopes(own: _Chunk, *shared: Any) -> tuple[jax.Array, Any, jax.Array]:
    """The slopes of a device's hidden states, of its part of the head, and of the temperature."""
    softmax = Softmax(*shared)
    head, temperature = softmax.head, softmax.temperature

    def step(totals: tuple[Any, jax.Array], chunk: _Chunk) -> tuple[tuple[Any, jax.Array], jax.Array]:
        slope, log_p, of_head = _logit_slopes(chunk, softmax)
        temperature_slope = -(slope * log_p).sum()  # each row of slope sums to 0, so log p does for the logits
        slope = slope if of_head is None else slope * of_head
        hidden = chunk.rows.hidden
        hidden_slope, head_slope = head_slopes(slope.astype(hidden.dtype), hidden, head, totals[0])
        return (head_slope, totals[1] + temperature_slope), sum_over(hidden_slope, TENSOR)

    zeros = (no_slopes(head, temperature.dtype), jnp.zeros_like(temperature))
    totals, hidden = jax.lax.scan(step, zeros, chunked(head.shape[0], own))
    hidden = hidden.reshape(-1, hidden.shape[-1])[: own.rows.targets.shape[0]]
    return hidden, slopes_of_all(head, totals[0]), sum_over(totals[1], *ROWS, TENSOR)


@jax.custom_vjp
def _log_probs(rows: tuple, softmax: tuple) -> tuple:
    return _forward(rows, softmax)[0]


_log_probs.defvjp(_forward, _backward)


def token_log_probs(
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    temperature: float | jax.Array = 1.0,
    kept: jax.Array | None = None,
    bias: jax.typing.ArrayLike | None = None,
    penalties: tuple[Penalties, jax.Array] | None = None,
    cap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``log p[n, targets[n]]`` and entropy of ``p[n] = softmax((hidden[n] · headᵀ + bias) / temperature)``.

    With ``kept``, p is renormalized over a set of tokens and the target. The set is given, the one that a sampler with
    top-k, top-p or min-p drew from: then p is that sampler's distribution, and two models are compared on one set. Or
    it is a floor on p's own log-probabilities before that, and follows the model. Adding one number to all logits
    changes nothing in either form. Limiting cases: the set of all tokens and the floor −inf are the plain softmax; a
    floor is the set of the tokens above it; the gradient of ``log p`` over targets drawn from p averages to zero.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``; a wider one is rounded to the dtype of ``hidden``, its gradient is not.
        targets: ``[N]`` int32.
        temperature: > 0, dimensionless.
        kept: ``[N, ceil(V/32)]`` uint32, sets as ``token_sets.to_bits`` packs them; or ``[N]`` float, the smallest
            log-probability kept, nats; or None. Not differentiated.
        bias: ``[V]`` float or None, nats before the temperature; −inf bans a token. Not differentiated.
        penalties: that come between bias and temperature, and what was there before each token, ``[N, T]`` of
            ``seen.histories``; or None. Each chunk counts its own, so no ``[N, V]`` array is held.
        cap: of the head's logits, which become ``cap · tanh(logit / cap)`` before all else; None leaves them.

    Returns:
        Log-probabilities ``[N]`` and entropies ``[N]``, nats, in at least float32; −inf for a banned target.

    Raises:
        ValueError: at trace time, for another form of ``kept``.

    >>> log_prob, entropy = token_log_probs(jnp.zeros((1, 2)), jnp.ones((4, 2)), jnp.array([3]))
    >>> bool(jnp.allclose(log_prob, -jnp.log(4.0))), bool(jnp.allclose(entropy, jnp.log(4.0)))
    (True, True)
    >>> kept = jnp.array([[0b1001]], jnp.uint32)
    >>> log_prob, entropy = token_log_probs(jnp.zeros((1, 2)), jnp.ones((4, 2)), jnp.array([3]), kept=kept)
    >>> bool(jnp.allclose(log_prob, -jnp.log(2.0)))
    True
    """
    if kept is not None:
        kept = checked_kept("token_log_probs", kept, hidden.shape[0], head.shape[0])
    history = None if penalties is None else penalties[1]
    softmax = _softmax(hidden, head, temperature, bias, penalties, cap)
    return _log_probs((hidden, targets, kept, history), tuple(softmax))


def token_collisions(
    hidden: jax.Array,
    head: Head,
    targets: jax.Array,
    temperature: float | jax.Array = 1.0,
    kept: jax.Array | None = None,
    bias: jax.typing.ArrayLike | None = None,
    penalties: tuple[Penalties, jax.Array] | None = None,
    cap: float | None = None,
) -> jax.Array:
    """``Σ_v p[n, v]²`` of the distributions of ``token_log_probs``: the probability that two draws agree. No gradient.

    Limiting cases: 1 where one token is certain; ``1/V`` where all V are alike.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``.
        targets: ``[N]`` int32; a set holds its target, whatever it says.
        temperature: > 0, dimensionless.
        kept: as of ``token_log_probs``.
        bias: as of ``token_log_probs``.
        penalties: as of ``token_log_probs``.
        cap: as of ``token_log_probs``.

    Returns:
        ``[N]``, in at least float32.

    Raises:
        ValueError: at trace time, for another form of ``kept``.

    >>> token_collisions(jnp.zeros((1, 2)), jnp.ones((4, 2)), jnp.array([3])).tolist()
    [0.25]
    """
    softmax_given = _softmax(hidden, head, temperature, bias, penalties, cap)
    if kept is not None:
        kept = checked_kept("token_collisions", kept, hidden.shape[0], head.shape[0])
    rows = Rows(hidden, targets, kept, None if penalties is None else penalties[1])

    def own(rows: Rows, *shared: Any) -> jax.Array:
        softmax, count = Softmax(*shared), rows.targets.shape[0]

        def of_chunk(chunk: Rows) -> jax.Array:
            logits = chunk_logits(chunk, softmax).tempered
            return jnp.exp(log_sum_exp(2 * logits) - 2 * normalizers(logits))

        return jax.lax.map(of_chunk, chunked(softmax.head.shape[0], rows)).reshape(-1)[:count]

    row, shared = specs(rows.targets.shape[0], softmax_given)
    return jax.lax.stop_gradient(per_device(own, (row, *shared), row)(rows, *softmax_given))


def _softmax(hidden: jax.Array, head: Head, temperature: Any, bias: Any, penalties: Any, cap: float | None) -> Softmax:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    if bias is not None:
        bias = jax.lax.stop_gradient(jnp.asarray(bias, wide))
    given = None if penalties is None else jnp.asarray(penalties[0], wide)
    capped = None if cap is None else jnp.asarray(cap, wide)
    return Softmax(head, jnp.asarray(temperature, wide), bias, given, capped)


def checked_kept(where: str, kept: jax.Array, rows: int, vocabulary: int) -> jax.Array:
    """The kept sets or floors, without a gradient.

    Args:
        where: the function that takes them, for the message.
        kept: as ``token_log_probs`` takes them.
        rows: N.
        vocabulary: V.

    Raises:
        ValueError: for an array that is neither.
    """
    kept = jax.lax.stop_gradient(jnp.asarray(kept))
    is_floor = jnp.issubdtype(kept.dtype, jnp.floating) and kept.shape == (rows,)
    if is_floor or are_bits(kept, (rows,), vocabulary):
        return kept
    raise ValueError(
        f"{where}: kept is {kept.dtype} of shape {kept.shape}, wanted uint32 {(rows, words(vocabulary))} or "
        f"float {(rows,)}; give the sets that were sampled from, packed by to_bits, or floors of log-probability."
    )


@jax.jit
def plain_token_log_probs(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same numbers through one ``[N, V]`` array of logits: the oracle of tests and benchmarks.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``.
        targets: ``[N]`` int32.
    """
    log_p = jax.nn.log_softmax(hidden @ head.T)
    return jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0], -(jnp.exp(log_p) * log_p).sum(-1)
