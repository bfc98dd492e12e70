"""Completions that take several generations: one that has enough groups leaves the others as far as they are.

What is left goes on under other parameters: its prompt and its tokens are read again, and the next token is drawn by
the row's own key and its number of tokens. Interrupted or not, equal parameters thus draw equal tokens.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.core import checks
from rlax_llm.core.mesh import ROWS, TENSOR, devices_along, spread
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import last_columns, over_columns, whole
from rlax_llm.generation.draws import Memory, first_memory, remember
from rlax_llm.generation.engine import prefill, shared_out
from rlax_llm.generation.enough import Enough, too_few
from rlax_llm.generation.prompts import Prompts, check_prompts
from rlax_llm.generation.request import Request, check_request, refuse_routed
from rlax_llm.generation.rollout import Generation, Listener, unheard
from rlax_llm.generation.sampling import chosen_keys, row_keys
from rlax_llm.generation.slots import Drawn, Progress, progress
from rlax_llm.generation.state import Decoding, Prefilled, lanes
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params


def not_begun(prompts: Prompts, request: Request) -> Completions:
    """Completions of which no token was drawn, for ``generate_partly`` to begin.

    Args:
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        request: what is asked.

    Raises:
        ValueError: for what is no prompts.

    >>> from rlax_llm.generation.sampling import greedy
    >>> begun = not_begun((jnp.ones((2, 3), int), jnp.ones((2, 3), bool)), Request(greedy, (0,), 5, group_size=4))
    >>> begun.tokens.shape, int(begun.mask.sum()), unfinished(begun, 5).shape
    ((8, 8), 0, (8,))
    """
    check_prompts("not_begun", prompts)
    tokens, valid = (np.repeat(np.asarray(x), request.group_size, 0) for x in prompts)
    behind = len(tokens), request.max_new_tokens
    valid = np.concatenate([valid, np.zeros(behind, bool)], 1)
    arrays: Any = {
        "tokens": np.concatenate([tokens, np.full(behind, request.filler, tokens.dtype)], 1),
        "valid": valid,
        "mask": np.zeros_like(valid),
        "log_probs": np.zeros(valid.shape, np.float32),
        "truncated": np.ones(len(tokens), bool),
    }
    return Completions(**arrays)


def unfinished(completions: Completions, limit: int) -> np.ndarray:
    """``[B]`` bool, who goes on: no stop token was drawn, and fewer tokens than ``limit``."""
    return np.asarray(completions.truncated) & (np.asarray(completions.mask).sum(-1) < limit)


def generate_partly(
    config: DecoderConfig,
    params: Params,
    begun: Completions,
    key: jax.Array,
    request: Request,
    enough: int,
    slots: int | None = None,
    told: Listener = unheard,
) -> Completions:
    """Go on with completions until every one of ``enough`` groups has ended; the others stay unfinished.

    ``log_probs`` and ``kept`` of a token are those of the parameters that drew it. Limiting cases: with as many groups
    as there are, and nothing begun, the completions of ``generate``; so too, if parameters stay, in however many
    generations.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        begun: of ``P · G`` rows with ``max_new_tokens`` columns behind their prompts: ``not_begun``, or of an earlier
            generation. A group with a row that has no token begins anew.
        key: a typed PRNG key, which is folded with each row's number, or a key for each completion; that of before.
        request: sampler, stop tokens, longest completion, group size.
        enough: groups, from 0 to P.
        slots: completions that are drawn at a time, at most (but for one group); None draws all.
        told: is told of what was read and drawn, unless nothing was.

    Returns:
        The completions, ``unfinished`` some of them.

    Raises:
        ValueError: for ``enough`` out of its range, slots below 1, completions that are not of whole groups, or what
            ``generate`` does not take.
    """
    checks.at_least_one("generate_partly", slots=slots)
    groups = _check(config, begun, request, enough)
    keys = row_keys(key, len(begun.tokens))
    start = _Begun.of(begun, request, groups - enough)
    if not start.wanted():
        return begun
    return _Continued(config, params, start, keys, request, slots).finished(told)


def _check(config: DecoderConfig, begun: Completions, request: Request, enough: int) -> int:
    """The number of groups."""
    rows, width = begun.tokens.shape[0], begun.tokens.shape[1] - request.max_new_tokens
    check_request(config, width, request)
    if width < 1 or rows % request.group_size:
        raise ValueError(
            f"generate_partly: completions of {rows} rows and {begun.tokens.shape[1]} columns, wanted groups of "
            f"{request.group_size} rows, with max_new_tokens, {request.max_new_tokens}, columns behind their prompts; "
            "make them by not_begun."
        )
    groups = rows // request.group_size
    if not 0 <= enough <= groups:
        raise ValueError(f"generate_partly: enough is {enough}, wanted a number of groups from 0 to {groups}.")
    refuse_routed("generate_partly", request, "completions that go on under other parameters")
    return groups


class _Begun(NamedTuple):
    """Where a generation goes on, on the host.

    Attributes:
        prompts: ``[P, W]``.
        drawn: of each row.
        going: ``[B]`` bool.
        size: completions of a group.
        spare: groups that may stay unfinished.
    """

    prompts: tuple[np.ndarray, np.ndarray]
    drawn: Drawn
    going: np.ndarray
    size: int
    spare: int

    @classmethod
    def of(cls, begun: Completions, request: Request, spare: int) -> _Begun:
        """From completions."""
        found: Any = jax.tree.map(np.asarray, begun)
        width, size = found.tokens.shape[1] - request.max_new_tokens, request.group_size
        lengths = found.mask.sum(-1, dtype=np.int32)
        kept = None if found.kept is None else found.kept[:, width:]
        own = Drawn(found.tokens[:, width:], found.log_probs[:, width:], kept, found.truncated, lengths)
        prompts = found.tokens[::size, :width], found.valid[::size, :width]
        return cls(prompts, own, unfinished(found, request.max_new_tokens), size, spare)

    def wanted(self) -> bool:
        """Whether more groups are unfinished than may be."""
        return int(self.going.reshape(-1, self.size).any(1).sum()) > self.spare


class _Continued(Generation):
    """A generation whose first rows have tokens already, and that ends when it has enough.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        start: where it goes on.
        keys: of each row.
        request: static.
        slots: rows that are drawn at a time; None draws all.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        start: _Begun,
        keys: jax.Array,
        request: Request,
        slots: int | None,
    ):
        self.start, self.unbounded = start, slots is None
        rows = len(start.going)
        own: Any = start.prompts
        prompts, request = shared_out(own, request)
        self.anew = (start.drawn.lengths.reshape(-1, request.group_size) == 0).any(1)
        begun = start.going & ~np.repeat(self.anew, request.group_size)
        self.resumed = np.flatnonzero(begun)  # in this order
        self.back = 0  # of them that have entered
        limits = np.full(rows, request.max_new_tokens, np.int32)
        super().__init__(config, params, prompts, (keys, limits), request, min(slots or rows, rows))

    def _read_common(self) -> None:
        """Each prompt is read whole: rows that go on are read with their tokens, and others enter beside them."""

    def _start(self, opened: int) -> Progress:
        """All rows by themselves, the resumed ones first."""
        if self.unbounded and devices_along(*ROWS) > 1:  # of the last to enter devices may have one more than others
            opened += devices_along(*ROWS) * (1 + self.request.group_size)
        self.order = np.flatnonzero(self.anew)
        longest = max(self.start.drawn.lengths[self.resumed], default=0)
        self.first_room = self._ladder(1).longer(longest)
        self.drawn = self._so_far()
        self.known = int(np.asarray(self.drawn.lengths).sum())
        self._open(opened, self.first_room)
        self._count()
        return progress(self.state)

    def _so_far(self) -> Drawn:
        """What was drawn, without what begins anew."""
        own, keep = self.start.drawn, ~np.repeat(self.anew, self.request.group_size)
        lengths, alive = own.lengths * keep, own.alive | ~keep
        return own._replace(lengths=lengths, alive=alive)

    @property
    def read(self) -> int:
        """Prompts of what began, and prompts and tokens of what went on."""
        size, lengths = self.request.group_size, np.asarray(self.prompts[1]).sum(1)
        rows = self.resumed[: self.back]
        again = lengths[rows // size] + np.asarray(self.start.drawn.lengths)[rows]
        return int(lengths[self.order[: self.begun]].sum() + again.sum())

    @property
    def waits(self) -> bool:
        """Whether some rows have not entered yet."""
        return self.back < len(self.resumed) or super().waits

    def _side_by_side(self, count: int) -> np.ndarray:
        """As many on each device, of the last ones too."""
        return np.arange(count).reshape(-1, lanes(count)).T.reshape(-1)

    @property
    def room_to_enter(self) -> int:
        """The rows that must be free for the next to enter."""
        size, behind = self.request.group_size, len(self.resumed) - self.back
        each, most = (1, self.entering * size) if behind > 0 else (size, self.entering)
        left = min(behind if behind > 0 else len(self.order) - self.begun, most)
        devices = lanes(self.entering * size)
        return -(-left // devices) * devices * each

    def _next(self) -> tuple[tuple[Prefilled, Decoding], np.ndarray]:
        found = self._resumed() if self.back < len(self.resumed) else self._prefilled(0)
        if self.drawn is not None and self.drawn.kept is None and found[0][1].kept is not None:
            kept = found[0][1].kept
            every = np.full((len(self.start.going), *kept.shape[1:]), EVERY)
            self.drawn = self.drawn._replace(kept=every)
        return found

    def _resumed(self) -> tuple[tuple[Prefilled, Decoding], np.ndarray]:
        """The next rows that have tokens; the first of them again where others fill up."""
        size = self.request.group_size
        places = self.back + self._side_by_side(self.entering * size)
        self.back += len(places)
        rows = self.resumed[places % len(self.resumed)]
        prompts = tuple(np.asarray(x)[rows // size] for x in self.prompts)
        alone = self.request._replace(group_size=1)
        own = jax.tree.map(lambda x: x[rows], self.start.drawn)
        keys, limits = chosen_keys(self.rows[0], rows), self.rows[1][rows]
        numbers = np.where(places < len(self.resumed), rows, -1)
        found = read_again(self.config, self.params, prompts, own, (keys, limits), alone, self.first_room)
        return found, numbers.astype(np.int32)

    def _let_enter(self, seen: Progress) -> Progress:
        seen = super()._let_enter(seen)
        self._count()
        return seen

    def _count(self) -> None:
        """Which groups wait."""
        waiting = np.zeros(len(self.start.prompts[0]), bool)
        waiting[self.resumed[self.back :] // self.start.size] = True
        waiting[self.order[self.begun :] * self.request.group_size // self.start.size] = True
        self.enough = Enough(waiting, np.int32(self.start.size), np.int32(self.start.spare))

    def advance(self, most: int | None = None) -> bool:
        """Draw until something is to be decided; whether it did not have enough before."""
        assert self.enough is not None
        return bool(too_few(self.enough, *self.seen.of_rows)) and super().advance(most)


@partial(jax.jit, static_argnums=(0, 5, 6))
def read_again(
    config: DecoderConfig,
    params: Params,
    prompts: tuple[jax.Array, ...],
    own: Drawn,
    rows: tuple[jax.Array, jax.Array],
    request: Request,
    room: int,
) -> tuple[Prefilled, Decoding]:
    """Rows that go on behind tokens that were drawn before: what they have is read, prompts and tokens.

    Args:
        config: shapes.
        params: of ``config.parameter_shapes``.
        prompts: ``tokens [B, W]`` and ``valid [B, W]``.
        own: what each row has drawn.
        rows: ``[B]`` each, keys and limits.
        request: static, in groups of one.
        room: columns that hold what was drawn; static.

    Returns:
        As ``behind_tokens``.
    """
    written = jnp.arange(room) < own.lengths[:, None]
    both = (jnp.concatenate(pair, 1) for pair in zip(prompts, (own.tokens[:, :room], written), strict=True))
    # Which columns are the last of a prompt is known when its tokens are apart.
    read = prefill(config, params, *both, rows[0], request._replace(keeps=whole), 0, rows[1])
    return behind_tokens(config, *read, prompts[0], own, request)


@partial(jax.jit, static_argnums=(0, 5))
def behind_tokens(
    config: DecoderConfig, prompt: Prefilled, state: Decoding, tokens: jax.Array, own: Drawn, request: Request
) -> tuple[Prefilled, Decoding]:
    """Rows that go on behind tokens that were drawn before.

    Args:
        config: shapes.
        prompt: of a ``prefill`` of prompts and tokens, each of one row.
        state: of it; its draws are left out.
        tokens: ``[B, W]`` int32, the prompts.
        own: what each row has drawn.
        request: static.

    Returns:
        The prompts' cache and the state of the rows, with the keys of their own tokens.
    """
    width = tokens.shape[1]
    valid = prompt.valid[:, :width]
    shared = over_columns(lambda x, time: jax.lax.slice_in_dim(x, 0, width, axis=time), prompt.cache)
    behind = over_columns(lambda x, time: jax.lax.slice_in_dim(x, width, None, axis=time), prompt.cache)
    if own.kept is None and state.kept is not None:
        own = own._replace(kept=state.kept)
    state = state._replace(
        cache=jax.tree.map(lambda x: spread(x, ROWS, None, TENSOR), behind),
        memory=_remembered(request, first_memory(request, tokens, valid, config.vocab_size), own),
        **own._asdict(),
    )
    return Prefilled(last_columns(shared, request.keeps(config, width)), valid), state


def _remembered(request: Request, memory: Memory, own: Drawn) -> Memory:
    """The memory behind the tokens that were drawn."""

    def read(memory: Memory, drawn: tuple[jax.Array, jax.Array]) -> tuple[Memory, None]:
        tokens, before = drawn
        going = before < own.lengths
        return remember(request, memory, tokens, jnp.where(going, before, 0), going)[0], None

    return jax.lax.scan(read, memory, (own.tokens.T, jnp.arange(own.tokens.shape[1], dtype=jnp.int32)))[0]
