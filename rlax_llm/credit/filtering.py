"""Groups of which a part is learned from, and scores that are labels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import Advantage, check_rows, check_scored

Metric = Callable[[Scored], jax.Array]
"""``Scored → [P, G]``, of which more is better."""


@check_arguments
def shortness(scored: Scored) -> jax.Array:
    """Minus the number of chosen tokens of each completion.

    Args:
        scored: completions in groups.

    Returns:
        ``[P, G]``, tokens.

    >>> shortness(Scored(jnp.zeros((1, 1)), None, jnp.array([[[True, True, False]]]))).tolist()
    [[-2]]
    """
    check_rows("shortness", scored)
    return -scored.mask.sum(-1)


@check_arguments
def token_efficiency(scored: Scored) -> jax.Array:
    """Score of a completion for each of its chosen tokens.

    Args:
        scored: completions in groups.

    Returns:
        ``[P, G]``, score units per token; NaN for NaN.

    >>> token_efficiency(Scored(jnp.ones((1, 1)), None, jnp.array([[[True, True, False]]]))).tolist()
    [[0.5]]
    """
    check_rows("token_efficiency", scored)
    return scored.scores / jnp.maximum(scored.mask.sum(-1), 1)


@check_arguments
def keep_best(advantage: Advantage, metric: Metric, share: float = 0.5) -> Advantage:
    """Another's advantage among the best of each group by a metric; the others have none (GFPO, arXiv 2508.09726).

    Of G completions the ``max(2, floor(share · G))`` best are kept: means and standard deviations are theirs, and they
    alone are learned from, while every denominator still counts all. Of equals the earlier ones are kept. So lengths
    are held down without a word about length in the score. Limiting case: ``advantage`` itself for ``share = 1``.

    Args:
        advantage: leaves NaN scores out of its statistics, as all here do.
        metric: ``Scored → [P, G]``, such as ``shortness`` or ``token_efficiency``; what has no score is last.
        share: in (0, 1].

    Returns:
        An estimator of ``Scored``; 0 for a completion that is not kept.

    Raises:
        ValueError: for a share out of range.

    >>> from rlax_llm.credit.groups import centered, per_group
    >>> mask = jnp.arange(4) < jnp.array([[[4], [1], [2], [3]]])
    >>> scored = Scored(jnp.array([[1.0, 1.0, 0.0, 1.0]]), None, mask)
    >>> keep_best(per_group(centered), shortness)(scored).tolist()
    [[0.0, 0.5, -0.5, 0.0]]
    """
    checks.positive("keep_best", share=share)
    checks.not_negative("keep_best", **{"1 − share": 1 - share})

    def of_the_best(scored: Scored) -> jax.Array:
        check_rows("keep_best", scored)
        unscored = jnp.isnan(scored.scores)
        order = jnp.argsort(jnp.where(unscored, jnp.inf, -metric(scored)), axis=-1, stable=True)
        rank = jnp.argsort(order, axis=-1)
        kept = rank < max(2, int(share * scored.scores.shape[-1]))
        return advantage(scored._replace(scores=jnp.where(kept, scored.scores, jnp.nan)))

    return of_the_best


@check_arguments
def right_or_wrong(threshold: float = 0.5) -> Advantage:
    """Scores as labels: 1 above a threshold, −1 elsewhere, what ``classify`` reads (arXiv 2602.05630).

    Args:
        threshold: in the scores' units.

    Returns:
        An estimator ``Scored → [P, G]``; 0 for NaN.

    >>> right_or_wrong()(Scored(jnp.array([[1.0, 0.0, jnp.nan]]), None, None)).tolist()
    [[1.0, -1.0, 0.0]]
    """

    def label(scored: Scored) -> jax.Array:
        check_scored("right_or_wrong", scored)
        labels = jnp.where(scored.scores > threshold, 1.0, -1.0)
        return jnp.where(jnp.isnan(scored.scores), 0.0, labels)

    return label
