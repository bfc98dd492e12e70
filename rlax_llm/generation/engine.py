"""Sampling completions for reinforcement learning: each prompt is prefilled once, its cache shared by its G samples.

``prefill`` and ``decode`` are pure; the cache travels through ``decode`` by donation and is updated in place. The own
cache of the completions starts small and doubles: a step costs what the tokens so far cost, not what the limit would,
and there is one compilation for each doubling, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import AXES, ROWS, TENSOR, devices_along, spread
from rlax_llm.core.token_sets import EVERY, are_bits, to_bits, words
from rlax_llm.core.types import Completions
from rlax_llm.generation.sampling import Draw, Sampler
from rlax_llm.models.attention import attention
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import (
    Attend,
    block,
    causal,
    embedding,
    layer_scan,
    narrow_matrices,
    part_of_group,
    rms_norm,
    vocabulary_logits,
)
from rlax_llm.models.functional import Params
from rlax_llm.models.segments import Reach, Segment, places_of, positions_of, reach_of, segment
from rlax_llm.models.sharding import laid, sampling_rules

FIRST_ROOM = 64  # completion tokens; the cache doubles from here

Cache = tuple[tuple[jax.Array, jax.Array], ...]  # keys and values of each layer


class Prefilled(NamedTuple):
    """The prompts' side of a generation, which ``decode`` only reads.

    Attributes:
        cache: for each layer keys ``[P, 1, K, head_dim, W]`` and values ``[P, 1, K, W, head_dim]``.
        valid: ``[P, W]`` bool.
    """

    cache: Cache
    valid: jax.Array


class Decoding(NamedTuple):
    """The completions' side, one entry per row: everything that changes from step to step.

    Attributes:
        cache: for each layer keys ``[P, G, K, head_dim, room]`` and values ``[P, G, K, room, head_dim]``.
        tokens: ``[B, limit]`` int32, padded with the first stop token.
        log_probs: ``[B, limit]`` float32, nats.
        kept: ``[B, limit, ceil(V/32)]`` uint32, as ``token_sets.to_bits`` packs sets; None where nothing is ever cut.
        alive: ``[B]`` bool, no stop token drawn yet.
        lengths: ``[B]`` int32, tokens chosen so far.
        step: scalar int32, tokens drawn so far; equal for all rows.
        key: the generation's key; the draw of a step folds the step in.
    """

    cache: Cache
    tokens: jax.Array
    log_probs: jax.Array
    kept: jax.Array | None
    alive: jax.Array
    lengths: jax.Array
    step: jax.Array
    key: jax.Array


class Request(NamedTuple):
    """What is static in a generation; part of the compilation's key.

    Attributes:
        sampler: ``(key, logits [B, V]) → Draw``; hashable (``greedy``, ``Categorical(...)`` or a function).
        stop_ids: tokens that end a completion; the one drawn belongs to it.
        max_new_tokens: the longest completion, tokens.
        group_size: samples of each prompt, G.
        min_new_tokens: the fewest tokens of a completion: no stop token can be drawn before, whatever the sampler.
    """

    sampler: Sampler
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    group_size: int = 1
    min_new_tokens: int = 0


def unstack(params: Params) -> Params:
    """The same parameters with each layer's arrays as leaves of their own, as an unrolled decode loop wants them.

    A loop that slices a layer out of a stacked array copies it at every token.
    """
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count))
    return params | {"layers": layers}


def for_sampling(config: DecoderConfig, params: Params) -> Params:
    """Parameters as a sampler over a mesh reads them: over ``tensor`` alone, the matrices as narrow as is computed in.

    A learner's lie over ``fsdp`` too, and would be gathered at every token. Without a mesh ``params`` themselves.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``, wherever they lie.
    """
    return params if devices_along(*AXES) == 1 else _laid_for_sampling(config, params)


@partial(jax.jit, static_argnums=0)
def _laid_for_sampling(config: DecoderConfig, params: Params) -> Params:
    return laid(narrow_matrices(config, params), sampling_rules())


@partial(jax.jit, static_argnums=0)
def _unrolled(config: DecoderConfig, params: Params) -> Params:
    return unstack(narrow_matrices(config, params))


def _record(state: Decoding, draw: Draw, stop_ids: tuple[int, ...]) -> Decoding:
    """Write a draw at ``state.step`` into the rows that are alive."""
    filler = stop_ids[0] if stop_ids else 0

    def put(buffer: jax.Array, values: jax.Array, otherwise: float | np.uint32) -> jax.Array:
        alive = state.alive.reshape(-1, *[1] * (values.ndim - 1))
        values = jnp.where(alive, values, jnp.asarray(otherwise, values.dtype)).astype(buffer.dtype)
        return jax.lax.dynamic_update_slice_in_dim(buffer, values[:, None], state.step, 1)

    stopped = jnp.isin(draw.tokens, jnp.asarray(stop_ids, jnp.int32)) if stop_ids else jnp.zeros_like(state.alive)
    return state._replace(
        tokens=put(state.tokens, draw.tokens, filler),
        log_probs=put(state.log_probs, draw.log_probs, 0.0),
        kept=jax.tree.map(lambda buffer, values: put(buffer, values, EVERY), state.kept, draw.kept),
        alive=state.alive & ~stopped,
        lengths=state.lengths + state.alive,
        step=state.step + 1,
    )


def _sampled(request: Request, step: jax.Array | int, key: jax.Array, logits: jax.Array) -> Draw:
    """One draw per row; before ``min_new_tokens`` of them no stop token can be drawn, and none is in the kept set."""
    rows, vocabulary = logits.shape
    stop_ids = request.stop_ids
    if not (request.min_new_tokens and stop_ids):
        return _checked(request.sampler(key, logits), rows, vocabulary)
    stops = np.isin(np.arange(vocabulary), stop_ids)
    early = step < request.min_new_tokens
    draw = _checked(request.sampler(key, jnp.where(early & stops, -jnp.inf, logits)), rows, vocabulary)
    kept = jnp.full((rows, words(vocabulary)), EVERY) if draw.kept is None else draw.kept
    return draw._replace(kept=jnp.where(early, kept & to_bits(~stops), kept))


def _checked(draw: Draw, rows: int, vocabulary: int) -> Draw:
    if draw.kept is None or are_bits(draw.kept, (rows,), vocabulary):
        return draw
    raise ValueError(
        f"Request: the sampler's kept is {draw.kept.dtype} of shape {draw.kept.shape}, wanted uint32 "
        f"{(rows, words(vocabulary))}, or None where it never cuts; pack the set that it drew from by to_bits."
    )


def _draw(params: Params, hidden: jax.Array, state: Decoding, request: Request) -> Decoding:
    logits = spread(vocabulary_logits(params, hidden), ROWS)
    draw = _sampled(request, state.step, jax.random.fold_in(state.key, state.step), logits)
    return _record(state, draw, request.stop_ids)


def _room_for_sets(request: Request, rows: int, vocabulary: int, key: jax.Array) -> jax.Array | None:
    """Where the kept set of each token will be written; None where the sampler never cuts."""
    logits = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32)
    kept = jax.eval_shape(partial(_sampled, request, 0), key, logits).kept
    return None if kept is None else jnp.full((rows, request.max_new_tokens, kept.shape[-1]), EVERY)


@partial(jax.jit, static_argnums=(0, 5, 6))
def prefill(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    key: jax.Array,
    request: Request,
    room: int,
) -> tuple[Prefilled, Decoding]:
    """Run the prompts once, and draw the first token of each of their completions.

    Args:
        config: shapes.
        params: stacked or not, of ``config.parameter_shapes``.
        tokens: ``[P, W]`` int32 prompts, padded on the left.
        valid: ``[P, W]`` bool.
        key: a typed PRNG key.
        request: static.
        room: completion tokens that the cache holds at first.

    Returns:
        The prompts' cache and the state of ``P · G`` rows after one draw.
    """
    apply = block(config)[1]
    positions = positions_of(valid)
    attend = causal(config, valid)
    embedded = embedding(config, params, tokens)
    x, caches = layer_scan(params, lambda x, layer: apply(layer, x, positions, attend), embedded, False)
    hidden = rms_norm(x[:, -1], params["norm"], config.norm_eps)
    empty = _empty_cache(config, (tokens.shape[0], request.group_size, config.num_kv_heads), room, x.dtype)
    state = _before_first(config, request, empty, tokens.shape[0] * request.group_size, key)
    state = _draw(params, jnp.repeat(hidden, request.group_size, axis=0), state, request)
    cache = tuple((caches[0][i][:, None], caches[1][i][:, None]) for i in range(config.num_layers))
    return Prefilled(cache, valid), state


def _empty_cache(config: DecoderConfig, shape: tuple[int, int, int], room: int, dtype: Any) -> Cache:
    """Keys and values of no token, for ``(prompts, group_size, key heads)``."""
    keys = spread(jnp.zeros((*shape, config.head_dim, room), dtype), ROWS, None, TENSOR)
    values = spread(jnp.zeros((*shape, room, config.head_dim), dtype), ROWS, None, TENSOR)
    return tuple((keys, values) for _ in range(config.num_layers))


def _before_first(config: DecoderConfig, request: Request, cache: Cache, rows: int, key: jax.Array) -> Decoding:
    """The state of rows for which no token was drawn."""
    filler = request.stop_ids[0] if request.stop_ids else 0
    return Decoding(
        cache=cache,
        tokens=jnp.full((rows, request.max_new_tokens), filler, jnp.int32),
        log_probs=jnp.zeros((rows, request.max_new_tokens)),
        kept=_room_for_sets(request, rows, config.vocab_size, key),
        alive=jnp.ones(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        step=jnp.int32(0),
        key=key,
    )


class _Places(NamedTuple):
    """Places of the prompts' keys ``[P, 1, W]`` and of the completions' ``[P, 1, room]``, which count on from them."""

    prompt: jax.Array
    own: jax.Array


def _places(prompt: Prefilled, state: Decoding) -> _Places:
    own = prompt.valid.sum(-1, dtype=jnp.int32)[:, None] + jnp.arange(state.cache[0][0].shape[-1])
    return _Places(places_of(prompt.valid)[:, None], own[:, None])


def _forward(
    config: DecoderConfig, params: Params, prompt: Prefilled, state: Decoding, places: _Places
) -> tuple[jax.Array, Cache]:
    """Hidden state ``[B, D]`` after the last drawn token, and the cache with its keys and values."""
    apply = block(config)[1]
    at = state.step - 1
    token = jax.lax.dynamic_slice_in_dim(state.tokens, at, 1, 1)
    place = places.own[:, :, :1] + at
    positions = jnp.repeat(place[:, 0], state.cache[0][0].shape[1], 0)
    x = embedding(config, params, token)
    caches = []
    for layer, shared, own in zip(params["layers"], prompt.cache, state.cache, strict=True):
        segments = Segment(*shared, places.prompt), Segment(*own, places.own)
        x, cache = apply(layer, x, positions, _attend_to_cache(*segments, reach_of(place), at))
        caches.append(cache)
    return rms_norm(x[:, 0], params["norm"], config.norm_eps), tuple(caches)


def _attend_to_cache(shared: Segment, own: Segment, reach: Reach, at: jax.Array) -> Attend:
    """One token of each row to its prompt's keys and to its own, among which it writes its own at column ``at``."""
    prompts, group_size = own.keys.shape[:2]

    def by_group(x: jax.Array) -> jax.Array:
        return x.reshape(prompts, group_size, *x.shape[1:])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        new = jax.vmap(segment)(by_group(k), by_group(v), own.places)
        keys = jax.lax.dynamic_update_slice_in_dim(own.keys, new.keys, at, -1)
        values = jax.lax.dynamic_update_slice_in_dim(own.values, new.values, at, -2)
        mixed = jax.vmap(attention)(by_group(q), reach, [shared, Segment(keys, values, own.places)])
        return mixed.reshape(prompts * group_size, 1, -1), (keys, values)

    return attend


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=3)
def decode(
    config: DecoderConfig, params: Params, prompt: Prefilled, state: Decoding, until: jax.Array, request: Request
) -> Decoding:
    """Draw tokens until ``until`` were drawn or every row has stopped. ``state`` is donated: its cache is reused.

    Args:
        config: shapes.
        params: of ``unstack``.
        prompt: of ``prefill``.
        state: of ``prefill`` or an earlier ``decode``.
        until: scalar int32, at most the cache's room + 1 (a token's keys are written when the next one is drawn).
        request: static.

    Returns:
        The state, further on.
    """

    places = _places(prompt, state)

    def body(state: Decoding) -> Decoding:
        hidden, cache = _forward(config, params, prompt, state, places)
        return _draw(params, hidden, state._replace(cache=cache), request)

    return jax.lax.while_loop(lambda state: (state.step < until) & state.alive.any(), body, state)


@partial(jax.jit, static_argnums=1)
def _widen(cache: Cache, room: int) -> Cache:
    def pad(x: jax.Array, axis: int) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, room - x.shape[axis])
        return jnp.pad(x, widths)

    return tuple((pad(keys, 4), pad(values, 3)) for keys, values in cache)


def shared_out(prompts: tuple[jax.Array, jax.Array], request: Request) -> tuple[tuple[jax.Array, jax.Array], Request]:
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


def stream(
    config: DecoderConfig,
    params: Params,
    prompts: tuple[jax.Array, jax.Array],
    key: jax.Array,
    request: Request,
    stride: int | None = None,
) -> Iterator[Decoding]:
    """Generate, and yield the state each time ``stride`` tokens were drawn (or the cache is full) and at the end.

    A yielded state is consumed by the next step: read what you need of it before asking for more.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` and ``valid [P, W]``, padded on the left.
        key: a typed PRNG key.
        request: static.
        stride: tokens between two yields; None for as many as the cache holds.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion.
    """
    limit = request.max_new_tokens
    _check(config, prompts[0].shape[1], request)
    prompts, request = shared_out(prompts, request)
    room = min(FIRST_ROOM, limit)
    prompt, state = prefill(config, params, *prompts, key, request, room)
    yield state
    unrolled = _unrolled(config, params)
    drawn = 1
    while drawn < limit and bool(state.alive.any()):
        if drawn > room:
            room = min(2 * room, limit)
            state = state._replace(cache=_widen(state.cache, room))
        drawn = min(limit, room + 1, drawn + (stride or limit))
        state = decode(config, unrolled, prompt, state, jnp.int32(drawn), request)
        yield state


def generate(
    config: DecoderConfig, params: Params, prompts: tuple[jax.Array, jax.Array], key: jax.Array, request: Request
) -> Completions:
    """Draw ``group_size`` completions of every prompt.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        key: a typed PRNG key; the same key and shapes give the same completions.
        request: sampler, stop tokens, longest completion, group size.

    Returns:
        ``Completions`` of ``P · G`` rows and ``W + max_new_tokens`` columns.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion.
    """
    *_, last = stream(config, params, prompts, key, request)
    prompts, request = shared_out(prompts, request)
    return completions(*prompts, last, request)


def generate_at_once(
    config: DecoderConfig, params: Params, prompts: tuple[jax.Array, jax.Array], key: jax.Array, request: Request
) -> Completions:
    """``generate`` as one pure function to be jitted, scanned and vmapped: the cache has room for all tokens at once.

    Limiting case: the completions of ``generate`` for the same key.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        key: a typed PRNG key.
        request: sampler, stop tokens, longest completion, group size.

    Returns:
        ``Completions`` of ``P · G`` rows and ``W + max_new_tokens`` columns.

    Raises:
        ValueError: where prompt and completion could exceed the model's ``max_positions``, or ``min_new_tokens`` the
            longest completion.
    """
    limit = request.max_new_tokens
    _check(config, prompts[0].shape[1], request)
    prompts, request = shared_out(prompts, request)
    prompt, state = prefill(config, params, *prompts, key, request, limit)
    state = decode(config, _unrolled(config, params), prompt, state, jnp.int32(limit), request)
    return completions(*prompts, state, request)


@partial(jax.jit, static_argnums=3)
def completions(tokens: jax.Array, valid: jax.Array, state: Decoding, request: Request) -> Completions:
    """``Completions`` from prompts ``[P, W]`` and the last state of their generation."""

    def beside(prompt: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.repeat(prompt, request.group_size, 0), own], 1)

    def sets(kept: jax.Array) -> jax.Array:
        return jnp.pad(kept, ((0, 0), (tokens.shape[1], 0), (0, 0)), constant_values=EVERY)

    chosen = jnp.arange(request.max_new_tokens) < state.lengths[:, None]
    return Completions(
        tokens=beside(tokens, state.tokens),
        valid=beside(valid, chosen),
        mask=beside(jnp.zeros_like(valid), chosen),
        log_probs=beside(jnp.zeros(tokens.shape), state.log_probs),
        truncated=state.alive,
        kept=None if state.kept is None else sets(state.kept),
    )


def _check(config: DecoderConfig, width: int, request: Request) -> None:
    limit = request.max_new_tokens
    least = request.min_new_tokens
    if width + limit > config.max_positions:
        raise ValueError(
            f"generate: a prompt of {width} tokens and max_new_tokens {limit} make {width + limit}, the model was "
            f"trained for max_positions {config.max_positions}; shorten the prompts or lower max_new_tokens."
        )
    if not 0 <= least <= limit:
        raise ValueError(
            f"generate: min_new_tokens is {least}, wanted a number from 0 to max_new_tokens, {limit}; change one of "
            "them."
        )
    if least and len(set(request.stop_ids)) >= config.vocab_size:
        raise ValueError(
            f"generate: min_new_tokens is {least} and all {config.vocab_size} tokens are stop tokens; leave it out."
        )
