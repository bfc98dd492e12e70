"""Credit inside one group ``[G]`` of completions of the same prompt; ``vmap`` gives ``[P, G]``.

A NaN score means "could not be scored" and is left out of every statistic; its advantage is 0. With fewer than two
scored members a group has nothing to compare and every advantage is 0, in every estimator. (Peers differ: some return
the raw score for a group of one.)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm import checks, kl
from rlax_llm.types import Scored

GroupEstimator = Callable[[jax.Array], jax.Array]
Advantage = Callable[[Scored], jax.Array]


def centred(scores: jax.Array) -> jax.Array:
    """Score minus the group's mean, ``A_i = s_i − mean(s)``.

    Dr.GRPO's advantage (arXiv 2503.20783). Limiting cases: sums to 0 over the group; ``z_score`` times ``std + eps``;
    ``leave_one_out`` times ``(n − 1)/n``.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` advantages in the scores' units; 0 for NaN and where fewer than two are scored.

    >>> centred(jnp.array([0.0, 1.0, 1.0, 2.0])).tolist()
    [-1.0, 0.0, 0.0, 1.0]
    """
    checks.rank("centred", "scores", scores, 1, "[G]")
    scored = ~jnp.isnan(scores)
    count = scored.sum()
    # A deviation is summed, not a difference of sums: equal scores then give exactly 0, whatever their magnitude.
    first = jnp.where(scored, scores, 0.0)[jnp.argmax(scored)]
    shifted = jnp.where(scored, scores - first, 0.0)
    deviation = shifted - shifted.sum() / jnp.maximum(count, 1)
    return jnp.where(scored & (count > 1), deviation, 0.0)


def leave_one_out(scores: jax.Array) -> jax.Array:
    """Score minus the mean of the *other* members, ``A_i = s_i − mean_{j≠i}(s_j)``.

    The baseline does not depend on completion i, so the gradient stays unbiased (RLOO, arXiv 2402.14740).
    Limiting case: ``n/(n − 1) · centred``.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` advantages in the scores' units; 0 for NaN and where fewer than two are scored.

    >>> leave_one_out(jnp.array([3.0, 0.0, 0.0])).tolist()
    [3.0, -1.5, -1.5]
    """
    count = (~jnp.isnan(scores)).sum()
    return centred(scores) * count / jnp.maximum(count - 1, 1)


def z_score(scores: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """GRPO's advantage ``A_i = (s_i − mean(s)) / (std(s) + eps)`` (arXiv 2402.03300, section 4.1.2).

    Limiting cases: a group of equal scores gives exactly 0; ``eps → ∞`` is ``centred / eps``. Peers differ in ``ddof``
    (1 or 0: a factor √2 in a group of two) and in ``eps`` (1e-9 … 1e-2), so both are arguments.

    Args:
        scores: ``[G]``, NaN where a completion has no score.
        ddof: delta degrees of freedom of the standard deviation.
        eps: added to the standard deviation, in the scores' units.

    Returns:
        ``[G]`` dimensionless advantages; 0 for NaN and where fewer than two are scored.

    >>> [round(x, 3) for x in z_score(jnp.array([0.0, 0.0, 1.0, 1.0]), ddof=0, eps=0.0).tolist()]
    [-1.0, -1.0, 1.0, 1.0]
    """
    deviation = centred(scores)
    freedom = jnp.maximum((~jnp.isnan(scores)).sum() - ddof, 1)
    variance = jnp.square(deviation).sum() / freedom
    std = jnp.sqrt(variance)
    return jnp.where(std > 0, deviation / jnp.where(std > 0, std + eps, 1.0), 0.0)


def per_group(estimator: GroupEstimator) -> Advantage:
    """Lift an estimator of one group ``[G] → [G]`` to ``Scored → [P, G]``.

    >>> scores = jnp.array([[0.0, 2.0], [1.0, 1.0]])
    >>> per_group(centred)(Scored(scores, None, None)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    return lambda scored: jax.vmap(estimator)(scored.scores)


def kl_in_score(advantage: Advantage, kl_coef: float) -> Advantage:
    """Subtract the sequence's KL from its score first: ``s_i − kl_coef · Σ_t k1(t)`` (RLOO, arXiv 2402.14740).

    Limiting case: ``kl_coef = 0`` is ``advantage`` itself, and then no reference is needed.

    Args:
        advantage: an estimator of ``Scored``.
        kl_coef: β ≥ 0, score units per nat.

    Returns:
        An estimator of ``Scored``.

    Raises:
        ValueError: at trace time, where ``kl_coef`` is not 0 and there are no ``ref_log_probs``.
    """

    def shaped(scored: Scored) -> jax.Array:
        if isinstance(kl_coef, (int, float)) and kl_coef == 0:
            return advantage(scored)
        if scored.ref_log_probs is None:
            raise ValueError("kl_in_score: ref_log_probs is None; give the reference's, or set kl_coef to 0.")
        per_token = jnp.where(scored.mask, kl.k1(scored.log_probs, scored.ref_log_probs), 0.0)
        return advantage(scored._replace(scores=scored.scores - kl_coef * per_token.sum(-1)))

    return shaped
