"""Completions that go on for some tokens more, as one pure function of fixed shapes.

What was drawn is read again with its prompt, and each next token is drawn by the row's own key and its number of
tokens, so that with equal parameters it does not matter how often a generation was interrupted.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.token_sets import EVERY
from rlax_llm.core.types import Completions
from rlax_llm.generation.cache import whole
from rlax_llm.generation.engine import decode, prefill, unrolled
from rlax_llm.generation.partial import behind_tokens
from rlax_llm.generation.request import Request, check_request, refuse_routed
from rlax_llm.generation.slots import Drawn, behind_others
from rlax_llm.generation.state import Decoding, Prefilled, completions
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params


def goes_on(begun: Completions, limit: int) -> jax.Array:
    """``[B]`` bool: no stop token was drawn, and fewer tokens than ``limit``.

    Args:
        begun: completions.
        limit: the longest completion, tokens.

    >>> rows = jnp.ones((2, 3), bool)
    >>> goes_on(Completions(rows, rows, rows, 0.0 * rows, jnp.array([True, False])), 4).tolist()
    [True, False]
    """
    return begun.truncated & (begun.mask.sum(-1) < limit)


def begun_anew(prompts: tuple[jax.Array, jax.Array], request: Request, like: Completions) -> Completions:
    """Completions of which no token was drawn: ``not_begun`` inside a program.

    Args:
        prompts: ``tokens [P, W]`` int32 and ``valid [P, W]`` bool, padded on the left.
        request: what is asked.
        like: completions of that request, whose shapes and fields it has.

    >>> from rlax_llm.generation.sampling import greedy
    >>> request = Request(greedy, (0,), 2, group_size=2)
    >>> rows = jnp.zeros((2, 3))
    >>> like = Completions(rows.astype(jnp.int32), rows > 0, rows > 0, rows, rows[:, 0] > 0)
    >>> begun_anew((jnp.array([[5]]), jnp.ones((1, 1), bool)), request, like).tokens.tolist()
    [[5, 0, 0], [5, 0, 0]]
    """

    def beside(prompt: jax.Array, filler: Any) -> jax.Array:
        rows = jnp.repeat(prompt, request.group_size, 0)
        return jnp.pad(rows, ((0, 0), (0, request.max_new_tokens)), constant_values=filler)

    tokens, valid = prompts
    return like._replace(
        tokens=beside(tokens, request.filler).astype(like.tokens.dtype),
        valid=beside(valid, False),
        mask=jnp.zeros_like(like.mask),
        log_probs=jnp.zeros_like(like.log_probs),
        truncated=jnp.ones_like(like.truncated),
        kept=None if like.kept is None else jnp.full_like(like.kept, EVERY),
    )


def generate_further(
    config: DecoderConfig, params: Params, begun: Completions, keys: jax.Array, request: Request, most: jax.Array | int
) -> Completions:
    """Go on with completions for at most ``most`` tokens each; a pure function to be jitted, scanned and vmapped.

    ``log_probs`` and ``kept`` of a token are those of the parameters that drew it. Limiting cases: with nothing begun
    and as many tokens as there may be, ``generate_at_once``; so too, if parameters stay, in however many calls.

    Args:
        config: shapes of the decoder.
        params: of ``config.parameter_shapes``.
        begun: of ``begun_anew``, or of an earlier call: B rows with ``max_new_tokens`` columns behind their prompts.
        keys: ``[B]``, of each row, those of before.
        request: sampler, stop tokens, longest completion.
        most: ≥ 1, further tokens of each row; may be traced.

    Returns:
        The completions; ``goes_on`` says which of them have an end before them.

    Raises:
        ValueError: for a ``most`` below 1, completions without room for ``max_new_tokens``, or what
            ``generate_at_once`` does not take.
    """
    checks.at_least_one("generate_further", most=most)
    limit, width = request.max_new_tokens, _width(begun, request)
    check_request(config, width, request)
    refuse_routed("generate_further", request, "completions that go on under other parameters")
    alone, own = request._replace(group_size=1), _drawn(begun, width)
    read = _read_whole(config, params, begun, keys, alone)
    prompt, state = behind_tokens(config, *read, begun.tokens[:, :width], own, alone)
    # A row without tokens reads its prompt's last one again, which stands where its own last one would.
    first = jnp.where(own.lengths == 0, begun.tokens[:, width - 1], state.tokens[:, 0])
    cache = behind_others(state, state.step, alone.keeps(config, limit))
    state = state._replace(tokens=state.tokens.at[:, 0].set(first), cache=cache)
    state = decode(config, unrolled(config, params), prompt, state, state.step + most, alone)
    return completions(begun.tokens[:, :width], begun.valid[:, :width], state, alone)


def _read_whole(
    config: DecoderConfig, params: Params, begun: Completions, keys: jax.Array, request: Request
) -> tuple[Prefilled, Decoding]:
    """Prompts and tokens with all their keys: which are the last of a prompt is known when its tokens are apart."""
    return prefill(config, params, begun.tokens, begun.valid, keys, request._replace(keeps=whole), 0)


def _width(begun: Completions, request: Request) -> int:
    """The columns of the prompts."""
    columns, limit = begun.tokens.shape[1], request.max_new_tokens
    if columns > limit:
        return columns - limit
    raise ValueError(
        f"generate_further: completions of {columns} columns, wanted max_new_tokens, {limit}, columns behind their "
        "prompts; make them by begun_anew."
    )


def _drawn(begun: Completions, width: int) -> Drawn:
    """What was drawn, without the prompts' columns."""
    lengths = begun.mask.sum(-1, dtype=jnp.int32)
    kept = None if begun.kept is None else begun.kept[:, width:]
    return Drawn(begun.tokens[:, width:], begun.log_probs[:, width:], kept, begun.truncated, lengths)
