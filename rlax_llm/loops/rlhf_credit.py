"""Credit for the tokens of scored completions as RLHF-PPO takes it: the KL in the reward, the score at the end, GAE.

``mask`` is True on the tokens that teach: those that the policy chose, in rows that have a score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core.kl import KlControl, KlEstimator, fixed_coef, k1
from rlax_llm.core.masked import masked_mean, whiten
from rlax_llm.core.types import Completions, Metrics
from rlax_llm.credit.shaping import kl_in_reward, score_at_end, step_payments
from rlax_llm.credit.token_returns import decoupled_gae, token_steps
from rlax_llm.loops.updates import Normalize, no_normalization

ScoreRule = Callable[[jax.Array, jax.Array], jax.Array]
Ending = Callable[[Callable[[Completions], jax.Array], Completions], tuple[jax.Array, jax.Array]]
Trace = float | jax.Array | Callable[[jax.Array], jax.Array]


def no_shaping(scores: jax.Array, truncated: jax.Array) -> jax.Array:
    """The scores as they are; ``partial(shaping.missing_eos_penalty, penalty=1.0)`` is another such rule.

    Args:
        scores: ``[B]``.
        truncated: not read.

    >>> no_shaping(jnp.array([2.0]), jnp.array([True])).tolist()
    [2.0]
    """
    del truncated
    return scores


def terminated_at_limit(
    values: Callable[[Completions], jax.Array], completions: Completions
) -> tuple[jax.Array, jax.Array]:
    """Nothing follows a completion that was cut: its score is all that it is worth, as in every peer.

    Args:
        values: ``completions → [B, T]``.
        completions: ``[B, T]``.

    Returns:
        The values ``[B, T]``, and zeros ``[B]``, the value after the last token.
    """
    now = values(completions)
    return now, jnp.zeros_like(now, shape=now.shape[:1])


def bootstrapped_at_limit(
    values: Callable[[Completions], jax.Array], completions: Completions
) -> tuple[jax.Array, jax.Array]:
    """A completion that was cut would have gone on: after its last token come the critic's value *and* its score.

    For scores of what has been written so far, such as a sum over sentences; a judgment of the whole text is paid
    once, by ``terminated_at_limit``. The critic is asked about one more position, so that it reads ``T + 1`` columns.
    Limiting case: ``terminated_at_limit`` where no completion is truncated.

    Args:
        values: ``completions → [B, T]``, of the state before each token.
        completions: ``[B, T]``; a truncated row's next token would follow its last valid one.

    Returns:
        The values ``[B, T]``, and ``[B]`` the value after the last token, 0 for a row that ended by itself.
    """
    columns = jnp.arange(completions.tokens.shape[1])
    behind = jnp.where(completions.valid, columns + 1, 0).max(-1)
    next_token = completions.truncated[:, None] & (jnp.arange(len(columns) + 1) == behind[:, None])

    def wider(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 1)))

    longer = completions._replace(
        tokens=wider(completions.tokens),
        valid=wider(completions.valid) | next_token,
        mask=wider(completions.mask) | next_token,
        log_probs=wider(completions.log_probs),
        kept=None,  # a critic reads no distribution
    )
    now = values(longer)
    return now[:, :-1], jnp.where(next_token, now, 0.0).sum(-1)


class KlInReward(NamedTuple):
    """What is subtracted from a token's reward, ``β · estimator(log π_old, log π_ref)``, and how β moves.

    Attributes:
        coef: β at the start, score units per nat; may be traced. With a number 0 there is no term, and no reference
            is needed.
        estimator: of a token's KL; ``k1`` is the one whose policy gradient is that of the penalized return.
        control: ``(β, kl) → β`` after each step, on the mean KL of a completion, nats, such as
            ``kl.proportional_coef(target)``.
    """

    coef: float | jax.Array = 0.05
    estimator: KlEstimator = k1
    control: KlControl = fixed_coef

    @property
    def charged(self) -> bool:
        """Whether there is a term at all."""
        return not (isinstance(self.coef, (int, float)) and self.coef == 0)


class Shaping(NamedTuple):
    """From scores to advantages and the critic's targets.

    Attributes:
        scores: ``(scores [B], truncated [B]) → [B]``, before anything else; a NaN it returns leaves the row out.
        kl: in the reward.
        rewards: ``(rewards [B, T], mask) → [B, T]``, of the whole batch; ``masked.unit_variance`` whitens them.
        ending: what follows the last token, ``terminated_at_limit`` or ``bootstrapped_at_limit``.
        discount: γ of a chosen token.
        trace: the policy's λ, a number or a function of the number of chosen tokens (``length_adaptive_trace``).
        value_trace: the critic's λ, the same; 1 in VAPO (arXiv 2504.05118).
        advantages: ``(advantages [B, T], mask) → [B, T]``, of the whole batch; ``no_normalization`` leaves them.
    """

    scores: ScoreRule = no_shaping
    kl: KlInReward = KlInReward()
    rewards: Normalize = no_normalization
    ending: Ending = terminated_at_limit
    discount: float | jax.Array = 1.0
    trace: Trace = 0.95
    value_trace: Trace = 0.95
    advantages: Normalize = whiten


class TokenCredit(NamedTuple):
    """What the two models learn from, ``[B, T]`` each, 0 outside the mask.

    Attributes:
        advantages: of the policy's tokens, in the rewards' units, not yet normalized.
        targets: the critic's.
    """

    advantages: jax.Array
    targets: jax.Array


def token_rewards(
    shaping: Shaping,
    scores: jax.Array,
    log_probs: jax.Array,
    ref_log_probs: jax.Array | None,
    mask: jax.Array,
    kl_coef: Any,
    step_rewards: jax.Array | None = None,
) -> jax.Array:
    """A token's reward, ``s · [t is the last] − β · KL_t``, then whatever ``shaping.rewards`` does (arXiv 1909.08593).

    With ``step_rewards`` the score is paid as ``step_payments`` says (arXiv 2211.14275). Limiting cases: without a
    reference, or with ``shaping.kl.coef`` 0, ``score_at_end``, or those payments.

    Args:
        shaping: its ``kl`` and ``rewards`` are read.
        scores: ``[B]``; NaN in rows without a True in ``mask`` alone.
        log_probs: ``[B, T]``, of the policy that sampled, nats.
        ref_log_probs: ``[B, T]``, the reference's, nats, or None.
        mask: ``[B, T]`` bool, the tokens that teach.
        kl_coef: β now, a number; may be traced.
        step_rewards: ``[B, T]``, what of the scores steps earned, each at its last token, NaN everywhere else; None
            pays all of a score at the end.

    Returns:
        ``[B, T]`` in the scores' units, 0 outside the mask.

    >>> shaping, scores = Shaping(), jnp.array([1.0])
    >>> log_probs, mask = jnp.array([[-1.0, -1.0, 0.0]]), jnp.array([[True, True, False]])
    >>> token_rewards(shaping, scores, log_probs, 2 * log_probs, mask, 0.5).tolist()
    [[-0.5, 0.5, 0.0]]
    """
    known = jnp.where(mask.any(-1), scores, 0.0)
    if step_rewards is None:
        rewards = score_at_end(known, mask)
    else:
        payments = step_payments(known, step_rewards, mask)
        rewards = jnp.where(jnp.isnan(payments), 0.0, payments)
    if shaping.kl.charged and ref_log_probs is not None:
        rewards = kl_in_reward(rewards, log_probs, ref_log_probs, mask, kl_coef, shaping.kl.estimator)
    return jnp.where(mask, shaping.rewards(rewards, mask), 0.0)


def token_credit(
    shaping: Shaping, rewards: jax.Array, values: jax.Array, bootstrap: jax.Array, mask: jax.Array
) -> TokenCredit:
    """GAE over the chosen tokens with the policy's λ, and the critic's targets with its own (``decoupled_gae``).

    Limiting case: both λ 1, γ 1 and values 0 give each token's return to go, for both.

    Args:
        shaping: its ``discount`` and traces are read.
        rewards: ``[B, T]``.
        values: ``[B, T]``, of the state before each token; read where ``mask`` is True.
        bootstrap: ``[B]``, the value after the last token.
        mask: ``[B, T]`` bool, the tokens that teach.

    Returns:
        Advantages and targets ``[B, T]``.

    >>> mask = jnp.array([[True, True]])
    >>> credit = token_credit(Shaping(trace=0.5, value_trace=1.0), 1.0 * mask, jnp.zeros((1, 2)), jnp.zeros(1), mask)
    >>> credit.advantages.tolist(), credit.targets.tolist()
    ([[1.5, 1.0]], [[2.0, 1.0]])
    """

    def at(trace: Trace, length: jax.Array) -> float | jax.Array:
        return trace(length) if callable(trace) else trace

    def row(rewards: jax.Array, values: jax.Array, bootstrap: jax.Array, mask: jax.Array) -> TokenCredit:
        length = mask.sum()
        steps = token_steps(rewards, values, mask, shaping.discount, at(shaping.trace, length), bootstrap)
        value_traces = jnp.where(mask, at(shaping.value_trace, length), 1.0)
        credit = decoupled_gae(*steps, value_traces=value_traces)
        return TokenCredit(*(jnp.where(mask, x, 0.0) for x in credit))

    return jax.vmap(row)(rewards, values, bootstrap, mask)


def reward_metrics(
    shaping: Shaping, scores: jax.Array, completions: Completions, ref_log_probs: jax.Array | None, kl_coef: jax.Array
) -> Metrics:
    """What a batch of completions is worth, before anything is learned from it.

    Args:
        shaping: its ``kl`` is read.
        scores: ``[B]``, after ``shaping.scores``; NaN for a row without one.
        completions: ``[B, T]``.
        ref_log_probs: ``[B, T]``, nats, or None.
        kl_coef: β now.

    Returns:
        Means over the rows that teach: ``score``, ``non_score_reward`` (−β times the KL of a completion) and
        ``rlhf_reward``, their sum; with a reference ``kl`` (of a completion) and ``kl_per_token``, nats, both by
        ``shaping.kl.estimator``. Counts: ``unscored_rows`` and ``empty_rows``, those without a chosen token.
    """
    rows = completions.mask.any(-1)
    taught = rows & ~jnp.isnan(scores)
    score, charge, metrics = masked_mean(scores, taught), jnp.zeros(()), {}
    if ref_log_probs is not None:
        mask = completions.mask & taught[:, None]
        kl = jnp.where(mask, shaping.kl.estimator(completions.log_probs, ref_log_probs), 0.0)
        metrics = {"kl": masked_mean(kl.sum(-1), taught), "kl_per_token": masked_mean(kl, mask)}
        charge = -kl_coef * metrics["kl"] if shaping.kl.charged else charge
    worth = {"score": score, "non_score_reward": charge, "rlhf_reward": score + charge}
    return worth | metrics | {"unscored_rows": (rows & ~taught).sum(), "empty_rows": (~rows).sum()}
