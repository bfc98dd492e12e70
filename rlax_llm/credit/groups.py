"""Credit inside one group ``[G]`` of completions of the same prompt; ``vmap`` gives ``[P, G]``.

A NaN score means "could not be scored" and is left out of every statistic; its advantage is 0. With fewer than two
scored members a group has nothing to compare and every advantage is 0, in every estimator. (Peers differ: some return
the raw score for a group of one.) A group that is *made* of one member has no standard deviation: asking for one is an
error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments, describe_argument
from rlax_llm.core.masked import at_least_float32, divide_by_std, masked_deviation, masked_mean
from rlax_llm.core.types import Scored
from rlax_llm.credit.shaping import informative, kl_in_reward

GroupEstimator = Callable[[jax.Array], jax.Array]
Advantage = Callable[[Scored], jax.Array]

_LIFTED = "estimator"


def check_scored(where: str, scored: Any) -> None:
    """Raise unless an estimator of ``Scored`` was given one.

    Args:
        where: the function that asks, for the message.
        scored: what it was given.

    Raises:
        ValueError: naming what that is.

    >>> check_scored("f", jnp.zeros((2, 3)))
    Traceback (most recent call last):
    ValueError: f: scored has shape (2, 3), wanted a Scored; give Scored(scores, log_probs, mask).
    """
    if not hasattr(scored, "scores"):
        raise ValueError(
            f"{where}: scored {describe_argument(scored)}, wanted a Scored; give Scored(scores, log_probs, mask)."
        )


def check_groups(where: str, scored: Scored) -> None:
    """Raise unless scores are ``[P, G]``.

    Args:
        where: the function that asks, for the message.
        scored: completions in groups.

    Raises:
        ValueError: naming the shape.

    >>> check_groups("f", Scored(jnp.zeros((2, 3, 4)), None, None))
    Traceback (most recent call last):
    ValueError: f: scores has shape (2, 3, 4), wanted [P, G]; of several rewards take gdpo, or add them up first.
    """
    check_scored(where, scored)
    shape = jnp.shape(scored.scores)
    if len(shape) != 2:
        hint = "of several rewards take gdpo, or add them up first" if len(shape) == 3 else "give a row to each prompt"
        raise ValueError(f"{where}: scores has shape {shape}, wanted [P, G]; {hint}.")


def check_rows(where: str, scored: Scored) -> None:
    """Raise unless scores are ``[P, G]`` and the mask ``[P, G, T]``.

    Args:
        where: the function that asks, for the message.
        scored: completions in groups.

    Raises:
        ValueError: naming the shape.

    >>> check_rows("f", Scored(jnp.zeros((2, 3)), None, jnp.ones((6, 4), bool)))
    Traceback (most recent call last):
    ValueError: f: mask has shape (6, 4), scores has (2, 3), wanted mask [P, G, T]; give mask.reshape(2, 3, -1).
    """
    check_groups(where, scored)
    shape = jnp.shape(scored.scores)
    if jnp.ndim(scored.mask) != 3 or jnp.shape(scored.mask)[:2] != shape:
        raise ValueError(
            f"{where}: mask has shape {jnp.shape(scored.mask)}, scores has {shape}, wanted mask [P, G, T]; give "
            f"mask.reshape({shape[0]}, {shape[1]}, -1)."
        )


@check_arguments
def known_of(where: str, scored: Scored, name: str) -> jax.Array:
    """What an estimator reads beside the scores.

    Args:
        where: the estimator, for the message.
        scored: completions in groups.
        name: a field of ``Known``.

    Raises:
        ValueError: it is not there.

    >>> known_of("f", Scored(jnp.zeros((1, 1)), None, None), "roles")
    Traceback (most recent call last):
    ValueError: f: known.roles is None; give Groups(..., known=Known(roles=...)), or take another advantage.
    """
    found = getattr(scored.known, name)
    if found is None:
        raise ValueError(
            f"{where}: known.{name} is None; give Groups(..., known=Known({name}=...)), or take another advantage."
        )
    return found


@check_arguments
def has_rival(scores: jax.Array) -> jax.Array:
    """The members that have a score, and another scored one to be compared with.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` bool; False for all where fewer than two are scored.

    >>> has_rival(jnp.array([1.0, jnp.nan, 1.0])).tolist()
    [True, False, True]
    """
    scored = ~jnp.isnan(scores)
    return scored & (scored.sum() > 1)


@check_arguments
def centered(scores: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Score minus the group's mean, ``A_i = s_i − Σ w s / Σ w``.

    Dr.GRPO's advantage (arXiv 2503.20783). Limiting cases, without weights: sums to 0 over the group; ``z_score``
    times ``std + eps``; ``leave_one_out`` times ``(n − 1)/n``.

    Args:
        scores: ``[G]``, NaN where a completion has no score.
        weights: ``[G]``, not negative, of the mean; None weighs all alike.

    Returns:
        ``[G]`` advantages in the scores' units; 0 for NaN and where fewer than two are scored.

    Raises:
        ValueError: for another rank, or weights of another shape.

    >>> centered(jnp.array([0.0, 1.0, 1.0, 2.0])).tolist()
    [-1.0, 0.0, 0.0, 1.0]
    """
    checks.rank("centered", "scores", scores, 1, "[G]")
    checks.same_shape("centered", scores=scores, weights=weights)
    return masked_deviation(scores, has_rival(scores), weights)


@check_arguments
def leave_one_out(scores: jax.Array) -> jax.Array:
    """Score minus the mean of the *other* members, ``A_i = s_i − mean_{j≠i}(s_j)``.

    The baseline does not depend on completion i, so the gradient stays unbiased (RLOO, arXiv 2402.14740).
    Limiting case: ``n/(n − 1) · centered``.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` advantages in the scores' units; 0 for NaN and where fewer than two are scored.

    >>> leave_one_out(jnp.array([3.0, 0.0, 0.0])).tolist()
    [3.0, -1.5, -1.5]
    """
    count = (~jnp.isnan(scores)).sum()
    return centered(scores) * count / jnp.maximum(count - 1, 1)


@check_arguments
def z_score(scores: jax.Array, ddof: int = 1, eps: float = 1e-4) -> jax.Array:
    """GRPO's advantage ``A_i = (s_i − mean(s)) / (std(s) + eps)`` (arXiv 2402.03300, section 4.1.2).

    Limiting cases: a group of equal scores gives exactly 0; ``eps → ∞`` is ``centered / eps``. Peers differ in ``ddof``
    (1 or 0: a factor √2 in a group of two) and in ``eps`` (1e-9 … 1e-2), so both are arguments.

    Args:
        scores: ``[G]``, G ≥ 2, NaN where a completion has no score.
        ddof: delta degrees of freedom of the standard deviation.
        eps: added to the standard deviation, in the scores' units.

    Returns:
        ``[G]`` dimensionless advantages; 0 for NaN and where fewer than two are scored.

    Raises:
        ValueError: for another rank, or a group of one.

    >>> [round(x, 3) for x in z_score(jnp.array([0.0, 0.0, 1.0, 1.0]), ddof=0, eps=0.0).tolist()]
    [-1.0, -1.0, 1.0, 1.0]
    """
    return _in_stds("z_score", centered(scores), scores, ddof, eps)


@check_arguments
def mean_relative(scores: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Score over the group's mean, less 1: ``A_i = (s_i − mean(s)) / mean(s)`` (MaxRL, arXiv 2602.02710).

    For scores of 0 and 1 its gradient is that of the logarithm of a prompt's success rate, as estimated from the group:
    a prompt that is seldom solved weighs more. Limiting cases: ``centered`` over the mean; a group of equal scores
    gives 0, and so does one that fails throughout.

    Args:
        scores: ``[G]``, not negative, NaN where a completion has no score.
        eps: a mean up to it counts as 0, in the scores' units.

    Returns:
        ``[G]`` dimensionless advantages; 0 for NaN and where fewer than two are scored.

    Raises:
        ValueError: for another rank.

    >>> mean_relative(jnp.array([0.0, 0.0, 0.0, 1.0])).tolist()
    [-1.0, -1.0, -1.0, 3.0]
    """
    deviation = centered(scores)
    mean = masked_mean(scores, has_rival(scores))
    return jnp.where(mean > eps, deviation / jnp.where(mean > eps, mean, 1.0), 0.0)


@check_arguments
def max_leave_one_out(scores: jax.Array) -> jax.Array:
    """What the group's best score owes to a member, ``A_i = max_j(s_j) − max_{j≠i}(s_j)``.

    The policy gradient of E[max of G scores] with a baseline that does not depend on completion i (arXiv 2503.19595).
    Limiting cases: the best minus the second for the best one, 0 for all the others; 0 for all where two share it.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` advantages in the scores' units, not negative; 0 where fewer than two are scored.

    Raises:
        ValueError: for another rank.

    >>> max_leave_one_out(jnp.array([0.25, 1.0, 0.5])).tolist()
    [0.0, 0.5, 0.0]
    """
    checks.rank("max_leave_one_out", "scores", scores, 1, "[G]")
    compared = has_rival(scores)
    ranked = jnp.where(compared, at_least_float32(scores), -jnp.inf)
    is_best = jnp.arange(scores.shape[0]) == jnp.argmax(ranked)
    second = jnp.where(is_best, -jnp.inf, ranked).max()
    return jnp.where(is_best & compared, ranked - second, 0.0)


@check_arguments
def pass_at_k(scores: jax.Array, ddof: int = 1, eps: float = 1e-6) -> jax.Array:
    """Pass@k's advantage for k = G: ``max_leave_one_out`` divided by ``std + eps`` (arXiv 2503.19595, as verl has it).

    With scores of 0 and 1 only a completion that is alone in being right learns.

    Args:
        scores: ``[G]``, G ≥ 2, NaN where a completion has no score.
        ddof: delta degrees of freedom of the standard deviation.
        eps: added to the standard deviation, in the scores' units.

    Returns:
        ``[G]`` dimensionless advantages, not negative.

    Raises:
        ValueError: for another rank, or a group of one.

    >>> pass_at_k(jnp.array([0.0, 4.0]), ddof=0, eps=0.0).tolist()
    [0.0, 2.0]
    """
    return _in_stds("pass_at_k", max_leave_one_out(scores), scores, ddof, eps)


def _in_stds(where: str, advantages: jax.Array, scores: jax.Array, ddof: int, eps: float) -> jax.Array:
    if scores.shape[0] == 1:
        raise ValueError(
            f"{where}: scores has shape (1,), and a group of one has no standard deviation; "
            "sample at least two completions of each prompt."
        )
    return divide_by_std(advantages, scores, has_rival(scores), ddof, eps)


@check_arguments
def greedy_baseline(scores: jax.Array, greedy_score: jax.Array) -> jax.Array:
    """Score minus that of the greedy completion of the same prompt, ``A_i = s_i − s_greedy`` (ReMax, arXiv 2310.10505).

    The baseline comes from outside the group, so that a group of one is enough. As an ``Advantage``, of scores that
    stand beside the groups, it is ``against_baselines``; where the first row of each group is the greedy one,
    ``per_group(lambda s: greedy_baseline(s, s[0]))``.

    Args:
        scores: ``[G]``, NaN where a completion has no score.
        greedy_score: scalar, NaN where there is none.

    Returns:
        ``[G]`` advantages in the scores' units; 0 where either score is NaN.

    Raises:
        ValueError: for other ranks.

    >>> greedy_baseline(jnp.array([1.0, 0.0, jnp.nan]), jnp.array(0.5)).tolist()
    [0.5, -0.5, 0.0]
    """
    checks.rank("greedy_baseline", "scores", scores, 1, "[G]")
    checks.rank("greedy_baseline", "greedy_score", greedy_score, 0, "[]")
    difference = at_least_float32(scores) - greedy_score
    return jnp.where(jnp.isnan(difference), 0.0, difference)


@check_arguments
def against_baselines(scored: Scored) -> jax.Array:
    """``greedy_baseline`` with a score of each prompt from elsewhere, ``known.baselines``.

    Args:
        scored: with ``known.baselines [P]``.

    Returns:
        ``[P, G]`` advantages in the scores' units; 0 where either score is NaN.

    Raises:
        ValueError: at trace time, without ``known.baselines``.

    >>> from rlax_llm.core.types import Known
    >>> known = Known(baselines=jnp.array([0.5]))
    >>> against_baselines(Scored(jnp.array([[1.0, 0.0]]), None, None, known=known)).tolist()
    [[0.5, -0.5]]
    """
    check_groups("against_baselines", scored)
    return jax.vmap(greedy_baseline)(scored.scores, known_of("against_baselines", scored, "baselines"))


@check_arguments
def fixed_baseline(baseline: float) -> GroupEstimator:
    """``greedy_baseline`` with a number that is known beforehand, ``A_i = s_i − b``.

    Limiting case: the score itself for b = 0. With ``b = ½`` and win rates for scores it is Nash-MD's advantage.

    Args:
        baseline: b, in the scores' units.

    Returns:
        An estimator ``[G] → [G]``; 0 for NaN, a group of one included.

    >>> fixed_baseline(0.5)(jnp.array([0.75, jnp.nan])).tolist()
    [0.25, 0.0]
    """

    def estimator(scores: jax.Array) -> jax.Array:
        return greedy_baseline(scores, jnp.asarray(baseline, float))

    return estimator


@check_arguments
def best_of_group(scores: jax.Array) -> jax.Array:
    """``n`` for the best of n scored members, 0 for the others: rejection sampling (RAFT, arXiv 2304.06767).

    With the score function and ``sequence_mean`` it is supervised training on the best completion of each prompt, all
    of them weighing alike. Limiting cases: of several best ones the first, which is one of them at random; a group
    without a difference in score has no best, and gives 0.

    Args:
        scores: ``[G]``, NaN where a completion has no score.

    Returns:
        ``[G]`` dimensionless advantages.

    Raises:
        ValueError: for another rank.

    >>> best_of_group(jnp.array([0.5, 2.0, jnp.nan, 2.0])).tolist()
    [0.0, 3.0, 0.0, 0.0]
    """
    checks.rank("best_of_group", "scores", scores, 1, "[G]")
    scored = ~jnp.isnan(scores)
    is_best = jnp.arange(scores.shape[0]) == jnp.argmax(jnp.where(scored, scores, -jnp.inf))
    return jnp.where(is_best & informative(scores), scored.sum().astype(at_least_float32(scores).dtype), 0.0)


@check_arguments
def per_group(estimator: GroupEstimator) -> Advantage:
    """Lift an estimator of one group ``[G] → [G]`` to ``Scored → [P, G]``.

    >>> scores = jnp.array([[0.0, 2.0], [1.0, 1.0]])
    >>> per_group(centered)(Scored(scores, None, None)).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """

    def over_groups(scored: Scored) -> jax.Array:
        check_groups("per_group", scored)
        return jax.vmap(estimator)(scored.scores)

    setattr(over_groups, _LIFTED, estimator)
    return over_groups


@check_arguments
def lifted_estimator(advantage: Advantage) -> GroupEstimator | None:
    """The estimator that ``per_group`` lifted; None of another advantage.

    Args:
        advantage: any.

    >>> lifted_estimator(per_group(centered)) is centered, lifted_estimator(length_centered)
    (True, None)
    """
    return getattr(advantage, _LIFTED, None)


@check_arguments
def length_centered(scored: Scored) -> jax.Array:
    """``centered`` at the mean weighed by length, ``A_i = s_i − Σ l s / Σ l`` (OPO, arXiv 2505.23585).

    The baseline of least variance where the squared norm of a completion's gradient grows with its length.
    Limiting case: ``per_group(centered)`` where all lengths are equal.

    Args:
        scored: lengths are the numbers of chosen tokens.

    Returns:
        ``[P, G]`` advantages in the scores' units.

    >>> mask = jnp.array([[[True, True, True], [True, False, False]]])
    >>> length_centered(Scored(jnp.array([[0.0, 4.0]]), jnp.zeros((1, 2, 3)), mask)).tolist()
    [[-1.0, 3.0]]
    """
    check_rows("length_centered", scored)
    return jax.vmap(centered)(scored.scores, scored.mask.sum(-1))


@check_arguments
def reference_for(where: str, scored: Scored, kl_coef: float) -> jax.Array | None:
    """``ref_log_probs``, or None where the coefficient is 0 while tracing, so that no KL is to be computed.

    Raises:
        ValueError: where they are needed and there are none.
    """
    if isinstance(kl_coef, (int, float)) and kl_coef == 0:
        return None
    if scored.ref_log_probs is None:
        raise checks.NoReference(f"{where}: ref_log_probs is None; give the reference's, or set kl_coef to 0.")
    return scored.ref_log_probs


@check_arguments
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
        ref_log_probs = reference_for("kl_in_score", scored, kl_coef)
        if ref_log_probs is None:
            return advantage(scored)
        nothing = jnp.zeros_like(ref_log_probs)
        penalties = kl_in_reward(nothing, scored.log_probs, ref_log_probs, scored.mask, kl_coef)
        return advantage(scored._replace(scores=scored.scores + penalties.sum(-1)))

    return shaped
