"""The learner's view of completions: log-probabilities and entropies ``[B, T]`` in the layout of ``Completions``."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.log_probs import token_log_probs
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import group_hidden_states, head, hidden_states, vocabulary_logits
from rlax_llm.models.functional import Params
from rlax_llm.types import Completions

LogProbs = Callable[[Params, Completions], tuple[jax.Array, jax.Array]]


def _score(
    params: Params, hidden: jax.Array, completions: Completions, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Score the last ``S`` columns from ``hidden [B, S, D]``; zeros in the columns before and outside ``mask``."""
    columns = hidden.shape[1]
    mask = completions.mask[:, -columns:]
    flat = (x.reshape(-1, *x.shape[2:]) for x in (hidden, completions.tokens[:, -columns:]))
    scores = token_log_probs(
        next(flat), head(params), next(flat), temperature, completions.thresholds[:, -columns:].reshape(-1)
    )
    before = ((0, 0), (completions.tokens.shape[1] - columns, 0))
    log_probs, entropy = (jnp.pad(jnp.where(mask, x.reshape(mask.shape), 0.0), before) for x in scores)
    return log_probs, entropy


def row_log_probs(config: DecoderConfig, remat: bool = False) -> LogProbs:
    """``(params, completions) → (log_probs, entropy)`` for rows that share nothing.

    Args:
        config: shapes.
        remat: recompute each layer in the backward pass.

    Returns:
        A function to arrays ``[B, T]`` in nats, 0 where ``mask`` is False.
    """

    def log_probs(params: Params, completions: Completions) -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(config, params, completions.tokens, completions.valid, remat)
        return _score(params, hidden[:, :-1], completions, 1.0)

    return log_probs


def group_log_probs(
    config: DecoderConfig, layout: tuple[int, int], temperature: float = 1.0, remat: bool = False
) -> LogProbs:
    """``(params, completions) → (log_probs, entropy)`` for groups, each prompt computed once for its G completions.

    Limiting case: ``row_log_probs`` at temperature 1, for any ``group_size``.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows to a prompt, and the columns that hold prompts.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.

    Returns:
        A function to arrays ``[B, T]`` in nats, 0 where ``mask`` is False.
    """

    def log_probs(params: Params, completions: Completions) -> tuple[jax.Array, jax.Array]:
        hidden = group_hidden_states(config, params, completions.tokens, completions.valid, layout, remat)
        return _score(params, hidden, completions, temperature)

    return log_probs


def group_logits(
    config: DecoderConfig, layout: tuple[int, int], temperature: float = 1.0, remat: bool = False
) -> Callable[[Params, Completions], jax.Array]:
    """``(params, completions) → [B, S, V]``: tempered logits behind each of the last ``S = T − prompt_width`` tokens.

    They are held whole, as a Fisher matrix over them needs; ``group_log_probs`` never does. A sampler's top-k and top-p
    are not applied. Limiting case: their log-softmax at the tokens is ``group_log_probs`` of a plain sampler.

    Args:
        config: shapes.
        layout: ``(group_size, prompt_width)``: rows to a prompt, and the columns that hold prompts.
        temperature: the sampler's.
        remat: recompute each layer in the backward pass.
    """

    def logits(params: Params, completions: Completions) -> jax.Array:
        hidden = group_hidden_states(config, params, completions.tokens, completions.valid, layout, remat)
        return vocabulary_logits(params, hidden) / temperature

    return logits
