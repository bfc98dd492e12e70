"""Sampling completions for reinforcement learning: each prompt is prefilled once, its cache shared by its G samples.

``prefill`` and ``decode`` are pure; the state (``state.py``) travels through ``decode`` by donation and its cache is
updated in place. Who leaves and who enters is decided between two calls of ``decode``, in ``rollout.py``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import AXES, ROWS, devices_along, spread
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import KEYS, VALUES, columns_of, kept, with_groups, without_groups, written
from rlax_llm.generation.draws import first_memory, sampled
from rlax_llm.generation.enough import Enough, too_few
from rlax_llm.generation.prompts import Prompts, check_prompts
from rlax_llm.generation.reading import Stacked, read, read_sending
from rlax_llm.generation.request import Request, check_request
from rlax_llm.generation.sampling import row_keys
from rlax_llm.generation.state import Decoding, Prefilled, before_first, completions, kept_prompts, most_going, record
from rlax_llm.models.attention import attention
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import Attend, Kind, block, embedding, layers_in_turn, norm, vocabulary_logits
from rlax_llm.models.functional import Params
from rlax_llm.models.narrow import Matrix, narrow_matrices
from rlax_llm.models.routing import keeping, routes_of
from rlax_llm.models.segments import (
    NOWHERE,
    PLAIN,
    Form,
    Reach,
    Segment,
    Window,
    positions_of,
    reach_of,
    segment,
    within,
)
from rlax_llm.models.sharding import laid, sampling_rules
from rlax_llm.models.shared_prompts import part_of_group


def unstack(params: Params) -> Params:
    """The same parameters with each layer's arrays as leaves of their own, as an unrolled decode loop wants them.

    A loop that slices a layer out of a stacked array copies it at every token.
    """
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count))
    return params | {"layers": layers}


def for_sampling(config: DecoderConfig, params: Params) -> Params:
    """Parameters as a sampler reads them: over ``tensor`` alone, the matrices as ``narrow_matrices`` has them.

    A learner's lie over ``fsdp`` too, and would be gathered at every token. Without a mesh and without
    ``config.sampler_dtype`` they are ``params`` themselves.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``, wherever they lie.
    """
    itself = devices_along(*AXES) == 1 and config.sampler_dtype is None
    return params if itself else _laid_for_sampling(config, params)


@partial(jax.jit, static_argnums=0)
def _laid_for_sampling(config: DecoderConfig, params: Params) -> Params:
    return laid(narrow_matrices(config, params), sampling_rules())


@partial(jax.jit, static_argnums=0)
def unrolled(config: DecoderConfig, params: Params) -> Params:
    """``unstack`` of ``narrow_matrices``."""
    return unstack(narrow_matrices(config, params))


def _draw(config: DecoderConfig, params: Params, hidden: jax.Array, state: Decoding, request: Request) -> Decoding:
    return drawn(spread(vocabulary_logits(config, params, hidden), ROWS), state, request)


def drawn(logits: jax.Array, state: Decoding, request: Request) -> Decoding:
    """The state after one draw of the rows that go on.

    Args:
        logits: ``[B, V]``, after each row's last token.
        state: of the rows.
        request: static.
    """
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.lengths)
    draw = sampled(request, state.lengths, state.memory, keys, logits)
    return record(state, draw, request, state.going)


@partial(jax.jit, static_argnums=(0, 5, 6))
def prefill(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    request: Request,
    room: int,
    limits: jax.Array | None = None,
) -> tuple[Prefilled, Decoding]:
    """Run the prompts once, and draw the first token of each of their completions.

    Args:
        config: shapes.
        params: stacked or not, of ``config.parameter_shapes``.
        tokens: ``[P, W]`` int32 prompts, padded on the left.
        valid: ``[P, W]`` bool.
        key: a typed PRNG key, or one for each of the ``P · G`` rows.
        request: static.
        room: completion tokens that the cache holds at first.
        limits: ``[P · G]`` int32, the most tokens of each, from 1 to the request's; None is the request's.

    Returns:
        The prompts' cache and the state of ``P · G`` rows after one draw.
    """
    send = keeping(config) if request.routed else None
    hidden, caches, sent = read_sending(config, params, (tokens, valid), send)
    memory = first_memory(request, tokens, valid, config.vocab_size)
    state = after_first(config, params, request, hidden, (key, limits, memory), room)
    state = state._replace(routed=_routed_prompts(config, request, sent, valid))
    return kept_prompts(config, request, caches, valid), state


def _routed_prompts(config: DecoderConfig, request: Request, sent: Any, valid: jax.Array) -> jax.Array | None:
    """Where the prompts of all rows were sent, with columns for their completions; None where nobody asks."""
    if sent is None:
        return None
    routes = jnp.where(valid[..., None], routes_of(config, sent), 0)
    return jnp.pad(jnp.repeat(routes, request.group_size, 0), ((0, 0), (0, request.max_new_tokens), (0, 0)))


@partial(jax.jit, static_argnums=(0, 5, 6))
def prefill_behind(
    config: DecoderConfig,
    params: Params,
    common: Stacked,
    prompts: Prompts,
    rows: tuple[jax.Array, jax.Array | None],
    request: Request,
    sizes: tuple[int, int],
) -> tuple[Prefilled, Decoding]:
    """``prefill`` of prompts that begin alike, of which that is read already.

    Args:
        config: shapes.
        params: stacked or not, of ``config.parameter_shapes``.
        common: of ``read_common``, of what they begin with.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, whole.
        rows: ``[P · G]`` each, keys and limits.
        request: static.
        sizes: ``room``, and columns that hold what is left of each prompt.
    """
    room, columns = sizes
    begin = common[0].shape[-1]
    tokens, valid = map(jnp.asarray, prompts)
    left = valid & (positions_of(valid) >= begin)
    own = tokens[:, -columns:], left[:, -columns:]
    hidden, caches = read(config, params, *own, before=common)
    memory = first_memory(request, tokens, valid, config.vocab_size)
    state = after_first(config, params, request, hidden, (*rows, memory), room)
    shared = tuple((kept(config, k, KEYS[0]), kept(config, v, VALUES[0])) for k, v in zip(*common, strict=True))
    return kept_prompts(config, request, caches, own[1])._replace(common=shared), state


def after_first(
    config: DecoderConfig, params: Params, request: Request, hidden: jax.Array, own: tuple, room: int
) -> Decoding:
    """The state after one draw of each row.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        request: static.
        hidden: ``[P, D]``, behind the prompts.
        own: of the rows keys, limits and the memory of their prompts.
        room: columns of the cache.
    """
    keys = row_keys(own[0], hidden.shape[0] * request.group_size)
    state = before_first(config, request, (keys, *own[1:]), room, hidden.dtype)
    return _draw(config, params, jnp.repeat(hidden, request.group_size, axis=0), state, request)


class _Places(NamedTuple):
    """Places of a layer's own keys ``[P, G, room]`` and of the queries ``[P, G, 1]``, which count on from the
    prompts', and the column that is written.
    """

    own: jax.Array
    query: jax.Array
    column: jax.Array


def _places(prompt: Prefilled, state: Decoding, room: int) -> _Places:
    """Where everything is, in a layer of so many columns, when the keys of the last drawn tokens are written.

    A column was last written some steps ago; what it holds is a row's own where the row is not younger than that.
    """
    count = prompt.lengths.size
    groups = (count, state.lengths.size // count)
    ago = (state.step - 1 - jnp.arange(room)) % room
    last = state.lengths.reshape(*groups, 1) - 1
    before = prompt.lengths[:, None, None]
    own = jnp.where(ago <= last, before + last - ago, NOWHERE)
    return _Places(own, before + last, (state.step - 1) % room)


def forward_token(
    config: DecoderConfig, params: Params, prompt: Prefilled, state: Decoding
) -> tuple[jax.Array, Decoding]:
    """Hidden states ``[B, D]`` after the last drawn tokens, and the state with their keys and values.

    Args:
        config: shapes.
        params: of ``unstack``.
        prompt: of ``prefill``.
        state: of the rows, its cache ``without_groups``.
    """
    apply = block(config)[1]
    columns = columns_of(state.cache)
    places = {room: _places(prompt, state, room) for room in dict.fromkeys(columns)}
    token = _last_tokens(state)
    positions = places[columns[0]].query.reshape(-1, 1)
    send = None if state.routed is None else keeping(config)

    def step(x: jax.Array, layer: Params, kind: Kind, beside: tuple) -> tuple[jax.Array, tuple[Any, Any]]:
        x, cache, routes = apply(layer, x, positions, _attend_to_cache(config, *beside), kind, send)
        return x, (cache, routes)

    held = [prompt.segments(layer, config.window_of(layer)) for layer in range(config.num_layers)]
    beside = list(zip(held, state.cache, [places[room] for room in columns], strict=True))
    x, found = layers_in_turn(config, params, step, embedding(config, params, token), beside)
    caches, sent = zip(*found, strict=True)
    state = state._replace(cache=caches).noting(config, sent)
    return norm(config, params["norm"], x[:, 0]), state


def _last_tokens(state: Decoding) -> jax.Array:
    """``[B, 1]``, of each row the one that was drawn last."""
    last = jnp.maximum(state.lengths - 1, 0)
    return jax.vmap(lambda row, at: row[at])(state.tokens, last)[:, None]


def attend_behind(
    held: list[Segment],
    queries: jax.Array,
    reach: Reach,
    own: Segment,
    form: Form,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """``attention`` of each group to ``Prefilled.segments`` and its own keys.

    Args:
        held: the last with groups in front; what all prompts share has no axis of prompts.
        queries: ``[P, G, S, H, head_dim]``.
        reach: of them.
        own: with groups in front.
        form: of the attention.
        sinks: as ``attention``'s.
    """
    axes = [None] * (len(held) - 1) + [0, 0]
    return jax.vmap(partial(attention, form=form, sinks=sinks), (0, 0, axes))(queries, reach, [*held, own])


def _attend_to_cache(
    config: DecoderConfig, held: list[Segment], cache: tuple[Matrix, Matrix], places: _Places
) -> Attend:
    """One token of each row to its prompt's keys and to its own, among which it writes its own; the cache is
    ``without_groups``.
    """
    prompts, group_size = places.own.shape[:2]
    reach = reach_of(places.query)

    def by_group(x: jax.Array) -> jax.Array:
        return x.reshape(prompts, group_size, *x.shape[1:])

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        new = jax.vmap(segment)(by_group(k), by_group(v), places.own)
        fresh = without_groups((new.keys, new.values))
        keys = written(config, cache[0], fresh[0], places.column, KEYS)
        values = written(config, cache[1], fresh[1], places.column, VALUES)
        grouped = with_groups((keys, values))
        form, own = PLAIN._replace(soft_cap=config.attention_cap), Segment(grouped[0], grouped[1], places.own)
        mixed = attend_behind(held, by_group(q), within(reach, window), own, form, sinks)
        return mixed.reshape(prompts * group_size, 1, -1), (keys, values)

    return attend


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=3)
def decode(
    config: DecoderConfig,
    params: Params,
    prompt: Prefilled,
    state: Decoding,
    until: jax.Array,
    request: Request,
    fewest: jax.Array | int = 0,
    enough: Enough | None = None,
) -> Decoding:
    """Draw tokens until step ``until``, or until few rows go on. ``state`` is donated: its cache is reused.

    Args:
        config: shapes.
        params: of ``unstack``.
        prompt: of ``prefill``.
        state: of ``prefill`` or an earlier ``decode``.
        until: scalar int32; no row may come to have more tokens than ``room_in`` + 1 (a token's keys are written when
            the next one is drawn).
        request: static.
        fewest: scalar int32, the loop ends where no more rows go on, by ``most_going``.
        enough: it ends too with the token that makes enough groups whole; None goes on.

    Returns:
        The state, further on.
    """

    def body(state: Decoding) -> Decoding:
        hidden, state = forward_token(config, params, prompt, state)
        return _draw(config, params, hidden, state, request)

    def goes_on(state: Decoding) -> jax.Array:
        wanted = (state.step < until) & (most_going(state) > fewest)
        return wanted if enough is None else wanted & too_few(enough, state.going, state.rows)

    state = jax.lax.while_loop(goes_on, body, state._replace(cache=without_groups(state.cache)))
    return state._replace(cache=with_groups(state.cache))


def shared_out(prompts: Prompts, request: Request) -> tuple[Prompts, Request]:
    """Prompts and a request whose groups the devices of rows divide: each prompt as often as it has parts of a group.

    The rows and their draws stay the same. Limiting cases: without a mesh nothing changes; rows that the devices do not
    divide stay together, and each device computes all of them.

    Args:
        prompts: ``tokens [P, W]`` and ``valid [P, W]``.
        request: of ``group_size`` completions each.
    """
    count, group_size = prompts[0].shape[0], request.group_size
    part = part_of_group(count * group_size, group_size)
    if part == group_size:
        return prompts, request
    tokens, valid = (jnp.repeat(x, group_size // part, 0) for x in prompts)
    return (tokens, valid), request._replace(group_size=part)


def generate_at_once(
    config: DecoderConfig,
    params: Params,
    prompts: Prompts,
    key: jax.Array,
    request: Request,
    limits: jax.Array | None = None,
) -> Completions:
    """``generate`` as one pure function to be jitted, scanned and vmapped: the cache has room for all tokens at once.

    Limiting case: the completions of ``generate`` for the same key.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        key: a typed PRNG key, or one for each of the ``P · G`` completions.
        request: sampler, stop tokens, longest completion, group size.
        limits: ``[P · G]`` int32, the most tokens of each completion, from 1 to the request's; None is the request's.

    Returns:
        ``Completions`` of ``P · G`` rows and ``W + max_new_tokens`` columns.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion; for what is no prompts.
    """
    limit = request.max_new_tokens
    check_prompts("generate_at_once", prompts)
    check_request(config, prompts[0].shape[1], request)
    prompts, request = shared_out(prompts, request)
    prompt, state = prefill(config, params, *prompts, key, request, limit, limits)
    state = decode(config, unrolled(config, params), prompt, state, jnp.int32(limit), request)
    return completions(*prompts, state, request)
