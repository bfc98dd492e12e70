"""Weights for a sampler that differs from the learner: the same parameters, another engine, precision or age.

A correction reads three log-probabilities' worth of arrays: the learner's own at the parameters of the rollout
(``old_log_probs``), the sampler's, and the mask. Its result is detached and multiplies ``PolicyBatch.weights``, which
corrects the policy and the KL term alike, or the advantages, which corrects the policy term alone, as peers do. Where
the sampler's log-probability of a chosen token is NaN (an engine could not score it) its ratio counts as 1.

Each bound applies to the ratio of a token (``token_ratio``), of the whole completion (``summed_ratio``) or to its
geometric mean (``sequence_ratio``): the level is a function, and corrections multiply (``correction_product``).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line, expm1_then_line
from rlax_llm.core.kl import k1, k3
from rlax_llm.core.masked import at_least_float32, masked_mean
from rlax_llm.policy.ratios import Ratio, sequence_ratio, token_ratio

Correction = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _log_ratio(ratio: Ratio, log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
    """Detached log-ratio of the learner to the sampler, 0 where nothing was chosen or the sampler has no number."""
    checks.same_shape("corrections", log_probs=log_probs, sampler_log_probs=sampler_log_probs, mask=mask)
    known = mask & ~jnp.isnan(sampler_log_probs)
    learner, sampler = (at_least_float32(jnp.where(known, x, 0.0)) for x in (log_probs, sampler_log_probs))
    return jax.lax.stop_gradient(jnp.where(mask, ratio(learner, sampler, mask), 0.0))


def _check(where: str, ceiling: float, floor: float) -> None:
    checks.positive(where, ceiling=ceiling)
    checks.not_negative(where, floor=floor, **{"ceiling − floor": ceiling - floor})


@check_arguments
def truncated_importance(*, ceiling: float, floor: float = 0.0, ratio: Ratio = token_ratio) -> Correction:
    """Truncated importance sampling, ``clamp(π_old/π_sampler, floor, ceiling)``: TIS per token or per completion.

    Limiting cases: 1 where the two agree; the unbiased ratio for wide bounds.

    Args:
        ceiling: largest weight, absolute (peers: 2 for tokens and for completions).
        floor: smallest weight, absolute.
        ratio: the level: ``token_ratio``, ``sequence_ratio`` (geometric mean) or ``summed_ratio`` (product).

    Returns:
        A correction ``(old_log_probs, sampler_log_probs, mask) → weights``, ``[B, T]``, 0 where ``mask`` is False.

    Raises:
        ValueError: for a ceiling that is not positive, a negative floor, or one above the ceiling.

    >>> one = jnp.ones((1, 2), bool)
    >>> truncated_importance(ceiling=2.0)(jnp.array([[-1.0, -2.0]]), jnp.array([[-3.0, -2.0]]), one).tolist()
    [[2.0, 1.0]]
    """
    _check("truncated_importance", ceiling, floor)

    def weights(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
        importance = exp_then_line(_log_ratio(ratio, old_log_probs, sampler_log_probs, mask))
        return jnp.where(mask, jnp.clip(importance, floor, ceiling), 0.0)

    return weights


@check_arguments
def rejection(*, ceiling: float, floor: float = 0.0, ratio: Ratio = sequence_ratio) -> Correction:
    """Keep or drop, ``1[floor ≤ π_old/π_sampler ≤ ceiling]``; of whole completions by their geometric mean as a rule.

    Limiting case: ``mask`` itself for wide bounds.

    Args:
        ceiling: largest ratio kept, absolute (peers: 1.001 for the geometric mean).
        floor: smallest ratio kept, absolute (peers: 0.999 for the geometric mean).
        ratio: the level: ``token_ratio``, ``sequence_ratio`` (geometric mean) or ``summed_ratio`` (product).

    Returns:
        A correction ``(old_log_probs, sampler_log_probs, mask) → weights``, ``[B, T]``, 1 or 0; 0 where ``mask`` is
        False.

    Raises:
        ValueError: for a ceiling that is not positive, a negative floor, or one above the ceiling.

    >>> one = jnp.ones((1, 2), bool)
    >>> rejection(floor=0.5, ceiling=2.0)(jnp.array([[-1.0, -2.0]]), jnp.array([[-3.0, -2.0]]), one).tolist()
    [[0.0, 0.0]]
    """
    _check("rejection", ceiling, floor)

    def weights(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
        importance = exp_then_line(_log_ratio(ratio, old_log_probs, sampler_log_probs, mask))
        return jnp.where(mask & (floor <= importance) & (importance <= ceiling), 1.0, 0.0).astype(importance.dtype)

    return weights


@check_arguments
def second_moment_mask(*, limit: float = 0.04, ratio: Ratio = token_ratio) -> Correction:
    """Drop the tokens that differ most, until the mean of the others' squared log-ratios is at most ``limit`` (M2PO).

    The fewest of the whole batch are dropped (arXiv 2510.01161), so a stale batch keeps most of its tokens. Limiting
    case: ``mask`` itself where the mean is within the limit already.

    Args:
        limit: ≥ 0, nats².
        ratio: the level: ``token_ratio``, ``sequence_ratio`` (geometric mean) or ``summed_ratio`` (product).

    Returns:
        A correction ``(old_log_probs, sampler_log_probs, mask) → weights``, ``[B, T]``, 1 or 0; 0 where ``mask`` is
        False.

    Raises:
        ValueError: for a negative limit.

    >>> mask = jnp.ones((1, 3), bool)
    >>> second_moment_mask(limit=0.05)(jnp.array([[-1.0, -2.0, -1.1]]), jnp.array([[-1.0, -1.0, -1.0]]), mask).tolist()
    [[1.0, 0.0, 1.0]]
    """
    checks.not_negative("second_moment_mask", limit=limit)

    def weights(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
        squares = jnp.square(_log_ratio(ratio, old_log_probs, sampler_log_probs, mask))
        flat = jnp.where(mask, squares, jnp.inf).reshape(-1)
        order = jnp.argsort(flat, stable=True)
        smallest = flat[order]
        # The mean of the k smallest never falls with k, so those within the limit are the first ones.
        means = jnp.cumsum(smallest) / jnp.arange(1, flat.size + 1)
        kept = jnp.zeros(flat.size, squares.dtype).at[order].set((means <= limit).astype(squares.dtype))
        return jnp.where(mask, kept.reshape(mask.shape), 0.0)

    return weights


@check_arguments
def correction_product(*corrections: Correction) -> Correction:
    """The product of corrections: a token's ratio inside a filter of completions, for one.

    Args:
        *corrections: any of this file's, or functions of the same signature.

    Returns:
        A correction ``(old_log_probs, sampler_log_probs, mask) → weights``; 1 on chosen tokens where none is given.

    >>> half = correction_product(lambda *_: 0.5, lambda *_: jnp.ones((1, 1)))
    >>> half(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1), bool)).tolist()
    [[0.5]]
    """

    def weights(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> jax.Array:
        product = jnp.where(mask, 1.0, 0.0)
        for correction in corrections:
            product = product * correction(old_log_probs, sampler_log_probs, mask)
        return product

    return weights


@check_arguments
def masked_importance(*, ceiling: float, floor: float = 0.0, ratio: Ratio = token_ratio) -> Correction:
    """The ratio inside the bounds and 0 outside, ``ρ · 1[floor ≤ ρ ≤ ceiling]`` with ``ρ = π_old/π_sampler``.

    IcePop per token (a peer: 0.5 and 5); a peer's default per completion is ``ratio=summed_ratio, ceiling=3``, which a
    long completion leaves easily, since differences of tokens add up. It is ``truncated_importance × rejection`` at one
    level. Limiting case: the unbiased ratio for wide bounds.

    Args:
        ceiling: largest ratio kept, absolute.
        floor: smallest ratio kept, absolute.
        ratio: the level: ``token_ratio``, ``sequence_ratio`` (geometric mean) or ``summed_ratio`` (product).

    Returns:
        A correction ``(old_log_probs, sampler_log_probs, mask) → weights``, ``[B, T]``, 0 where ``mask`` is False.

    Raises:
        ValueError: for a ceiling that is not positive, a negative floor, or one above the ceiling.

    >>> one = jnp.ones((1, 2), bool)
    >>> masked_importance(ceiling=2.0)(jnp.array([[-1.0, -2.0]]), jnp.array([[-3.0, -2.0]]), one).tolist()
    [[0.0, 1.0]]
    """
    _check("masked_importance", ceiling, floor)
    bounds = {"ceiling": ceiling, "floor": floor, "ratio": ratio}
    return correction_product(truncated_importance(**bounds), rejection(**bounds))


@check_arguments
def off_policy_mask(
    log_probs: jax.Array, sampler_log_probs: jax.Array, advantages: jax.Array, mask: jax.Array, threshold: float
) -> jax.Array:
    """Drop completions with A < 0 that the policy has left: ``mean_t(log π_sampler − log π) > threshold``.

    Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556). It reads the *current* policy, so that it belongs
    inside the loss: ``coupled.mask_off_policy``. Limiting case: ``mask`` itself for an infinite threshold or where no
    advantage is negative.

    Args:
        log_probs: ``[..., T]``, the current policy's, nats; not differentiated.
        sampler_log_probs: same shape, those that the tokens were drawn with, nats.
        advantages: same shape.
        mask: same shape, True where the policy chose.
        threshold: nats per token.

    Returns:
        Same shape, bool: the chosen tokens to keep.

    >>> drop, keep = jnp.array([[-3.0]]), jnp.array([[-1.0]])
    >>> [off_policy_mask(x, keep, -keep * -1, keep < 0, 0.5).tolist() for x in (drop, keep)]
    [[[False]], [[True]]]
    """
    given = {"sampler_log_probs": sampler_log_probs, "advantages": advantages, "mask": mask}
    checks.same_shape("off_policy_mask", log_probs=log_probs, **given)
    drift = -_log_ratio(sequence_ratio, log_probs, sampler_log_probs, mask)
    return mask & ((advantages >= 0) | (drift <= threshold))


@check_arguments
def sampler_metrics(old_log_probs: jax.Array, sampler_log_probs: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """How far the sampler was from the learner, from the token ratios ``ρ = π_old/π_sampler`` of its own samples.

    Args:
        old_log_probs: ``[B, T]``, the learner's at the parameters of the rollout, nats.
        sampler_log_probs: ``[B, T]``, the sampler's, nats.
        mask: ``[B, T]`` bool, True where the policy chose.

    Returns:
        Scalars over the chosen tokens: ``ratio_mean`` (1 in expectation), ``ratio_min``, ``ratio_max``; ``ess``, the
        effective share of the sample ``(Σρ)² / (n Σρ²)``, in (0, 1]; ``chi2 = mean(ρ²) − 1``; ``kl`` and ``kl_k3``, the
        k1 and k3 estimates of KL(π_sampler‖π_old), nats. All are 0 for an empty mask.

    >>> metrics = sampler_metrics(jnp.array([[-1.0]]), jnp.array([[-1.0]]), jnp.array([[True]]))
    >>> {name: float(value) for name, value in metrics.items()}
    {'ratio_mean': 1.0, 'ratio_min': 1.0, 'ratio_max': 1.0, 'ess': 1.0, 'chi2': 0.0, 'kl': 0.0, 'kl_k3': 0.0}
    """
    given = {"sampler_log_probs": sampler_log_probs, "mask": mask}
    checks.same_shape("sampler_metrics", old_log_probs=old_log_probs, **given)
    log_ratio = _log_ratio(token_ratio, old_log_probs, sampler_log_probs, mask)
    zeros = jnp.zeros_like(log_ratio)

    def log_mean(x: jax.Array) -> jax.Array:
        # In logarithms the effective share survives ratios whose square leaves the format.
        return jax.nn.logsumexp(x, where=mask) - jnp.log(jnp.maximum(mask.sum(), 1))

    metrics = {
        "ratio_mean": exp_then_line(log_mean(log_ratio)),
        "ratio_min": jnp.exp(jnp.min(log_ratio, where=mask, initial=jnp.inf)),
        "ratio_max": exp_then_line(jnp.max(log_ratio, where=mask, initial=-jnp.inf)),
        "ess": jnp.exp(2 * log_mean(log_ratio) - log_mean(2 * log_ratio)),
        "chi2": expm1_then_line(log_mean(2 * log_ratio)),
        "kl": masked_mean(k1(zeros, log_ratio), mask),
        "kl_k3": masked_mean(k3(zeros, log_ratio), mask),
    }
    return {name: jnp.where(mask.any(), value, 0.0) for name, value in metrics.items()}
