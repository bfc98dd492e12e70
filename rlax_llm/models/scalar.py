"""A decoder with a scalar in place of its head: reward models, which score a completion, and value models.

Parameters are ``config.scalar_shapes``: the decoder's, with ``score [D]`` in place of a head of its own. The value of a
state is ``score · h`` with h the last hidden state, without a bias, as in transformers' ``…ForSequenceClassification``
with one label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core.types import Completions, Room
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.models.shared_prompts import completion_states, token_states
from rlax_llm.models.unpadded import put, unpadded

Initial = Callable[[jax.Array, Sequence[int], Any], jax.Array]
Scalars = Callable[[Params, Completions], jax.Array]


def small_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Normal with variance ``1 / (D + 1)``, as reward models start with since arXiv 2009.01325.

    Hidden states have a mean square of about 1, so that first scores are of order 1.

    Args:
        key: randomness.
        shape: ``(D,)``.
        dtype: of the array.

    >>> small_normal(jax.random.key(0), (8,)).shape
    (8,)
    """
    return jax.random.normal(key, shape, dtype) * (shape[0] + 1) ** -0.5


def init_scalar(params: Params, key: jax.Array, initial: Initial = small_normal) -> Params:
    """A scalar model from a decoder: its head is dropped, a score of its own dtype takes the place.

    Limiting case: with ``jax.nn.initializers.zeros`` every score and value is exactly 0, where a value model that is
    not initialized from a reward model had best start.

    Args:
        params: of a decoder, ``config.parameter_shapes``; or of a scalar model, whose score is then replaced.
        key: a typed PRNG key.
        initial: ``(key, shape, dtype) → array``, such as ``jax.nn.initializers.zeros``.

    Returns:
        The nested dict of ``config.scalar_shapes``; the decoder's arrays are not copied.

    >>> params = {"embed": jnp.ones((5, 4)), "layers": {}, "norm": jnp.ones(4), "head": jnp.ones((5, 4))}
    >>> sorted(init_scalar(params, jax.random.key(0)))
    ['embed', 'layers', 'norm', 'score']
    """
    embed = params["embed"]
    body = {name: leaf for name, leaf in params.items() if name not in ("head", "score")}
    return body | {"score": jnp.asarray(initial(key, (embed.shape[1],), jnp.float32), embed.dtype)}


def token_values(config: DecoderConfig, layout: tuple[int, int], remat: bool = False) -> Scalars:
    """``(params, completions) → values [B, T]``: of the state *before* token t was chosen, ``score · h[t − 1]``.

    Limiting cases: layout ``(1, prompt_width)`` is rows that share nothing; the value before a token that would follow
    a completion is its ``sequence_scores``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        remat: recompute each layer in the backward pass.

    Returns:
        A function to ``[B, T]``, of at least float32, in the units of the scores; 0 where ``mask`` is False.
    """

    def values(params: Params, completions: Completions) -> jax.Array:
        if completions.room is None:
            before = _state_values(config, params, completions, layout, remat)[:, :-1]
        else:
            before = _token_values(config, params, completions, layout, remat, completions.room)
        return jnp.where(completions.mask, jnp.pad(before, ((0, 0), (layout[1], 0))), 0.0)

    return values


def sequence_scores(config: DecoderConfig, layout: tuple[int, int], remat: bool = False) -> Scalars:
    """``(params, completions) → scores [B]``: ``score · h`` at the last valid token of each row.

    That token may be the policy's or a tool's. Limiting cases: layout ``(1, prompt_width)`` is rows that share nothing;
    an empty completion is scored at its prompt's last token, and a row without any valid token 0.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        remat: recompute each layer in the backward pass.

    Returns:
        A function to ``[B]``, of at least float32.
    """

    def scores(params: Params, completions: Completions) -> jax.Array:
        values = _state_values(config, params, completions, layout, remat)
        own = completions.valid[:, layout[1] :]
        last = jnp.where(own, 1 + jnp.arange(own.shape[1]), 0).max(-1, initial=0)
        read = jnp.take_along_axis(values, last[:, None], -1)[:, 0]
        return jnp.where(completions.valid.any(-1), read, 0.0)

    return scores


def prefix_scores(config: DecoderConfig, layout: tuple[int, int], remat: bool = False) -> Scalars:
    """``(params, completions) → scores [B, T]``: of each row up to and with token t, ``score · h[t]``.

    What a process reward model says of a step is read at its last token. Limiting cases: at the last valid token it is
    ``sequence_scores``; one place further left ``token_values``, the state before token t + 1 being that after t.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows per prompt, and the columns that hold prompts.
        remat: recompute each layer in the backward pass.

    Returns:
        A function to ``[B, T]``, of at least float32; 0 where ``mask`` is False.
    """

    def scores(params: Params, completions: Completions) -> jax.Array:
        after = jnp.pad(_state_values(config, params, completions, layout, remat)[:, 1:], ((0, 0), (layout[1], 0)))
        return jnp.where(completions.mask, after, 0.0)

    return scores


def drop_trailing(completions: Completions, token_id: int) -> Completions:
    """The rows as transformers scores them where ``token_id`` pads: up to their last token that is another one.

    A tokenizer that pads with its stop token cannot say where a stop token ends a row, so transformers' classifiers
    (and what is trained with them) read the token before it. ``sequence_scores`` of these rows are theirs. Limiting
    case: rows that do not end in ``token_id`` stay as they are.

    Args:
        completions: ``[B, T]``.
        token_id: the padding's id, ``tokenizer.pad_id``.

    >>> row, some = jnp.array([[5, 2, 7, 2, 2]]), jnp.ones((1, 5), bool)
    >>> row = Completions(row, some, some, jnp.zeros((1, 5)), jnp.zeros(1, bool))
    >>> drop_trailing(row, 2).valid.tolist()
    [[True, True, True, False, False]]
    """
    other = completions.valid & (completions.tokens != token_id)
    kept = jnp.flip(jnp.cumsum(jnp.flip(other, -1), -1), -1) > 0
    return completions._replace(valid=completions.valid & kept, mask=completions.mask & kept)


def _state_values(
    config: DecoderConfig, params: Params, completions: Completions, layout: tuple[int, int], remat: bool
) -> jax.Array:
    """``score · h`` of the states before and after each completion token, ``[B, 1 + S]``."""
    rows, dropped = (completions.tokens, completions.valid), completions.dropout
    hidden = completion_states(config, params, *rows, layout, remat, dropped)
    return _scored(params, hidden)


def _token_values(
    config: DecoderConfig, params: Params, completions: Completions, layout: tuple[int, int], remat: bool, room: Room
) -> jax.Array:
    """``score · h`` of the states before each completion token, ``[B, S]``, computed without padding."""
    ways = unpadded(completions.valid[:, layout[1] :], room.tokens)
    hidden, _ = token_states(config, params, completions.tokens, completions.valid, layout, ways, remat)
    return put(_scored(params, hidden), ways)


def _scored(params: Params, hidden: jax.Array) -> jax.Array:
    """Products and their sum in float32, and no matmul: accelerators would round its inputs."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return (hidden.astype(wide) * params["score"].astype(wide)).sum(-1)
