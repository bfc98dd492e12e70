"""Preference learning from labels: a response is desirable or not, and is linked with a *reference point*.

A desirable response plays the chosen one against the reference point, an undesirable one the rejected one. With
``misranking`` that is KTO's value function (reference: the policy's KL) and APO-zero's (reference: 0); with
``logistic`` it is BCO (reference: the running mean reward).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.preference.implicit_rewards import Responses, Reward, log_ratio
from rlax_llm.preference.links import Link, logistic, misranking


class LabeledBatch(NamedTuple):
    """Responses with a label each.

    Attributes:
        responses: ``[B, T]``.
        desirable: ``[B]`` bool.
        weights: ``[B]`` float, ``Σ weights · loss`` is the loss; taken once per optimizer step over the *whole* batch
            (``label_mean``). A response with weight 0 is padding: nothing of it is read.
    """

    responses: Responses
    desirable: jax.Array
    weights: jax.Array


class Unpaired(NamedTuple):
    """A loss of labels is a point in a product.

    Attributes:
        reward: ``(log_probs, ref_log_probs, mask) → rewards``.
        link: ``(higher, lower) → loss``.
    """

    reward: Reward
    link: Link


class RunningMean(NamedTuple):
    """State of ``update_running_mean``.

    Attributes:
        mean: scalar float, 0 before the first value.
        seen: scalar float, how many values it is the mean of.
    """

    mean: jax.Array
    seen: jax.Array


@check_arguments
def kto(beta: float | jax.Array = 0.1) -> Unpaired:
    """Kahneman-Tversky Optimization: ``1 − σ(r − z0)`` where desirable, else ``1 − σ(z0 − r)`` (arXiv 2402.01306).

    ``z0`` is ``reference_point`` of mismatched pairs. Limiting case: with reference 0 it is the unpaired APO-zero
    (arXiv 2408.06266). A response's expected loss is linear in ``σ(r − z0)``: the majority of its labels decides where
    it goes, and the optimum is not the ``π_ref · exp(r/β)`` of ``dpo``.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        ``log_ratio(beta) × misranking``.

    Raises:
        ValueError: for a β that is not positive.

    >>> kto(0.1).link.__name__
    'misranking'
    """
    return Unpaired(log_ratio(beta), misranking)


@check_arguments
def bco(beta: float | jax.Array = 0.1) -> Unpaired:
    """Binary Classifier Optimization: ``−log σ(±(r − δ))``, + where desirable (arXiv 2404.04656).

    ``δ`` is a running mean of the rewards. Limiting case: with reference 0, a pair gives ``against_zero(logistic)``.

    Args:
        beta: temperature β > 0, reward per nat.

    Returns:
        ``log_ratio(beta) × logistic``.

    Raises:
        ValueError: for a β that is not positive.

    >>> bco(0.1).link.__name__
    'logistic'
    """
    return kto(beta)._replace(link=logistic)


@check_arguments
def unpaired_value(link: Link, rewards: jax.Array, desirable: jax.Array, reference: jax.typing.ArrayLike) -> jax.Array:
    """Unpaired value of a link: ``link(r, reference)`` where desirable, else ``link(reference, r)``.

    Limiting case: a desirable and an undesirable response against 0 sum to ``links.compare_with_zero(link)``.

    Args:
        link: ``(higher, lower) → loss``.
        rewards: any shape.
        desirable: same shape, bool.
        reference: a number, or the same shape; in the rewards' units.

    Returns:
        Same shape, the losses.

    Raises:
        ValueError: at trace time, for shapes that differ.

    >>> unpaired_value(misranking, jnp.array([0.0, 0.0]), jnp.array([True, False]), 0.0).tolist()
    [0.5, 0.5]
    """
    checks.same_shape("unpaired_value", rewards=rewards, desirable=desirable)
    return link(jnp.where(desirable, rewards, reference), jnp.where(desirable, reference, rewards))


@check_arguments
def mismatched_rows(size: int, offset: int = 1) -> jax.Array:
    """Which completion each prompt takes for KTO's mismatched pairs: prompt i takes completion ``i − offset``.

    Limiting case: a cyclic permutation without a fixed point. Rows of one prompt must not lie ``offset`` apart. Peers
    differ: TRL and EasyDeL shift by 1, HALOs by −1, each within the micro-batch.

    Args:
        size: rows B.
        offset: rows to shift by.

    Returns:
        ``[B]`` int32 indices.

    Raises:
        ValueError: where a row would be paired with itself, as in a batch of one.

    >>> mismatched_rows(3).tolist()
    [2, 0, 1]
    """
    if offset % size == 0:
        raise ValueError(
            f"mismatched_rows: a batch of {size} shifted by {offset} pairs every prompt with its own completion; "
            "give a larger batch, or an offset that is no multiple of its size."
        )
    return jnp.roll(jnp.arange(size), offset)


@check_arguments
def reference_point(reward: Reward, mismatched: Responses) -> jax.Array:
    """KTO's ``z0 = max(0, mean reward of mismatched pairs)``, a rough β KL(π‖π_ref); no gradient (arXiv 2402.01306).

    Take it once per optimizer step over the whole batch. Limiting case: 0 where the policy is the reference. Peers
    differ in the rows: all (TRL), those that are not exactly 0 (HALOs); here those with a token.

    Args:
        reward: the loss's own, ``log_ratio(β)``; it carries β.
        mismatched: ``[B, T]``, responses to prompts that are not theirs (``mismatched_rows``).

    Returns:
        Scalar ≥ 0, in the reward's units.

    >>> rows = Responses(jnp.array([[-1.0], [-2.0]]), jnp.ones((2, 1), bool), jnp.array([[-2.0], [-4.0]]))
    >>> float(reference_point(log_ratio(0.5), rows))
    0.75
    """
    rewards = reward(mismatched.log_probs, mismatched.ref_log_probs, mismatched.mask)
    rows = jnp.maximum(mismatched.mask.any(-1).sum(), 1)
    return jax.lax.stop_gradient(jnp.maximum(rewards.sum() / rows, 0.0))


@check_arguments
def label_mean(
    mask: jax.Array,
    desirable: jax.Array,
    desirable_weight: float | jax.Array = 1.0,
    undesirable_weight: float | jax.Array = 1.0,
) -> jax.Array:
    """Weights of the mean over responses with KTO's class weights, ``λ_D/B`` and ``λ_U/B``.

    Limiting case: class weights of 1 sum to 1. A response without a token counts in no denominator.

    Args:
        mask: ``[B, T]`` bool.
        desirable: ``[B]`` bool.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.

    Returns:
        ``[B]`` float32 weights.

    >>> label_mean(jnp.array([[True], [True], [False]]), jnp.array([True, False, True]), 1.0, 0.5).tolist()
    [0.5, 0.25, 0.0]
    """
    rows = mask.any(-1)
    checks.same_shape("label_mean", desirable=desirable, rows=rows)
    return jnp.where(desirable, desirable_weight, undesirable_weight) * rows / jnp.maximum(rows.sum(), 1)


@check_arguments
def desirable_weight_range(
    desirable: int,
    undesirable: int,
    undesirable_weight: float = 1.0,
    ceiling: float = 4 / 3,
) -> tuple[float, float]:
    """KTO's range for λ_D, where ``λ_D n_D / (λ_U n_U)`` lies in [1, ceiling] (arXiv 2402.01306, eq. 8).

    Limiting case: balanced labels give ``[λ_U, ceiling · λ_U]``. By symmetry, λ_U's range for a given λ_D is
    ``[n_D λ_D/(ceiling n_U), n_D λ_D/n_U]``.

    Args:
        desirable: n_D, responses with that label.
        undesirable: n_U.
        undesirable_weight: λ_U.
        ceiling: the largest ratio.

    Returns:
        The smallest and the largest λ_D.

    Raises:
        ValueError: for a number that is not positive.

    >>> desirable_weight_range(25, 100, ceiling=1.5)
    (4.0, 6.0)
    """
    checks.positive("desirable_weight_range", desirable=desirable, undesirable=undesirable)
    checks.positive("desirable_weight_range", undesirable_weight=undesirable_weight, ceiling=ceiling)
    low = undesirable_weight * undesirable / desirable
    return low, ceiling * low


@check_arguments
def running_mean() -> RunningMean:
    """State before the first value.

    >>> float(running_mean().mean)
    0.0
    """
    return RunningMean(jnp.zeros(()), jnp.zeros(()))


@check_arguments
def update_running_mean(state: RunningMean, values: jax.Array, mask: jax.Array) -> RunningMean:
    """Mean of all values so far, ``mean + Σ (x − mean)/n``; no gradient.

    BCO's δ is the mean over all rewards, the present batch's included (as peers compute it), or, balanced as the
    paper writes it, half the sum of one such mean for each label. Limiting case: no value leaves the state as it is.

    Args:
        state: from ``running_mean`` or an earlier update.
        values: any shape, rewards.
        mask: same shape, bool, which of them count.

    Returns:
        The new state.

    Raises:
        ValueError: at trace time, for shapes that differ.

    >>> state = update_running_mean(running_mean(), jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False]))
    >>> float(state.mean), float(state.seen)
    (2.0, 2.0)
    """
    checks.same_shape("update_running_mean", values=values, mask=mask)
    seen = state.seen + mask.sum()
    change = jnp.where(mask, values - state.mean, 0.0).sum() / jnp.maximum(seen, 1)
    return jax.lax.stop_gradient(RunningMean(state.mean + change, seen))


@check_arguments
def unpaired_loss(
    unpaired: Unpaired, batch: LabeledBatch, reference: jax.typing.ArrayLike
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``Σ weights · against(link, rewards, desirable, reference)``: a sum, so exact under micro-batches.

    Limiting case: ``reference = 0`` turns ``kto`` into the unpaired APO-zero.

    Args:
        unpaired: reward and link.
        batch: responses with labels; ``weights`` come from the whole batch.
        reference: scalar in the reward's units, without gradient: ``reference_point``, a running mean, or 0.

    Returns:
        The scalar loss, and metrics ``unpaired_loss``, ``reference``, ``desirable_reward`` and ``undesirable_reward``
        (``Σ weights · reward`` over that label), ``desirable_weight`` and ``undesirable_weight`` (``Σ weights``, to
        divide by).

    Raises:
        ValueError: at trace time, for shapes that differ.

    >>> responses = Responses(jnp.array([[-1.0]]), jnp.array([[True]]), jnp.array([[-1.0]]))
    >>> float(unpaired_loss(kto(), LabeledBatch(responses, jnp.array([True]), jnp.ones(1)), 0.0)[0])
    0.5
    """
    responses, desirable, weights = batch
    rows = responses.mask.any(-1)
    checks.same_shape("unpaired_loss", weights=weights, desirable=desirable, responses=rows)
    mask = responses.mask & (weights != 0)[:, None]
    rewards = unpaired.reward(responses.log_probs, responses.ref_log_probs, mask)
    losses = unpaired_value(unpaired.link, rewards, desirable, jax.lax.stop_gradient(reference))
    checks.returned_shape("unpaired_loss", "link", losses, weights.shape, "response")
    loss = (weights * losses).sum()
    of_label = {"desirable": weights * desirable, "undesirable": weights * ~desirable}
    metrics = {"unpaired_loss": loss, "reference": jnp.asarray(reference)}
    metrics |= {f"{label}_reward": (w * rewards).sum() for label, w in of_label.items()}
    metrics |= {f"{label}_weight": w.sum() for label, w in of_label.items()}
    return loss, jax.lax.stop_gradient(metrics)
