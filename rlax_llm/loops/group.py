"""Group policy optimization on sampled completions, as pure ``(init, step)`` pairs: by gradients, and by TRPO.

Advantages are fixed before the first optimizer step; then epochs of minibatches of whole groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.distributions import categorical
from rlax_llm.core.kl import KlControl, fixed_coef
from rlax_llm.core.masked import masked_mean
from rlax_llm.core.trees import check_trainable, join_trees
from rlax_llm.core.types import Completions, CreditedCompletions, Groups, Metrics, Params, Scored
from rlax_llm.credit.group_tokens import compared_steps
from rlax_llm.credit.groups import Advantage
from rlax_llm.credit.running import Remembering, remembering
from rlax_llm.credit.shaping import informative
from rlax_llm.loops.minibatches import Passes, epochs
from rlax_llm.loops.parts import fixed_log_probs, fixed_scores
from rlax_llm.loops.policy import Loop, TrainState, initial_state, policy_update
from rlax_llm.loops.telling import Telling, nothing_more
from rlax_llm.models.scoring import LogProbs
from rlax_llm.natural.fisher import DirectionRule, linearize_by_reverse
from rlax_llm.natural.trpo import SearchRule, policy_problem, trpo_step
from rlax_llm.policy.corrections import Correction, sampler_metrics
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.weightings import Weighting, top_entropy

Teaching = Callable[[jax.Array, jax.Array], jax.Array]
Logits = Callable[[Params, Completions], jax.Array]


def every_completion(mask: jax.Array, truncated: jax.Array) -> jax.Array:
    """The mask as it is: truncated completions teach too; ``shaping.overlong_filter`` is the other choice.

    Args:
        mask: ``[B, T]`` bool.
        truncated: ``[B]`` bool, not read.

    >>> every_completion(jnp.ones((1, 1), bool), jnp.ones(1, bool)).tolist()
    [[True]]
    """
    del truncated
    return mask


class GroupLearning(NamedTuple):
    """How a batch of groups is learned from.

    Attributes:
        epochs: times that each group is learned from.
        minibatches: optimizer steps in an epoch, each on whole groups.
        micro_batches: parts that the rows of a minibatch are taken in; changes the memory and nothing else. A part that
            holds less than a group computes the group's prompt anew.
        teaching: ``(mask, truncated) → mask``, the tokens that teach.
        correction: weights for a sampler that differs from the learner, whose log-probabilities are then taken again
            before the first optimizer step; None where the sampler's are the learner's.
        entropy_coef: weight ≥ 0 of the bonus for the mean entropy of a token, at the start; may be traced.
        entropy_control: ``(coef, entropy) → coef`` after each batch.
        telling: ``advantages → metrics``, what a step tells of the advantages that it learns from.
        credited: share of the tokens that have credit, those of highest entropy before the first optimizer step; the
            advantages of the others are 0, and no denominator changes. In (0, 1]; 1 takes no further pass.
    """

    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 1
    teaching: Teaching = every_completion
    correction: Correction | None = None
    entropy_coef: float | jax.Array = 0.0
    entropy_control: KlControl = fixed_coef
    telling: Telling = nothing_more
    credited: float = 1.0


class GroupState(NamedTuple):
    """What a step changes.

    Attributes:
        params: what is trained, any pytree; what is not is a step's ``frozen``.
        opt_state: the optimizer's.
        step: scalar int32, optimizer steps taken.
        entropy_coef: scalar, weight of the entropy bonus in the next step.
        memory: what an advantage keeps from step to step, of ``Remembering``; nothing as a rule.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    entropy_coef: jax.Array
    memory: Any = ()


ONCE = GroupLearning()
GroupLoop = Loop[GroupState, Groups]


def _check(batch: Groups, learning: GroupLearning, key: jax.Array | None) -> None:
    checks.record("group_loop", "batch", batch, Groups)
    rows = batch.completions.tokens.shape[0]
    shape = checks.shape("group_loop", "scores", batch.scores)
    if len(shape) not in (2, 3) or shape[-2] * shape[-1] != rows:
        raise ValueError(
            f"group_loop: scores has shape {shape}, wanted [P, G] (or [K, P, G] for K rewards) with P · G = "
            f"{rows}, the rows of completions."
        )
    if shape[-2] % learning.minibatches:
        raise ValueError(
            f"group_loop: minibatches is {learning.minibatches}, wanted a divisor of the {shape[-2]} groups."
        )
    if rows // learning.minibatches % learning.micro_batches:
        raise ValueError(
            f"group_loop: micro_batches is {learning.micro_batches}, wanted a divisor of the "
            f"{rows // learning.minibatches} rows of a minibatch."
        )
    if learning.minibatches > 1 and key is None:
        raise ValueError("group_loop: several minibatches are drawn at random and key is None; give step a key.")


def group_advantages(
    advantage: Advantage, completions: Completions, scores: jax.Array, ref_log_probs: jax.Array | None = None
) -> jax.Array:
    """Advantages ``[B, T]`` of completions in groups: an estimator of ``Scored`` in the layout of the rows.

    Args:
        advantage: ``Scored → [P, G]`` or ``[P, G, T]``.
        completions: ``[B, T]``, B = P · G.
        scores: ``[P, G]``, or ``[K, P, G]`` where the estimator takes several rewards.
        ref_log_probs: ``[B, T]``, where the estimator reads a reference.
    """
    return _of_rows(advantage(scored_groups(Groups(completions, scores, ref_log_probs))), completions)


def scored_groups(batch: Groups) -> Scored:
    """What an estimator sees of a batch: its rows in groups.

    Args:
        batch: ``ref_log_probs`` where the estimator reads a reference.
    """

    def grouped(x: jax.Array | None) -> Any:
        return None if x is None else x.reshape(*batch.scores.shape[-2:], -1)

    rows = batch.completions
    parts = grouped(rows.log_probs), grouped(rows.mask), grouped(batch.ref_log_probs)
    return Scored(batch.scores, *parts, known=batch.known)


def _of_rows(credit: jax.Array, completions: Completions) -> jax.Array:
    """``[P, G]`` or ``[P, G, T]`` as ``[B, T]``."""
    return jnp.broadcast_to(credit.reshape(completions.tokens.shape[0], -1), completions.tokens.shape)


def compared(batch: Groups) -> jax.Array:
    """What estimators compare within each group: scores, or the rewards of steps where these are known.

    A group whose scores are equal teaches all the same where its steps earned them otherwise, and one whose payments
    are equal does not (``credit.compared_steps``).

    Args:
        batch: of ``P · G`` rows.

    Returns:
        ``[P, G]``, or ``[K, P, G]`` of K rewards; with ``known.step_rewards`` and one reward ``[P, G · T]``.

    >>> from rlax_llm.core.types import Known
    >>> rows = jnp.ones((2, 2), bool)
    >>> completions = Completions(rows, rows, rows, 0.0 * rows, rows[:, 0])
    >>> earned = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    >>> compared(Groups(completions, jnp.ones((1, 2)), known=Known(step_rewards=earned))).tolist()
    [[1.0, 0.0, 0.0, 1.0]]
    """
    steps, scores = batch.known.step_rewards, batch.scores
    if steps is None or scores.ndim == 3:
        return scores
    mask = batch.completions.mask.reshape(steps.shape)
    return compared_steps(scores, steps, mask).reshape(len(scores), -1)


def uninformative_share(scores: jax.Array) -> jax.Array:
    """Share of groups without any difference in score, which teach nothing: TRL's ``frac_reward_zero_std``.

    Args:
        scores: of ``compared``: ``[P, G]``, or ``[K, P, G]``: then a group without a difference in any of K rewards.

    >>> float(uninformative_share(jnp.array([[0.0, 1.0], [1.0, 1.0]])))
    0.5
    """
    return 1.0 - informative_groups(scores).mean()


def informative_groups(scores: jax.Array) -> jax.Array:
    """``[P]`` bool: the groups in which any reward differs.

    Args:
        scores: of ``compared``: ``[P, G]``, or ``[K, P, G]`` of K rewards.

    >>> informative_groups(jnp.array([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [True, False]
    """
    differs = jax.vmap(informative)(scores.reshape(-1, scores.shape[-1]))
    return differs.reshape(-1, scores.shape[-2]).any(0)


def _fixed(log_probs: LogProbs, learning: GroupLearning, completions: Completions, params: Any) -> jax.Array:
    """Log-probabilities without a gradient."""
    return fixed_log_probs(log_probs, params, completions, learning.minibatches * learning.micro_batches)


def _reference_is_there(objective: Objective, reference: Params | None, given: jax.Array | None) -> None:
    if given is not None and reference is not None:
        raise ValueError("group_loop: got batch.ref_log_probs and reference, wanted one of them; leave one out.")
    if objective.kl is not None and reference is None and given is None:
        raise checks.NoReference(
            "group_loop: objective.kl needs a reference, got reference None; give step reference=, the frozen "
            "reference's parameters (the policy's at its start), or an objective with kl=None."
        )


def _credited(advantage: Remembering, memory: Any, batch: Groups) -> tuple[jax.Array, Any]:
    """``group_advantages``, which may miss a reference too, and what is remembered."""
    try:
        credit, memory = advantage.credit(memory, scored_groups(batch))
        return _of_rows(credit, batch.completions), memory
    except checks.NoReference:
        raise checks.NoReference(
            "group_loop: objective.advantage takes a KL off the score and needs a reference, got reference None; give "
            "step reference=, the frozen reference's parameters (the policy's at its start), or a kl_coef of 0."
        ) from None


def _told(learning: GroupLearning, batch: Groups, advantages: jax.Array) -> Metrics:
    """Metrics of a batch's scores and of its advantages."""
    return {"frac_reward_zero_std": uninformative_share(compared(batch))} | learning.telling(advantages)


def _before(log_probs: LogProbs, learning: GroupLearning, completions: Completions, params: Params) -> Any:
    """The learner's own log-probabilities and entropies before its first optimizer step, where anything reads them."""
    if learning.correction is None and learning.credited == 1:
        return None, None
    return fixed_scores(log_probs, params, completions, learning.minibatches * learning.micro_batches)


def _corrected(
    learning: GroupLearning, completions: Completions, own: jax.Array | None
) -> tuple[Completions, jax.Array | None, Metrics]:
    """Completions with the learner's own log-probabilities, the weights that make up for the sampler's, and metrics."""
    if learning.correction is None or own is None:
        return completions, None, {}
    drawn = completions.drawn
    factors = learning.correction(own, completions.log_probs, drawn)
    if completions.given is not None:  # which nobody drew, so that nothing has to be made up for
        factors = jnp.where(completions.given, 1.0, factors)
    described = sampler_metrics(own, completions.log_probs, drawn)
    described |= {"correction_mean": masked_mean(factors, drawn)}
    return completions._replace(log_probs=own), factors, {f"sampler/{name}": x for name, x in described.items()}


@check_arguments
def group_loop(
    log_probs: LogProbs,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    learning: GroupLearning = ONCE,
) -> GroupLoop:
    """``init(params)`` and ``step(state, groups, *, key, reference, frozen)`` for completions in groups.

    ``scores [P, G]`` belong to the ``P · G`` rows of ``completions``; NaN marks a completion without a score: its
    advantage is 0, and only a KL term still moves it. The old log-probabilities are the sampler's, so the first
    optimizer step has ratios of 1 where sampler and learner agree, and epochs and minibatches make the trust region
    act. Limiting case: one epoch of one minibatch is ``policy_loop`` on ``group_advantages``.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        objective: five functions.
        optimizer: any Optax transformation.
        learning: epochs, minibatches and what else there is to choose.

    Returns:
        The pair; a batch is ``Groups``, and ``key`` orders its minibatches. Metrics are means over the optimizer steps
        of ``policy_loop``'s, and ``frac_reward_zero_std`` (see ``uninformative_share``); with a correction
        ``sampler/…`` of ``sampler_metrics``, and where the entropy bonus is controlled ``entropy_coef``. A minibatch
        without a token to learn from is no step: it changes nothing and counts in no mean.

    Raises:
        ValueError: for settings out of range; at trace time, for scores that do not fit the rows, minibatches that do
            not divide the groups, or minibatches without a key.
    """
    counts = ("epochs", "minibatches", "micro_batches")
    checks.at_least_one("group_loop", **{name: getattr(learning, name) for name in counts})
    checks.not_negative("group_loop", entropy_coef=learning.entropy_coef)
    update = policy_update(log_probs, objective, optimizer, learning.micro_batches)
    advantage = remembering(objective.advantage)

    def init(params: Params) -> GroupState:
        start = initial_state(optimizer, params)
        return GroupState(
            params=start.params,
            opt_state=start.opt_state,
            step=start.step,
            entropy_coef=jnp.asarray(learning.entropy_coef, float),
            memory=advantage.init(),
        )

    def step(
        state: GroupState,
        batch: Groups,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[GroupState, Metrics]:
        _check(batch, learning, key)
        _reference_is_there(objective, reference, batch.ref_log_probs)
        if reference is not None:
            of_reference = _fixed(log_probs, learning, batch.completions, join_trees(reference, frozen))
            batch = batch._replace(ref_log_probs=of_reference)
        completions, scores = batch.completions, batch.scores
        advantages, memory = _credited(advantage, state.memory, batch)
        own, entropy = _before(log_probs, learning, completions, join_trees(state.params, frozen))
        taught, factors, described = _corrected(learning, completions, own)
        taught = taught._replace(mask=learning.teaching(completions.mask, completions.truncated))
        if learning.credited != 1:
            advantages = jnp.where(top_entropy(entropy, taught.mask, learning.credited), advantages, 0.0)

        def learn(now: TrainState, rows: CreditedCompletions) -> tuple[TrainState, Metrics]:
            return update(now, rows, frozen, state.entropy_coef)

        start = TrainState(params=state.params, opt_state=state.opt_state, step=state.step)
        rows = CreditedCompletions(taught, advantages, batch.ref_log_probs, factors, _totals(scores), batch.staleness)
        passes = Passes(learning.epochs, learning.minibatches, group_size=scores.shape[-1])
        now, (steps, counted) = epochs(where_taught(learn), start, rows, len(completions.tokens), passes, key)
        metrics = means_where(counted, steps) | described | _told(learning, batch, advantages)
        coef = learning.entropy_control(state.entropy_coef, metrics["entropy"])
        if learning.entropy_control is not fixed_coef:
            metrics |= {"entropy_coef": state.entropy_coef}
        return GroupState(
            params=now.params,
            opt_state=now.opt_state,
            step=now.step,
            entropy_coef=jnp.where(taught.mask.any(), coef, state.entropy_coef),
            memory=memory,
        ), metrics

    return init, step


def _totals(scores: jax.Array) -> jax.Array:
    """Of each row, ``[B]``, several rewards added up."""
    return (scores if scores.ndim == 2 else scores.sum(0)).reshape(-1)


def where_taught(learn: Callable) -> Callable:
    """``learn`` where the batch has a token to learn from, else nothing; and whether it has one, beside the metrics.

    Args:
        learn: ``(state, batch) → (state, metrics)``; a batch is a record with ``completions``.
    """

    def nothing(now: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        metrics = jax.eval_shape(learn, now, batch)[1]
        return now, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), metrics)

    def learn_or_not(now: TrainState, batch: Any) -> tuple[TrainState, tuple[Metrics, jax.Array]]:
        there = batch.completions.read.any()
        now, metrics = jax.lax.cond(there, learn, nothing, now, batch)
        return now, (metrics, there)

    return learn_or_not


def means_where(counted: jax.Array, steps: Metrics) -> Metrics:
    """Means over the optimizer steps that were taken.

    Args:
        counted: ``[N]`` bool, the steps that were.
        steps: metrics ``[N]``.
    """
    return jax.tree.map(lambda x: jnp.where(counted, x, 0.0).sum(0) / counted.sum(), steps)


@check_arguments
def group_trpo_loop(
    logits: Logits,
    advantage: Advantage,
    weighting: Weighting,
    direction: DirectionRule,
    search: SearchRule,
    teaching: Teaching = every_completion,
    telling: Telling = nothing_more,
) -> GroupLoop:
    """TRPO on completions: ``init`` and ``step`` as of ``group_loop``, a step being one natural-gradient step.

    The surrogate is ``Σ weights · (−A · π/π_old)``, the divergence ``Σ weights · KL(π_old‖π)`` exact at every chosen
    token, both over the same weights (of ``token_mean``: the KL per token). π_old is the policy at the step's start.

    Args:
        logits: ``(params, completions) → [B, S, V]``, the tempered logits after each of the last S tokens, which hold
            all that was chosen.
        advantage: ``Scored → [P, G]`` or ``[P, G, T]``.
        weighting: ``mask → weights``.
        direction: such as ``natural_direction(kl_radius)``; its damping makes up for parameters without a slope, as an
            adapter has at its start.
        search: such as ``backtracking_search(improves_within(kl_radius))``.
        teaching: ``(mask, truncated) → mask``, the tokens that teach.
        telling: ``advantages → metrics``, what a step tells of the advantages that it learns from.

    Returns:
        The pair; a batch is ``Groups``, and neither ``key`` nor ``reference`` is read. Metrics are those of
        ``trpo_step``, ``entropy`` before it (nats per token) and
        ``frac_reward_zero_std``.
    """

    def init(params: Params) -> GroupState:
        check_trainable("group_trpo_loop", params)
        return GroupState(params, (), jnp.int32(0), jnp.zeros(()))

    def step(
        state: GroupState,
        batch: Groups,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[GroupState, Metrics]:
        del key, reference
        _check(batch, ONCE, None)
        completions, scores = batch.completions, batch.scores
        advantages = group_advantages(advantage, completions, scores)
        mask = teaching(completions.mask, completions.truncated)

        def policy(params: Params) -> jax.Array:
            return logits(join_trees(params, frozen), completions)

        old = policy(state.params)
        tokens, credit, weights, chosen = (
            x[:, -old.shape[1] :] for x in (completions.tokens, advantages, weighting(mask), completions.mask)
        )
        # Attention and the products over tokens have derivatives of their own, in reverse alone.
        problem = policy_problem(policy, categorical, state.params, tokens, credit, weights, linearize_by_reverse)
        params, metrics = trpo_step(state.params, problem, direction, search)
        entropy = masked_mean(categorical.entropy(old), chosen)
        metrics |= {"entropy": entropy, "frac_reward_zero_std": uninformative_share(compared(batch))}
        metrics |= telling(advantages)
        return GroupState(params, (), state.step + 1, state.entropy_coef), metrics

    return init, step
