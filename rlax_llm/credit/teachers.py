"""Credit from a teacher: how much likelier it finds each token that the student chose than the student did.

The teacher stands where the frozen reference does, in ``Scored.ref_log_probs``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.recurrence import reverse_affine_scan
from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import Advantage, check_rows


@check_arguments
def no_credit(scored: Scored) -> jax.Array:
    """0 for every completion: where all of a loss is in its terms.

    Args:
        scored: its scores' shape is read.

    >>> no_credit(Scored(jnp.array([[1.0, 2.0]]), None, None)).tolist()
    [[0.0, 0.0]]
    """
    return jnp.zeros(scored.scores.shape[-2:])


@check_arguments
def teacher_log_ratio(scored: Scored) -> jax.Array:
    """``log q − log p`` of each chosen token: the sampled reverse KL, negated, as an advantage.

    On samples of p the policy gradient of it is the gradient of −KL(p‖q), one token at a time (on-policy distillation;
    arXiv 2306.13649 with the reverse KL, sampled). Limiting cases: 0 where the two agree; its mean is −KL(p‖q).

    Args:
        scored: ``ref_log_probs`` are the teacher's.

    Returns:
        ``[P, G, T]`` nats, 0 where the student did not choose.

    Raises:
        ValueError: at trace time, without the teacher's log-probabilities.

    >>> mask = jnp.array([[[True, True, False]]])
    >>> log_p, log_q = jnp.array([[[-1.0, -2.0, 0.0]]]), jnp.array([[[-3.0, -1.0, 5.0]]])
    >>> teacher_log_ratio(Scored(jnp.zeros((1, 1)), log_p, mask, log_q)).tolist()
    [[[-2.0, 1.0, 0.0]]]
    """
    check_rows("teacher_log_ratio", scored)
    if scored.ref_log_probs is None:
        raise checks.NoReference("teacher_log_ratio: ref_log_probs is None; give the teacher's.")
    return jnp.where(scored.mask, scored.ref_log_probs - scored.log_probs, 0.0)


@check_arguments
def mean_return_after(scored: Scored) -> jax.Array:
    """Mean of ``teacher_log_ratio`` over the tokens that come after each: MiniLLM's length-normalized return.

    ``R_t = 1/(n − t) · Σ_{t' > t} (log q − log p)(t')`` of n tokens (arXiv 2306.08543, eq. 6); the token's own part of
    the gradient is the full reverse KL, a term of the loss. Limiting case: 0 for the last token.

    Args:
        scored: ``ref_log_probs`` are the teacher's.

    Returns:
        ``[P, G, T]`` nats, 0 where the student did not choose.

    Raises:
        ValueError: at trace time, without the teacher's log-probabilities.

    >>> mask = jnp.array([[[True, True, True]]])
    >>> log_q = jnp.array([[[5.0, 1.0, 3.0]]])
    >>> mean_return_after(Scored(jnp.zeros((1, 1)), jnp.zeros((1, 1, 3)), mask, log_q)).tolist()
    [[[2.0, 3.0, 0.0]]]
    """
    ratio = teacher_log_ratio(scored)
    counts = scored.mask.astype(ratio.dtype)
    sums, after = (_sum_from(x) - x for x in (ratio, counts))
    return jnp.where(scored.mask, sums / jnp.maximum(after, 1.0), 0.0)


@check_arguments
def prefix_weighted(gamma: float | jax.Array = 0.5) -> Advantage:
    """``w_t · teacher_log_ratio``: a token counts the more, the less of the gap to the teacher lies before it (IW-OPD).

    ``w_t = 1 + γ · Σ_{u ≥ t} |A_u| / Σ_u |A_u|`` with ``A = teacher_log_ratio`` (arXiv 2606.22600): behind a prefix
    that the teacher would not write its advice is worth less. Limiting cases: ``teacher_log_ratio`` for γ = 0; the
    first token's weight is 1 + γ, that of a token behind all of the gap 1.

    Args:
        gamma: γ ≥ 0, dimensionless; may be traced.

    Returns:
        An estimator ``Scored → [P, G, T]`` nats, 0 where the student did not choose.

    Raises:
        ValueError: for a γ below 0; at trace time, without the teacher's log-probabilities.

    >>> mask = jnp.array([[[True, True]]])
    >>> scored = Scored(jnp.zeros((1, 1)), jnp.zeros((1, 1, 2)), mask, jnp.array([[[-3.0, 1.0]]]))
    >>> prefix_weighted(1.0)(scored).tolist()
    [[[-6.0, 1.25]]]
    """
    checks.not_negative("prefix_weighted", gamma=gamma)

    def weighted(scored: Scored) -> jax.Array:
        ratio = teacher_log_ratio(scored)
        left = _sum_from(jnp.abs(ratio))
        total = left[..., :1]
        share = left / jnp.where(total > 0, total, 1.0)
        return (1 + gamma * share) * ratio

    return weighted


def _sum_from(x: jax.Array) -> jax.Array:
    """``y[t] = x[t] + y[t + 1]`` along the last axis."""
    return jax.vmap(jax.vmap(lambda row: reverse_affine_scan(row, jnp.ones_like(row), jnp.zeros_like(row[0]))))(x)


@check_arguments
def with_teacher(advantage: Advantage, coef: float | jax.Array = 1.0) -> Advantage:
    """``advantage + coef · teacher_log_ratio``: a reward and a teacher at once.

    Limiting cases: the advantage itself for ``coef = 0``; ``teacher_log_ratio`` for ``no_credit`` and ``coef = 1``.

    Args:
        advantage: an estimator of ``Scored``, such as ``per_group(z_score)``.
        coef: ≥ 0, units of the advantage per nat; may be traced.

    Returns:
        An estimator ``Scored → [P, G, T]``.

    Raises:
        ValueError: for a coefficient below 0; at trace time, without the teacher's log-probabilities.

    >>> scored = Scored(jnp.zeros((1, 1)), jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool), jnp.ones((1, 1, 1)))
    >>> with_teacher(no_credit, 0.5)(scored).tolist()
    [[[0.5]]]
    """
    checks.not_negative("with_teacher", coef=coef)

    def both(scored: Scored) -> jax.Array:
        credit = advantage(scored)
        credit = credit[..., None] if credit.ndim == 2 else credit
        return jnp.where(scored.mask, credit, 0.0) + coef * teacher_log_ratio(scored)

    return both
