"""Token log-probabilities and entropies from hidden states, without ever holding all logits ``[N, V]``.

The forward pass keeps one chunk of logits at a time; the custom derivative recomputes each chunk and never forms more
of the gradient. Values and gradients are those of the plain ``log_softmax``. Under a mesh each device takes its own
rows, and its own part of the vocabulary where that divides: it says to the others only sums over its part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.core.mesh import ROWS, TENSOR, dividing, max_over, per_device, place_along, sum_over
from rlax_llm.core.penalties import NONE, Penalties
from rlax_llm.core.seen import penalized, repetition_slope, tally
from rlax_llm.core.token_sets import are_bits, members_of, words

ROWS_OF_A_CHUNK = 128  # the fewest in a chunk, large enough for a full-speed matmul
LOGITS = 2**22  # numbers in a chunk of a small vocabulary, 16 MB


class _Rows(NamedTuple):
    """Some rows: hidden states ``[N, D]``, chosen tokens ``[N]``, what the sampler kept, and what was there before
    ``[N, T]``; the last two may be None.
    """

    hidden: jax.Array
    targets: jax.Array
    kept: jax.Array | None
    history: jax.Array | None = None


class _Softmax(NamedTuple):
    """What all rows share: the head ``[V, D]``, the temperature, what is added to the logits, ``[V]`` or None, and
    penalties ``[3]``, or None.

    Under a mesh a device sees a part of the vocabulary.
    """

    head: jax.Array
    temperature: jax.Array
    bias: jax.Array | None
    penalties: jax.Array | None = None

    def vocabulary(self) -> jax.Array:
        """The tokens of this part, ``[V]``."""
        size = self.head.shape[0]
        return jnp.arange(size) + place_along(TENSOR) * size


class _Found(NamedTuple):
    """What the forward pass finds of each row, all in nats: log-probability, entropy, normalizer of the logits."""

    log_prob: jax.Array
    entropy: jax.Array
    normalizer: jax.Array


def _log_sum_exp(logits: jax.Array) -> jax.Array:
    """Over the whole vocabulary, ``[N]``; −inf of a row of nothing else."""
    top = max_over(logits.max(-1), TENSOR)
    finite = jnp.where(top == -jnp.inf, 0.0, top)
    return jnp.log(sum_over(jnp.exp(logits - finite[:, None]).sum(-1), TENSOR)) + finite


class _Logits(NamedTuple):
    """Of one chunk, in at least float32: tempered logits, −inf where the sampler kept no token; and by how much they
    change with the head's, without the temperature, or None for 1.
    """

    tempered: jax.Array
    slope: jax.Array | None


def _chunk_logits(rows: _Rows, softmax: _Softmax) -> _Logits:
    head, temperature, bias, penalties = softmax
    logits = jnp.matmul(rows.hidden, head.astype(rows.hidden.dtype).T, preferred_element_type=temperature.dtype)
    logits = logits if bias is None else logits + bias
    slope = None
    if penalties is not None and rows.history is not None:
        seen = tally(rows.history, head.shape[0], place_along(TENSOR) * head.shape[0])
        given = Penalties(*penalties)
        slope = repetition_slope(logits, given, seen)
        logits = penalized(logits, given, seen)
    # Divided in float32, as the sampler does: hidden states divided in bfloat16 would move log-probabilities by 0.1.
    return _Logits(_cut(logits / temperature, rows, softmax), slope)


def _cut(logits: jax.Array, rows: _Rows, softmax: _Softmax) -> jax.Array:
    head = softmax.head
    if rows.kept is None:
        return logits
    if rows.kept.dtype == jnp.uint32:
        members = _members(rows.kept, head.shape[0])
    else:
        members = logits - _log_sum_exp(logits)[:, None] >= rows.kept[:, None]
    # The chosen token is one of them, whatever the last bit of its logit says now.
    return jnp.where(members | (softmax.vocabulary() == rows.targets[:, None]), logits, -jnp.inf)


def _members(kept: jax.Array, size: int) -> jax.Array:
    """Which tokens of this part of the vocabulary are in the sets, ``[N, size]``."""
    if 32 * kept.shape[-1] - size < 32:  # the part is the whole
        return members_of(kept, size)
    first = place_along(TENSOR) * size
    tokens = first + jnp.arange(size)
    return (kept[:, tokens // 32] >> (tokens % 32).astype(jnp.uint32)) & 1 == 1


def _statistics(rows: _Rows, softmax: _Softmax) -> _Found:
    logits = _chunk_logits(rows, softmax).tempered
    total = _log_sum_exp(logits)
    # Of a row that keeps nothing but a banned token, which only padding is: −inf there would be NaN in the gradient.
    normalizer = jnp.where(total == -jnp.inf, 0.0, total)
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


def _chunked(vocabulary: int, rows: Any) -> Any:
    """Reshape ``[N, …]`` to ``[chunks, rows, …]``, padded with zeros."""
    count = jax.tree.leaves(rows)[0].shape[0]
    together = min(max(ROWS_OF_A_CHUNK, LOGITS // vocabulary), count)
    pad = -count % together

    def split(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, together, *x.shape[1:])

    return jax.tree.map(split, rows)


def _specs(count: int, softmax: _Softmax) -> tuple[PartitionSpec, tuple[PartitionSpec, ...]]:
    """Where rows lie, and each of a softmax's parts, where they divide; whole without a mesh."""
    vocabulary, one = dividing(softmax.head.shape[:1], (TENSOR,)), PartitionSpec()
    return dividing((count,), (ROWS,)), (vocabulary, one, vocabulary, one)


def _forward(rows_given: tuple, softmax_given: tuple) -> tuple:
    rows, softmax = _Rows(*rows_given), _Softmax(*softmax_given)

    def own(rows: _Rows, *shared: Any) -> _Found:
        softmax = _Softmax(*shared)
        count = rows.targets.shape[0]
        found = jax.lax.map(lambda chunk: _statistics(chunk, softmax), _chunked(softmax.head.shape[0], rows))
        return jax.tree.map(lambda x: x.reshape(-1)[:count], found)

    row, shared = _specs(rows.targets.shape[0], softmax)
    found = per_device(own, (row, *shared), row)(rows, *softmax)
    return (found.log_prob, found.entropy), (rows, softmax, found)


class _Chunk(NamedTuple):
    """Some rows on the way back: what the forward pass read and found, and the slopes of its two results."""

    rows: _Rows
    found: _Found
    log_prob_bar: jax.Array
    entropy_bar: jax.Array


def _logit_slopes(chunk: _Chunk, softmax: _Softmax) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``∂ log p_y / ∂ logit_v = 1[v = y] − p_v`` and ``∂ H / ∂ logit_v = −p_v (log p_v + H)``; the finite log p; and
    the slope of ``_Logits``.
    """
    logits = _chunk_logits(chunk.rows, softmax)
    log_p = logits.tempered - chunk.found.normalizer[:, None]
    finite = jnp.where(jnp.isfinite(log_p), log_p, 0.0)
    surprise = finite + chunk.found.entropy[:, None]
    slope = -jnp.exp(log_p) * (chunk.log_prob_bar[:, None] + chunk.entropy_bar[:, None] * surprise)
    hit = softmax.vocabulary() == chunk.rows.targets[:, None]
    return (slope + jnp.where(hit, chunk.log_prob_bar[:, None], 0.0)) / softmax.temperature, finite, logits.slope


def _backward(residuals: tuple, cotangents: tuple[jax.Array, jax.Array]) -> tuple:
    rows, softmax, found = residuals
    row, shared = _specs(rows.targets.shape[0], softmax)
    back = per_device(_own_slopes, (row, *shared), (row, *shared[:2]))
    hidden, head, temperature = back(_Chunk(rows, found, *cotangents), *softmax)
    return (hidden, None, None, None), (head, temperature, None, None)


def _own_slopes(own: _Chunk, *shared: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The slopes of a device's hidden states, of its part of the head, and of the temperature."""
    softmax = _Softmax(*shared)
    head, temperature = softmax.head, softmax.temperature

    def step(totals: tuple[jax.Array, jax.Array], chunk: _Chunk) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        slope, log_p, of_penalties = _logit_slopes(chunk, softmax)
        temperature_slope = -(slope * log_p).sum()  # each row of slope sums to 0, so log p does for the logits
        slope = slope if of_penalties is None else slope * of_penalties
        slope = slope.astype(chunk.rows.hidden.dtype)
        head_slope = jnp.matmul(slope.T, chunk.rows.hidden, preferred_element_type=totals[0].dtype)
        hidden_slope = sum_over(slope @ head.astype(chunk.rows.hidden.dtype), TENSOR)
        return (totals[0] + head_slope, totals[1] + temperature_slope), hidden_slope

    zeros = (jnp.zeros(head.shape, temperature.dtype), jnp.zeros_like(temperature))
    totals, hidden = jax.lax.scan(step, zeros, _chunked(head.shape[0], own))
    hidden = hidden.reshape(-1, hidden.shape[-1])[: own.rows.targets.shape[0]]
    head_slope = sum_over(totals[0], *ROWS).astype(head.dtype)
    return hidden, head_slope, sum_over(totals[1], *ROWS, TENSOR)


@jax.custom_vjp
def _log_probs(rows: tuple, softmax: tuple) -> tuple:
    return _forward(rows, softmax)[0]


_log_probs.defvjp(_forward, _backward)


def token_log_probs(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    temperature: float | jax.Array = 1.0,
    kept: jax.Array | None = None,
    bias: jax.typing.ArrayLike | None = None,
    penalties: tuple[Penalties, jax.Array] | None = None,
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
    given, history = penalties or (NONE, None)
    numbers = None if history is None else jnp.asarray(given, wide)
    return _log_probs((hidden, targets, kept, history), (head, jnp.asarray(temperature, wide), bias, numbers))


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
