"""The states of completions behind prompts that several of them share: each prompt is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.mesh import ROWS, devices_along
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import Attend, Kind, block, causal, embedding, layer_scan, norm
from rlax_llm.models.dropout import dropping, layer_seeds
from rlax_llm.models.forms import grouped_attention
from rlax_llm.models.functional import Params
from rlax_llm.models.routers import Load
from rlax_llm.models.routing import BY_ROUTER, Routes, Send, routes_by_layer, sending
from rlax_llm.models.segments import Segment, Window, places_of, positions_of, reach_of, segment
from rlax_llm.models.unpadded import Unpadded, before, put, taken


def part_of_group(rows: int, group_size: int) -> int:
    """Rows of a group that are computed together: the largest part of it that no device and no micro-batch cuts.

    Each part computes its prompt anew. Limiting cases: on one device, of whole groups, the group; rows that the devices
    do not divide are computed on each of them.

    Args:
        rows: of a batch whose consecutive rows share a prompt; under a mesh the devices of ``data`` and ``fsdp`` take
            equal shares of them.
        group_size: of the batch that they are taken from.

    >>> part_of_group(16, 8), part_of_group(4, 8), part_of_group(6, 4)
    (8, 4, 2)
    """
    devices = devices_along(*ROWS)
    return math.gcd(rows // devices if rows % devices == 0 else rows, group_size)


def completion_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    layout: tuple[int, int],
    remat: bool,
    dropped: jax.Array | None = None,
) -> jax.Array:
    """Hidden states around the completion tokens of groups sharing a prompt, each prompt computed once.

    Limiting case: ``hidden_states(...)[:, prompt_width − 1 :]`` for any group size, values and gradients; with
    prompts of 45 tokens and completions of 10 in groups of 8, at a third of its cost.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[B, prompt_width + S]`` int32; consecutive rows of a group share a prompt, padded on the left.
        valid: same shape, bool.
        layout: ``(group_size, prompt_width)``, static; where B holds parts of groups, see ``part_of_group``.
        remat: recompute each layer in the backward pass.
        dropped: ``[B]``, of ``Completions.dropout``; a prompt that rows share has its first row's.

    Returns:
        ``[B, 1 + S, D]``: entry s is the state before completion token s, and entry s + 1 the one after it.
    """
    return group_states(config, params, tokens, valid, layout, remat, BY_ROUTER, dropped)[0]


def group_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    layout: tuple[int, int],
    remat: bool = False,
    routes: Routes = BY_ROUTER,
    dropped: jax.Array | None = None,
) -> tuple[jax.Array, Load | None]:
    """``completion_states``, and how each layer's router shares the tokens out, ``[L, …]``, as in ``row_states``.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[B, prompt_width + S]`` int32.
        valid: same shape, bool.
        layout: ``(group_size, prompt_width)``, static.
        remat: recompute each layer in the backward pass.
        routes: where tokens are sent, alike in the prompts of a group, and how often each counts: a prompt's in each of
            its rows.
        dropped: ``[B]``, of ``Completions.dropout``; a prompt that rows share has its first row's.
    """
    seeds = layer_seeds(config, dropped)
    prompt, completion, load = _after_layers(config, params, (tokens, valid), layout, remat, routes, IN_COLUMNS, seeds)
    return norm(config, params["norm"], _behind_prompts(prompt[:, -1:], completion)), load


def token_states(
    config: DecoderConfig,
    params: Params,
    tokens: jax.Array,
    valid: jax.Array,
    layout: tuple[int, int],
    ways: Unpadded,
    remat: bool = False,
    routes: Routes = BY_ROUTER,
) -> tuple[jax.Array, Load | None]:
    """The states before the completions' tokens, of which alone they are computed, and what ``group_states`` tells.

    Limiting case: ``taken(group_states(…)[0][:, :-1], ways)``, values and gradients, but where no token is.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[B, prompt_width + S]`` int32.
        valid: same shape, bool.
        layout: ``(group_size, prompt_width)``, static.
        ways: of ``unpadded(valid[:, prompt_width:], …)``.
        remat: recompute each layer in the backward pass.
        routes: as of ``group_states``.

    Returns:
        ``[lanes, N, D]``, and the loads.
    """
    laid = Laid(partial(taken, ways=ways), partial(_in_cells, ways))
    prompt, completion, load = _after_layers(config, params, (tokens, valid), layout, remat, routes, laid)
    groups, width = len(prompt), prompt.shape[-1]
    begins = jnp.broadcast_to(prompt[:, -1:], (groups, len(tokens) // groups, width)).reshape(-1, width)
    return norm(config, params["norm"], before(completion, begins, ways)), load


class Laid(NamedTuple):
    """How the completions' tokens lie while they are computed.

    Attributes:
        taken: ``[B, S, …] → `` what is computed of it.
        attending: an attention of cells, as one of what is computed.
    """

    taken: Callable[[jax.Array], jax.Array]
    attending: Callable[[Attend], Attend]


def _as_it_is(x: Any) -> Any:
    return x


IN_COLUMNS = Laid(_as_it_is, _as_it_is)


def _in_cells(ways: Unpadded, attend: Attend) -> Attend:
    """An attention of rows, for their tokens."""

    def attend_from_tokens(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        mixed, carried = attend(put(q, ways), put(k, ways), put(v, ways), window, sinks)
        return taken(mixed, ways), carried

    return attend_from_tokens


def _after_layers(
    config: DecoderConfig,
    params: Params,
    rows: tuple[jax.Array, jax.Array],
    layout: tuple[int, int],
    remat: bool,
    routes: Routes,
    laid: Laid,
    seeds: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Load | None]:
    """States of prompts ``[P, prompt_width, D]`` and of completions, as they are laid, before the last norm."""
    tokens, valid = rows
    group_size, width = part_of_group(tokens.shape[0], layout[0]), layout[1]
    sends = _group_sends(config, routes.counted, (group_size, width), laid)
    step = _group_step(config, valid, (group_size, width), sends, laid)
    prompts = embedding(config, params, tokens[::group_size, :width])
    completions = embedding(config, params, laid.taken(tokens[:, width:]))
    beside = seeds, _group_routes(config, routes.given, (group_size, width), laid)
    (prompt, completion), loads = layer_scan(config, params, step, (prompts, completions), remat, *beside)
    return prompt, completion, jax.tree.map(jnp.add, *loads)


def _behind_prompts(last: jax.Array, completion: jax.Array) -> jax.Array:
    """States ``[B, S, D]`` of completions behind the last one ``[P, 1, D]`` of their prompts."""
    rows, length, width = completion.shape
    groups = last.shape[0]
    before = jnp.broadcast_to(last[:, None], (groups, rows // groups, 1, width))
    own = completion.reshape(groups, rows // groups, length, width)
    return jnp.concatenate([before, own], 2).reshape(rows, length + 1, width)


Sending = Callable[[jax.Array | None], Send]
"""``where a sampler sent the tokens, or None → Send``."""


def _group_sends(
    config: DecoderConfig, counted: jax.Array | None, layout: tuple[int, int], laid: Laid
) -> tuple[Sending, Sending]:
    """Of prompts and of completions; a prompt counts in each of its rows."""
    group_size, width = layout
    if counted is None:
        return partial(sending, config, None), partial(sending, config, None)
    of_prompts = counted[:, :width].reshape(-1, group_size, width).sum(1)
    return partial(sending, config, of_prompts), partial(sending, config, laid.taken(counted[:, width:]))


def _group_routes(
    config: DecoderConfig, routed: jax.Array | None, layout: tuple[int, int], laid: Laid
) -> tuple[jax.Array | None, jax.Array | None]:
    """Where a sampler sent prompts and completions, layer by layer; a prompt as its first row says."""
    group_size, width = layout
    by_layer = routes_by_layer(config, routed)
    if by_layer is None:
        return None, None
    return by_layer[:, ::group_size, :width], jax.vmap(laid.taken)(by_layer[:, :, width:])


def _group_step(
    config: DecoderConfig, valid: jax.Array, layout: tuple[int, int], sends: tuple[Sending, Sending], laid: Laid
) -> Callable[..., Any]:
    """One layer over the states of prompts and of completions, which read their prompt's keys and their own."""
    group_size, width = layout
    apply = block(config)[1]
    positions = positions_of(valid)
    places = places_of(valid)
    prompt_places = places[::group_size, :width]
    attend_to_itself = causal(config, valid[::group_size, :width])
    own_places = places[:, width:].reshape(-1, group_size, valid.shape[1] - width)
    behind = laid.taken(positions[:, width:])

    def step(
        carry: tuple[jax.Array, jax.Array], layer: Params, kind: Kind | None, seeds: Any, given: tuple[Any, Any]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, Any]]:
        at = positions[::group_size, :width]
        drop = dropping(config, None if seeds is None else seeds[::group_size], at)
        prompt, (keys, values), of_prompt = apply(layer, carry[0], at, attend_to_itself, kind, sends[0](given[0]), drop)
        shared = Segment(keys[:, None], values[:, None], prompt_places[:, None])
        attend = laid.attending(_attend_to_prompt(config, shared, own_places))
        drop = dropping(config, seeds, behind)
        completion, _, of_completion = apply(layer, carry[1], behind, attend, kind, sends[1](given[1]), drop)
        return (prompt, completion), (of_prompt, of_completion)

    return step


def _attend_to_prompt(config: DecoderConfig, shared: Segment, places: jax.Array) -> Attend:
    """Completions, at places ``[P, G, S]`` that count on from their prompt's, read its keys and their own."""

    def by_group(x: jax.Array) -> jax.Array:
        return x.reshape(*places.shape, *x.shape[2:])

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None
    ) -> tuple[jax.Array, None]:
        own = jax.vmap(segment)(by_group(k), by_group(v), places)
        mixed = grouped_attention(config, by_group(q), reach_of(places), [shared, own], window=window, sinks=sinks)
        return mixed.reshape(*q.shape[:2], -1), None

    return attend


def group_hidden_states(
    config: DecoderConfig, params: Params, tokens: jax.Array, valid: jax.Array, layout: tuple[int, int], remat: bool
) -> jax.Array:
    """Hidden states ``[P · G, S, D]`` that predict the completions' tokens: ``completion_states`` but for the last.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        tokens: ``[P · G, prompt_width + S]`` int32.
        valid: same shape, bool.
        layout: ``(group_size, prompt_width)``, static.
        remat: recompute each layer in the backward pass.
    """
    return completion_states(config, params, tokens, valid, layout, remat)[:, :-1]
