"""Token log-probabilities and entropies from hidden states, without ever holding all logits ``[N, V]``.

The forward pass keeps one chunk of logits at a time; the custom derivative recomputes each chunk and never forms more
of the gradient. Values and gradients are those of the plain ``log_softmax``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

ROWS = 128  # the fewest in a chunk, large enough for a full-speed matmul
LOGITS = 2**22  # numbers in a chunk of a small vocabulary, 16 MB

Softmax = tuple[jax.Array, jax.Array]  # the head [V, D] and the temperature: what all rows share


def _chunk_logits(hidden: jax.Array, targets: jax.Array, thresholds: jax.Array, softmax: Softmax) -> jax.Array:
    """Tempered logits of one chunk, in at least float32, −inf where top-k or top-p cut them."""
    head, temperature = softmax
    # Divided in float32, as the sampler does: hidden states divided in bfloat16 would move log-probabilities by 0.1.
    logits = jnp.matmul(hidden, head.astype(hidden.dtype).T, preferred_element_type=temperature.dtype) / temperature
    # The chosen token was kept by the sampler, whatever the last bit of its logit says now.
    kept = (logits >= thresholds[:, None]) | (jnp.arange(head.shape[0]) == targets[:, None])
    return jnp.where(kept, logits, -jnp.inf)


def _statistics(hidden: jax.Array, targets: jax.Array, thresholds: jax.Array, softmax: Softmax) -> tuple:
    logits = _chunk_logits(hidden, targets, thresholds, softmax)
    normaliser = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    finite = jnp.where(jnp.isfinite(logits), logits, 0.0)
    entropy = normaliser - (jnp.exp(logits - normaliser[:, None]) * finite).sum(-1)
    return chosen - normaliser, entropy, normaliser


def _chunked(vocabulary: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape ``[N, …]`` to ``[chunks, rows, …]``, padded with zeros."""
    count = arrays[0].shape[0]
    rows = min(max(ROWS, LOGITS // vocabulary), count)
    pad = -count % rows

    def split(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, rows, *x.shape[1:])

    return tuple(split(x) for x in arrays)


def _forward(hidden: jax.Array, targets: jax.Array, thresholds: jax.Array, softmax: Softmax) -> tuple:
    chunks = _chunked(softmax[0].shape[0], hidden, targets, thresholds)
    outputs = jax.lax.map(lambda chunk: _statistics(chunk[0], chunk[1], chunk[2], softmax), chunks)
    log_probs, entropy, normaliser = (x.reshape(-1)[: hidden.shape[0]] for x in outputs)
    return (log_probs, entropy), (hidden, targets, thresholds, softmax, normaliser, entropy)


def _backward(residuals: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    hidden, targets, thresholds, softmax, normaliser, entropy = residuals
    head, temperature = softmax
    # ∂ log p_y / ∂ logit_v = 1[v = y] − p_v  and  ∂ H / ∂ logit_v = −p_v (log p_v + H).
    rows = _chunked(head.shape[0], hidden, targets, thresholds, normaliser, entropy, *cotangents)

    def step(totals: tuple[jax.Array, jax.Array], chunk: tuple) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, target, threshold, norm, ent, log_prob_bar, entropy_bar = chunk
        log_p = _chunk_logits(h, target, threshold, softmax) - norm[:, None]
        finite = jnp.where(jnp.isfinite(log_p), log_p, 0.0)
        surprise = finite + ent[:, None]
        slope = -jnp.exp(log_p) * (log_prob_bar[:, None] + entropy_bar[:, None] * surprise)
        hit = jnp.arange(head.shape[0]) == target[:, None]
        slope = (slope + jnp.where(hit, log_prob_bar[:, None], 0.0)) / temperature
        temperature_slope = -(slope * finite).sum()  # each row of slope sums to 0, so log p does for the logits
        slope = slope.astype(h.dtype)
        head_slope = jnp.matmul(slope.T, h, preferred_element_type=totals[0].dtype)
        return (totals[0] + head_slope, totals[1] + temperature_slope), slope @ head.astype(h.dtype)

    zeros = jnp.zeros(head.shape, temperature.dtype), jnp.zeros_like(temperature)
    (head_gradient, temperature_gradient), hidden_gradient = jax.lax.scan(step, zeros, rows)
    hidden_gradient = hidden_gradient.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return hidden_gradient, None, None, (head_gradient.astype(head.dtype), temperature_gradient)


@jax.custom_vjp
def _log_probs(hidden: jax.Array, targets: jax.Array, thresholds: jax.Array, softmax: Softmax) -> tuple:
    return _forward(hidden, targets, thresholds, softmax)[0]


_log_probs.defvjp(_forward, _backward)


def token_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    temperature: float | jax.Array = 1.0,
    thresholds: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``log p[n, targets[n]]`` and entropy of ``p[n] = softmax(hidden[n] · headᵀ / temperature)``.

    With ``thresholds``, p is renormalised over the tokens whose tempered logit is at least the threshold (and the
    target): the distribution that a sampler with top-k or top-p drew from. Limiting cases: threshold −inf is the plain
    softmax; the gradient of ``log p`` over targets drawn from p averages to zero.

    Args:
        hidden: ``[N, D]``.
        head: ``[V, D]``; a wider one is rounded to the dtype of ``hidden``, its gradient is not.
        targets: ``[N]`` int32.
        temperature: > 0, dimensionless.
        thresholds: ``[N]`` float or None, not differentiated.

    Returns:
        Log-probabilities ``[N]`` and entropies ``[N]``, nats, in at least float32.

    >>> log_prob, entropy = token_log_probs(jnp.zeros((1, 2)), jnp.ones((4, 2)), jnp.array([3]))
    >>> bool(jnp.allclose(log_prob, -jnp.log(4.0))), bool(jnp.allclose(entropy, jnp.log(4.0)))
    (True, True)
    """
    limits = jnp.full(hidden.shape[:1], -jnp.inf) if thresholds is None else thresholds
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return _log_probs(hidden, targets, jax.lax.stop_gradient(limits), (head, jnp.asarray(temperature, wide)))


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
