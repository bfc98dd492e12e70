"""Aggregation as weights: ``mask [B, T] → weights [B, T]``, and a loss is ``Σ weights · loss``.

Take the weights once per optimizer step over the whole batch, then split the batch as you like: sums of micro-batches,
devices or packed rows are exact. A row without a True in its mask (padding, or filtered out) counts in no denominator,
so adding such rows changes nothing. An empty batch has weights 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments

Weighting = Callable[[jax.Array], jax.Array]


def _rows(mask: jax.Array) -> jax.Array:
    return jnp.maximum(mask.any(-1).sum(), 1)


@check_arguments
def token_mean(mask: jax.Array) -> jax.Array:
    """Every token of the batch weighs the same, ``1 / Σ mask`` (PPO; DAPO, arXiv 2503.14476, eq. 8).

    Limiting case: equals ``sequence_mean`` where all rows have one length. Weights sum to 1.

    Args:
        mask: ``[B, T]`` bool, True where the policy chose.

    Returns:
        ``[B, T]`` float32 weights.

    >>> token_mean(jnp.array([[True, True, True], [True, False, False]])).tolist()
    [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    """
    return mask / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


@check_arguments
def sequence_mean(mask: jax.Array) -> jax.Array:
    """Mean over each sequence's tokens, then over sequences, ``1 / (B · len_i)`` (GRPO, arXiv 2402.03300, eq. 3).

    A token of a long completion weighs less: wrong answers are pushed down less when they are long.
    Limiting case: equals ``token_mean`` where all rows have one length. Weights sum to 1.

    Args:
        mask: ``[B, T]`` bool, True where the policy chose.

    Returns:
        ``[B, T]`` float32 weights.

    >>> sequence_mean(jnp.array([[True, True], [True, False]])).tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    checks.rank("sequence_mean", "mask", mask, 2, "[B, T]")
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return mask / (lengths * _rows(mask)).astype(jnp.float32)


@check_arguments
def sequence_sum(mask: jax.Array) -> jax.Array:
    """Sum over each sequence's tokens, mean over sequences, ``1 / B``: the policy gradient of whole completions (RLOO).

    Limiting case: ``T · fixed_length(T)``.

    Args:
        mask: ``[B, T]`` bool, True where the policy chose.

    Returns:
        ``[B, T]`` float32 weights.

    >>> sequence_sum(jnp.array([[True, True], [True, False]])).tolist()
    [[0.5, 0.5], [0.5, 0.0]]
    """
    checks.rank("sequence_sum", "mask", mask, 2, "[B, T]")
    return mask / _rows(mask).astype(jnp.float32)


@check_arguments
def fixed_length(max_new_tokens: int) -> Weighting:
    """Sum over each sequence's tokens divided by a constant, ``1 / (B · max_new_tokens)`` (Dr.GRPO, arXiv 2503.20783).

    Limiting cases: ``sequence_mean`` where every completion has ``max_new_tokens`` tokens; ``sequence_sum`` for 1.

    Args:
        max_new_tokens: the constant length, tokens; the sampler's limit, not the batch's longest.

    Returns:
        A weighting ``mask [B, T] → weights [B, T]``.

    Raises:
        ValueError: for a length that is not positive.

    >>> fixed_length(4)(jnp.array([[True, True], [True, False]])).tolist()
    [[0.125, 0.125], [0.125, 0.0]]
    """
    checks.positive("fixed_length", max_new_tokens=max_new_tokens)
    return lambda mask: sequence_sum(mask) / max_new_tokens


@check_arguments
def top_entropy(entropy: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """The chosen tokens whose entropy is in the top ``share`` of the batch, one threshold for all (arXiv 2506.01939).

    The threshold is the ``1 − share`` quantile of the chosen tokens' entropies; ties at it are kept. The denominator is
    the caller's: ``weighting(top_entropy(...))`` counts the kept tokens alone, while advantages set to 0 elsewhere
    (``jnp.where(kept, advantages, 0)``) leave every denominator and the KL term as they were, so that the step shrinks
    with ``share``; peers do the latter. Limiting case: ``mask`` itself for ``share = 1``.

    Args:
        entropy: ``[B, T]``, nats; not differentiated. A NaN is never kept.
        mask: ``[B, T]`` bool, True where the policy chose.
        share: of the chosen tokens, in (0, 1]; 0.2 in the paper.

    Returns:
        ``[B, T]`` bool, a part of ``mask``.

    Raises:
        ValueError: for a share outside (0, 1].

    >>> top_entropy(jnp.array([[1.0, 4.0, 2.0, 9.0]]), jnp.array([[True, True, True, False]]), 0.5).tolist()
    [[False, True, True, False]]
    """
    checks.same_shape("top_entropy", entropy=entropy, mask=mask)
    if isinstance(share, (int, float)) and not 0 < share <= 1:
        raise ValueError(f"top_entropy: share is {share}, wanted a number in (0, 1]; 1 keeps every chosen token.")
    entropy = jnp.where(mask, jax.lax.stop_gradient(entropy), jnp.nan)
    # One of the entropies themselves, not a mean of two: rounding must not put equal ones below their own threshold.
    return entropy >= jnp.nanquantile(entropy, 1 - share, method="higher")
