"""Optimizer steps on pairs of responses, of a policy and of a reward model, as pure ``(init, step)`` pairs.

A pair is two consecutive rows of one ``Completions``: row 2b chosen, row 2b + 1 rejected, of one prompt; a gold
response is a third row. Weights are taken over the whole batch and losses are sums, so micro-batches change the memory
and nothing else. A pair with an empty response is padding: nothing of it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, Metrics, PairedCompletions, Params
from rlax_llm.loops.balance import Routers, router_metrics, routers
from rlax_llm.loops.parts import fixed_log_probs, summed_gradient, tokens_of
from rlax_llm.loops.policy import Loop, TrainState, descend, initial_state, reference_log_probs
from rlax_llm.models.dropout import with_dropout
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.weightings import Weighting, token_mean
from rlax_llm.preference.implicit_rewards import Responses, log_prob
from rlax_llm.preference.links import Link, centered_rewards, demand_margin
from rlax_llm.preference.marks import is_pairwise, reads_gold, reads_reference
from rlax_llm.preference.pairs import (
    Preference,
    PreferenceBatch,
    pair_loss,
    pair_mean,
    preference_loss,
)

Scores = Callable[[Params, Completions], jax.Array]


def _sides(count: int) -> tuple[slice, ...]:
    """Rows of each side, of pairs of ``count`` rows: chosen, rejected and where there is one gold."""
    return tuple(slice(side, None, count) for side in range(count))


CHOSEN, REJECTED = _sides(2)
_WITHOUT = "rewards that read none (marks.reference_free says so of your own)"


def _check_factors(preference: Preference) -> None:
    """Refuse factors of pairs for a link that may read more than a pair, which has no loss of each."""
    if preference.factors is not None and not is_pairwise(preference.link):
        raise ValueError(
            "preference_loop: factors weigh single pairs (as WPO does) and the link reads the whole batch (as "
            "sorted_pairs does); take a link of single pairs, or no factors."
        )


def _check_link(where: str, link: Link, micro_batches: int) -> None:
    """Refuse micro-batches for a link that may read more than a pair: it would see a part for the whole."""
    if micro_batches > 1 and not is_pairwise(link):
        raise ValueError(
            f"{where}: micro_batches is {micro_batches} but the link reads the whole batch (as sorted_pairs does), "
            "wanted 1; take the batch in one part, or a link of single pairs (marks.pairwise says so of your own)."
        )


def _pairs(where: str, batch: PairedCompletions, micro_batches: int, count: int = 2) -> tuple[Completions, jax.Array]:
    """The completions with padding masked, and the pairs' weights ``[B]``; a pair has ``count`` rows."""
    checks.record(where, "batch", batch, PairedCompletions)
    completions = batch.completions
    rows = completions.tokens.shape[0]
    if rows % count or (rows // count) % micro_batches:
        wanted = "an even number of rows" if count == 2 else "three rows for each pair, the last of them gold,"
        raise ValueError(
            f"{where}: got {rows} rows in {micro_batches} micro_batches, wanted {wanted} and a divisor "
            f"of the pairs; row {count}b is chosen, row {count}b + 1 rejected."
        )
    chosen, rejected = _sides(count)[:2]
    weights = pair_mean(completions.mask[chosen], completions.mask[rejected])
    checks.same_shape(where, pairs=weights, margins=batch.margins, explored=batch.explored, preferred=batch.preferred)
    read = completions._replace(mask=completions.mask & jnp.repeat(weights != 0, count)[:, None])
    return read, weights if batch.preferred is None else weights * batch.preferred


def _responses(
    completions: Completions,
    log_probs: jax.Array,
    ref_log_probs: jax.Array | None,
    rows: slice,
    log_collisions: jax.Array | None = None,
) -> Responses:
    reference, agreeing = (None if x is None else x[rows] for x in (ref_log_probs, log_collisions))
    return Responses(log_probs[rows], completions.mask[rows], reference, agreeing)


def _total(responses: Responses) -> jax.Array:
    return log_prob()(responses.log_probs, None, responses.mask)


def _pair_terms(preference: Preference) -> Callable[[Routers, Params, tuple], tuple[jax.Array, Metrics]]:
    """``(log-probabilities, params, rows) → (loss, metrics)``, all of them sums over the rows."""
    sides = _sides(rows_of_pair(preference))

    def loss(routed: Routers, params: Params, rows: tuple) -> tuple[jax.Array, Metrics]:
        taken, ref_log_probs, weights, margins, explored, token_weights, uniform = rows
        (current, entropy, *further), cost, told = routed(params, taken)
        agreeing = further[0] if further else None
        chosen, rejected, *gold = (_responses(taken, current, ref_log_probs, side, agreeing) for side in sides)
        third = gold[0] if gold else None
        pairs = PreferenceBatch(chosen, rejected, weights, margins, token_weights, third, explored)
        value, metrics = preference_loss(preference, pairs)
        metrics |= {"loss": value, "entropy": jnp.where(taken.mask, uniform * entropy, 0.0).sum()}
        metrics |= {"chosen_log_prob": (weights * _total(chosen)).sum()}
        metrics |= {"rejected_log_prob": (weights * _total(rejected)).sum()} | told
        return value + cost, jax.lax.stop_gradient(metrics)

    return loss


def rows_of_pair(preference: Preference) -> int:
    """Rows that a pair has: 2, or 3 where the loss reads a gold response.

    Args:
        preference: any.

    >>> from rlax_llm.recipes.preference import dpo, tpo
    >>> rows_of_pair(dpo()), rows_of_pair(tpo())
    (2, 3)
    """
    return 3 if reads_gold(preference.likely) else 2


def _likely_mask(preference: Preference, completions: Completions, explored: jax.Array | None) -> jax.Array:
    """``[B, T]`` bool, the tokens whose likelihood the loss reads."""
    zeros = jnp.zeros(completions.mask.shape)
    sides = [_responses(completions, zeros, None, side) for side in _sides(rows_of_pair(preference))]
    third = sides[2] if len(sides) > 2 else None
    return preference.likely(PreferenceBatch(sides[0], sides[1], zeros[:, 0], gold=third, explored=explored)).mask


@check_arguments
def preference_loop(
    log_probs: LogProbs,
    preference: Preference,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    token_weighting: Weighting = token_mean,
) -> Loop[TrainState, PairedCompletions]:
    """``init(params)`` and ``step(state, pairs, *, key, reference, frozen)``: a policy from pairs.

    Limiting case: for a reference that is the policy, the loss is the link's at rewards of 0 (log 2 for ``dpo``).

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[2B, T]``, nats; may compute each prompt
            once for both of its rows; of ``by_tokens`` parts are computed without their padding. A third array is the
            ``log_collisions`` that factors read.
        preference: rewards, link, weight of the likelihood term, and factors of pairs.
        optimizer: any Optax transformation.
        micro_batches: parts that the pairs are taken in; 1 for a link that reads the whole batch, such as
            ``sorted_pairs``, whose batch may hold no padding either.
        token_weighting: aggregation of the likelihood of the chosen responses, or of those that ``preference.likely``
            takes, over the whole batch.

    Returns:
        The pair; a batch is ``PairedCompletions``, its margins in the rewards' units, and ``key`` is for adapters with
        a dropout alone. The reference, which drops nothing, comes as the batch's ``ref_log_probs`` or as ``reference``,
        its parameters; rewards that read none compute none. Metrics:
        ``loss`` and those of ``preference_loss``, the likelihood's ``nll`` included; ``chosen_log_prob`` and
        ``rejected_log_prob`` (of whole responses, mean over pairs), ``entropy`` (nats per completion token), and
        those of ``descend``.

    Raises:
        ValueError: for micro-batches, or factors of pairs, of a link that reads the whole batch; at trace time, for
            rows that are not pairs, pairs that micro-batches do not divide, no reference where one is read, or two.

    >>> from rlax_llm.recipes.preference import dpo
    >>> mask, zeros = jnp.ones((2, 1), bool), jnp.zeros((2, 1))
    >>> pair = Completions(jnp.array([[0], [1]]), mask, mask, zeros, jnp.zeros(2, bool))
    >>> bandit = lambda params, rows: (jax.nn.log_softmax(params)[rows.tokens], jnp.zeros(rows.tokens.shape))
    >>> init, step = preference_loop(bandit, dpo(beta=1.0), optax.sgd(1.0))
    >>> step(init(jnp.zeros(2)), PairedCompletions(pair), reference=jnp.zeros(2))[0].params.tolist()
    [0.5, -0.5]
    """
    needs_reference = reads_reference(preference.rewards)
    _check_link("preference_loop", preference.link, micro_batches)
    _check_factors(preference)

    loss = _pair_terms(preference)

    def step(
        state: TrainState,
        batch: PairedCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        completions, weights = _pairs("preference_loop", batch, micro_batches, rows_of_pair(preference))
        completions = with_dropout(completions, key)

        def score(params: Params) -> jax.Array:
            return fixed_log_probs(log_probs, join_trees(params, frozen), completions, micro_batches)

        ref_log_probs = reference_log_probs(
            "preference_loop",
            score,
            batch,
            reference,
            needs_reference,
            _WITHOUT,
        )
        token_weights = token_weighting(_likely_mask(preference, completions, batch.explored))
        of_pairs = (weights, batch.margins, batch.explored, token_weights)
        rows = (completions, ref_log_probs, *of_pairs, token_mean(completions.mask))
        routed = routers(log_probs, join_trees(state.params, frozen), completions, micro_batches)
        gradient, metrics = summed_gradient(
            lambda params, rows: loss(routed, join_trees(params, frozen), rows),
            state.params,
            rows,
            micro_batches,
            tokens_of(log_probs),
        )
        state, told = descend(optimizer, state, gradient)
        if batch.preferred is not None:
            metrics |= _of_preferred(metrics, weights)
        return state, router_metrics(metrics) | told

    return partial(initial_state, optimizer), step


_OF_PAIRS = (
    *("preference_loss", "chosen_reward", "rejected_reward", "margin", "accuracy", "pair_weight"),
    *("chosen_log_prob", "rejected_log_prob"),
)


def _of_preferred(metrics: Metrics, weights: jax.Array) -> Metrics:
    """The metrics that are means over pairs, over those alone of which one is preferred; 0 without any."""
    total = weights.sum()
    share = jnp.where(total > 0, total, 1.0)
    return {name: metrics[name] / share for name in _OF_PAIRS if name in metrics}


def _score_terms(
    link: Link, centering_coef: float, values: jax.Array, weights: jax.Array, margins: jax.Array | None
) -> tuple[jax.Array, Metrics]:
    """Loss and metrics of the scores ``[2B]``, sums over the pairs."""
    demanding = link if margins is None else demand_margin(link, margins)
    value, metrics = pair_loss(centered_rewards(demanding, centering_coef), values[CHOSEN], values[REJECTED], weights)
    return value, {"loss": value, "accuracy": metrics["accuracy"], "margin": metrics["margin"]}


@check_arguments
def reward_loop(
    scores: Scores,
    link: Link,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    centering_coef: float = 0.0,
) -> Loop[TrainState, PairedCompletions]:
    """``init(params)`` and ``step(state, pairs, *, key, reference, frozen)``: a reward model from pairs.

    The loss is the mean over pairs of ``link(w − margin, l) + c (w + l)²`` (arXiv 2203.02155, 2307.09288, 2312.09244).
    Limiting case: ``logistic`` without margins and with c = 0 is Bradley-Terry's, log 2 for equal scores.

    Args:
        scores: ``(params, completions) → [2B]``.
        link: ``(chosen_rewards, rejected_rewards) → loss``.
        optimizer: any Optax transformation.
        micro_batches: parts that the pairs are taken in; 1 for a link that reads the whole batch.
        centering_coef: c ≥ 0, per squared score; margins do not move what it centers.

    Returns:
        The pair; a batch is ``PairedCompletions``, its margins in the scores' units; ``key`` is for adapters with a
        dropout alone, and ``reference`` is not read. Metrics: ``loss``, ``accuracy`` (a tie is wrong) and ``margin``,
        means over pairs; ``min_reward``, ``mean_reward`` and ``max_reward`` over responses; and those of ``descend``.

    Raises:
        ValueError: for micro-batches of a link that reads the whole batch, or a negative c; at trace time, for rows
            that are not pairs, pairs that micro-batches do not divide, or scores that are not one per row.

    >>> from rlax_llm.preference.links import logistic
    >>> mask, zeros = jnp.ones((2, 1), bool), jnp.zeros((2, 1))
    >>> pair = Completions(jnp.array([[0], [1]]), mask, mask, zeros, jnp.zeros(2, bool))
    >>> init, step = reward_loop(lambda params, rows: params[rows.tokens[:, 0]], logistic, optax.sgd(1.0))
    >>> step(init(jnp.zeros(2)), PairedCompletions(pair))[0].params.tolist()
    [0.5, -0.5]
    """
    checks.not_negative("reward_loop", centering_coef=centering_coef)
    _check_link("reward_loop", link, micro_batches)

    def step(
        state: TrainState,
        batch: PairedCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        del reference
        completions, weights = _pairs("reward_loop", batch, micro_batches)
        completions = with_dropout(completions, key)
        places = jnp.arange(completions.tokens.shape[0])

        def of_rows(params: Params, rows: tuple) -> tuple[jax.Array, Metrics]:
            taken, weights, margins, own = rows
            values = scores(join_trees(params, frozen), taken)
            checks.same_shape("reward_loop", rows=own, scores=values)
            value, metrics = _score_terms(link, centering_coef, values, weights, margins)
            # Each micro-batch fills in its own scores: their sum is all of them.
            every = jnp.zeros(places.shape).at[own].set(values)
            return value, jax.lax.stop_gradient(metrics | {"scores": every})

        rows = (completions, weights, batch.margins, places)
        gradient, metrics = summed_gradient(of_rows, state.params, rows, micro_batches)
        every, used = metrics.pop("scores"), jnp.repeat(weights != 0, 2)
        metrics |= {"min_reward": jnp.min(every, where=used, initial=jnp.inf), "mean_reward": every.mean(where=used)}
        metrics |= {"max_reward": jnp.max(every, where=used, initial=-jnp.inf)}
        state, told = descend(optimizer, state, gradient)
        return state, metrics | told

    return partial(initial_state, optimizer), step
