"""Completions of many prompts on few rows: those that have ended make room, and those that wait take their places.

A row's draws depend on its key and its own tokens alone, so who runs beside whom changes no completion. What is
compiled is a ladder of sizes (``ladders.py``): a few numbers of rows and of columns, whatever the lengths come to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.mesh import AXES, ROWS, devices_along, fetch
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import columns_of
from rlax_llm.generation.engine import decode, generate_at_once, prefill, prefill_behind, shared_out, unrolled
from rlax_llm.generation.enough import Enough
from rlax_llm.generation.ladders import FEWEST, Ladder, Size, Sizes, entering_prompts, is_work, ladder, weights_of
from rlax_llm.generation.prompts import Prompts, check_prompts
from rlax_llm.generation.reading import Stacked, common_tokens, read_common
from rlax_llm.generation.request import Request, check_request
from rlax_llm.generation.sampling import chosen_keys, row_keys
from rlax_llm.generation.slots import (
    Drawn,
    Ends,
    Progress,
    drawn_of,
    let_in,
    move_and_decode,
    noted,
    opened,
    prefill_and_decode,
    progress,
)
from rlax_llm.generation.speculation import RECENT, Guesser, guesser, speculate
from rlax_llm.generation.state import Decoding, Prefilled, completions_by, room_in
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.padding import bucket

LEAST_READ = 1e9  # weights times tokens that a common beginning saves, below which it is read with each prompt
FEW_PASSES = 4  # of guessed tokens between two looks, where each token would be looked at


class Told(NamedTuple):
    """What a generation tells of its work.

    Attributes:
        read: tokens of prompts and histories that were run before the first draws.
        drawn: tokens that were drawn where guesses were asked for; else 0.
        guessed: of these the ones that took no pass of their own, behind guesses that came true.
    """

    read: int
    drawn: int
    guessed: int


Listener = Callable[[Told], None]


def unheard(told: Told) -> None:
    """Nobody listens."""
    del told


class Generation:
    """A generation on its way.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
        rows: a key, or one for each of the ``P · G`` completions (with slots it must be), and the most tokens of each.
        request: static.
        slots: rows that are drawn at a time, at most, but for one group; None draws all.
        sizes: that its state may have.
    """

    enough: Enough | None = None  # all
    known: int = 0  # tokens that were drawn before

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        prompts: Prompts,
        rows: tuple[jax.Array, Any],
        request: Request,
        slots: int | None = None,
        sizes: Sizes = ladder,
    ):
        self.config, self.params, self.prompts, self.rows, self.request = config, params, prompts, rows, request
        self.sizes = sizes
        self.rooms = self._ladder(1).rooms
        self.count, size = prompts[0].shape[0], request.group_size
        self.order = np.arange(self.count)  # in which prompts begin
        self.begun = 0  # of them
        self.drawn: Drawn | None = None  # while the state holds all completions in their order
        self.guessed: list[jax.Array] = []  # tokens, of each time that some were guessed
        self.common = self._read_common()
        devices = devices_along(*ROWS)
        self.entering = self.count if slots is None else entering_prompts(slots, size, devices)
        opened = 0 if slots is None else max(slots // devices * devices, self.entering * size)
        self.seen = self._start(opened)
        self.ladder = self._ladder(len(self.state.rows))

    def _ladder(self, rows: int) -> Ladder:
        """The sizes of so many rows."""
        return self.sizes(self.config, rows, self.prompts[0].shape[1], self.request.max_new_tokens)

    def _start(self, opened: int) -> Progress:
        """Begin with so many slots, or with all rows; what is known of the progress without a look."""
        if 0 < opened < self.count * self.request.group_size:
            self._open(opened, self.rooms[0])
        else:
            self.entering = self.count
            (self.prompt, self.state), _ = self._prefilled(self.rooms[0])
        rows = len(self.state.rows)
        return Progress(1, rows, 1, (np.ones(rows, bool), np.arange(rows)))

    @property
    def room(self) -> int:
        """Tokens of a row that the cache has room for."""
        return room_in(self.config, self.request, self.state)

    @property
    def waits(self) -> bool:
        """Whether some rows have not entered yet."""
        return self.begun < len(self.order)

    @cached_property
    def guesser(self) -> Guesser | None:
        """Who decides when tokens are guessed; None where they never are."""
        rows = max(self.count * self.request.group_size, FEWEST)
        return guesser(self.prompts, self.request, is_work(self.config, rows, self.request.max_new_tokens))

    @cached_property
    def layers(self) -> Params:
        """The layers apart, which a prefill of all prompts does without."""
        return unrolled(self.config, self.params)

    def _open(self, rows: int, room: int) -> None:
        """So many slots, and the first rows in them."""
        first, numbers = self._next()
        size, count = (rows, self.request.keeps(self.config, room)), self.count * self.request.group_size
        self.prompt, self.state, self.drawn = opened(*first, numbers, self.drawn, size, count)

    def _side_by_side(self, count: int) -> np.ndarray:
        """Which of the next prompts or rows stands at which place."""
        return np.arange(count)

    @property
    def room_to_enter(self) -> int:
        """The rows that must be free for the next to enter."""
        return self.entering * self.request.group_size

    def _next(self) -> tuple[tuple[Prefilled, Decoding], np.ndarray]:
        """The rows that enter next, and their numbers."""
        return self._prefilled(0)

    def _prefilled(self, room: int) -> tuple[tuple[Prefilled, Decoding], np.ndarray]:
        """The next prompts with one draw behind each, and their rows: −1 where none are left and others fill up."""
        size, rows_of_all = self.request.group_size, self.count * self.request.group_size
        asked = self.prompts, self.rows
        places = self.begun + self._side_by_side(self.entering)
        prompts = np.append(self.order, self.count)[np.minimum(places, len(self.order))]
        rows = (prompts[:, None] * size + np.arange(size)).reshape(-1)
        if not np.array_equal(prompts, np.arange(self.count)):
            asked = self._some(prompts % self.count, rows % rows_of_all)
        self.begun += self.entering
        found = self._read(*asked, room)
        return found, np.where(rows < rows_of_all, rows, -1).astype(np.int32)

    def _some(self, prompts: np.ndarray, rows: np.ndarray) -> tuple[Any, tuple[jax.Array, np.ndarray]]:
        """Some of the prompts, and what there is of some rows, taken on the host."""
        tokens, valid = (np.asarray(x)[prompts] for x in self.prompts)
        keys, limits = self.rows
        return (tokens, valid), (chosen_keys(keys, rows), np.asarray(limits)[rows])

    def _read_common(self) -> tuple[Stacked, int] | None:
        """What all prompts begin with where that is worth while, and the columns that hold the rest."""
        tokens, valid = (np.asarray(x) for x in self.prompts)
        count = _read_apart(self.config, (tokens, valid), self.request)
        if not count:
            return None
        first = tokens[0][valid[0]][:count]
        columns = min(bucket(int(valid.sum(1).max()) - count), tokens.shape[1])
        return read_common(self.config, self.params, jnp.asarray(first)), columns

    def _read(self, prompts: Prompts, rows: tuple[jax.Array, Any], room: int) -> tuple[Prefilled, Decoding]:
        if self.common is None:
            return prefill(self.config, self.params, *prompts, rows[0], self.request, room, rows[1])
        common, columns = self.common
        return prefill_behind(self.config, self.params, common, prompts, rows, self.request, (room, columns))

    def advance(self, most: int | None = None) -> bool:
        """Draw until something is to be decided, and at most so many tokens; whether there was something to draw.

        Args:
            most: draws of a row; where tokens are guessed, a few passes more.
        """
        seen = self._let_enter(self.seen)
        if not seen.going:
            return False
        rows, room = self._next_size(seen)
        steps = min(room + 1 - seen.longest, most or room)
        fewest = self._fewest((rows, room))
        if self.guesser is None or self.waits or not self.guesser.may(rows):
            self._draw((rows, room), seen.step + steps, fewest)
        else:
            self._draw((rows, room), seen.step, fewest)
            self._guess(seen.step, steps, fewest)
        self.seen = progress(self.state)
        if self.guesser is not None and self.seen.longest > room:  # it ended for want of room
            self.guesser.until = 0
        return True

    def _draw(self, size: Size, until: int, fewest: int) -> None:
        """Move to a size, where it is another, and draw until a step."""
        rows, columns = size[0], self.request.keeps(self.config, size[1])
        ends = Ends(np.int32(until), np.int32(fewest), self.enough)
        now = self.config, self.layers, self.prompt, self.state
        if (rows, columns) != (len(self.state.rows), columns_of(self.state.cache)):
            if rows < len(self.state.rows):
                self._leave()
            moved = move_and_decode(*now, self.drawn, ends, self.request, (rows, columns))
            self.prompt, self.state, self.drawn = moved
        elif until > self.seen.step:
            self.state = decode(*now, ends.until, self.request, ends.fewest, ends.enough)

    def _guess(self, step: int, steps: int, fewest: int) -> None:
        """So many steps from ``step`` on, at most; each guesses tokens where that is worth it."""
        assert self.guesser is not None
        now = self.config, self.layers, self.prompt, self.state
        if passes := self.guesser.passes(self.state, step, FEW_PASSES if steps == 1 else RECENT):
            least = np.float32(self.guesser.least(len(self.state.rows)))
            ends = np.int32(step + passes), np.int32(fewest), least
            self.state, guessed = speculate(*now, self.prompts, self.request, ends, self.enough)
            self.guessed.append(guessed)
        else:
            until = np.int32(min(step + steps, self.guesser.asks_at))
            self.state = decode(*now, until, self.request, np.int32(fewest), self.enough)

    def _let_enter(self, seen: Progress) -> Progress:
        """Fill what is free with those that wait."""
        while self.waits and seen.going <= len(self.state.rows) - self.room_to_enter:
            fresh, numbers = self._next()
            assert self.drawn is not None
            self.prompt, self.state, self.drawn = let_in(self.prompt, self.state, self.drawn, *fresh, numbers)
            seen = progress(self.state)
        return seen

    def _next_size(self, seen: Progress) -> Size:
        """The rows and the columns to go on with: without rows that have ended, or with room for longer ones."""
        now = len(self.state.rows), self.room
        longest = max(self.room, seen.longest)
        if self.waits:
            rows, room = now[0], self.ladder.longer(longest)
        else:
            rows, room = self.ladder.after(now, seen.going, longest, len(self.prompt.valid))
        return rows, self.request.max_new_tokens if self._is_all(room) else room

    def _fewest(self, size: Size) -> int:
        """The number of rows to ask again at, with so many of them and of columns."""
        rows, _ = size
        if self.waits:
            return rows - self.room_to_enter
        fewer = self.ladder.fewer(size, len(self.prompt.valid) if rows == len(self.state.rows) else rows)
        return 0 if fewer is None else fewer[0]

    def _is_all(self, room: int) -> bool:
        """Whether the cache has so many columns as it ever has."""
        keeps = self.request.keeps
        return keeps(self.config, room) == keeps(self.config, self.request.max_new_tokens)

    def _leave(self) -> None:
        """Rows will go; what was drawn of them is written down by what lets them go."""

    def completions(self) -> Completions:
        """All that was drawn, on the host."""
        self._leave()
        tokens, valid = fetch(self.prompts)
        drawn, own, rows = fetch((self.drawn, drawn_of(self.state), self.state.rows))
        self.drawn = noted(drawn, own, rows)
        return completions_by(np, tokens, valid, self.drawn, self.request)

    def finished(self, told: Listener = unheard) -> Completions:
        """Draw to the end, and tell of it."""
        while self.advance():
            pass
        found = self.completions()
        if told is not unheard:
            told(self._told())
        return found

    def _told(self) -> Told:
        """What there is to tell at the end."""
        assert self.drawn is not None
        guesses = self.request.speculation is not None
        drawn = int(np.asarray(self.drawn.lengths).sum()) - self.known if guesses else 0
        return Told(self.read, drawn, sum(int(fetch(each)) for each in self.guessed))

    @property
    def read(self) -> int:
        """Tokens that were run before the first draws: what all prompts begin with once."""
        common = 0 if self.common is None else self.common[0][0].shape[-1]
        return int(np.asarray(self.prompts[1]).sum()) - common * (self.count - 1)


class _Straight(Generation):
    """A generation that nobody looks at before there is something to decide: one program reads and draws up to there.

    Limiting case: the completions of ``Generation``, whose first draws are a program of their own.
    """

    def _start(self, opened: int) -> Progress:
        rows = self.count * self.request.group_size
        guesses = self.guesser is not None and self.guesser.may(rows)
        if 0 < opened < rows or guesses or self.common is not None:
            return super()._start(opened)
        self.entering = self.begun = self.count
        columns = self.rooms[0]
        room = self.request.max_new_tokens if self._is_all(columns) else columns
        fewer = self._ladder(rows).fewer((rows, room), self.count)
        ends = Ends(np.int32(room + 1), np.int32(0 if fewer is None else fewer[0]), None)
        found = prefill_and_decode(self.config, self.params, self.prompts, self.rows, self.request, columns, ends)
        self.layers, self.prompt, self.state = found
        return progress(self.state)


def _read_apart(config: DecoderConfig, prompts: tuple[Any, Any], request: Request) -> int:
    """Tokens that all prompts begin with where it is worth while to read them by themselves; else 0.

    Where each prompt is to say which experts its tokens were sent to, each is read whole.
    """
    if devices_along(*AXES) > 1 or request.routed:
        return 0
    count = common_tokens(*(np.asarray(x) for x in prompts))
    return 0 if count * (len(prompts[0]) - 1) * weights_of(config) < LEAST_READ else count


def stream(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    request: Request,
    stride: int | None = None,
) -> Iterator[Decoding]:
    """Generate, and yield the state each time ``stride`` tokens were drawn (or the cache is full) and at the end.

    A yielded state is consumed by the next step: read what you need of it before asking for more. Rows keep their
    places.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
        key: a typed PRNG key, or one for each of the ``P · G`` completions.
        request: static.
        stride: tokens between two yields; None for as many as the cache holds.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion; for a stride below 1, or what is no prompts.
    """
    check_prompts("stream", prompts)
    checks.at_least_one("stream", stride=stride)
    going = _begin(config, params, prompts, (key, None), request, None)
    going.ladder = going.ladder._replace(sizes=())
    yield going.state
    while going.advance(stride):
        yield going.state


def _begin(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    rows: tuple[jax.Array, jax.Array | None],
    request: Request,
    slots: int | None,
    sizes: Sizes = ladder,
    kind: type[Generation] = Generation,
) -> Generation:
    check_request(config, prompts[0].shape[1], request)
    count, limit = prompts[0].shape[0] * request.group_size, request.max_new_tokens
    # Where rows enter some of the keys are taken at a time.
    keys = rows[0] if rows[0].ndim == 0 and slots is None else row_keys(rows[0], count)
    limits = np.full(count, limit, np.int32) if rows[1] is None else _within(rows[1], count, limit)
    prompts, request = shared_out(prompts, request)
    return kind(config, params, prompts, (keys, limits), request, slots, sizes)


_at_once = jax.jit(generate_at_once, static_argnums=(0, 4))


def _completed(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    rows: tuple[jax.Array, jax.Array | None],
    request: Request,
    slots: int | None,
    sizes: Sizes = ladder,
    told: Listener = unheard,
) -> Completions:
    """All completions: by one program where there is nothing to decide between two calls of ``decode``."""
    check_prompts("generate", prompts)
    checks.at_least_one("generate", slots=slots)
    if not _is_one(config, prompts, request, slots, sizes):
        return _begin(config, params, prompts, rows, request, slots, sizes, _Straight).finished(told)
    count, limit = prompts[0].shape[0] * request.group_size, request.max_new_tokens
    limits = None if rows[1] is None else _within(rows[1], count, limit)
    found = _at_once(config, params, prompts, rows[0], request, limits)
    if told is not unheard:
        drawn = 0 if request.speculation is None else int(fetch(found.mask).sum())
        told(Told(int(np.asarray(prompts[1]).sum()), drawn, 0))
    return found


def _is_one(config: DecoderConfig, prompts: Prompts, request: Request, slots: int | None, sizes: Sizes) -> bool:
    """Whether all rows go on to the end in one size, and nothing is read or guessed apart from the rest."""
    (count, width), limit = prompts[0].shape, request.max_new_tokens
    rows = count * request.group_size
    found = sizes(config, rows, width, limit)
    if found.sizes or len(found.rooms) > 1 or (slots is not None and slots < rows):
        return False
    worth = is_work(config, max(rows, FEWEST), limit)
    guesses = guesser(prompts, request, worth)
    return (guesses is None or not guesses.may(rows)) and not _read_apart(config, prompts, request)


def _within(limits: jax.Array, count: int, most: int) -> np.ndarray:
    found = np.asarray(limits)
    wanted = f"wanted one for each of {count} completions, from 1 to max_new_tokens, {most}."
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"generate: limits are {found.dtype} of shape {found.shape}; {wanted}")
    if found.min() < 1 or found.max() > most:
        raise ValueError(f"generate: limits are from {found.min()} to {found.max()}; {wanted}")
    return found.astype(np.int32)


def generate(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    request: Request,
    slots: int | None = None,
    limits: jax.Array | None = None,
    sizes: Sizes = ladder,
) -> Completions:
    """Draw ``group_size`` completions of every prompt.

    No row waits for the longest: those that have ended are left out, and where there are fewer ``slots`` than
    completions, others enter in their places. Limiting case: none of that changes a completion.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        key: a typed PRNG key, which is folded with each row's number, or a key for each of the ``P · G`` completions;
            a key, a prompt and parameters make a completion, whatever runs beside it.
        request: sampler, stop tokens, longest completion, group size.
        slots: completions that are drawn at a time, at most (but for one group); None draws all.
        limits: ``[P · G]`` int32, the most tokens of each completion; None is the request's for all.
        sizes: that its state may have: ``ladder``, or ``one_size`` where one program is worth more than speed.

    Returns:
        ``Completions`` of ``P · G`` rows and ``W + max_new_tokens`` columns.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion; for limits or keys that are not one for each completion, slots below 1, or what is no
            prompts.
    """
    return _completed(config, params, prompts, (key, limits), request, slots, sizes)


class Telling(NamedTuple):
    """``generate`` that tells of its work.

    Attributes:
        told: is told of each generation.
    """

    told: Listener

    def __call__(
        self,
        config: DecoderConfig,
        params: Params,
        prompts: Prompts,
        key: jax.Array,
        request: Request,
        slots: int | None = None,
        limits: jax.Array | None = None,
    ) -> Completions:
        """Completions of prompts; see ``generate``."""
        return _completed(config, params, prompts, (key, limits), request, slots, told=self.told)


def listener(complete: Callable[..., Completions]) -> Listener | None:
    """Who is told of what the engine's own generation does; None where another one draws.

    >>> listener(generate) is unheard, listener(print)
    (True, None)
    """
    if isinstance(complete, Telling):
        return complete.told
    return unheard if complete is generate else None
