"""What a reward or a link says of itself: that it reads no reference, that a pair's loss reads that pair alone.

A function that says nothing is taken to need the most: a reference, and the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_READS, _PAIRWISE, _GOLD, _COLLISIONS = "reads_reference", "pairwise", "reads_gold", "reads_collisions"
_TIES = "reads_ties"


def reference_free(reward: F) -> F:
    """Say of a reward that it reads no reference, so that none is computed for it; a decorator.

    Args:
        reward: ``(log_probs, ref_log_probs, mask) → rewards``, or the rewards of a batch of pairs.

    >>> @reference_free
    ... def first_token(log_probs, ref_log_probs, mask):
    ...     return log_probs[..., 0]
    >>> reads_reference(first_token)
    False
    """
    setattr(reward, _READS, False)
    return reward


def reads_reference(reward: Callable[..., Any]) -> bool:
    """Whether a reward, or the rewards of a batch of pairs, need a reference's log-probabilities.

    Args:
        reward: any; one that says nothing does.

    >>> from rlax_llm.recipes.preference import dpo, simpo
    >>> reads_reference(dpo().rewards), reads_reference(simpo().rewards)
    (True, False)
    """
    return getattr(reward, _READS, True)


def reads_like(made: F, reward: Callable[..., Any]) -> F:
    """The function ``made`` of a reward, which reads a reference where the reward does.

    Args:
        made: a reward, or rewards of pairs.
        reward: what it was made of.
    """
    setattr(made, _READS, reads_reference(reward))
    return made


def of_gold(likely: F) -> F:
    """Say of a function of pairs that it reads a gold response, so that each pair has a third row; a decorator.

    Args:
        likely: ``PreferenceBatch → Responses``.

    >>> @of_gold
    ... def gold(batch):
    ...     return batch.gold
    >>> reads_gold(gold), reads_gold(lambda batch: batch.chosen)
    (True, False)
    """
    setattr(likely, _GOLD, True)
    return likely


def reads_gold(likely: Callable[..., Any]) -> bool:
    """Whether a function of pairs reads a gold response.

    Args:
        likely: any; one that says nothing does not.

    >>> from rlax_llm.recipes.preference import cpo, tpo
    >>> reads_gold(tpo().likely), reads_gold(cpo().likely)
    (True, False)
    """
    return getattr(likely, _GOLD, False)


def of_ties(likely: F) -> F:
    """Say of a function of pairs that it reads those too of which neither is preferred; a decorator.

    Args:
        likely: ``PreferenceBatch → Responses``.

    >>> @of_ties
    ... def both(batch):
    ...     return batch.rejected
    >>> reads_ties(both), reads_ties(lambda batch: batch.chosen)
    (True, False)
    """
    setattr(likely, _TIES, True)
    return likely


def reads_ties(likely: Callable[..., Any]) -> bool:
    """Whether a function of pairs reads those too of which neither is preferred.

    Args:
        likely: any; one that says nothing does not.

    >>> from rlax_llm.recipes.online import online_dpo, xpo
    >>> reads_ties(xpo().preference.likely), reads_ties(online_dpo().preference.likely)
    (True, False)
    """
    return getattr(likely, _TIES, False)


def of_collisions(factors: F) -> F:
    """Say of a function of pairs that it reads ``log_collisions``, so that they are computed; a decorator.

    Args:
        factors: ``PreferenceBatch → [B]``.

    >>> @of_collisions
    ... def certainty(batch):
    ...     return batch.chosen.log_collisions.mean(-1)
    >>> reads_collisions(certainty), reads_collisions(None)
    (True, False)
    """
    setattr(factors, _COLLISIONS, True)
    return factors


def reads_collisions(factors: Callable[..., Any] | None) -> bool:
    """Whether a function of pairs reads how likely two draws of each token agree.

    Args:
        factors: any, or None; one that says nothing does not.

    >>> from rlax_llm.preference.pairs import on_policy
    >>> reads_collisions(on_policy), reads_collisions(lambda batch: batch.weights)
    (True, False)
    """
    return getattr(factors, _COLLISIONS, False)


def pairwise(link: F) -> F:
    """Say of a link that each pair's loss reads that pair alone, so that micro-batches change nothing; a decorator.

    Args:
        link: ``(chosen_rewards, rejected_rewards) → loss``.

    >>> @pairwise
    ... def difference(chosen, rejected):
    ...     return rejected - chosen
    >>> is_pairwise(difference), is_pairwise(lambda chosen, rejected: rejected - chosen.mean())
    (True, False)
    """
    setattr(link, _PAIRWISE, True)
    return link


def is_pairwise(link: Callable[..., Any]) -> bool:
    """Whether each pair's loss reads that pair alone.

    Args:
        link: any; one that says nothing reads the whole batch.

    >>> from rlax_llm.preference.links import logistic, smooth_labels, sorted_pairs
    >>> is_pairwise(smooth_labels(logistic, 0.1)), is_pairwise(sorted_pairs(logistic))
    (True, False)
    """
    return getattr(link, _PAIRWISE, False)


def pairwise_like(made: F, *links: Callable[..., Any]) -> F:
    """The link ``made`` of others, which is of single pairs where all of them are.

    Args:
        made: a link.
        links: what it was made of.
    """
    setattr(made, _PAIRWISE, all(is_pairwise(link) for link in links))
    return made
