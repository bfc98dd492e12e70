"""What a student and a teacher make of the same completions, without all logits of either.

The teacher may be of another family; of its vocabulary those tokens count that both heads have. What it reads of a row
is what stands there, or ``Reading``: the same completion behind another prompt. Or it was asked before, and the rows
hold its ``TopTokens``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.buckets import TopTokens, top_token_divergences, top_tokens
from rlax_llm.core.divergences import Divergence, Predictions, comparison
from rlax_llm.core.heads import first_tokens
from rlax_llm.core.log_probs import token_log_probs
from rlax_llm.core.logit_bias import LogitBias, bias_vector
from rlax_llm.core.penalties import NONE, Penalties
from rlax_llm.core.seen import histories
from rlax_llm.core.token_sets import words
from rlax_llm.core.types import Completions
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import predictions, row_states
from rlax_llm.models.functional import Params
from rlax_llm.models.routers import Load
from rlax_llm.models.routing import BY_ROUTER, Routes
from rlax_llm.models.scoring import group_log_probs, routes_by, routing_of
from rlax_llm.models.shared_prompts import group_hidden_states, group_states


class Reading(NamedTuple):
    """What a teacher reads of rows: other prompts, padded on the left, and the same completions.

    Attributes:
        tokens: ``[B, T']`` int32; the last columns are those of the rows' completions.
        valid: ``[B, T']`` bool.
        hinted: ``[B]`` bool, the rows of which the teacher knows more than the student; the others it teaches nothing.
            None where it teaches all.
    """

    tokens: jax.Array
    valid: jax.Array
    hinted: jax.Array | None = None


class Sampled(NamedTuple):
    """The distribution that completions were drawn from, beside a model.

    Attributes:
        temperature: > 0.
        logit_bias: pairs of a token id and nats.
        penalties: of tokens that were there before.
    """

    temperature: float = 1.0
    logit_bias: LogitBias = ()
    penalties: Penalties = NONE


PLAIN = Sampled()
Distilled = Callable[[Params, Params, Completions], tuple[Any, ...]]
TeacherLogProbs = Callable[[Params, Completions], tuple[jax.Array, jax.Array]]


def _last(x: Any, columns: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, -columns:], x)


def _read_by_teacher(completions: Completions, columns: int) -> Completions:
    """The rows as the teacher reads them."""
    reading = completions.teacher
    if not isinstance(reading, Reading):
        return completions
    before = reading.tokens.shape[1] - columns
    wide = [(0, 0), (before, 0)]
    mask, log_probs = (jnp.pad(_last(x, columns), wide) for x in (completions.mask, completions.log_probs))
    return completions._replace(
        tokens=reading.tokens,
        valid=reading.valid,
        mask=mask,
        log_probs=log_probs,
        kept=None if completions.kept is None else jnp.pad(_last(completions.kept, columns), [*wide, (0, 0)]),
        given=None if completions.given is None else jnp.pad(_last(completions.given, columns), wide),
        teacher=None,
    )


def teacher_log_probs(
    config: DecoderConfig, layout: tuple[int, int], sampled: Sampled = PLAIN, remat: bool = False
) -> TeacherLogProbs:
    """``(teacher's params, completions) → (log_probs, entropy)`` in the layout of the rows.

    Of rows without a hint they are the log-probabilities that the tokens were drawn with, so that a log-ratio is 0.
    Limiting case: ``group_log_probs`` where the teacher reads what stands there.

    Args:
        config: the teacher's shapes.
        layout: ``(group_size, prompt_width)`` of the rows.
        sampled: what they were drawn from.
        remat: recompute each layer in the backward pass, for a loop that differentiates all that it is given.

    Raises:
        ValueError: at trace time, for rows that hold stored ``TopTokens``, which are not all tokens.
    """
    width = layout[1]

    def log_probs(params: Params, completions: Completions) -> tuple[jax.Array, jax.Array]:
        if isinstance(completions.teacher, TopTokens):
            raise ValueError(
                "distillation: an advantage reads the teacher's log-probability of every token, got its likeliest "
                "tokens alone; give a teacher that can be asked, or take gkd, forward_kl or reverse_kl."
            )
        columns = completions.tokens.shape[1] - width
        read = _read_by_teacher(completions, columns)
        own = _group_size(completions, layout), read.tokens.shape[1] - columns
        score = group_log_probs(config, own, sampled.temperature, remat, sampled.logit_bias, sampled.penalties)
        found = score(params, read)
        chosen, entropy = (jnp.pad(_last(x, columns), ((0, 0), (width, 0))) for x in found[:2])
        return _where_hinted(completions, chosen, completions.log_probs), entropy

    return log_probs


def _where_hinted(completions: Completions, found: jax.Array, other: jax.Array | float) -> jax.Array:
    """What a teacher says of rows, and what stands for it where it knows no more than the student."""
    reading = completions.teacher
    if not isinstance(reading, Reading) or reading.hinted is None:
        return found
    return jnp.where(reading.hinted[:, None], found, other)


def _group_size(completions: Completions, layout: tuple[int, int]) -> int:
    """The rows that share what the teacher reads before them: of a ``Reading`` each has its own."""
    return 1 if isinstance(completions.teacher, Reading) else layout[0]


class _Ends(NamedTuple):
    """Of the last columns of rows, flat: where predictions are compared."""

    targets: jax.Array
    kept: jax.Array | None
    history: jax.Array | None


def distilled_log_probs(
    configs: tuple[DecoderConfig, DecoderConfig],
    layout: tuple[int, int],
    divergence: Divergence,
    sampled: Sampled = PLAIN,
    top_k: int = 0,
    remat: bool = False,
) -> Distilled:
    """``(params, teacher's params, completions) → (log_probs, entropy, divergence)``, all ``[B, T]``, nats.

    The third is what a term of the loss reads (``policy.distillation.from_teacher``). Limiting case: the first two are
    ``group_log_probs`` of the student.

    Args:
        configs: the student's shapes and the teacher's.
        layout: ``(group_size, prompt_width)`` of the rows.
        divergence: ``(log p, log q) → term``.
        sampled: what the rows were drawn from; both models are taken at it.
        top_k: compare the teacher's K likeliest tokens and one bucket for the rest, whatever a sampler kept; 0 compares
            all. Rows that hold ``TopTokens`` are compared on those.
        remat: recompute each layer in the backward pass.
    """
    student, teacher = configs
    size = min(config.vocab_size for config in configs)
    bias = bias_vector("log_probs", sampled.logit_bias, student.vocab_size)
    bias = None if bias is None else bias[:size]

    def predicted(
        config: DecoderConfig,
        params: Params,
        rows: Completions,
        shared: tuple[int, int],
        routes: Routes = BY_ROUTER,
    ) -> tuple[Predictions, Load | None]:
        group_size, columns = shared
        own = group_size, rows.tokens.shape[1] - columns
        hidden, load = group_states(config, params, rows.tokens, rows.valid, own, remat, routes, rows.dropout)
        found = predictions(config, params, hidden[:, :-1])
        return found._replace(head=first_tokens(found.head, size), temperature=sampled.temperature), load

    def found(params: Params, teacher_params: Params, rows: Completions, columns: int) -> tuple[tuple, Load | None]:
        own, load = predicted(student, params, rows, (layout[0], columns), routes_by(student, rows))
        return compared_with(own, teacher_params, rows, columns), load

    def compared_with(own: Predictions, teacher_params: Params, rows: Completions, columns: int) -> tuple:
        end = _ends(rows, columns, size, sampled)
        more = end.kept, bias, None if end.history is None else (sampled.penalties, end.history)
        if isinstance(rows.teacher, TopTokens):
            asked = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), _last(rows.teacher, columns))
            return _over_top(own, asked, end.targets, divergence, more)
        read = _read_by_teacher(rows, columns)
        shared = _group_size(rows, layout), columns
        read = read._replace(dropout=None)
        other, _ = predicted(teacher, jax.lax.stop_gradient(teacher_params), read, shared)
        if top_k:
            return _over_top(own, top_tokens(other, top_k), end.targets, divergence, more)
        compared = comparison(own, other, end.targets, divergence, *more)
        return compared.log_probs, compared.entropy, compared.divergence

    def log_probs(params: Params, teacher_params: Params, completions: Completions) -> tuple[Any, ...]:
        columns = completions.tokens.shape[1] - layout[1]
        read, before = completions.read[:, -columns:], ((0, 0), (layout[1], 0))
        numbers, load = found(params, teacher_params, completions, columns)
        chosen, entropy, apart = (jnp.pad(jnp.where(read, x.reshape(read.shape), 0.0), before) for x in numbers)
        hinted = _where_hinted(completions, apart, 0.0)
        return chosen, entropy, hinted, *routing_of(student, load)

    return log_probs


def whole_rows(rows: Any) -> None:
    """No segments: each row is one prompt and its completion.

    Args:
        rows: not read.
    """
    del rows


def compared_rows(
    config: DecoderConfig,
    divergence: Divergence,
    remat: bool = False,
    segments: Callable[[Any], jax.Array | None] = whole_rows,
) -> Distilled:
    """``(params, another's params, rows) → (log_probs, entropy, divergence)`` of rows that share nothing, ``[B, T]``.

    The other is of the same shapes, such as the model that training began with; no gradient reaches it. Limiting cases:
    the first two are ``row_log_probs``, or ``packed_log_probs``; the third is 0 for equal parameters.

    Args:
        config: shapes.
        divergence: ``(log p, log q) → term``, q the other's.
        remat: recompute each layer in the backward pass.
        segments: ``rows → [B, T]``, of packed rows their ``segments``.
    """

    def predicted(params: Params, rows: Any) -> tuple[Predictions, Load | None]:
        routes, read = routes_by(config, rows), (rows.tokens, rows.valid)
        hidden, load = row_states(config, params, *read, remat, segments(rows), routes, rows.dropout)
        return predictions(config, params, hidden[:, :-1]), load

    def log_probs(params: Params, other: Params, rows: Any) -> tuple[Any, ...]:
        own, load = predicted(params, rows)
        theirs = predicted(jax.lax.stop_gradient(other), rows._replace(dropout=None, routed=None))[0]
        found = comparison(own, theirs, rows.tokens[:, 1:].reshape(-1), divergence)
        read = rows.read[:, 1:]
        numbers = found.log_probs, found.entropy, found.divergence
        chosen, entropy, apart = (
            jnp.pad(jnp.where(read, x.reshape(read.shape), 0.0), ((0, 0), (1, 0))) for x in numbers
        )
        return chosen, entropy, apart, *routing_of(config, load)

    return log_probs


def _ends(completions: Completions, columns: int, size: int, sampled: Sampled) -> _Ends:
    kept = None if completions.kept is None else completions.kept[..., : words(size)]
    read = completions.tokens, completions.valid, completions.mask
    history = None if sampled.penalties == NONE else histories(read, columns, None)
    found = _Ends(_last(completions.tokens, columns), _last(kept, columns), history)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def _over_top(
    own: Predictions, asked: TopTokens, targets: jax.Array, divergence: Divergence, more: tuple
) -> tuple[jax.Array, ...]:
    """What the student's tokens are, and its divergence over the tokens that the teacher was asked for."""
    kept, bias, penalties = more
    scores = token_log_probs(own.hidden, own.head, targets, own.temperature, kept, bias, penalties, own.cap)
    return *scores, top_token_divergences(own, asked, divergence)


def row_top_tokens(config: DecoderConfig, k: int) -> Callable[[Params, Completions], TopTokens]:
    """``(params, completions) → TopTokens`` of rows that share nothing, ``[B, T, K]`` and ``[B, T, K + 1]``.

    What a teacher says is told at the token that it predicts; of the first column, which nothing predicts, zeros.

    Args:
        config: the teacher's shapes.
        k: from 1 to V.
    """

    def asked(params: Params, completions: Completions) -> TopTokens:
        hidden = group_hidden_states(config, params, completions.tokens, completions.valid, (1, 1), False)
        rows, columns = hidden.shape[:2]
        found = top_tokens(predictions(config, params, hidden), k)
        shaped = jax.tree.map(lambda x: x.reshape(rows, columns, -1), found)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0))), shaped)

    return asked
