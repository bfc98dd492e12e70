"""The state of a generation: what ``decode`` reads of the prompts, what changes of the rows, and what is made of both.

No function here runs a model. All rows write the keys of a step into one column, and the columns are used again from
the first on where they are at their end: what a column holds for a row follows from how many tokens the row has, so
rows may be of different ages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core.mesh import ROWS, devices_along
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import KEYS, VALUES, Cache, columns_of, empty_cache, kept, last_columns
from rlax_llm.generation.draws import Memory, remember, sampled
from rlax_llm.generation.reading import Stacked
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Draw
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.routing import routes_of
from rlax_llm.models.segments import NOWHERE, Segment, Window, positions_of


class Prefilled(NamedTuple):
    """The prompts' side of a generation, which ``decode`` only reads.

    Attributes:
        cache: for each layer keys ``[P, 1, K, head_dim, W]`` and values ``[P, 1, K, W, head_dim]``, or as many of the
            last columns as the layer keeps.
        valid: ``[P, W]`` bool.
        common: for each layer keys ``[1, K, head_dim, C]`` and values ``[1, K, C, head_dim]`` of what all prompts begin
            with, which stands in front of ``cache``; or nothing.
    """

    cache: Cache
    valid: jax.Array
    common: Cache = ()

    @property
    def begin(self) -> int:
        """Tokens that all prompts have in common."""
        return self.common[0][0].shape[-1] if self.common else 0

    @property
    def lengths(self) -> jax.Array:
        """``[P]`` int32, tokens of each prompt."""
        return self.begin + self.valid.sum(-1, dtype=jnp.int32)

    @property
    def places(self) -> jax.Array:
        """``[P, 1, W]`` int32, of the keys that each prompt has to itself."""
        return jnp.where(self.valid, self.begin + positions_of(self.valid), NOWHERE)[:, None]

    def segments(self, layer: int, window: Window = None) -> list[Segment]:
        """What rows attend to besides their own tokens: what all prompts share, where there is that, and each one's.

        Args:
            layer: its number.
            window: tokens that a query reads at most; None is all.
        """
        keys, values = self.cache[layer]
        places, columns = self.places, keys.shape[-1]
        own = Segment(keys, values, places if columns == places.shape[-1] else places[..., -columns:])
        if not self.common:
            return [own]
        # All queries stand behind what is common, so none reads what is further away from its end than the window.
        count = min(self.begin, window) if isinstance(window, int) else self.begin
        (common,) = last_columns((self.common[layer],), (count,))
        return [Segment(*common, jnp.arange(self.begin - count, self.begin)[None]), own]

    def by_row(self, function: Callable[[Prefilled], Prefilled]) -> Prefilled:
        """The same with a function of what each prompt has to itself."""
        own = function(self._replace(common=()))
        return own._replace(common=self.common)


class Decoding(NamedTuple):
    """The completions' side, one entry per row: everything that changes from step to step.

    Attributes:
        cache: for each layer keys ``[P, G, K, head_dim, room]`` and values ``[P, G, K, room, head_dim]``; the keys of a
            row's token that is drawn at step t are in column ``t % room``, where ``room`` is the layer's own.
        tokens: ``[B, limit]`` int32, padded with the first stop token.
        log_probs: ``[B, limit]`` float32, nats.
        kept: ``[B, limit, ceil(V/32)]`` uint32, as ``token_sets.to_bits`` packs sets; None where nothing is ever cut.
        alive: ``[B]`` bool, nothing that ends the completion was drawn yet.
        lengths: ``[B]`` int32, tokens chosen so far.
        limits: ``[B]`` int32, the most tokens of the row.
        keys: ``[B]``, of the row; a draw folds the number of the row's tokens in.
        rows: ``[B]`` int32, which completion of the generation a row is.
        step: scalar int32, draws so far.
        memory: of the rows' tokens, what decides on the next ones.
        routed: ``[B, W + limit, L·k]``, where the tokens of prompt and completion were sent that were read so far, as
            ``Completions.routed``; None where nobody asks.
    """

    cache: Cache
    tokens: jax.Array
    log_probs: jax.Array
    kept: jax.Array | None
    alive: jax.Array
    lengths: jax.Array
    limits: jax.Array
    keys: jax.Array
    rows: jax.Array
    step: jax.Array
    memory: Memory
    routed: jax.Array | None = None

    @property
    def going(self) -> jax.Array:
        """``[B]`` bool: who draws a further token."""
        return self.alive & (self.lengths < self.limits)

    def noting(self, config: DecoderConfig, sent: Sequence[Any], count: jax.Array | None = None) -> Decoding:
        """With where the last drawn tokens were sent, and those that were read behind them.

        Args:
            config: shapes.
            sent: of each layer ``[B, S, k]``, of ``routing.keeping``.
            count: ``[B]``, how many of the tokens belong to the row, the others were guessed; None is the last drawn
                one of rows that go on.
        """
        if self.routed is None:
            return self
        count = self.going if count is None else count
        routes, columns = routes_of(config, jnp.stack(sent)), self.routed.shape[1]
        ahead = jnp.arange(routes.shape[1])
        at = columns - self.tokens.shape[1] + self.lengths[:, None] - 1 + ahead
        at = jnp.where(ahead < count[:, None], at, columns)  # what lies beyond is dropped
        put = jax.vmap(lambda row, at, values: row.at[at].set(values, mode="drop"))
        return self._replace(routed=put(self.routed, at, routes))


def record(state: Decoding, draw: Draw, request: Request, going: jax.Array) -> Decoding:
    """Write a draw behind the tokens of the rows ``going`` ``[B]``, of those that go on."""
    limit = state.tokens.shape[1]
    column = jnp.where(going, state.lengths, limit)  # what lies beyond is dropped

    def put(buffer: jax.Array, values: jax.Array) -> jax.Array:
        # Row by row, so that of several devices each writes its own.
        return jax.vmap(lambda row, at, value: row.at[at].set(value, mode="drop"))(buffer, column, values)

    memory, ended = remember(request, state.memory, draw.tokens, state.lengths, going)
    return state._replace(
        tokens=put(state.tokens, draw.tokens),
        log_probs=put(state.log_probs, draw.log_probs),
        kept=jax.tree.map(put, state.kept, draw.kept),
        alive=state.alive & ~ended,
        lengths=state.lengths + going,
        step=state.step + 1,
        memory=memory,
    )


def _room_for_sets(request: Request, keys: jax.Array, memory: Memory, vocabulary: int) -> jax.Array | None:
    """Where the kept set of each token will be written; None where the sampler never cuts."""
    rows = keys.shape[0]
    logits = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
    kept = jax.eval_shape(partial(sampled, request), lengths, memory, keys, logits).kept
    return None if kept is None else jnp.full((rows, request.max_new_tokens, kept.shape[-1]), EVERY)


def kept_prompts(config: DecoderConfig, request: Request, caches: Stacked, valid: jax.Array) -> Prefilled:
    """The prompts' keys that their completions read.

    Args:
        config: shapes, windows, and the cache's number format.
        request: static.
        caches: of ``read``.
        valid: ``[P, W]`` bool; a layer with a window keeps the last columns.
    """
    return Prefilled(last_columns(of_layers(config, caches), request.keeps(config, valid.shape[1])), valid)


def room_in(config: DecoderConfig, request: Request, state: Decoding) -> int:
    """The tokens of a row that the cache has room for: all, where every layer keeps those of its window.

    Args:
        config: shapes and windows.
        request: static.
        state: of its rows.
    """
    columns = columns_of(state.cache)
    return request.max_new_tokens if columns == request.keeps(config, request.max_new_tokens) else max(columns)


def of_layers(config: DecoderConfig, caches: tuple[jax.Array, jax.Array]) -> Cache:
    """Keys and values of all layers as they are kept, layer by layer, for a group of its own.

    Args:
        config: shapes, and the cache's number format.
        caches: ``reading.Stacked``.
    """

    def of_group(x: jax.Array, axes: tuple[int, int]) -> Any:
        return kept(config, x[:, None], axes[0])

    return tuple((of_group(keys, KEYS), of_group(values, VALUES)) for keys, values in zip(*caches, strict=True))


def before_first(
    config: DecoderConfig, request: Request, own: tuple[jax.Array, jax.Array | None, Memory], room: int, dtype: Any
) -> Decoding:
    """The state of rows for which no token was drawn.

    Args:
        config: shapes.
        request: static.
        own: of each row a key, the most tokens or None for the request's, and its memory of the prompt.
        room: columns of the cache.
        dtype: of the cache.
    """
    keys, limits, memory = own
    rows, limit = keys.shape[0], request.max_new_tokens
    shape = (rows // request.group_size, request.group_size, config.num_kv_heads)
    return Decoding(
        cache=empty_cache(config, shape, request.keeps(config, room), dtype),
        tokens=jnp.full((rows, limit), request.filler, jnp.int32),
        log_probs=jnp.zeros((rows, limit)),
        kept=_room_for_sets(request, keys, memory, config.vocab_size),
        alive=jnp.ones(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        limits=jnp.full(rows, limit, jnp.int32) if limits is None else limits,
        keys=keys,
        rows=jnp.arange(rows, dtype=jnp.int32),
        step=jnp.int32(0),
        memory=memory,
    )


def most_going(state: Decoding) -> jax.Array:
    """How many rows go on, as many on each device as on the one with most of them."""
    return most_of(state.going)


def most_of(going: Any) -> Any:
    """How many of the rows ``[B]`` go on, as many on each device as on the one with most of them."""
    count = lanes(going.shape[0])
    return going.reshape(count, -1).sum(-1, dtype=np.int32).max() * count


def lanes(rows: int) -> int:
    """The devices that rows lie over; 1 where they do not divide, and lie whole on each."""
    devices = devices_along(*ROWS)
    return devices if rows % devices == 0 else 1


@partial(jax.jit, static_argnums=3)
def completions(tokens: jax.Array, valid: jax.Array, state: Any, request: Request) -> Completions:
    """``Completions`` from prompts ``[P, W]`` and what was drawn of them: a ``Decoding`` or ``Drawn``."""
    return completions_by(jnp, tokens, valid, state, request)


def completions_by(numpy: Any, tokens: Any, valid: Any, state: Any, request: Request) -> Completions:
    """``completions`` by ``jax.numpy``, or on the host by ``numpy``, where nothing is compiled.

    Args:
        numpy: one of them.
        tokens: ``[P, W]``.
        valid: ``[P, W]``.
        state: a ``Decoding`` or ``Drawn``.
        request: of it.
    """

    def beside(prompt: Any, own: Any) -> Any:
        return numpy.concatenate([numpy.repeat(prompt, request.group_size, 0), own], 1)

    def sets(kept: Any) -> Any:
        return numpy.pad(kept, ((0, 0), (tokens.shape[1], 0), (0, 0)), constant_values=EVERY)

    chosen = numpy.arange(request.max_new_tokens) < state.lengths[:, None]
    return Completions(
        tokens=beside(tokens, state.tokens),
        valid=beside(valid, chosen),
        mask=beside(numpy.zeros_like(valid), chosen),
        log_probs=beside(numpy.zeros(tokens.shape, state.log_probs.dtype), state.log_probs),
        truncated=state.alive,
        kept=None if state.kept is None else sets(state.kept),
        routed=state.routed,
    )
