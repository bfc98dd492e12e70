"""Rows that go on in another turn, behind further tokens that nobody drew: what was read of them is not read again.

The keys of a row that has ended stay until its turn is over. In the next one they are moved to where the row's prompt
ends, and only what came behind them is run, with the one token whose keys were not written yet: the last one drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import AXES, devices_along
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import KEYS, VALUES, Cache, over_columns, whole
from rlax_llm.generation.draws import first_memory
from rlax_llm.generation.engine import after_first
from rlax_llm.generation.prompts import Prompts, check_prompts
from rlax_llm.generation.reading import Stacked, extend
from rlax_llm.generation.request import Request, check_request
from rlax_llm.generation.rollout import Generation, Listener, unheard
from rlax_llm.generation.state import Decoding, Prefilled, of_layers
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.narrow import Matrix, widened
from rlax_llm.models.padding import bucket
from rlax_llm.models.segments import positions_of


class Later(NamedTuple):
    """Rows that go on in another turn, each in a group of its own.

    Attributes:
        prompts: ``tokens [R, W]`` and ``valid [R, W]`` of all that came before, padded on the left.
        rows: ``[R]``, which rows of the turn before these are.
        unread: ``[R]``, of each the last tokens whose keys were never written, at least 1.
        keys: ``[R]``, that draws are made with.
        limits: ``[R]`` int32, the most tokens of each.
    """

    prompts: Prompts
    rows: np.ndarray
    unread: np.ndarray
    keys: jax.Array
    limits: np.ndarray


class History(Protocol):
    """Completions turn by turn."""

    def first(self, prompts: Prompts, keys: jax.Array, request: Request) -> Completions:
        """Completions of the prompts."""
        ...

    def later(self, config: DecoderConfig, later: Later, request: Request) -> Completions:
        """Completions of the next turn.

        Args:
            config: shapes, of as many positions as the turn's columns are.
            later: who goes on.
            request: of the turn, in groups of one.
        """
        ...

    def run(self, later: Later) -> np.ndarray:
        """``[R]``: the tokens of each row that are run before the turn's first draw."""
        ...


class ReadAgain(NamedTuple):
    """A history that each turn reads from its beginning.

    Attributes:
        complete: ``generate`` or its like.
        config: shapes.
        params: of ``config.parameter_shapes``.
        slots: completions that are drawn at a time; None draws all.
    """

    complete: Callable[..., Completions]
    config: DecoderConfig
    params: Params
    slots: int | None

    def first(self, prompts: Prompts, keys: jax.Array, request: Request) -> Completions:
        """Completions of the prompts."""
        return self.complete(self.config, self.params, prompts, keys, request, self.slots)

    def later(self, config: DecoderConfig, later: Later, request: Request) -> Completions:
        """Completions of the next turn."""
        return self.complete(config, self.params, later.prompts, later.keys, request, self.slots, later.limits)

    def run(self, later: Later) -> np.ndarray:
        """All tokens so far."""
        return np.asarray(later.prompts[1]).sum(1)


class Held(NamedTuple):
    """Keys of the rows of a turn.

    Attributes:
        prompt: of what came before it, ``[P, …]``.
        own: of what was drawn, ``[P, G, …]`` or ``[P · G, 1, …]``: a row's token number c in column c.
    """

    prompt: Prefilled
    own: Cache


def holds(request: Request, rows: int, slots: int | None) -> bool:
    """Whether a row's tokens keep their columns until a turn ends.

    Not where rows take turns in slots, whose columns are used again, nor behind guesses; and keys are not sent between
    devices.

    Args:
        request: what is asked.
        rows: completions.
        slots: completions that are drawn at a time; None draws all.
    """
    return (slots is None or slots >= rows) and request.speculation is None and devices_along(*AXES) == 1


class KeysHeld:
    """A history whose keys are held from turn to turn.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        told: is told of each turn.
    """

    def __init__(self, config: DecoderConfig, params: Params, told: Listener = unheard):
        self.config, self.params, self.told = config, params, told
        self.held: Held | None = None

    def first(self, prompts: Prompts, keys: jax.Array, request: Request) -> Completions:
        """Completions of the prompts."""
        check_prompts("generate", prompts)
        check_request(self.config, prompts[0].shape[1], request)
        limits = np.full(len(keys), request.max_new_tokens, np.int32)
        return self._drawn(_Keeping(self.config, self.params, prompts, (keys, limits), request))

    def later(self, config: DecoderConfig, later: Later, request: Request) -> Completions:
        """Completions of the next turn."""
        check_request(config, later.prompts[0].shape[1], request)
        held, self.held = self.held, None
        assert held is not None
        return self._drawn(_GoingOn(config, self.params, later, request, held))

    def _drawn(self, going: _Keeping) -> Completions:
        found = going.finished(self.told)
        self.held = going.held
        return found

    def run(self, later: Later) -> np.ndarray:
        """The tokens that were not read."""
        return later.unread


class _Keeping(Generation):
    """A generation that keeps the keys of those that have ended.

    A layer with a window keeps them all: in a ring the others would write over them until the turn is over.
    """

    own: Cache | None = None  # while the state holds all rows in their order

    def __init__(
        self, config: DecoderConfig, params: Params, prompts: Prompts, rows: tuple[jax.Array, Any], request: Request
    ):
        super().__init__(config, params, prompts, rows, request._replace(keeps=whole))

    def _start(self, opened: int) -> Any:
        seen = super()._start(opened)
        self.whole = self.prompt
        return seen

    def _leave(self) -> None:
        if self.own is None:
            self.own = self.state.cache
            return
        room = self.state.cache[0][0].shape[-1]
        if self.own[0][0].shape[1] > 1 or self.own[0][0].shape[-1] < room:
            self.own = _apart(self.own, room)
        self.own = _with_rows(self.own, self.state)

    @property
    def held(self) -> Held:
        """The keys of all rows, once all were noted."""
        assert self.own is not None
        return Held(self.whole, self.own)


class _GoingOn(_Keeping):
    """The generation of a later turn."""

    def __init__(self, config: DecoderConfig, params: Params, later: Later, request: Request, held: Held):
        self.behind: Any = later, held
        self.unread = int(later.unread.sum())
        super().__init__(config, params, later.prompts, (later.keys, later.limits), request)

    def _read_common(self) -> None:
        """What the first turn's prompts begin with is held already."""

    @property
    def read(self) -> int:
        """What was not read in the turns before."""
        return self.unread

    def _prefilled(self, room: int) -> tuple[tuple[Prefilled, Decoding], np.ndarray]:
        (later, held), self.behind = self.behind, None
        self.begun = self.count
        valid = np.asarray(later.prompts[1])
        begin, width = held.prompt.begin, valid.shape[1]
        width = min(bucket(int(valid.sum(1).max()) - begin), width) if begin else width
        sizes = room, width, min(bucket(int(later.unread.max())), width)
        found = prefill_held(self.config, self.params, held, later, self.request, sizes)
        return found, np.arange(self.count, dtype=np.int32)


@partial(jax.jit, static_argnums=1)
def _apart(cache: Cache, room: int) -> Cache:
    """Each row by itself, in so many columns."""

    def wider(x: jax.Array, time: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[time] = (0, room - x.shape[time])
        return jnp.pad(x.reshape(-1, 1, *x.shape[2:]), widths)

    return over_columns(wider, cache)


@partial(jax.jit, donate_argnums=0)
def _with_rows(cache: Cache, state: Decoding) -> Cache:
    """The rows' keys in their places."""
    count = cache[0][0].shape[0]
    rows = jnp.where(state.rows < 0, count, state.rows)  # nobody's are dropped

    def put(x: jax.Array, own: jax.Array) -> jax.Array:
        return x.at[(rows, slice(None), slice(None), slice(own.shape[3]), slice(own.shape[4]))].set(own, mode="drop")

    return jax.tree.map(put, cache, state.cache)


@partial(jax.jit, static_argnums=(0, 4, 5))
def prefill_held(
    config: DecoderConfig, params: Params, held: Held, later: Any, request: Request, sizes: tuple[int, int, int]
) -> tuple[Prefilled, Decoding]:
    """``prefill`` of rows whose keys are held, but for the last tokens.

    Limiting case: ``prefill`` of ``later.prompts``, up to the order of sums.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        held: of the turn before.
        later: who goes on.
        request: static, in groups of one.
        sizes: completion tokens that the cache holds at first; columns for what rows have beside what all prompts
            begin with; and of these the last, in which the unread tokens are.

    Returns:
        The rows' cache and their state after one draw.
    """
    room, width, columns = sizes
    tokens, valid = later.prompts
    positions = positions_of(valid)[:, -width:]
    own = valid[:, -width:] & (positions >= held.prompt.begin)
    known = own & (jnp.arange(width) < width - later.unread[:, None])
    keys = _stacked(_moved(held, later.rows, positions))
    before = _stacked(held.prompt.common) if held.prompt.common else None
    hidden, caches = extend(config, params, (tokens[:, -width:], own), keys, known, columns, before)
    memory = first_memory(request, tokens, valid, config.vocab_size)
    state = after_first(config, params, request, hidden, (later.keys, later.limits, memory), room)
    return Prefilled(of_layers(config, caches), own, held.prompt.common), state


def _moved(held: Held, rows: jax.Array, numbers: jax.Array) -> Cache:
    """Keys ``[R, K, …]`` of rows, of each the tokens with ``numbers [R, W]``; what is none of it may be anything."""
    count, group_size = held.own[0][0].shape[:2]
    prompts, width = held.prompt.valid.shape
    of_row = rows // (count * group_size // prompts)
    own = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[rows], held.own)
    prompt = jax.tree.map(lambda x: x[of_row, 0], held.prompt.cache)
    # A prompt ends where the row's own columns begin.
    source = numbers + width - held.prompt.lengths[of_row, None]
    source = jnp.clip(source, 0, width + own[0][0].shape[-1] - 1)

    def taken(x: jax.Array, time: int) -> jax.Array:
        return jax.vmap(lambda own, at: jnp.take(own, at, time))(x, source)

    return over_columns(taken, _joined(prompt, own))


def _stacked(cache: Cache) -> Stacked:
    """Keys and values of all layers, in the format that is computed in."""
    keys, values = zip(*cache, strict=True)
    return jnp.stack([widened(x) for x in keys]), jnp.stack([widened(x) for x in values])


def _joined(first: Cache, second: Cache) -> Cache:
    """The columns of both, one behind the other."""

    def of(x: Matrix, y: Matrix, time: int) -> Matrix:
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], time), x, y)

    pairs = zip(first, second, strict=True)
    return tuple((of(x[0], y[0], KEYS[1]), of(x[1], y[1], VALUES[1])) for x, y in pairs)
