"""Preference learning from pairs: a loss is *reward × link*, summed with weights that are taken over the whole batch.

``dpo(0.1)`` is ``Preference(per_response(log_ratio(0.1)), logistic)``; every other link is its difference from that,
``dpo(0.1)._replace(link=exo(1e-3))``. A reward model's loss is the link of its own scores, ``pair_loss``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.exponentials import exp_then_line
from rlax_llm.preference.implicit_rewards import Responses, Reward, mean_log_ratio, wide
from rlax_llm.preference.links import Link, demand_margin, weighted_sum
from rlax_llm.preference.marks import of_collisions, of_gold, of_ties, reads_like


class PreferenceBatch(NamedTuple):
    """Pairs of responses to the same prompts; pair b is ``chosen[b]`` and ``rejected[b]``.

    Attributes:
        chosen: the preferred responses, ``[B, T]``.
        rejected: the others, ``[B, T′]``.
        weights: ``[B]`` float, ``Σ weights · loss`` is the loss; taken once per optimizer step over the *whole* batch
            (``pair_mean``). A pair with weight 0 is padding: nothing of it is read.
        margins: ``[B]`` float or None, what ``shifted(link, margins)`` demands of each pair (DPO with an offset, arXiv
            2402.10571), in the rewards' units.
        token_weights: ``[B, T]`` float or None, the weights of the tokens in the likelihood term, those of the chosen
            responses or of what else is ``likely``, from a ``Weighting`` of the whole batch; may be positive on tokens
            outside the mask, the prompt's.
        gold: third responses, answers that are known to be good; None without any.
        explored: ``[B]`` bool, the pairs whose chosen response is the reference's own, of the others the rejected one;
            None where nothing reads it.
    """

    chosen: Responses
    rejected: Responses
    weights: jax.Array
    margins: jax.Array | None = None
    token_weights: jax.Array | None = None
    gold: Responses | None = None
    explored: jax.Array | None = None


Likely = Callable[[PreferenceBatch], Responses]
Rewards = Callable[[PreferenceBatch], tuple[jax.Array, jax.Array]]
Factors = Callable[[PreferenceBatch], jax.Array]


@check_arguments
def chosen_response(batch: PreferenceBatch) -> Responses:
    """The preferred responses: what a likelihood term raises in RPO, CPO and ORPO.

    Args:
        batch: pairs.

    >>> one, mask = jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    >>> chosen_response(PreferenceBatch(Responses(one, mask), Responses(0 * one, mask), one[0])).log_probs.tolist()
    [[1.0]]
    """
    return batch.chosen


@of_gold
@check_arguments
def gold_response(batch: PreferenceBatch) -> Responses:
    """A third response, better than both: what TPO's likelihood term raises (arXiv 2405.16681).

    Args:
        batch: its ``gold`` is read.

    Raises:
        ValueError: where the batch has none.

    >>> one, mask = jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    >>> sides = [Responses(x * one, mask) for x in (1, 0, 2)]
    >>> gold_response(PreferenceBatch(*sides[:2], one[0], gold=sides[2])).log_probs.tolist()
    [[2.0]]
    """
    if batch.gold is None:
        raise ValueError(
            "preference_loss: gold is None and the likelihood is a gold response's; give a third response."
        )
    return batch.gold


@of_ties
@check_arguments
def explored_response(batch: PreferenceBatch) -> Responses:
    """Of each pair the response that the reference drew: what XPO's term lowers (arXiv 2405.21046).

    Which of the two is preferred does not matter to it, so it reads ties too.

    Args:
        batch: its ``explored`` is read; both sides have as many columns.

    Raises:
        ValueError: where the batch does not say which it is.

    >>> one, mask = jnp.ones((2, 1)), jnp.ones((2, 1), bool)
    >>> sides = Responses(one, mask), Responses(0 * one, mask)
    >>> batch = PreferenceBatch(*sides, one[:, 0], explored=jnp.array([True, False]))
    >>> explored_response(batch).log_probs.tolist()
    [[1.0], [0.0]]
    """
    if batch.explored is None:
        raise ValueError(
            "preference_loss: explored is None and the likelihood is of what the reference drew; give which it is."
        )
    ours = batch.explored[:, None]
    log_probs = jnp.where(ours, batch.chosen.log_probs, batch.rejected.log_probs)
    return Responses(log_probs, jnp.where(ours, batch.chosen.mask, batch.rejected.mask))


class Preference(NamedTuple):
    """A preference loss is a point in a product; ``_replace`` states how one algorithm differs from another.

    Attributes:
        rewards: ``PreferenceBatch → (chosen_rewards [B], rejected_rewards [B])``, mostly ``per_response(reward)``.
        link: ``(chosen_rewards, rejected_rewards) → loss``.
        nll_coef: weight of the negative log-likelihood of some responses, per nat; below 0 they become less likely.
        likely: ``PreferenceBatch → Responses``, which these are.
        factors: ``PreferenceBatch → [B]``, multiply each pair's loss, such as ``on_policy`` of WPO; None for none.
    """

    rewards: Rewards
    link: Link
    nll_coef: float | jax.Array = 0.0
    likely: Likely = chosen_response
    factors: Factors | None = None


@check_arguments
def per_response(reward: Reward) -> Rewards:
    """Lift a reward of one response to a batch of pairs.

    Args:
        reward: ``(log_probs, ref_log_probs, mask) → rewards``.

    Returns:
        A function ``PreferenceBatch → (chosen_rewards, rejected_rewards)``.

    >>> from rlax_llm.preference.implicit_rewards import log_prob
    >>> mask = jnp.ones((1, 2), bool)
    >>> chosen, rejected = Responses(jnp.array([[-1.0, -2.0]]), mask), Responses(jnp.array([[-4.0, -1.0]]), mask)
    >>> [x.tolist() for x in per_response(log_prob())(PreferenceBatch(chosen, rejected, jnp.ones(1)))]
    [[-3.0], [-5.0]]
    """

    def rewards(batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        of_chosen, of_rejected = (reward(x.log_probs, x.ref_log_probs, x.mask) for x in (batch.chosen, batch.rejected))
        return of_chosen, of_rejected

    return reads_like(rewards, reward)


@check_arguments
def policy_and_reference(reward: Reward) -> Rewards:
    """The policy's own margin against the reference's, ``(r_π(w) − r_π(l), r_ref(w) − r_ref(l))``: what AOT compares.

    Their difference is that of ``per_response(log_ratio)``, so only a link that sorts tells the two apart.

    Args:
        reward: one without a reference, ``log_prob(β)``.

    Returns:
        A function ``PreferenceBatch → (policy's margins, reference's margins)``.

    Raises:
        ValueError: at trace time, without reference log-probabilities.

    >>> from rlax_llm.preference.implicit_rewards import log_prob
    >>> mask = jnp.ones((1, 1), bool)
    >>> sides = [Responses(jnp.array([[x]]), mask, jnp.array([[-2.0]])) for x in (-1.0, -4.0)]
    >>> [x.tolist() for x in policy_and_reference(log_prob())(PreferenceBatch(*sides, jnp.ones(1)))]
    [[3.0], [0.0]]
    """
    of_pair = per_response(reward)

    def margins(batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        chosen = batch.chosen
        rejected = batch.rejected
        if chosen.ref_log_probs is None or rejected.ref_log_probs is None:
            raise ValueError("policy_against_reference: ref_log_probs is None; give the reference's for both sides.")
        reference = batch._replace(
            chosen=chosen._replace(log_probs=chosen.ref_log_probs),
            rejected=rejected._replace(log_probs=rejected.ref_log_probs),
        )
        policy_chosen, policy_rejected = of_pair(batch)
        ref_chosen, ref_rejected = of_pair(reference)
        return policy_chosen - policy_rejected, ref_chosen - ref_rejected

    return margins


@check_arguments
def desensitize_length(rewards: Rewards, tail_coef: float) -> Rewards:
    """Damp the tokens beyond the length that both responses share, ``log p = Σ_{t ≤ n} + α Σ_{t > n}`` (LD-DPO).

    ``n`` is the shorter response's length (arXiv 2409.06411). Policy and reference are damped alike.
    Limiting cases: α = 1 is ``rewards``; α = 0 compares equal lengths.

    Args:
        rewards: of a batch of pairs.
        tail_coef: α in [0, 1], dimensionless.

    Returns:
        A function ``PreferenceBatch → (chosen_rewards, rejected_rewards)``.

    >>> from rlax_llm.preference.implicit_rewards import log_prob
    >>> long, short = jnp.array([[True, True]]), jnp.array([[True, False]])
    >>> sides = Responses(jnp.array([[-1.0, -4.0]]), long), Responses(jnp.array([[-3.0, 0.0]]), short)
    >>> batch = PreferenceBatch(*sides, jnp.ones(1))
    >>> [x.tolist() for x in desensitize_length(per_response(log_prob()), 0.5)(batch)]
    [[-3.0], [-3.0]]
    """

    def damped(responses: Responses, shared: jax.Array) -> Responses:
        factor = jnp.where(responses.mask.cumsum(-1) <= shared[:, None], 1.0, tail_coef)
        reference = None if responses.ref_log_probs is None else factor * wide(responses.ref_log_probs)
        return responses._replace(log_probs=factor * wide(responses.log_probs), ref_log_probs=reference)

    def of_batch(batch: PreferenceBatch) -> tuple[jax.Array, jax.Array]:
        shared = jnp.minimum(batch.chosen.mask.sum(-1), batch.rejected.mask.sum(-1))
        return rewards(batch._replace(chosen=damped(batch.chosen, shared), rejected=damped(batch.rejected, shared)))

    return reads_like(of_batch, rewards)


@check_arguments
def pair_mean(chosen_mask: jax.Array, rejected_mask: jax.Array) -> jax.Array:
    """Weights of the mean over pairs, ``1/B``; a pair with an empty response counts in no denominator.

    Args:
        chosen_mask: ``[B, T]`` bool.
        rejected_mask: ``[B, T′]`` bool.

    Returns:
        ``[B]`` float32 weights; they sum to 1, or to 0 without a pair.

    Raises:
        ValueError: at trace time, for different numbers of rows.

    >>> pair_mean(jnp.array([[True], [True], [True]]), jnp.array([[True], [True], [False]])).tolist()
    [0.5, 0.5, 0.0]
    """
    chosen = chosen_mask.any(-1)
    rejected = rejected_mask.any(-1)
    checks.same_shape("pair_mean", chosen=chosen, rejected=rejected)
    pairs = chosen & rejected
    return pairs / jnp.maximum(pairs.sum(), 1).astype(jnp.float32)


@check_arguments
def log_collision_probability(logits: jax.Array) -> jax.Array:
    """Log of the probability that two draws agree, ``log Σ_v p_v²``: the normalizer of WPO's weights.

    Limiting cases: 0 for a certain token, ``−log V`` for a uniform one.

    Args:
        logits: ``[..., V]``, nats up to a constant.

    Returns:
        ``[...]``, nats.

    >>> float(log_collision_probability(jnp.zeros(2))) == float(jnp.log(0.5))
    True
    """
    return jax.nn.logsumexp(2 * jax.nn.log_softmax(logits), -1)


@check_arguments
def on_policy_weights(log_probs: jax.Array, log_collisions: jax.Array, mask: jax.Array) -> jax.Array:
    """WPO's weight of a response, ``exp(1/|y| Σ_t (log π(y_t) − log Σ_v p_v²))`` (arXiv 2406.11827, eq. 2).

    About 1 for what the policy would write itself. ``on_policy`` is that of both responses of a pair. No gradient
    flows. Limiting case: 1 for a uniform policy, and for a response without a token.

    Args:
        log_probs: ``[B, T]``, nats.
        log_collisions: ``[B, T]``, ``log_collision_probability`` of the logits at each position.
        mask: ``[B, T]`` bool.

    Returns:
        ``[B]``, dimensionless.

    >>> on_policy_weights(jnp.array([[-2.0, 9.0]]), jnp.array([[-2.0, 0.0]]), jnp.array([[True, False]])).tolist()
    [1.0]
    """
    checks.same_shape("on_policy_weights", log_probs=log_probs, log_collisions=log_collisions, mask=mask)
    return jax.lax.stop_gradient(exp_then_line(mean_log_ratio()(log_probs, log_collisions, mask)))


@of_collisions
@check_arguments
def on_policy(batch: PreferenceBatch) -> jax.Array:
    """WPO's factor of a pair, ``w(y_w) · w(y_l)``: how likely the policy would write it (arXiv 2406.11827, eq. 3).

    ``preference._replace(factors=on_policy)`` is the WPO of any preference of single pairs. Limiting case: 1 for a
    uniform policy, which is the preference itself.

    Args:
        batch: its ``log_collisions`` are read.

    Returns:
        ``[B]``, dimensionless, without a gradient.

    Raises:
        ValueError: where the batch has none.

    >>> one, mask = jnp.ones((1, 1)), jnp.ones((1, 1), bool)
    >>> side = Responses(-one, mask, log_collisions=-one)
    >>> on_policy(PreferenceBatch(side, side, one[0])).tolist()
    [1.0]
    """
    return _on_policy(batch.chosen) * _on_policy(batch.rejected)


def _on_policy(responses: Responses) -> jax.Array:
    if responses.log_collisions is None:
        raise ValueError(
            "preference_loss: log_collisions is None and WPO's factors read it; give it of both sides (a loop takes it "
            "as the third array of log_probs, which group_log_probs_with_collisions gives)."
        )
    return on_policy_weights(responses.log_probs, responses.log_collisions, responses.mask)


@check_arguments
def pair_loss(
    link: Link, chosen_rewards: jax.Array, rejected_rewards: jax.Array, weights: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``Σ weights · link(w, l)``: a reward model's loss, and the core of every preference loss.

    Limiting case: ``logistic`` with equal weights is the Bradley-Terry loss (arXiv 2203.02155). With a margin for each
    pair (Llama 2, arXiv 2307.09288) and scores kept around 0 the link is
    ``centered_rewards(shifted(logistic, margins), 0.01)``.

    Args:
        link: ``(chosen_rewards, rejected_rewards) → loss``.
        chosen_rewards: ``[B]``, scores or implicit rewards.
        rejected_rewards: ``[B]``.
        weights: ``[B]``, taken over the whole batch; where 0, nothing of the pair is read.

    Returns:
        The scalar loss, and metrics ``preference_loss``, ``chosen_reward``, ``rejected_reward``, ``margin`` (of the
        rewards, whatever the link demands) and ``accuracy`` (a tie is wrong): weighted by ``weights``.

    Raises:
        ValueError: at trace time, for shapes that differ, or a link that returns another than theirs.

    >>> from rlax_llm.preference.links import squared
    >>> scores = jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0])
    >>> loss, metrics = pair_loss(squared(0.0), *scores, weights=jnp.array([0.5, 0.5]))
    >>> float(loss), float(metrics["accuracy"])
    (2.5, 0.5)
    """
    chosen = chosen_rewards
    rejected = rejected_rewards
    checks.same_shape("pair_loss", chosen_rewards=chosen, rejected_rewards=rejected, weights=weights)
    used = weights != 0
    chosen, rejected = (jnp.where(used, wide(x), 0.0) for x in (chosen, rejected))
    losses = link(chosen, rejected)
    checks.returned_shape("pair_loss", "link", losses, weights.shape, "pair")
    loss = jnp.where(used, weights * losses, 0.0).sum()
    metrics = {
        "preference_loss": loss,
        "chosen_reward": (weights * chosen).sum(),
        "rejected_reward": (weights * rejected).sum(),
        "margin": (weights * (chosen - rejected)).sum(),
        "accuracy": (weights * (chosen > rejected)).sum(),
    }
    return loss, jax.lax.stop_gradient(metrics)


def _without_padding(responses: Responses, used: jax.Array) -> Responses:
    return responses._replace(mask=responses.mask & used[:, None])


def _likelihood_loss(log_probs: jax.Array, token_weights: jax.Array) -> jax.Array:
    """``Σ token_weights · (−log π)``; a token of weight 0 is not read."""
    checks.same_shape("preference_loss", log_probs=log_probs, token_weights=token_weights)
    read = jnp.where(token_weights != 0, wide(log_probs), 0.0)
    return -(token_weights * read).sum()


def _loss_of_pairs(preference: Preference, batch: PreferenceBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``Σ weights · factors · link(rewards)`` with the margins that are demanded."""
    rewards = preference.rewards(batch)
    link = preference.link if batch.margins is None else demand_margin(preference.link, batch.margins)
    if preference.factors is None:
        return pair_loss(link, *rewards, batch.weights)
    factors = preference.factors(batch)
    loss, metrics = pair_loss(weighted_sum((factors, link)), *rewards, batch.weights)
    return loss, metrics | {"pair_weight": jax.lax.stop_gradient((batch.weights * factors).sum())}


@check_arguments
def preference_loss(preference: Preference, batch: PreferenceBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
    """``Σ weights · factors · link(rewards)  +  nll_coef · Σ token_weights · (−log π)``: exact under micro-batches.

    Limiting cases: ``nll_coef = 0`` needs no ``token_weights``; ``factors`` of None is 1.

    Args:
        preference: rewards, link and weight of the likelihood term.
        batch: pairs; ``weights`` and ``token_weights`` come from the whole batch.

    Returns:
        The scalar loss, and the metrics of ``pair_loss``, with ``nll`` where there are ``token_weights`` and with
        ``pair_weight``, the mean factor, where there are ``factors``.

    Raises:
        ValueError: at trace time, for shapes that differ, or a likelihood term without ``token_weights``.

    >>> from rlax_llm.preference.implicit_rewards import log_prob
    >>> from rlax_llm.preference.links import squared
    >>> mask = jnp.ones((1, 2), bool)
    >>> sides = Responses(jnp.array([[-1.0, -2.0]]), mask), Responses(jnp.array([[-4.0, -1.0]]), mask)
    >>> preference = Preference(per_response(log_prob(0.5)), squared(0.0))
    >>> float(preference_loss(preference, PreferenceBatch(*sides, jnp.ones(1)))[0])
    1.0
    """
    chosen = batch.chosen
    rejected = batch.rejected
    weights = batch.weights
    rows = {"chosen": chosen.mask.any(-1), "rejected": rejected.mask.any(-1), "margins": batch.margins}
    checks.same_shape("preference_loss", weights=weights, **rows)
    used = weights != 0
    read = batch._replace(chosen=_without_padding(chosen, used), rejected=_without_padding(rejected, used))
    loss, metrics = _loss_of_pairs(preference, read)
    if batch.token_weights is not None:
        nll = _likelihood_loss(preference.likely(batch).log_probs, batch.token_weights)
        return loss + preference.nll_coef * nll, metrics | {"nll": jax.lax.stop_gradient(nll)}
    if not (isinstance(preference.nll_coef, (int, float)) and preference.nll_coef == 0):
        raise ValueError(
            "preference_loss: nll_coef is not 0 but token_weights is None; give a Weighting of chosen.mask, "
            "or set nll_coef to 0."
        )
    return loss, metrics
