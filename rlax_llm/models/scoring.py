"""The learner's view of completions: log-probabilities and entropies ``[B, T]`` in the layout of ``Completions``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.log_probs import token_collisions, token_log_probs
from rlax_llm.core.logit_bias import LogitBias, bias_vector
from rlax_llm.core.penalties import NONE, Penalties, check_penalties
from rlax_llm.core.seen import histories, penalized, tally
from rlax_llm.core.token_sets import members_of
from rlax_llm.core.types import Completions, Room
from rlax_llm.models.config import Balance, DecoderConfig
from rlax_llm.models.decoder import predictions, row_states, vocabulary_logits
from rlax_llm.models.functional import Params
from rlax_llm.models.routers import Load
from rlax_llm.models.routing import Routes
from rlax_llm.models.shared_prompts import group_states, token_states
from rlax_llm.models.unpadded import Unpadded, lanes_of, most_in_a_lane, put, taken, unpadded

LogProbs = Callable[[Params, Completions], tuple[jax.Array, jax.Array]]
"""Of a mixture whose config has a ``balance`` what is returned ends with a ``Routing``."""


@partial(jax.tree_util.register_dataclass, data_fields=("load",), meta_fields=("balance",))
@dataclass(frozen=True)
class Routing:
    """How routers share the tokens of some rows out.

    Attributes:
        load: sums over the tokens that count, of each layer, ``[L, …]``.
        balance: what a training step makes of it.
    """

    load: Load
    balance: Balance


def balanced(config: DecoderConfig) -> Balance | None:
    """What a training step makes of the routers; None where there are none, or nothing is made.

    Args:
        config: shapes.
    """
    return None if config.experts is None else config.experts.balance


def routed_tokens(rows: Any) -> jax.Array:
    """How often each token counts in a load, ``[B, T]``: once, in rows from which anything is learned.

    Args:
        rows: completions, or a record with their ``valid`` and ``read``.

    >>> rows = Completions(*[jnp.array([[True, True], [True, False]])] * 2, jnp.array([[False, True]] * 2) & jnp.array(
    ...     [[True], [False]]), jnp.zeros((2, 2)), jnp.zeros(2, bool))
    >>> routed_tokens(rows).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return (rows.valid & rows.read.any(-1, keepdims=True)).astype(jnp.float32)


def routes_by(config: DecoderConfig, rows: Any) -> Routes:
    """Where tokens are sent, and how often each counts where the routers are told of.

    Args:
        config: shapes.
        rows: completions, or a record with their ``valid``, ``read`` and ``routed``.
    """
    return Routes(None if balanced(config) is None else routed_tokens(rows), rows.routed)


def routing_of(config: DecoderConfig, load: Load | None) -> tuple[Routing, ...]:
    """What log-probabilities end with: a ``Routing``, or nothing."""
    balance = balanced(config)
    return () if balance is None or load is None else (Routing(load, balance),)


def _scorer(
    config: DecoderConfig,
    temperature: float,
    logit_bias: LogitBias,
    penalties: Penalties,
    score_tokens: Callable[..., tuple[jax.Array, ...]] = token_log_probs,
) -> Callable[..., Any]:
    """Score the last ``S`` columns from ``hidden [B, S, D]``; zeros in the columns before and outside ``read``."""
    bias = bias_vector("log_probs", logit_bias, config.vocab_size)
    check_penalties("log_probs", penalties)

    def score(
        params: Params,
        hidden: jax.Array,
        completions: Completions,
        segments: jax.Array | None = None,
        ways: Unpadded | None = None,
    ) -> tuple[jax.Array, ...]:
        columns = hidden.shape[1] if ways is None else ways.cells.filled.size // len(completions.tokens)
        history = None if penalties == NONE else _history(completions, columns, segments)
        own = completions.tokens[:, -columns:], _last(completions.kept, columns), history
        own = own if ways is None else jax.tree.map(partial(taken, ways=ways), own)
        flat, targets, kept, history = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (hidden, *own))
        seen = None if history is None else (penalties, history)
        predicted = predictions(config, params, flat)
        scores = score_tokens(*predicted[:2], targets, temperature, kept, bias, seen, predicted.cap)
        return _in_columns([x.reshape(hidden.shape[:2]) for x in scores], completions.read, ways)

    return score


def _in_columns(scores: list[jax.Array], read: jax.Array, ways: Unpadded | None) -> tuple[jax.Array, ...]:
    """Numbers of the last columns, or of their tokens, where they are read, ``[B, T]``; zeros elsewhere."""
    found = scores if ways is None else [put(x, ways) for x in scores]
    before = ((0, 0), (read.shape[1] - found[0].shape[1], 0))
    return tuple(jnp.where(read, jnp.pad(x, before), 0.0) for x in found)


def _history(completions: Completions, columns: int, segments: jax.Array | None = None) -> jax.Array:
    return histories((completions.tokens, completions.valid, completions.mask), columns, segments)


def _last(kept: jax.Array | None, columns: int) -> jax.Array | None:
    return None if kept is None else kept[:, -columns:]


def row_log_probs(
    config: DecoderConfig,
    remat: bool = False,
    temperature: float = 1.0,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> LogProbs:
    """``(params, completions) → (log_probs, entropy)`` for rows that share nothing.

    They are those of the distribution that was sampled from: ``completions.kept``, with the sampler's temperature,
    bias and penalties, and through the experts of ``completions.routed``.

    Args:
        config: shapes.
        remat: recompute each layer in the backward pass.
        temperature: the sampler's.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Returns:
        A function to arrays ``[B, T]`` in nats, 0 where ``completions.read`` is False.

    Raises:
        ValueError: for a bias of a token beyond the vocabulary, and a penalty that is none.
    """
    score = _scorer(config, temperature, logit_bias, penalties)

    def log_probs(params: Params, completions: Completions) -> tuple[jax.Array, jax.Array]:
        routes = routes_by(config, completions)
        rows, dropped = (completions.tokens, completions.valid), completions.dropout
        hidden, load = row_states(config, params, *rows, remat, routes=routes, dropped=dropped)
        return score(params, hidden[:, :-1], completions) + routing_of(config, load)

    return log_probs


class ByTokens(NamedTuple):
    """Log-probabilities of groups, of which a loop computes the tokens of a part without their padding.

    Attributes:
        score: of ``group_log_probs``.
        prompt_width: columns that hold prompts.
        shares: of the completions' columns, which a part is computed in.
    """

    score: LogProbs
    prompt_width: int
    shares: tuple[float, ...]

    def __call__(self, params: Params, completions: Completions) -> tuple[jax.Array, jax.Array]:
        """What ``score`` gives."""
        return self.score(params, completions)

    def rooms(self, rows: Any) -> list[Room | None]:
        """Places that a part's completions may be computed in, few first; None is all of its columns.

        Args:
            rows: completions, or records that hold some.
        """
        valid = self._valid(rows)
        step = 8 * lanes_of(valid.shape[0])
        sizes = {math.ceil(valid.size * share / step) * step for share in self.shares}
        return [*(Room(size) for size in sorted(sizes) if size < valid.size), None]

    def room_of(self, rows: Any) -> jax.Array:
        """The number among ``rooms`` of the first that holds a part's completions.

        Args:
            rows: as of ``rooms``.
        """
        sizes = [room.tokens for room in self.rooms(rows) if room is not None]
        return jnp.searchsorted(jnp.array(sizes, jnp.int32), most_in_a_lane(self._valid(rows)))

    def _valid(self, rows: Any) -> jax.Array:
        (found,) = [x for x in jax.tree.leaves(rows, is_leaf=_is_completions) if _is_completions(x)]
        return found.valid[:, self.prompt_width :]


def _is_completions(x: Any) -> bool:
    return isinstance(x, Completions)


def in_room(rows: Any, room: Room | None) -> Any:
    """Rows whose completions are computed in so much room.

    Args:
        rows: completions, or records that hold some.
        room: None is all columns.
    """

    def in_it(x: Any) -> Any:
        return x._replace(room=room) if _is_completions(x) else x

    return jax.tree.map(in_it, rows, is_leaf=_is_completions)


SHARES = (1 / 4, 3 / 8, 5 / 8)
"""Few, since each is compiled."""


def by_tokens(
    config: DecoderConfig,
    layout: tuple[int, int],
    shares: tuple[float, ...] = SHARES,
    temperature: float = 1.0,
    remat: bool = False,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> ByTokens:
    """``group_log_probs`` for a loop that computes of completions their tokens alone, and not their padding.

    Each micro-batch is computed in the least share of its completions' columns that holds its tokens, side by side;
    attention reads them as rows. Limiting cases: ``group_log_probs`` without shares; the same numbers with any, up to
    rounding. Each share is compiled, within one program; under ``vmap`` all of them are computed.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``.
        shares: of the columns, each above 0; 1 and more are not read.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Raises:
        ValueError: for a share that is not above 0, adapters with a dropout, a bias of a token beyond the vocabulary,
            and a penalty that is none.

    >>> by_tokens(DecoderConfig(4, 8, 16, 1, 2, 2, 4), (2, 8)).shares
    (0.25, 0.375, 0.625)
    """
    for share in shares:
        if not share > 0:
            raise ValueError(f"by_tokens: shares has {share}, wanted parts of the columns, above 0.")
    if config.lora is not None and config.lora.dropout:
        raise ValueError("by_tokens: adapters drop inputs row by row; give group_log_probs, or a dropout of 0.")
    score = group_log_probs(config, layout, temperature, remat, logit_bias, penalties)
    return ByTokens(score, layout[1], tuple(shares))


def _of_groups(
    config: DecoderConfig, layout: tuple[int, int], remat: bool, score: Callable[..., Any]
) -> Callable[[Params, Completions], Any]:
    """``score`` of groups, each prompt computed once for its completions."""

    def scored(params: Params, completions: Completions) -> Any:
        rows = completions.tokens, completions.valid
        routes, dropped = routes_by(config, completions), completions.dropout
        if completions.room is not None:
            ways = unpadded(completions.valid[:, layout[1] :], completions.room.tokens)
            hidden, load = token_states(config, params, *rows, layout, ways, remat, routes)
            return score(params, hidden, completions, ways=ways) + routing_of(config, load)
        hidden, load = group_states(config, params, *rows, layout, remat, routes, dropped)
        return score(params, hidden[:, :-1], completions) + routing_of(config, load)

    return scored


def group_log_probs(
    config: DecoderConfig,
    layout: tuple[int, int],
    temperature: float = 1.0,
    remat: bool = False,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> LogProbs:
    """``(params, completions) → (log_probs, entropy)`` for groups, each prompt computed once for its G completions.

    Limiting case: ``row_log_probs``, for any ``group_size``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Returns:
        A function to arrays ``[B, T]`` in nats, 0 where ``completions.read`` is False.

    Raises:
        ValueError: for a bias of a token beyond the vocabulary, and a penalty that is none.
    """
    score = _scorer(config, temperature, logit_bias, penalties)
    return _of_groups(config, layout, remat, score)


def group_collisions(
    config: DecoderConfig,
    layout: tuple[int, int],
    temperature: float = 1.0,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> Callable[[Params, Completions], tuple[jax.Array]]:
    """``(params, completions) → (Σ_v p_v²,)``: of each distribution that a token was drawn from, without a gradient.

    It stands where ``group_log_probs`` does, for ``parts.fixed_scores``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        temperature: the sampler's.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Raises:
        ValueError: for a bias of a token beyond the vocabulary, and a penalty that is none.
    """
    score = _scorer(config, temperature, logit_bias, penalties, lambda *read: (token_collisions(*read),))
    return _of_groups(config, layout, False, score)


def group_log_probs_with_collisions(
    config: DecoderConfig,
    layout: tuple[int, int],
    temperature: float = 1.0,
    remat: bool = False,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> Callable[[Params, Completions], tuple[jax.Array, jax.Array, jax.Array]]:
    """``(params, completions) → (log_probs, entropy, log Σ_v p_v²)``: what WPO weighs pairs by, of one pass.

    The third array has no gradient. Limiting cases: the first two are ``group_log_probs``, the third the logarithm of
    ``group_collisions``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Raises:
        ValueError: for a bias of a token beyond the vocabulary, and a penalty that is none.
    """
    score = _scorer(config, temperature, logit_bias, penalties, _with_collisions)
    return _of_groups(config, layout, remat, score)


def _with_collisions(hidden: jax.Array, head: jax.Array, *read: Any) -> tuple[jax.Array, ...]:
    fixed = jax.lax.stop_gradient((hidden, head))
    return *token_log_probs(hidden, head, *read), jnp.log(token_collisions(*fixed, *read))


def group_logits(
    config: DecoderConfig,
    layout: tuple[int, int],
    temperature: float = 1.0,
    remat: bool = False,
    logit_bias: LogitBias = (),
    penalties: Penalties = NONE,
) -> Callable[[Params, Completions], jax.Array]:
    """``(params, completions) → [B, S, V]``: tempered logits after each of the last ``S = T − prompt_width`` tokens.

    They are held whole, as a Fisher matrix over them needs; ``group_log_probs`` never does. −inf where the sampler kept
    no token. Limiting case: their log-softmax at the tokens is ``group_log_probs``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.
        logit_bias: the sampler's, pairs of a token id and nats.
        penalties: the sampler's.

    Raises:
        ValueError: for a bias of a token beyond the vocabulary, and a penalty that is none.
    """
    bias = bias_vector("group_logits", logit_bias, config.vocab_size)
    check_penalties("group_logits", penalties)

    def logits(params: Params, completions: Completions) -> jax.Array:
        rows, routes = (completions.tokens, completions.valid), routes_by(config, completions)
        hidden = group_states(config, params, *rows, layout, remat, routes)[0][:, :-1]
        plain = vocabulary_logits(config, params, hidden)
        biased = plain if bias is None else plain + bias
        tempered = (biased if penalties == NONE else _penalized(biased, penalties, completions)) / temperature
        kept = _last(completions.kept, hidden.shape[1])
        return tempered if kept is None else jnp.where(members_of(kept, config.vocab_size), tempered, -jnp.inf)

    return logits


def _penalized(logits: jax.Array, penalties: Penalties, completions: Completions) -> jax.Array:
    """The logits ``[B, S, V]`` of the last columns with penalties, one column after another."""
    history = _history(completions, logits.shape[1])
    vocabulary = logits.shape[-1]

    def column(of: tuple[jax.Array, jax.Array]) -> jax.Array:
        return penalized(of[0], penalties, tally(of[1], vocabulary))

    return jax.lax.map(column, (logits.swapaxes(0, 1), history.swapaxes(0, 1))).swapaxes(0, 1)
