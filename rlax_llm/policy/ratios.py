"""The log-ratio that a trust region reads, from the current and the behavior policy's log-probabilities.

Sequence-level ratios reduce the last axis and give every chosen token of a row the row's number, so that one trust
region and one weighting serve them as they serve tokens. Their ``*_token_ratio`` forms have the same value with the
gradient of the token's own ratio.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import straight_through
from rlax_llm.core.masked import at_least_float32

Ratio = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@check_arguments
def token_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Per-token log-ratio ``log π(a_t|s_t) − log π_old(a_t|s_t)`` (PPO, arXiv 1707.06347).

    Limiting case: 0 everywhere on the first update after a rollout.

    Args:
        log_probs: the current policy's, any shape, nats.
        old_log_probs: the behavior policy's, same shape, nats.
        mask: same shape, True where the policy chose; sequence-level ratios need it, this one does not.

    Returns:
        Same shape, nats.

    >>> token_ratio(jnp.array([-1.0]), jnp.array([-1.5]), jnp.array([True])).tolist()
    [0.5]
    """
    checks.same_shape("token_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return log_probs - old_log_probs


def _chosen_token_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """``token_ratio``, 0 with a zero gradient where the policy did not choose, whatever stands there."""
    return token_ratio(jnp.where(mask, log_probs, 0.0), jnp.where(mask, old_log_probs, 0.0), mask)


@check_arguments
def summed_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-ratio of whole completions, ``Σ_t log π(a_t|s_t) − log π_old(a_t|s_t)``, on each of their tokens.

    The importance ratio of the sequence as one action (RLOO with a clip). Limiting case: ``token_ratio`` for rows with
    one token.

    Args:
        log_probs: the current policy's, ``[..., T]``, nats.
        old_log_probs: the behavior policy's, same shape, nats.
        mask: same shape, True where the policy chose.

    Returns:
        Same shape, nats, in at least float32; 0 where ``mask`` is False.

    >>> mask = jnp.array([True, True, False])
    >>> summed_ratio(jnp.array([-1.0, -2.0, 9.0]), jnp.array([-1.5, -4.0, 0.0]), mask).tolist()
    [2.5, 2.5, 0.0]
    """
    checks.same_shape("summed_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    log_ratio = at_least_float32(_chosen_token_ratio(log_probs, old_log_probs, mask))
    return jnp.where(mask, log_ratio.sum(-1, keepdims=True), 0.0)


@check_arguments
def sequence_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean log-ratio of each completion, ``1/|y| · Σ_t log π(a_t|s_t) − log π_old(a_t|s_t)``, on each of its tokens.

    GSPO's ratio (arXiv 2507.18071), the geometric mean of the token ratios; its trust region is far narrower
    than a token's (half-widths of 3e-4 and 4e-4 in the paper). Limiting cases: ``token_ratio`` for rows with one
    token; ``summed_ratio / |y|``. With ``sequence_sum`` weights it is LUSPO.

    Args:
        log_probs: the current policy's, ``[..., T]``, nats.
        old_log_probs: the behavior policy's, same shape, nats.
        mask: same shape, True where the policy chose.

    Returns:
        Same shape, nats, in at least float32; 0 where ``mask`` is False.

    >>> mask = jnp.array([True, True, False])
    >>> sequence_ratio(jnp.array([-1.0, -2.0, 9.0]), jnp.array([-1.5, -4.0, 0.0]), mask).tolist()
    [1.25, 1.25, 0.0]
    """
    checks.same_shape("sequence_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return summed_ratio(log_probs, old_log_probs, mask) / jnp.maximum(mask.sum(-1, keepdims=True), 1)


@check_arguments
def sequence_token_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """GSPO-token: ``sequence_ratio``'s value with ``token_ratio``'s gradient (arXiv 2507.18071).

    With one advantage for the whole completion and ``sequence_mean`` weights the gradient is GSPO's; advantages may
    also differ from token to token. Limiting case: ``token_ratio`` for rows with one token.

    Args:
        log_probs: the current policy's, ``[..., T]``, nats.
        old_log_probs: the behavior policy's, same shape, nats.
        mask: same shape, True where the policy chose.

    Returns:
        Same shape, nats, in at least float32; 0 where ``mask`` is False.

    >>> sequence_token_ratio(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -4.0]), jnp.array([True, True])).tolist()
    [1.25, 1.25]
    """
    checks.same_shape("sequence_token_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return straight_through(sequence_ratio, _chosen_token_ratio)(log_probs, old_log_probs, mask)


@check_arguments
def summed_token_ratio(log_probs: jax.Array, old_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """``summed_ratio``'s value with ``token_ratio``'s gradient: what ``vespo`` reads.

    Limiting case: ``token_ratio`` for rows with one token. Summed over a row its gradient is that of one
    ``summed_ratio``.

    Args:
        log_probs: the current policy's, ``[..., T]``, nats.
        old_log_probs: the behavior policy's, same shape, nats.
        mask: same shape, True where the policy chose.

    Returns:
        Same shape, nats, in at least float32; 0 where ``mask`` is False.

    >>> summed_token_ratio(jnp.array([-1.0, -2.0]), jnp.array([-1.5, -4.0]), jnp.array([True, True])).tolist()
    [2.5, 2.5]
    """
    checks.same_shape("summed_token_ratio", log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    return straight_through(summed_ratio, _chosen_token_ratio)(log_probs, old_log_probs, mask)
