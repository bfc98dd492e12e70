"""How far a student's predictions are from a teacher's, token by token, over the whole vocabulary.

A divergence is a sum over the vocabulary of a term of two log-probabilities, ``(log p, log q) → term`` with p the
student's and q the teacher's, elementwise: pass ``forward_kl``, ``reverse_kl``, ``jensen_shannon(β)`` or your own. The
sum is taken chunk by chunk, so that neither model's ``[N, V]`` is ever held; the gradient is that of the plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.heads import Head, head_slopes, no_slopes, slopes_of_all
from rlax_llm.core.log_probs import checked_kept
from rlax_llm.core.mesh import TENSOR, per_device, sum_over
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.vocabulary import Rows, Softmax, chunk_logits, chunked, normalizers, specs

Divergence = Callable[[jax.Array, jax.Array], Any]


def _expected(log_probs: jax.Array, difference: jax.Array) -> jax.Array:
    """``p · difference``, 0 where p is 0, in the gradient too."""
    there = log_probs > -jnp.inf
    return jnp.exp(log_probs) * jnp.where(there, difference, 0.0)


def _apart(log_probs: jax.Array, others: jax.Array) -> jax.Array:
    """Their difference where the first is finite."""
    there = log_probs > -jnp.inf
    return jnp.where(there, log_probs, 0.0) - jnp.where(there, others, 0.0)


@check_arguments
def forward_kl(log_probs: jax.Array, teacher_log_probs: jax.Array) -> jax.Array:
    """Term of KL(q‖p), ``q (log q − log p)``: the student covers all that the teacher may say (arXiv 1503.02531).

    Limiting cases: the sum is 0 where the two agree, and cross-entropy for a teacher that is certain.

    Args:
        log_probs: the student's, any shape, nats.
        teacher_log_probs: same shape, nats.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> print(f"{forward_kl(p, q).sum():.4f}")
    0.1308
    """
    return _expected(teacher_log_probs, _apart(teacher_log_probs, log_probs))


@check_arguments
def reverse_kl(log_probs: jax.Array, teacher_log_probs: jax.Array) -> jax.Array:
    """Term of KL(p‖q), ``p (log p − log q)``: the student says nothing that the teacher would not (arXiv 2306.08543).

    Limiting cases: the sum is 0 where the two agree; ``forward_kl`` with student and teacher exchanged.

    Args:
        log_probs: the student's, any shape, nats.
        teacher_log_probs: same shape, nats.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> print(f"{reverse_kl(p, q).sum():.4f}")
    0.1438
    """
    return _expected(log_probs, _apart(log_probs, teacher_log_probs))


@check_arguments
def jensen_shannon(beta: float | jax.Array = 0.5) -> Divergence:
    """Generalized Jensen-Shannon divergence ``β KL(q‖m) + (1 − β) KL(p‖m)``, ``m = β q + (1 − β) p``.

    That of GKD (arXiv 2306.13649, eq. 1). Limiting cases: it goes to 0 at both ends, and divided by ``β`` (by
    ``1 − β``) to KL(q‖p) at 0 (to KL(p‖q) at 1). At 0 and at 1 themselves it *is* those two, ``forward_kl`` and
    ``reverse_kl``, as in the paper's experiments; a traced β is one between. At ½ it is symmetric, and at most log 2.

    Args:
        beta: weight of the teacher in the mixture, from 0 to 1; between them it may be traced.

    Returns:
        A divergence.

    Raises:
        ValueError: for a β out of its range.

    >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    >>> print(f"{jensen_shannon(0.5)(p, q).sum():.4f}", jensen_shannon(0.0) is forward_kl)
    0.0338 True
    """
    checks.not_negative("jensen_shannon", beta=beta, **{"1 − beta": 1 - beta})
    if isinstance(beta, float | int) and beta in (0, 1):
        return reverse_kl if beta else forward_kl

    return jax.tree_util.Partial(_jensen_shannon, beta=beta)


def _jensen_shannon(log_probs: jax.Array, teacher_log_probs: jax.Array, beta: jax.Array) -> jax.Array:
    mixed = jnp.logaddexp(log_probs + jnp.log1p(-beta), teacher_log_probs + jnp.log(beta))
    return beta * forward_kl(mixed, teacher_log_probs) + (1 - beta) * reverse_kl(log_probs, mixed)


_Terms = Callable[[jax.Array, jax.Array, jax.Array], "Compared"]
_Made = Callable[[list[jax.Array]], Divergence]


class Predictions(NamedTuple):
    """What a model's next tokens are drawn from, ``softmax(hidden · headᵀ / temperature)``, before it is computed.

    Attributes:
        hidden: ``[N, D]``.
        head: ``[V, D]``; a wider one is rounded to the dtype of ``hidden``, its gradient is not.
        temperature: > 0, dimensionless; not differentiated.
        cap: of the head's logits, which become ``cap · tanh(logit / cap)`` before all else; None leaves them.
    """

    hidden: jax.Array
    head: Head
    temperature: float | jax.Array = 1.0
    cap: float | None = None


class Compared(NamedTuple):
    """Of each row, nats.

    Attributes:
        log_probs: ``[N]``, the student's of the targets.
        entropy: ``[N]``, the student's.
        divergence: ``[N]``, or whatever the divergence gives with arrays ``[N]``.
        teacher_log_probs: ``[N]``, the teacher's of the targets; no gradient.
    """

    log_probs: jax.Array
    entropy: jax.Array
    divergence: Any
    teacher_log_probs: jax.Array


def _terms(divergence: Divergence, log_p: jax.Array, log_q: jax.Array, hit: jax.Array) -> Compared:
    """What is summed over the vocabulary, elementwise; of tokens outside the student's set only a target is seen."""
    inside = log_p > -jnp.inf
    finite = jnp.where(inside, log_p, 0.0)
    found = {"entropy": -jnp.exp(finite) * finite, "divergence": divergence(finite, jnp.where(inside, log_q, 0.0))}
    found = jax.tree.map(lambda term: jnp.where(inside, term, 0.0), found)
    return Compared(jnp.where(hit, log_p, 0.0), teacher_log_probs=jnp.where(hit, log_q, 0.0), **found)


class _Both(NamedTuple):
    """Rows of student and teacher, of one set of tokens."""

    student: Rows
    teacher: Rows


_Softmaxes = tuple[Softmax, ...]


class _Normal(NamedTuple):
    """Normalizers of the logits, ``[N]`` each."""

    student: jax.Array
    teacher: jax.Array


def _chunks(softmax: _Softmaxes, rows: Any) -> Any:
    return chunked(2 * softmax[0].head.shape[0], rows)


def _hit(rows: Rows, softmax: Softmax) -> jax.Array:
    return softmax.vocabulary() == rows.targets[:, None]


def _summed(terms: _Terms, rows: _Both, softmax: _Softmaxes) -> tuple[Compared, _Normal]:
    """What is found of one chunk."""
    logits = [chunk_logits(*each).tempered for each in zip(rows, softmax, strict=True)]
    normal = _Normal(*map(normalizers, logits))
    log_p, log_q = (x - total[:, None] for x, total in zip(logits, normal, strict=True))
    found = terms(log_p, log_q, _hit(rows.student, softmax[0]))
    return jax.tree.map(lambda x: sum_over(x.sum(-1), TENSOR), found), normal


def _slopes(terms: _Terms, chunk: tuple[_Both, _Normal, Compared], softmax: _Softmaxes) -> jax.Array:
    """``∂ / ∂ logit_v = g_v − p_v Σ g`` of one chunk's student, with g the slopes of the terms in log p."""
    rows, normal, bars = chunk
    logits, other = (chunk_logits(*each) for each in zip(rows, softmax, strict=True))
    log_p, log_q = logits.tempered - normal.student[:, None], other.tempered - normal.teacher[:, None]
    hit = _hit(rows.student, softmax[0])
    pull = jax.vjp(lambda log_p: terms(log_p, log_q, hit), log_p)[1]
    (slope,) = pull(jax.tree.map(lambda bar: jnp.broadcast_to(bar[:, None], log_p.shape), bars))
    total = sum_over(slope.sum(-1), TENSOR)
    slope = (slope - jnp.exp(log_p) * total[:, None]) / softmax[0].temperature
    return slope if logits.slope is None else slope * logits.slope


def _own_slopes(
    made: _Made, given: tuple[_Both, _Normal, Compared], arrays: list[jax.Array], *softmax: Softmax
) -> tuple[jax.Array, Any]:
    """The slopes of a device's hidden states and of its part of the head, the student's."""
    head, terms = softmax[0].head, partial(_terms, made(arrays))

    def step(total: Any, chunk: tuple[_Both, _Normal, Compared]) -> tuple[Any, jax.Array]:
        hidden = chunk[0].student.hidden
        slope = _slopes(terms, chunk, softmax).astype(hidden.dtype)
        hidden_slope, total = head_slopes(slope, hidden, head, total)
        return total, sum_over(hidden_slope, TENSOR)

    start = no_slopes(head, softmax[0].temperature.dtype)
    total, hidden = jax.lax.scan(step, start, _chunks(softmax, given))
    count = given[0].student.targets.shape[0]
    return hidden.reshape(-1, hidden.shape[-1])[:count], slopes_of_all(head, total)


def _places(rows: _Both, softmax: _Softmaxes) -> tuple[PartitionSpec, tuple[Softmax, ...]]:
    """Where rows lie, and the parts of both softmaxes."""
    count = rows.student.targets.shape[0]
    return specs(count, softmax[0])[0], tuple(Softmax(*specs(count, each)[1]) for each in softmax)


def _forward(made: _Made, arrays: list[jax.Array], rows: _Both, softmax: _Softmaxes) -> tuple[Compared, tuple]:
    def own(rows: _Both, arrays: list[jax.Array], *softmax: Softmax) -> tuple[Compared, _Normal]:
        count = rows.student.targets.shape[0]
        terms = partial(_terms, made(arrays))
        found = jax.lax.map(lambda chunk: _summed(terms, chunk, softmax), _chunks(softmax, rows))
        return jax.tree.map(lambda x: x.reshape(-1)[:count], found)

    row, shared = _places(rows, softmax)
    found, normal = per_device(own, (row, PartitionSpec(), *shared), row)(rows, arrays, *softmax)
    return found, (rows, softmax, arrays, normal)


def _backward(made: _Made, residuals: tuple, bars: Compared) -> tuple:
    rows, softmax, arrays, normal = residuals
    row, shared = _places(rows, softmax)
    back = per_device(partial(_own_slopes, made), (row, PartitionSpec(), *shared), (row, shared[0].head))
    hidden, head = back((rows, normal, bars), arrays, *softmax)
    nothing = cast(Any, None)
    other = Rows(nothing, nothing, None), Softmax(nothing, nothing, None)
    return None, _Both(Rows(hidden, nothing, None), other[0]), (Softmax(head, nothing, None), other[1])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compared(made: _Made, arrays: list[jax.Array], rows: _Both, softmax: _Softmaxes) -> Compared:
    return _forward(made, arrays, rows, softmax)[0]


_compared.defvjp(_forward, _backward)


@check_arguments
def comparison(
    student: Predictions,
    teacher: Predictions,
    targets: jax.Array,
    divergence: Divergence,
    kept: jax.Array | None = None,
    bias: jax.typing.ArrayLike | None = None,
    penalties: tuple[Penalties, jax.Array] | None = None,
) -> Compared:
    """A divergence of two models' next tokens ``[N]``, beside ``log p``, the entropy of p and ``log q`` of targets.

    ``p = softmax(student.hidden · student.headᵀ / student.temperature)``, q the teacher's; where a sampler cut, biased
    or penalized, both are renormalized on its set. All four are sums over the vocabulary and are taken in one pass over
    the student's logits. Limiting cases: without a divergence they are ``token_log_probs``; for a teacher equal to the
    student a divergence and its gradient are 0.

    Args:
        student: what is differentiated.
        teacher: of one vocabulary with the student; D may differ. No gradient.
        targets: ``[N]`` int32.
        divergence: ``(log p, log q) → term``, elementwise; or to any pytree of terms. What it binds by
            ``jax.tree_util.Partial`` may be traced, and is not differentiated.
        kept: as ``token_log_probs`` takes it.
        bias: likewise.
        penalties: likewise.

    Returns:
        In nats, in at least float32. Gradients reach the student's ``hidden`` and ``head``.

    Raises:
        ValueError: at trace time, for vocabularies or numbers of rows that differ, or another form of ``kept``.

    >>> student = Predictions(jnp.zeros((1, 2)), jnp.ones((4, 2)))
    >>> teacher = Predictions(jnp.ones((1, 1)), jnp.log(jnp.array([[1.0], [1.0], [1.0], [5.0]])))
    >>> found = comparison(student, teacher, jnp.array([3]), reverse_kl)
    >>> print(f"{found.divergence[0]:.4f} {found.log_probs[0]:.4f} {found.teacher_log_probs[0]:.4f}")
    0.2908 -1.3863 -0.4700
    """
    _check_alike("comparison", student, teacher, targets)
    if kept is not None:
        kept = checked_kept("comparison", kept, student.hidden.shape[0], student.head.shape[0])
    numbers, history = (None, None) if penalties is None else penalties
    both = [softmax_of(each, bias, numbers) for each in (student, teacher)]
    rows = _Both(*(Rows(each.hidden, targets, kept, history) for each in (student, teacher)))
    return _compared(*_parted(divergence), rows, (both[0], both[1]))


def _parted(divergence: Divergence) -> tuple[_Made, list[jax.Array]]:
    """What makes the divergence of its arrays, and the arrays: those that a ``jax.tree_util.Partial`` binds."""
    if not isinstance(divergence, jax.tree_util.Partial):
        return lambda arrays: divergence, []
    arrays, shape = jax.tree.flatten(divergence)
    return shape.unflatten, [jax.lax.stop_gradient(jnp.asarray(x)) for x in arrays]


def softmax_of(
    predictions: Predictions, bias: jax.typing.ArrayLike | None = None, penalties: Penalties | None = None
) -> Softmax:
    """The head of predictions with what a sampler adds to its logits.

    Args:
        predictions: of a model.
        bias: ``[V]`` or None.
        penalties: that come between bias and temperature, or None.
    """
    wide = jnp.promote_types(predictions.hidden.dtype, jnp.float32)
    temperature = jax.lax.stop_gradient(jnp.asarray(predictions.temperature, wide))
    added = None if bias is None else jax.lax.stop_gradient(jnp.asarray(bias, wide))
    numbers = (None if given is None else jnp.asarray(given, wide) for given in (penalties, predictions.cap))
    return Softmax(predictions.head, temperature, added, *numbers)


def _check_alike(where: str, student: Predictions, teacher: Predictions, targets: jax.Array) -> None:
    rows = [student.hidden.shape[0], teacher.hidden.shape[0], targets.shape[0]]
    if len(set(rows)) > 1:
        raise ValueError(
            f"{where}: student, teacher and targets have {rows[0]}, {rows[1]} and {rows[2]} rows, wanted one number; "
            "give the hidden states of the same tokens."
        )
    sizes = student.head.shape[0], teacher.head.shape[0]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{where}: the heads have {sizes[0]} and {sizes[1]} tokens, wanted one vocabulary; cut what is padding."
        )


@check_arguments
def token_divergences(student: Predictions, teacher: Predictions, divergence: Divergence) -> Any:
    """``Σ_v divergence(log p[n, v], log q[n, v])`` for each row: ``comparison`` without targets.

    Args:
        student: what is differentiated.
        teacher: of one vocabulary with the student. No gradient.
        divergence: ``(log p, log q) → term``, elementwise; or to any pytree of terms.

    Returns:
        ``[N]`` nats, in at least float32, or the pytree of such.

    Raises:
        ValueError: at trace time, for vocabularies or numbers of rows that differ.

    >>> student, teacher = (Predictions(jnp.ones((1, 1)), jnp.log(jnp.array([[x], [1.0]]))) for x in (1.0, 3.0))
    >>> print(f"{token_divergences(student, teacher, forward_kl)[0]:.4f}")
    0.1308
    """
    targets = jnp.zeros(student.hidden.shape[:1], jnp.int32)
    return comparison(student, teacher, targets, divergence).divergence


def plain_token_divergences(student: Predictions, teacher: Predictions, divergence: Divergence) -> Any:
    """The same numbers through two arrays ``[N, V]``: the oracle of tests and benchmarks.

    Args:
        student: what is differentiated.
        teacher: of one vocabulary with the student.
        divergence: ``(log p, log q) → term``.
    """
    logits = [x.hidden @ cast(jax.Array, x.head).T / x.temperature for x in (student, teacher)]
    log_p, log_q = map(jax.nn.log_softmax, logits)
    return jax.tree.map(lambda x: x.sum(-1), divergence(log_p, jax.lax.stop_gradient(log_q)))
