"""Rows leave and enter a generation: what is done to its state between two calls of ``decode``.

Rows that have ended are left out (``move_and_decode``), or others take their places (``let_in``). On several devices
every one does so among its own rows, so that no key is sent. What belongs together is one program, so that few are
compiled.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import fetch
from rlax_llm.generation.cache import Cache, by_layer, columns_of, vacant_cache
from rlax_llm.generation.engine import decode, prefill, unrolled
from rlax_llm.generation.enough import Enough
from rlax_llm.generation.prompts import Prompts
from rlax_llm.generation.request import Request
from rlax_llm.generation.state import Decoding, Prefilled, lanes, most_of
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params


class Progress(NamedTuple):
    """What decides on how a generation goes on.

    Attributes:
        step: draws so far.
        going: rows that go on, by ``most_going``.
        longest: tokens of the longest of them.
        of_rows: which of the state's rows go on, ``[B]`` bool, and which completions these are, ``[B]``.
    """

    step: int
    going: int
    longest: int
    of_rows: tuple[np.ndarray, np.ndarray]


def progress(state: Decoding) -> Progress:
    """How far a generation is, found on the host: there is no program to compile for each size of the state."""
    told = fetch({name: getattr(state, name) for name in ("alive", "lengths", "limits", "rows", "step")})
    going = told["alive"] & (told["lengths"] < told["limits"])
    longest = int(told["lengths"][going].max(initial=0))
    return Progress(int(told["step"]), int(most_of(going)), longest, (going, told["rows"]))


def resize(prompt: Prefilled, state: Decoding, rows: int, columns: tuple[int, ...]) -> tuple[Prefilled, Decoding]:
    """The rows that go on, in a state of other sizes.

    Args:
        prompt: of ``prefill``.
        state: of ``decode``.
        rows: at least ``most_going``; where they are as many as now each stays where it is, in its group. Otherwise
            each has the keys of its prompt to itself.
        columns: of each layer's cache, no fewer than it reads of the longest of the rows.
    """
    count = state.going.shape[0]
    groups, size = state.cache[0][0].shape[:2]
    cache = _columns(state.cache, state.step, columns)
    if rows == count:
        return prompt, state._replace(cache=cache)
    order = _first(~state.going, rows)
    alone = _taken(jax.tree.map(lambda x: x.reshape(count, 1, *x.shape[2:]), cache), order)
    left = state._replace(cache=alone, **_taken(_by_row(state), order))
    if groups == count:
        return prompt.by_row(lambda own: _taken(own, order)), left
    return prompt.by_row(lambda own: _taken(own, order // size)), left


def _by_row(state: Decoding) -> dict[str, Any]:
    """What a state holds of each row but its keys and values."""
    return {name: x for name, x in state._asdict().items() if name not in ("cache", "step")}


def _first(last: jax.Array, rows: int) -> jax.Array:
    """``[lanes, rows / lanes]``: of each device's rows the numbers of some, those that are ``last`` behind the rest."""
    by_lane = last.reshape(lanes(last.shape[0]), -1)
    return jnp.argsort(by_lane, axis=1, stable=True)[:, : rows // by_lane.shape[0]]


def _taken(tree: Any, order: jax.Array) -> Any:
    """Rows of each device, by their numbers there."""

    def take(x: jax.Array) -> jax.Array:
        by_lane = x.reshape(order.shape[0], -1, *x.shape[1:])
        return jax.vmap(lambda x, own: x[own])(by_lane, order).reshape(order.size, *x.shape[1:])

    return jax.tree.map(take, tree)


def _columns(cache: Cache, step: jax.Array, columns: tuple[int, ...]) -> Cache:
    """The cache with other numbers of columns: what was written ``n`` steps ago is again what was."""

    @functools.cache  # layers of one size have one
    def source(held: int, room: int) -> jax.Array:
        ago = (step - 1 - jnp.arange(room)) % room
        return (step - 1 - ago) % held  # for what is older than the cache is, anything; nobody reads it

    def moved(room: int, x: jax.Array, time: int) -> jax.Array:
        held = x.shape[time]
        return x if room == held else jnp.take(x, source(held, room), time)

    return by_layer(moved, cache, columns)


def enter(
    prompt: Prefilled, state: Decoding, fresh_prompt: Prefilled, fresh: Decoding, rows: jax.Array
) -> tuple[Prefilled, Decoding]:
    """Rows take the places of some that have ended.

    Args:
        prompt: of the state, each row's by itself.
        state: of rows by themselves; of each device's at least as many as enter there have ended.
        fresh_prompt: of ``prefill``.
        fresh: of ``prefill``, one draw behind the prompt, its own cache empty; or of ``resumed``, with the keys of a
            row's token number c in column c.
        rows: ``[u]`` int32, which completions these are; −1 where a row only fills up, behind the others of its device.
    """
    size = fresh.cache[0][0].shape[1]
    places = _first(state.going, rows.shape[0])
    places = jnp.where(rows.reshape(places.shape) < 0, state.going.shape[0], places)  # those are dropped

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        by_lane = x.reshape(places.shape[0], -1, *x.shape[1:])
        own = new.reshape(places.shape[0], -1, *new.shape[1:])
        return jax.vmap(lambda x, place, own: x.at[place].set(own, mode="drop"))(by_lane, places, own).reshape(x.shape)

    merged = state._replace(**jax.tree.map(put, _by_row(state), _by_row(fresh._replace(rows=rows))))
    if fresh.cache[0][0].shape[-1]:
        behind = behind_others(fresh, state.step, columns_of(state.cache))
        merged = merged._replace(cache=jax.tree.map(put, merged.cache, behind))
    alone = jax.tree.map(lambda x: jnp.repeat(x, size, 0), fresh_prompt._replace(common=()))
    return prompt.by_row(lambda own: jax.tree.map(put, own, alone)), merged


def behind_others(fresh: Decoding, step: jax.Array, columns: tuple[int, ...]) -> Cache:
    """The cache of rows with tokens as if these had been the last ones drawn at ``step``.

    Args:
        fresh: of ``behind_tokens``, with the keys of a row's token number c in column c.
        step: draws so far of the others.
        columns: of each layer of their cache.
    """

    @functools.cache  # layers of one size have one
    def source(held: int, room: int) -> jax.Array:
        ago = (step - 1 - jnp.arange(room)) % room
        return jnp.clip(fresh.lengths[:, None] - 1 - ago, 0, held - 1)  # nobody reads what is older than the row

    def placed(room: int, x: jax.Array, axis: int) -> jax.Array:
        return jax.vmap(lambda own, at: jnp.take(own, at, axis))(x, source(x.shape[axis], room))

    return by_layer(placed, fresh.cache, columns)


def vacant(prompt: Prefilled, state: Decoding, rows: int, columns: tuple[int, ...]) -> tuple[Prefilled, Decoding]:
    """A state of rows by themselves of which none goes on, for others of a ``prefill`` to enter.

    Args:
        prompt: of ``prefill``.
        state: of ``prefill``.
        rows: slots.
        columns: of each layer's cache.
    """

    def alike(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[:1], (rows, *x.shape[1:]))

    nobody = state._replace(alive=jnp.zeros_like(state.alive), rows=jnp.full_like(state.rows, -1))
    own = jax.tree.map(alike, _by_row(nobody))
    empty = prompt.by_row(lambda own: jax.tree.map(alike, own))
    return empty, state._replace(cache=vacant_cache(state.cache, rows, columns), **own)


class Drawn(NamedTuple):
    """What was drawn of all completions of a generation.

    Attributes:
        tokens: ``[N, limit]`` int32.
        log_probs: ``[N, limit]`` float32, nats.
        kept: ``[N, limit, ceil(V/32)]`` uint32, or None.
        alive: ``[N]`` bool, no stop token was drawn.
        lengths: ``[N]`` int32.
        routed: ``[N, W + limit, L·k]``, of prompts too, or None.
    """

    tokens: jax.Array
    log_probs: jax.Array
    kept: jax.Array | None
    alive: jax.Array
    lengths: jax.Array
    routed: jax.Array | None = None


def drawn_of(state: Decoding) -> Drawn:
    """What the rows of a state have drawn, in its order."""
    return Drawn(state.tokens, state.log_probs, state.kept, state.alive, state.lengths, state.routed)


def blank(drawn: Drawn, count: int) -> Drawn:
    """So many completions of which nothing was drawn."""
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), drawn)


def note(drawn: Drawn, state: Decoding) -> Drawn:
    """Write down what the rows of a state have drawn."""
    rows = jnp.where(state.rows < 0, drawn.lengths.shape[0], state.rows)  # nobody's are dropped
    return jax.tree.map(lambda buffer, values: buffer.at[rows].set(values, mode="drop"), drawn, drawn_of(state))


def noted(drawn: Drawn | None, own: Drawn, rows: np.ndarray) -> Drawn:
    """``note`` on the host.

    Args:
        drawn: of all completions; None where the state holds them all in their order.
        own: what the rows of the state have drawn.
        rows: ``[B]``, which completions these are; −1 is none.
    """
    if drawn is None:
        return own
    there = rows >= 0

    def put(buffer: np.ndarray, values: np.ndarray) -> np.ndarray:
        found = np.array(buffer)
        found[rows[there]] = values[there]
        return found

    return jax.tree.map(put, drawn, own)


class Ends(NamedTuple):
    """Where a stretch of draws ends.

    Attributes:
        until: scalar int32, the step.
        fewest: scalar int32, no more rows go on, by ``most_going``.
        enough: so many groups are whole; None never.
    """

    until: Any
    fewest: Any
    enough: Enough | None


Size = tuple[int, tuple[int, ...]]
"""Rows, and the columns of each layer."""


@partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=4)
def move_and_decode(
    config: DecoderConfig,
    params: Params,
    prompt: Prefilled,
    state: Decoding,
    drawn: Drawn | None,
    ends: Ends,
    request: Request,
    size: Size,
) -> tuple[Prefilled, Decoding, Drawn | None]:
    """``resize`` to another size, and ``decode``; before rows leave, what was drawn of them is written down.

    Args:
        config: shapes.
        params: of ``unstack``.
        prompt: of the state.
        state: that moves.
        drawn: of all completions, donated; None where the state holds them all in their order.
        ends: of ``decode``.
        request: static.
        size: static.
    """
    if size[0] < len(state.rows):
        drawn = drawn_of(state) if drawn is None else note(drawn, state)
    prompt, state = resize(prompt, state, *size)
    state = decode(config, params, prompt, state, ends.until, request, ends.fewest, ends.enough)
    return prompt, state, drawn


@partial(jax.jit, static_argnums=(0, 4, 5))
def prefill_and_decode(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    rows: tuple[jax.Array, Any],
    request: Request,
    room: int,
    ends: Ends,
) -> tuple[Params, Prefilled, Decoding]:
    """``prefill`` of all prompts, and ``decode`` up to the first decision.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
        rows: a key, or one for each of the ``P · G`` completions, and the most tokens of each.
        request: static.
        room: columns of the cache; static.
        ends: of ``decode``.

    Returns:
        ``unrolled``'s layers, which the next draws read, and what the others return.
    """
    layers = unrolled(config, params)
    prompt, state = prefill(config, params, *prompts, rows[0], request, room, rows[1])
    return layers, prompt, decode(config, layers, prompt, state, ends.until, request, ends.fewest, ends.enough)


@partial(jax.jit, donate_argnums=(0, 1, 2))
def let_in(
    prompt: Prefilled, state: Decoding, drawn: Drawn, fresh_prompt: Prefilled, fresh: Decoding, rows: jax.Array
) -> tuple[Prefilled, Decoding, Drawn]:
    """``enter``; before that, what was drawn of those whose places are taken is written down.

    Args:
        prompt: of the state.
        state: of rows by themselves.
        drawn: of all completions.
        fresh_prompt: as ``enter``'s.
        fresh: as ``enter``'s.
        rows: ``[u]``, which completions enter.
    """
    drawn = note(drawn, state)
    return *enter(prompt, state, fresh_prompt, fresh, rows), drawn


@partial(jax.jit, static_argnums=(4, 5))
def opened(
    prompt: Prefilled, state: Decoding, rows: jax.Array, drawn: Drawn | None, size: Size, count: int
) -> tuple[Prefilled, Decoding, Drawn]:
    """So many slots, and the first rows in them.

    Args:
        prompt: of ``prefill``.
        state: of ``prefill``, of the first rows.
        rows: ``[u]``, which completions these are.
        drawn: of all completions; None is nothing yet.
        size: of the slots; static.
        count: completions; static.
    """
    if drawn is None:
        drawn = blank(drawn_of(state), count)
    return *enter(*vacant(prompt, state, *size), prompt, state, rows), drawn
