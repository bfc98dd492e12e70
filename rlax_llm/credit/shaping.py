"""Rewards from scores: where a score is paid, what is subtracted from it, and which completions teach.

``scores`` are one number per completion, NaN where it could not be scored; ``rewards`` are one number per token.
Lengths are tokens, ``mask.sum(-1)``, never characters. ``truncated`` marks the completions that hit the length limit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.kl import KlEstimator, k1
from rlax_llm.core.masked import at_least_float32


def _one_per_row(where: str, name: str, per_row: jax.Array, mask: jax.Array) -> None:
    if jnp.shape(per_row) != jnp.shape(mask)[:-1]:
        raise ValueError(
            f"{where}: {name} has shape {jnp.shape(per_row)}, mask has {jnp.shape(mask)}; "
            f"give {name} the shape of mask without its last axis."
        )


@check_arguments
def score_at_end(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Pay the score on the last token that the policy chose, ``r_t = s · [t is the last True of mask]``.

    The end-of-sequence token is that token, unless the completion was truncated. Limiting cases: rewards sum to the
    score; a row without a chosen token pays nothing. A NaN score stays NaN, so that it cannot pass for a reward of 0:
    leave such rows out first, ``mask & ~isnan(scores)[..., None]``. (TRL's PPO pays one position later.)

    Args:
        scores: ``[...]``, one per completion.
        mask: ``[..., T]`` bool, True where the policy chose the token.

    Returns:
        ``[..., T]`` rewards in the scores' units.

    Raises:
        ValueError: where ``scores`` does not have the shape of ``mask`` without its last axis.

    >>> score_at_end(jnp.array([2.0, 3.0]), jnp.array([[True, True, False], [False, False, False]])).tolist()
    [[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    """
    _one_per_row("score_at_end", "scores", scores, mask)
    return jnp.where(_is_last(mask), at_least_float32(scores)[..., None], 0.0)


def _is_last(mask: jax.Array) -> jax.Array:
    """``[..., T]`` bool, the last True of each row."""
    still_to_come = jnp.cumsum(mask[..., ::-1], -1)[..., ::-1]
    return mask & (still_to_come == 1)


@check_arguments
def step_payments(scores: jax.Array, step_rewards: jax.Array, mask: jax.Array) -> jax.Array:
    """Pay each step on its last token, and what is left of the score on the last token that the policy chose.

    ``r_t = step_rewards_t + (s − Σ step_rewards) · [t is the last True of mask]``. The score is all that a completion
    is paid, so that what shapes it (a penalty, a KL) is paid at the end. Limiting cases: without a step, or with one
    step that ends at the end, ``score_at_end``; rewards sum to the score; steps that sum to the score, up to the
    rounding of that sum, leave nothing to be paid.

    Args:
        scores: ``[...]``, one per completion; NaN stays NaN, as in ``score_at_end``.
        step_rewards: ``[..., T]``, at the last token of each step that has a reward, NaN everywhere else.
        mask: ``[..., T]`` bool, True where the policy chose the token; no step is read elsewhere.

    Returns:
        ``[..., T]`` rewards in the scores' units, NaN where nothing is due.

    Raises:
        ValueError: for shapes that do not fit.

    >>> step_rewards = jnp.array([jnp.nan, 1.0, jnp.nan, jnp.nan])
    >>> step_payments(jnp.array(1.5), step_rewards, jnp.array([True, True, True, False])).tolist()
    [nan, 1.0, 0.5, nan]
    """
    _one_per_row("step_payments", "scores", scores, mask)
    checks.same_shape("step_payments", step_rewards=step_rewards, mask=mask)
    scores, steps = at_least_float32(scores), mask & ~jnp.isnan(step_rewards)
    paid = jnp.where(steps, at_least_float32(step_rewards), 0.0)
    left, count = scores - paid.sum(-1), steps.sum(-1)
    rounding = count * jnp.finfo(scores.dtype).eps * jnp.abs(paid).sum(-1)
    is_left = (count == 0) | ~(jnp.abs(left) <= rounding)
    due = _is_last(mask) & is_left[..., None]
    return jnp.where(steps | due, paid + jnp.where(due, left[..., None], 0.0), jnp.nan)


@check_arguments
def kl_in_reward(
    rewards: jax.Array,
    log_probs: jax.Array,
    ref_log_probs: jax.Array,
    mask: jax.Array,
    kl_coef: jax.typing.ArrayLike,
    estimator: KlEstimator = k1,
) -> jax.Array:
    """Subtract the KL from each chosen token's reward, ``r_t − kl_coef · KL_t`` (arXiv 1909.08593).

    As a value, ``k1`` and ``k3`` are unbiased; but the policy gradient differentiates through the sampling, so that
    only ``k1`` gives the gradient of the penalized return.

    Limiting cases: ``kl_coef = 0`` is ``rewards``; the sum over a row with ``k1`` is the score minus ``kl_coef`` times
    the sequence's log-ratio (RLOO).

    Args:
        rewards: any shape.
        log_probs: same shape, of the policy that sampled, nats.
        ref_log_probs: same shape, the frozen reference's, nats.
        mask: same shape, bool, True where the policy chose; elsewhere ``rewards`` are left as they are.
        kl_coef: β ≥ 0, reward units per nat; may be traced.
        estimator: ``(log_probs, ref_log_probs) → KL``, elementwise.

    Returns:
        Same shape.

    Raises:
        ValueError: for shapes that differ.

    >>> zero, half = jnp.zeros(2), jnp.array([0.5, jnp.nan])
    >>> kl_in_reward(jnp.array([1.0, 0.0]), half, zero, jnp.array([True, False]), 0.5).tolist()
    [0.75, 0.0]
    """
    checks.same_shape("kl_in_reward", rewards=rewards, log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    log_probs, ref_log_probs = (jnp.where(mask, at_least_float32(x), 0.0) for x in (log_probs, ref_log_probs))
    return rewards - jnp.where(mask, kl_coef * estimator(log_probs, ref_log_probs), 0.0)


@check_arguments
def clipped_scores(scores: jax.Array, low: float, high: float) -> jax.Array:
    """Scores held to a range, ``min(max(s, low), high)``; NaN stays NaN.

    The order matters: TRL's RLOO clips scores before the baseline is taken, OpenRLHF afterwards.

    Args:
        scores: any shape.
        low: the least score, in the scores' units.
        high: the greatest.

    Returns:
        Same shape.

    Raises:
        ValueError: unless ``low < high``.

    >>> clipped_scores(jnp.array([-20.0, 3.0, 20.0]), -10.0, 10.0).tolist()
    [-10.0, 3.0, 10.0]
    """
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not low < high:
        raise ValueError(f"clipped_scores: low is {low} and high is {high}, wanted low less than high.")
    return jnp.clip(scores, low, high)


@check_arguments
def missing_eos_penalty(scores: jax.Array, truncated: jax.Array, penalty: float) -> jax.Array:
    """Subtract a constant from completions that did not end by themselves, ``s − penalty · [truncated]``.

    Limiting case: ``penalty = 0`` is ``scores``.

    Args:
        scores: any shape.
        truncated: same shape, bool.
        penalty: in the scores' units.

    Returns:
        Same shape.

    Raises:
        ValueError: for shapes that differ.

    >>> missing_eos_penalty(jnp.array([1.0, 1.0]), jnp.array([False, True]), 0.5).tolist()
    [1.0, 0.5]
    """
    checks.same_shape("missing_eos_penalty", scores=scores, truncated=truncated)
    return jnp.where(truncated, scores - penalty, scores)


@check_arguments
def scaled_if_truncated(scores: jax.Array, truncated: jax.Array, factor: float) -> jax.Array:
    """Stop penalty that keeps a share of the score, ``factor · s`` where truncated (ProRL, arXiv 2505.24864).

    Limiting cases: ``factor = 1`` is ``scores``; 0 pays nothing to truncated completions. A score below 0 *rises*.

    Args:
        scores: any shape.
        truncated: same shape, bool.
        factor: share kept.

    Returns:
        Same shape.

    Raises:
        ValueError: for shapes that differ.

    >>> scaled_if_truncated(jnp.array([1.0, 1.0]), jnp.array([False, True]), 0.25).tolist()
    [1.0, 0.25]
    """
    checks.same_shape("scaled_if_truncated", scores=scores, truncated=truncated)
    return jnp.where(truncated, factor * scores, scores)


@check_arguments
def fixed_if_truncated(scores: jax.Array, truncated: jax.Array, score: float) -> jax.Array:
    """Stop penalty that replaces the score by a constant where truncated, NaN included.

    Args:
        scores: any shape.
        truncated: same shape, bool.
        score: what a truncated completion is paid, in the scores' units.

    Returns:
        Same shape.

    Raises:
        ValueError: for shapes that differ.

    >>> fixed_if_truncated(jnp.array([1.0, 1.0]), jnp.array([False, True]), -0.5).tolist()
    [1.0, -0.5]
    """
    checks.same_shape("fixed_if_truncated", scores=scores, truncated=truncated)
    return jnp.where(truncated, score, scores)


@check_arguments
def soft_overlong_punishment(lengths: jax.Array, max_new_tokens: int, buffer_tokens: int) -> jax.Array:
    """DAPO's length term, to be added to the score (arXiv 2503.14476, eq. 13): a ramp over the last ``C`` tokens.

    ``0`` up to ``L − C`` tokens, then ``(L − C − length) / C``, and −1 from ``L`` on, where L is ``max_new_tokens``
    and C ``buffer_tokens``. Limiting case: ``C = L`` punishes from the first token. (Peers differ beyond L: verl has
    no floor.)

    Args:
        lengths: any shape, tokens.
        max_new_tokens: L, the sampler's limit, tokens.
        buffer_tokens: C, 1 to L, tokens.

    Returns:
        Same shape, −1 … 0.

    Raises:
        ValueError: for a buffer that is not positive, or longer than ``max_new_tokens``.

    >>> soft_overlong_punishment(jnp.array([6, 8, 9, 10, 12]), 10, 4).tolist()
    [0.0, -0.5, -0.75, -1.0, -1.0]
    """
    checks.positive("soft_overlong_punishment", buffer_tokens=buffer_tokens)
    if buffer_tokens > max_new_tokens:
        raise ValueError(
            f"soft_overlong_punishment: buffer_tokens is {buffer_tokens}, "
            f"wanted at most max_new_tokens, {max_new_tokens}."
        )
    return jnp.clip((max_new_tokens - buffer_tokens - at_least_float32(lengths)) / buffer_tokens, -1.0, 0.0)


@check_arguments
def overlong_filter(mask: jax.Array, truncated: jax.Array) -> jax.Array:
    """The mask without its truncated completions: they teach nothing (DAPO, arXiv 2503.14476, section 3.4).

    Only what the loss reads is masked: the rows stay valid for attention, count in no denominator of a weighting, and
    their scores still take part in the statistics of their group.

    Args:
        mask: ``[..., T]`` bool.
        truncated: ``[...]`` bool.

    Returns:
        ``[..., T]`` bool.

    Raises:
        ValueError: where ``truncated`` does not have the shape of ``mask`` without its last axis.

    >>> overlong_filter(jnp.array([[True, False], [True, True]]), jnp.array([False, True])).tolist()
    [[True, False], [False, False]]
    """
    _one_per_row("overlong_filter", "truncated", truncated, mask)
    return mask & ~truncated[..., None]


@check_arguments
def informative(scores: jax.Array, tolerance: float | None = None) -> jax.Array:
    """Whether a group has anything to compare: DAPO's dynamic sampling keeps these (arXiv 2503.14476, eq. 11).

    ``max(s) − min(s) > tolerance · max|s|`` over the scored members. The tolerance is there because sums of the same
    rewards in another order differ by rounding. Limiting cases: with scores of 0 and 1, the mean is strictly between;
    fewer than two scored members are not informative.

    Args:
        scores: ``[G]``, NaN where a completion has no score; ``vmap`` gives ``[P]``.
        tolerance: relative to the largest magnitude; None is 4 machine epsilons of the scores' own type.

    Returns:
        Scalar bool.

    Raises:
        ValueError: for any other rank.

    >>> jax.vmap(informative)(jnp.array([[0.0, 1.0, jnp.nan], [1.0, 1.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])).tolist()
    [True, False, False]
    """
    checks.rank("informative", "scores", scores, 1, "[G]")
    if tolerance is None:
        tolerance = 4 * float(jnp.finfo(jnp.result_type(scores, float)).eps)
    scores, scored = at_least_float32(scores), ~jnp.isnan(scores)
    spread = jnp.max(scores, where=scored, initial=-jnp.inf) - jnp.min(scores, where=scored, initial=jnp.inf)
    return (scored.sum() > 1) & (spread > tolerance * jnp.max(jnp.abs(scores), where=scored, initial=0.0))
