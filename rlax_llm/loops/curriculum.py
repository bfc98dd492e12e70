"""Which prompts a step draws: all alike, or by how often the policy has lately solved them.

A ``Choosing`` is a memory and two functions of it, arrays in and arrays out, so that it runs inside a program
(``fresh_sampling``) as well as beside one. A prompt's *visits* are the steps that it was drawn in, and a visit's *rate*
is the share of its completions that passed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Metrics

Rule = Callable[[jax.Array], jax.Array]


class Choosing(NamedTuple):
    """Which prompts are drawn.

    Attributes:
        init: ``() → memory``, a pytree of arrays.
        choose: ``(memory, key, count) → [count]`` int32, numbers of prompts.
        learn: ``(memory, chosen [P], scores [P, G] or [K, P, G]) → (memory, metrics)``.
    """

    init: Callable[[], Any]
    choose: Callable[[Any, jax.Array, int], jax.Array]
    learn: Callable[[Any, jax.Array, jax.Array], tuple[Any, Metrics]]


def uniform_choosing(prompts: int) -> Choosing:
    """Every prompt as often as any other, with replacement; nothing is remembered.

    Args:
        prompts: N, those that there are.

    Raises:
        ValueError: for fewer than one prompt.

    >>> choosing = uniform_choosing(3)
    >>> choosing.choose(choosing.init(), jax.random.key(0), 4).shape
    (4,)
    """
    checks.at_least_one("uniform_choosing", prompts=prompts)

    def choose(memory: Any, key: jax.Array, count: int) -> jax.Array:
        del memory
        return jax.random.randint(key, (count,), 0, prompts)

    return Choosing(lambda: (), choose, lambda memory, chosen, scores: (memory, {}))


def full_score(scores: jax.Array) -> jax.Array:
    """A completion passes whose score is at least 1.

    Args:
        scores: any shape; NaN stays NaN.

    >>> full_score(jnp.array([0.5, 1.0, jnp.nan])).tolist()
    [0.0, 1.0, nan]
    """
    return jnp.where(jnp.isnan(scores), jnp.nan, scores >= 1)


def near_rate(target: float = 0.5, width: float = 0.25) -> Rule:
    """Weights that fall with the distance from a pass rate, ``exp(−½ ((rate − target) / width)²)``.

    Limiting case: all weights are 1 for an infinite width.

    Args:
        target: the rate of weight 1.
        width: > 0, the distance at which a weight is 0.61.

    Raises:
        ValueError: for a width that is not positive.

    >>> near_rate(0.5, 0.5)(jnp.array([0.5, 1.0])).round(2).tolist()
    [1.0, 0.6100000143051147]
    """
    checks.positive("near_rate", width=width)
    return lambda rates: jnp.exp(-0.5 * jnp.square((rates - target) / width))


def solved(visits: jax.Array) -> jax.Array:
    """Prompts of which every completion passed, over a whole window.

    Args:
        visits: ``[..., W]`` rates, NaN where there is none yet.

    >>> solved(jnp.array([[1.0, 1.0], [1.0, jnp.nan], [0.0, 0.0]])).tolist()
    [True, False, False]
    """
    return (visits == 1).all(-1)


def settled(visits: jax.Array) -> jax.Array:
    """Prompts of which every completion passed, or none did, over a whole window.

    Args:
        visits: ``[..., W]`` rates, NaN where there is none yet.

    >>> settled(jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])).tolist()
    [True, False, True]
    """
    return solved(visits) | (visits == 0).all(-1)


def kept_all(visits: jax.Array) -> jax.Array:
    """No prompt is retired.

    Args:
        visits: ``[..., W]`` rates.

    >>> kept_all(jnp.ones((1, 2))).tolist()
    [False]
    """
    return jnp.zeros(visits.shape[:-1], bool)


@check_arguments
def running_rates(visits: jax.Array, prior: float = 0.5) -> jax.Array:
    """Pass rates over the visits of a window, ``mean(visits)``; the prior where there is none yet.

    Args:
        visits: ``[..., W]`` rates, NaN where there is none yet.
        prior: of a prompt that was never drawn.

    >>> running_rates(jnp.array([[1.0, 0.5], [0.25, jnp.nan], [jnp.nan, jnp.nan]])).tolist()
    [0.75, 0.25, 0.5]
    """
    there = ~jnp.isnan(visits)
    mean = jnp.where(there, visits, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1)
    return jnp.where(there.any(-1), mean, prior)


@check_arguments
def chances(weights: jax.Array, retired: jax.Array) -> jax.Array:
    """Probabilities of being drawn, ``∝ weights`` of the prompts that are not retired.

    Where every weight is 0 the prompts that are left have equal chances, and where all are retired all are left: a run
    whose prompts are done goes on, and its metrics say so. Limiting case: equal weights are a uniform distribution.

    Args:
        weights: ``[N]``, ≥ 0.
        retired: ``[N]`` bool.

    >>> chances(jnp.array([1.0, 3.0, 4.0]), jnp.array([False, False, True])).tolist()
    [0.25, 0.75, 0.0]
    """
    left = ~retired | retired.all()
    share = jnp.where(left, weights, 0.0)
    share = jnp.where((share > 0).any(), share, left)
    return share / share.sum()


@check_arguments
def by_pass_rate(
    prompts: int,
    weight: Rule,
    retired: Rule = solved,
    window: int = 4,
    passed: Rule = full_score,
    prior: float = 0.5,
) -> Choosing:
    """Prompts by their running pass rate: those that are done are retired, others drawn ``∝ weight(rate)``.

    The rate is the mean over a prompt's last ``window`` visits, and a prompt is retired for good when ``retired`` says
    so of them. Draws are with replacement; a prompt that is drawn twice in a step is visited once, by all its
    completions. Limiting case: equal weights without retirement (``kept_all``) draw as ``uniform_choosing`` does.

    Args:
        prompts: N, those that there are.
        weight: ``rates [N] → weights [N]``, ≥ 0, such as ``near_rate(0.5)``.
        retired: ``visits [N, W] → [N]`` bool: ``solved``, ``settled`` or ``kept_all``.
        window: W ≥ 1, visits.
        passed: ``scores → [0, 1]`` of the same shape, whether each completion passed; NaN for those that do not count.
        prior: rate that a prompt is taken to have before its first visit.

    Returns:
        A ``Choosing`` whose memory is the last visits ``[N, W]``, the newest first. Metrics are ``curriculum/retired``,
        the share of the prompts, and ``curriculum/mean_pass_rate``, the mean over those that were visited.

    Raises:
        ValueError: for fewer than one prompt or visit.

    >>> choosing = by_pass_rate(3, near_rate(0.5), window=1)
    >>> visits, metrics = choosing.learn(choosing.init(), jnp.array([1, 2]), jnp.array([[1.0, 1.0], [0.0, 1.0]]))
    >>> visits.tolist(), float(metrics["curriculum/mean_pass_rate"])
    ([[nan], [1.0], [0.5]], 0.75)
    >>> 1 in choosing.choose(visits, jax.random.key(0), 100).tolist()
    False
    """
    checks.at_least_one("by_pass_rate", prompts=prompts, window=window)

    def choose(visits: jax.Array, key: jax.Array, count: int) -> jax.Array:
        probabilities = chances(weight(running_rates(visits, prior)), retired(visits))
        return jax.random.choice(key, prompts, (count,), p=probabilities).astype(jnp.int32)

    def learn(visits: jax.Array, chosen: jax.Array, scores: jax.Array) -> tuple[jax.Array, Metrics]:
        totals = scores.sum(0) if scores.ndim == 3 else scores
        visits = _visited(visits, chosen, passed(totals).astype(visits.dtype))
        known = ~jnp.isnan(visits[:, 0])
        mean = jnp.where(known, running_rates(visits), 0.0).sum() / known.sum()
        return visits, {"curriculum/retired": retired(visits).mean(), "curriculum/mean_pass_rate": mean}

    return Choosing(lambda: jnp.full((prompts, window), jnp.nan, jnp.float32), choose, learn)


def _visited(visits: jax.Array, chosen: jax.Array, passes: jax.Array) -> jax.Array:
    """With the rates of those that were drawn in front; a prompt of which nothing counts was not visited."""
    there = ~jnp.isnan(passes)
    total = jnp.zeros_like(visits[:, 0]).at[chosen].add(jnp.where(there, passes, 0.0).sum(-1))
    count = jnp.zeros_like(total).at[chosen].add(there.sum(-1).astype(total.dtype))
    before = visits[chosen]
    rate = total[chosen] / jnp.maximum(count[chosen], 1)
    # A prompt that is there twice writes the same twice.
    after = jnp.concatenate([rate[:, None], before[:, :-1]], 1)
    return visits.at[chosen].set(jnp.where(count[chosen, None] > 0, after, before))
