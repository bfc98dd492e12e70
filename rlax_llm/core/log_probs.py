"""Token log-probabilities and entropies from hidden states, without ever holding all logits ``[N, V]``.

The forward pass keeps one chunk of logits at a time; the custom derivative recomputes each chunk and never forms more
of the gradient. Values and gradients are those of the plain ``log_softmax``.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.token_sets import are_bits, members_of, words

ROWS = 128  # the fewest in a chunk, large enough for a full-speed matmul
LOGITS = 2**22  # numbers in a chunk of a small vocabulary, 16 MB


class _Softmax(NamedTuple):
    """What all rows share: the head ``[V, D]``, the temperature, and what is added to the logits, ``[V]`` or None."""

    head: jax.Array
    temperature: jax.Array
    bias: jax.Array | None


def _chunk_logits(hidden: jax.Array, targets: jax.Array, kept: jax.Array | None, softmax: _Softmax) -> jax.Array:
    """Tempered logits of one chunk, in at least float32, −inf where the sampler kept no token."""
    head, temperature, bias = softmax
    # Divided in float32, as the sampler does: hidden states divided in bfloat16 would move log-probabilities by 0.1.
    logits = jnp.matmul(hidden, head.astype(hidden.dtype).T, preferred_element_type=temperature.dtype)
    logits = (logits if bias is None else logits + bias) / temperature
    if kept is None:
        return logits
    if kept.dtype == jnp.uint32:
        members = members_of(kept, head.shape[0])
    else:
        members = logits - jax.nn.logsumexp(logits, -1, keepdims=True) >= kept[:, None]
    # The chosen token is one of them, whatever the last bit of its logit says now.
    return jnp.where(members | (jnp.arange(head.shape[0]) == targets[:, None]), logits, -jnp.inf)


def _statistics(hidden: jax.Array, targets: jax.Array, kept: jax.Array | None, softmax: _Softmax) -> tuple:
    logits = _chunk_logits(hidden, targets, kept, softmax)
    total = jax.nn.logsumexp(logits, -1)
    # Of a row that keeps nothing but a banned token, which only padding is: −inf there would be NaN in the gradient.
    normalizer = jnp.where(total == -jnp.inf, 0.0, total)
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    # −Σ p log p, not normalizer − Σ p · logit: that would lose the digits of a small entropy of large logits.
    log_p = logits - normalizer[:, None]
    entropy = -(jnp.exp(log_p) * jnp.where(jnp.isfinite(log_p), log_p, 0.0)).sum(-1)
    return chosen - normalizer, entropy, normalizer


def _chunked(vocabulary: int, *arrays: jax.Array | None) -> tuple[jax.Array | None, ...]:
    """Reshape ``[N, …]`` to ``[chunks, rows, …]``, padded with zeros; None stays None."""
    assert arrays[0] is not None
    count = arrays[0].shape[0]
    rows = min(max(ROWS, LOGITS // vocabulary), count)
    pad = -count % rows

    def split(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, rows, *x.shape[1:])

    return jax.tree.map(split, arrays)


def _forward(hidden: jax.Array, targets: jax.Array, kept: jax.Array | None, softmax: _Softmax) -> tuple:
    chunks = _chunked(softmax.head.shape[0], hidden, targets, kept)
    outputs = jax.lax.map(lambda chunk: _statistics(chunk[0], chunk[1], chunk[2], softmax), chunks)
    log_probs, entropy, normalizer = (x.reshape(-1)[: hidden.shape[0]] for x in outputs)
    return (log_probs, entropy), (hidden, targets, kept, softmax, normalizer, entropy)


class _Chunk(NamedTuple):
    """Some rows on the way back: what the forward pass read and found, and the slopes of its two results."""

    hidden: jax.Array
    targets: jax.Array
    kept: jax.Array | None
    normalizer: jax.Array
    entropy: jax.Array
    log_prob_bar: jax.Array
    entropy_bar: jax.Array


def _logit_slopes(chunk: _Chunk, softmax: _Softmax) -> tuple[jax.Array, jax.Array]:
    """``∂ log p_y / ∂ logit_v = 1[v = y] − p_v`` and ``∂ H / ∂ logit_v = −p_v (log p_v + H)``; and the finite log p."""
    log_p = _chunk_logits(chunk.hidden, chunk.targets, chunk.kept, softmax) - chunk.normalizer[:, None]
    finite = jnp.where(jnp.isfinite(log_p), log_p, 0.0)
    surprise = finite + chunk.entropy[:, None]
    slope = -jnp.exp(log_p) * (chunk.log_prob_bar[:, None] + chunk.entropy_bar[:, None] * surprise)
    hit = jnp.arange(softmax.head.shape[0]) == chunk.targets[:, None]
    return (slope + jnp.where(hit, chunk.log_prob_bar[:, None], 0.0)) / softmax.temperature, finite


def _backward(residuals: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    hidden, targets, kept, softmax, normalizer, entropy = residuals
    head, temperature, _ = softmax
    rows = _chunked(head.shape[0], hidden, targets, kept, normalizer, entropy, *cotangents)

    def step(totals: tuple[jax.Array, jax.Array], arrays: tuple) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        chunk = _Chunk(*arrays)
        slope, log_p = _logit_slopes(chunk, softmax)
        temperature_slope = -(slope * log_p).sum()  # each row of slope sums to 0, so log p does for the logits
        slope = slope.astype(chunk.hidden.dtype)
        head_slope = jnp.matmul(slope.T, chunk.hidden, preferred_element_type=totals[0].dtype)
        hidden_slope = slope @ head.astype(chunk.hidden.dtype)
        return (totals[0] + head_slope, totals[1] + temperature_slope), hidden_slope

    zeros = (jnp.zeros(head.shape, temperature.dtype), jnp.zeros_like(temperature))
    (head_gradient, temperature_gradient), hidden_gradient = jax.lax.scan(step, zeros, rows)
    hidden_gradient = hidden_gradient.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return hidden_gradient, None, None, _Softmax(head_gradient.astype(head.dtype), temperature_gradient, None)


@jax.custom_vjp
def _log_probs(hidden: jax.Array, targets: jax.Array, kept: jax.Array | None, softmax: _Softmax) -> tuple:
    return _forward(hidden, targets, kept, softmax)[0]


_log_probs.defvjp(_forward, _backward)


def token_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    temperature: float | jax.Array = 1.0,
    kept: jax.Array | None = None,
    bias: jax.typing.ArrayLike | None = None,
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
        kept = jax.lax.stop_gradient(_checked(kept, hidden.shape[0], head.shape[0]))
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    if bias is not None:
        bias = jax.lax.stop_gradient(jnp.asarray(bias, wide))
    return _log_probs(hidden, targets, kept, _Softmax(head, jnp.asarray(temperature, wide), bias))


def _checked(kept: jax.Array, rows: int, vocabulary: int) -> jax.Array:
    """The kept sets or floors; an array that is neither raises."""
    kept = jnp.asarray(kept)
    is_floor = jnp.issubdtype(kept.dtype, jnp.floating) and kept.shape == (rows,)
    if is_floor or are_bits(kept, (rows,), vocabulary):
        return kept
    raise ValueError(
        f"token_log_probs: kept is {kept.dtype} of shape {kept.shape}, wanted uint32 {(rows, words(vocabulary))} or "
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
