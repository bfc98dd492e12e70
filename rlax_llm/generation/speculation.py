"""Several tokens of a row by one forward pass: the next ones are guessed from the row's own text, and then drawn.

The guess is what followed the last tokens where they stood before, in the prompt or the completion (prompt lookup, the
n-gram case of arXiv 2302.01318). One forward pass reads the last token and the guessed ones. Then tokens are drawn one
after the other, each from the model's distribution by the row's own key and number of tokens, as without a guess; the
first that differs from its guess is the last of the round, as what was computed behind it read the wrong token. So the
guess decides on how many tokens a pass draws, and not on which: the tokens are those of ``engine.decode``, but for sums
of floats in another order.

A pass over several tokens of few rows costs little more than one over one of each, where reading the weights is what
it takes. How many tokens it would draw is foretold from the tokens that are there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import AXES, devices_along, fetch
from rlax_llm.generation.cache import KEYS, VALUES, Cache, by_layer, columns_of, written
from rlax_llm.generation.draws import sampled
from rlax_llm.generation.engine import attend_behind
from rlax_llm.generation.enough import Enough, too_few
from rlax_llm.generation.prompts import Prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.state import Decoding, Prefilled, most_going, record, room_in
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import Attend, Kind, block, embedding, layers_in_turn, norm, vocabulary_logits
from rlax_llm.models.functional import Params
from rlax_llm.models.narrow import Matrix
from rlax_llm.models.routing import keeping
from rlax_llm.models.segments import NOWHERE, PLAIN, Reach, Segment, Window, reach_of, segment, within

ORDER = 4  # tokens, at most, that the place where a guess is read from has in common with the end of the text
RECENT = 32  # tokens that a round's length is foretold from, and drawn between two forecasts
READING = 8  # tokens whose products with the weights take as long as reading the weights
MARGIN = 1.25  # times the cost of a pass, what it must be expected to draw
HOPED = 0.8  # of the most that a pass may draw, what may be expected of it
MEMORY = 3 / 4  # of the tokens of a pass before, in the mean that tells when they are too few


class Text(NamedTuple):
    """The tokens of rows: of the prompt, padded on the left, and behind them those that were drawn.

    Attributes:
        tokens: ``[B, W + limit]`` int32.
        begins: ``[B]`` int32, the column of the first.
        ends: ``[B]`` int32, the column behind the last.
    """

    tokens: jax.Array
    begins: jax.Array
    ends: jax.Array


def text_of(prompts: Prompts, state: Decoding, group_size: int) -> Text:
    """The text of a state's rows.

    Args:
        prompts: ``tokens [P, W]`` and ``valid [P, W]`` of the generation.
        state: of ``decode``.
        group_size: completions of a prompt.
    """
    tokens, valid = (x[jnp.maximum(state.rows, 0) // group_size] for x in prompts)
    width = tokens.shape[1]
    begins = width - valid.sum(-1, dtype=jnp.int32)
    return Text(jnp.concatenate([tokens, state.tokens], 1), begins, width + state.lengths)


def guesses(tokens: jax.Array, begin: jax.Array, end: jax.Array, drafts: int) -> jax.Array:
    """What may come behind a text: what followed its last tokens where most of them stood before, the latest time.

    Where it reaches the end it goes on from its own beginning, as a text that repeats itself does. Limiting case: of a
    text whose last token is new, its last token.

    Args:
        tokens: ``[T]`` int32.
        begin: scalar int32, the column of the first.
        end: scalar int32, the column behind the last.
        drafts: static.

    Returns:
        ``[drafts]`` int32.

    >>> guesses(jnp.array([9, 1, 2, 3, 4, 1, 2, 0]), jnp.int32(0), jnp.int32(7), 3).tolist()
    [3, 4, 1]
    >>> guesses(jnp.array([5, 1, 2, 1, 2, 0, 0, 0]), jnp.int32(0), jnp.int32(5), 3).tolist()
    [1, 2, 1]
    """
    column = jnp.arange(tokens.shape[0])
    alike = jnp.ones(tokens.shape[0], bool)
    common = jnp.zeros(tokens.shape[0], jnp.int32)
    for back in range(ORDER):  # the columns at which the text up to there ends as the whole text does
        there = jnp.roll(tokens, back) == tokens[end - 1 - back]
        alike &= there & (column - back >= begin)
        common += alike
    found = jnp.where(column < end - 1, common * tokens.shape[0] + column, -1).argmax()
    found = jnp.where((common[found] > 0) & (found < end - 1), found, end - 2)
    period = end - 1 - found
    return tokens[found + 1 + jnp.arange(drafts) % period]


class _Round(NamedTuple):
    """Rows in the middle of drawing: ``open`` ``[B]`` bool, all of whose draws of this round were guessed."""

    state: Decoding
    open: jax.Array
    at: jax.Array


def _drawn(request: Request, state: Decoding, logits: jax.Array, drafts: jax.Array) -> Decoding:
    """Draw from ``logits [B, S, V]`` one after the other, until a draw is not the one of ``drafts [B, S - 1]``."""
    # Behind the last logits there is none; nothing follows it.
    expected = jnp.pad(drafts, ((0, 0), (0, 1)), constant_values=-1)

    def some(now: _Round) -> jax.Array:
        return (now.at < logits.shape[1]) & now.open.any()

    def one(now: _Round) -> _Round:
        state = now.state
        own = jax.lax.dynamic_index_in_dim(logits, now.at, 1, keepdims=False)
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.lengths)
        draw = sampled(request, state.lengths, state.memory, keys, own)
        guess = jax.lax.dynamic_index_in_dim(expected, now.at, 1, keepdims=False)
        state = record(state, draw, request, now.open)
        return _Round(state, now.open & (draw.tokens == guess) & state.going, now.at + 1)

    return jax.lax.while_loop(some, one, _Round(state, state.going, jnp.int32(0))).state


class _Read(NamedTuple):
    """What a pass reads.

    Attributes:
        tokens: ``[B, S]`` int32, the last drawn one of each row and those guessed behind it.
        reach: of them, ``[P, G, S]``.
        own: places of the completions' keys ``[P, G, room]``.
        at: ``[P, G]`` int32, the first column that is written.
    """

    tokens: jax.Array
    reach: Reach
    own: jax.Array
    at: jax.Array


def _read(prompt: Prefilled, state: Decoding, drafts: jax.Array) -> _Read:
    """What a pass over ``drafts [B, S - 1]`` reads, where a row's token number c has column c."""
    groups, room = state.cache[0][0].shape[:2], state.cache[0][0].shape[-1]
    last = jnp.maximum(state.lengths - 1, 0)
    tokens = jnp.concatenate([jnp.take_along_axis(state.tokens, last[:, None], 1), drafts], 1)
    at, before = last.reshape(groups), prompt.lengths[:, None, None]
    numbers, columns = at[..., None] + jnp.arange(tokens.shape[1]), jnp.arange(room)
    own = jnp.where(columns <= numbers[..., -1:], before + columns, NOWHERE)
    return _Read(tokens, reach_of(before + numbers), own, at)


def _forward(
    config: DecoderConfig, params: Params, prompt: Prefilled, state: Decoding, read: _Read
) -> tuple[jax.Array, Cache, list[Any]]:
    """Hidden states ``[B, S, D]`` after the tokens, the cache with their keys and values, and where each layer sent
    them.
    """
    apply = block(config)[1]
    send = None if state.routed is None else keeping(config)
    positions = read.reach.places.reshape(read.tokens.shape)

    def step(x: jax.Array, layer: Params, kind: Kind, beside: tuple) -> tuple[jax.Array, tuple[Any, Any]]:
        held, own = beside
        x, grown, routes = apply(layer, x, positions, _attend(config, held, own, read), kind, send)
        return x, (grown, routes)

    held = [prompt.segments(layer, config.window_of(layer)) for layer in range(config.num_layers)]
    beside = list(zip(held, state.cache, strict=True))
    x, found = layers_in_turn(config, params, step, embedding(config, params, read.tokens), beside)
    caches, sent = zip(*found, strict=True)
    return norm(config, params["norm"], x), caches, list(sent)


def _attend(config: DecoderConfig, held: list[Segment], cache: tuple[Matrix, Matrix], read: _Read) -> Attend:
    """Tokens of each row to its prompt's keys and to its own, among which it writes theirs from column ``at`` on."""

    def by_group(x: jax.Array) -> jax.Array:
        return x.reshape(*read.at.shape, *x.shape[1:])

    def grown(held: Matrix, new: jax.Array, axes: tuple[int, int]) -> Matrix:
        return jax.vmap(jax.vmap(partial(written, config, axes=axes)))(held, new, read.at)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, tuple[Matrix, Matrix]]:
        new = jax.vmap(segment)(by_group(k), by_group(v), read.own)
        keys, values = grown(cache[0], new.keys, KEYS), grown(cache[1], new.values, VALUES)
        # All scores at once, which are few.
        length = sum(part.keys.shape[-1] for part in held) + keys.shape[-1]
        form = PLAIN._replace(key_block=length, soft_cap=config.attention_cap)
        queries = by_group(q)
        reach = within(read.reach, window)
        mixed = attend_behind(held, queries, reach, Segment(keys, values, read.own), form, sinks)
        return mixed.reshape(*q.shape[:2], -1), (keys, values)

    return attend


def by_number(state: Decoding, room: int) -> Cache:
    """A cache whose columns are numbers of the rows' tokens, of one in which all rows write into one column.

    A layer with a window has as many as the others: behind a guess that did not come true others are written over it,
    and in a ring they would be written over what is still read. What the ring held no more, no query reads.
    """

    def source(held: int) -> jax.Array:
        return (state.step - state.lengths[:, None] + jnp.arange(room)) % held

    return _taken(state, source, columns_of(state.cache))


def _by_step(state: Decoding, columns: tuple[int, ...]) -> Cache:
    """``by_number`` undone, as if the tokens of each row had been the last ones before ``step``."""

    def source(room: int) -> jax.Array:
        ago = (state.step - 2 - jnp.arange(room)) % room + 1  # the last token, of 0 steps ago, has no keys yet
        return jnp.maximum(state.lengths[:, None] - 1 - ago, 0)  # nobody reads what is older than the row

    return _taken(state, source, columns)


def _taken(state: Decoding, source: Callable[[int], jax.Array], numbers: tuple[int, ...]) -> Cache:
    """The cache with columns ``source(number of the layer) [B, room]`` of each row."""

    @functools.cache  # layers of one size have one
    def sources(number: int) -> jax.Array:
        return source(number).reshape(*state.cache[0][0].shape[:2], -1)

    def taken(number: int, x: jax.Array, axis: int) -> jax.Array:
        return jax.vmap(jax.vmap(lambda own, at: jnp.take(own, at, axis)))(x, sources(number))

    return by_layer(taken, state.cache, numbers)


class _Paced(NamedTuple):
    """A state, the tokens that its rows draw in a step (a mean of the last ones), and those so far that a guess that
    came true let a pass draw.
    """

    state: Decoding
    pace: jax.Array
    guessed: jax.Array


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=3)
def speculate(
    config: DecoderConfig,
    params: Params,
    prompt: Prefilled,
    state: Decoding,
    prompts: Prompts,
    request: Request,
    ends: tuple[jax.Array, jax.Array, jax.Array],
    enough: Enough | None = None,
) -> tuple[Decoding, jax.Array]:
    """``engine.decode`` that draws up to ``drafts + 1`` tokens of a row in one step. ``state`` is donated.

    Args:
        config: shapes.
        params: of ``unstack``.
        prompt: of ``prefill``.
        state: of ``prefill``, ``decode`` or ``speculate``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]`` of the generation, padded on the left.
        request: static; it has a ``speculation``.
        ends: scalars: a step; of rows that go on, by ``most_going``, how many are too few; of tokens of a row and step,
            in a mean that forgets, how many are. The loop ends too where a row that goes on has room + 1 tokens.
        enough: it ends too with the step that makes enough groups whole; None goes on.

    Returns:
        The state, further on; a step counts once, whatever it drew. And a scalar int32, the tokens that were drawn
        without a pass of their own, behind guesses that came true.
    """
    assert request.speculation is not None
    drafts, room, columns = request.speculation.drafts, room_in(config, request, state), columns_of(state.cache)
    # No row draws what the cache has no room for: its last token's keys are written when the next one is drawn.
    limits = state.limits
    state = state._replace(limits=jnp.minimum(limits, room + 1))

    def body(now: _Paced) -> _Paced:
        state = now.state
        text = text_of(prompts, state, request.group_size)
        guessed = jax.vmap(partial(guesses, drafts=drafts))(*text)
        hidden, cache, sent = _forward(config, params, prompt, state, _read(prompt, state, guessed))
        further = _drawn(request, state._replace(cache=cache), vocabulary_logits(config, params, hidden), guessed)
        own = further.lengths - state.lengths
        drawn, rows = own.sum(dtype=jnp.int32), state.going.sum(dtype=jnp.int32)
        pace = MEMORY * now.pace + (1 - MEMORY) * jnp.float32(drawn) / rows
        further = further._replace(step=state.step + 1, routed=state.noting(config, sent, own).routed)
        return _Paced(further, pace, now.guessed + drawn - rows)

    def goes_on(now: _Paced) -> jax.Array:
        state = now.state
        full = (state.alive & (state.lengths > room) & (state.lengths < limits)).any()
        wanted = (state.step < ends[0]) & (most_going(state) > ends[1]) & (now.pace > ends[2]) & ~full
        return wanted if enough is None else wanted & too_few(enough, state.going, state.rows)

    start = _Paced(state._replace(cache=by_number(state, room + drafts)), jnp.float32(drafts + 1), jnp.int32(0))
    state, _, guessed = jax.lax.while_loop(goes_on, body, start)
    return state._replace(cache=_by_step(state, columns), limits=limits), guessed


@partial(jax.jit, static_argnums=2)
def foretold(prompts: Prompts, state: Decoding, request: Request) -> jax.Array:
    """Tokens that a step of ``speculate`` is expected to draw of each row: the mean over the last tokens of the rows
    that go on, as if the step had been there. 1 where there are none.

    Args:
        prompts: ``tokens [P, W]`` and ``valid [P, W]`` of the generation.
        state: of its rows.
        request: static; it has a ``speculation``.
    """
    assert request.speculation is not None
    drafts, width = request.speculation.drafts, prompts[0].shape[1]
    text = text_of(prompts, state, request.group_size)

    def right(tokens: jax.Array, begin: jax.Array, end: jax.Array) -> jax.Array:
        """How many of the guesses behind a shorter text came true."""
        ahead = jnp.arange(drafts)
        guessed = guesses(tokens, begin, end, drafts)
        return jnp.cumprod(guessed == tokens[jnp.minimum(end + ahead, tokens.shape[0] - 1)]).sum()

    ends = text.ends[:, None] - drafts - jnp.arange(RECENT)
    count = (ends > width) & state.going[:, None]
    of_row = jax.vmap(jax.vmap(right, (None, None, 0)))(text.tokens, text.begins, ends)
    return 1 + jnp.where(count, of_row, 0).sum() / jnp.maximum(count.sum(), 1)


class Guesser:
    """Decides when a generation speculates.

    Args:
        prompts: ``tokens [P, W]`` and ``valid [P, W]``.
        request: it has a ``speculation``.

    Attributes:
        asks_at: the step at which it looks at the tokens again.
        until: the step that passes should come to; those that end before had drawn too little, or too few rows went on.
    """

    def __init__(self, prompts: Prompts, request: Request):
        assert request.speculation is not None
        self.prompts, self.request, self.speculation = prompts, request, request.speculation
        self.asks_at, self.until = 0, 0

    def may(self, rows: int) -> bool:
        """Whether so many rows may speculate."""
        return self.speculation.always or rows <= most_rows(self.speculation.drafts)

    def least(self, rows: int) -> float:
        """The tokens of a row that a pass must draw to be worth its cost."""
        return 0.0 if self.speculation.always else MARGIN * cost(rows, self.speculation.drafts)

    def passes(self, state: Decoding, step: int, most: int) -> int:
        """How many passes from ``step`` on are expected to draw more than they cost, ``most`` or none.

        After none, and after passes that ended before their time, it rests.
        """
        least, early = self.least(len(state.rows)), step < self.until
        asks = least > 0 and step >= self.asks_at
        if asks and (early or float(fetch(foretold(self.prompts, state, self.request))) <= least):
            self.asks_at = step + RECENT
        taken = 0 if step < self.asks_at else most
        self.until = step + taken
        return taken


def guesser(prompts: Prompts, request: Request, worth: bool) -> Guesser | None:
    """Who decides when a generation speculates; None where it never does: on several devices, or unasked."""
    speculation = request.speculation
    if speculation is None or devices_along(*AXES) > 1 or not (worth or speculation.always):
        return None
    return Guesser(prompts, request)


def cost(rows: int, drafts: int) -> float:
    """What a pass over ``drafts`` guesses of each row costs, in passes without any.

    It is (c + n (k + 1)) / (c + n) for n rows and k drafts, where reading the weights takes as long as the products of
    c tokens with them.

    >>> cost(8, 0), cost(8, 4), cost(1, 4)
    (1.0, 3.0, 1.44...)
    """
    return (READING + rows * (drafts + 1)) / (READING + rows)


def most_rows(drafts: int) -> int:
    """The most rows whose passes may pay, where the share ``HOPED`` of the guesses comes true.

    >>> most_rows(4), most_rows(8)
    (9, 11)
    """
    return max((rows for rows in range(1, 64) if MARGIN * cost(rows, drafts) <= HOPED * (drafts + 1)), default=0)
