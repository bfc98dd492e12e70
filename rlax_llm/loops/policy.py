"""One optimizer step on a policy loss, as a pure ``(init, step)`` pair: the body of every loop here.

The weights are taken over the whole batch and the loss is a sum, so micro-batches change the memory and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.trees import check_trainable, join_trees
from rlax_llm.core.types import Completions, CreditedCompletions, Metrics, Params, PolicyBatch
from rlax_llm.loops.balance import router_metrics, routers
from rlax_llm.loops.minibatches import lost_share, optimizer_step
from rlax_llm.loops.parts import fixed_log_probs, summed_gradient, tokens_of
from rlax_llm.models.distilling import Distilled
from rlax_llm.models.dropout import with_dropout
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.distillation import from_teacher
from rlax_llm.policy.objectives import Objective, policy_loss, reads_whole_batches
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.terms import Term, term_weights
from rlax_llm.policy.trust_regions import TrustRegion, score_function
from rlax_llm.policy.weightings import token_mean

State = TypeVar("State")
Batch = TypeVar("Batch", contravariant=True)


class StepFunction(Protocol[State, Batch]):
    """The second function of every loop that learns from a batch it is given."""

    def __call__(
        self,
        state: State,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[State, Metrics]:
        """The state after a batch, and what there is to say of it.

        Args:
            state: what the loop's ``init`` made, or an earlier step.
            batch: one record, such as ``Groups`` or ``PairedCompletions``.
            key: randomness; None where the loop draws nothing. Loops that learn from rows as they are given draw
                from it what adapters with a dropout leave out, and without it these leave out nothing.
            reference: the frozen reference's parameters, like those that are trained; joined with the same ``frozen``.
                None where nothing reads a reference, or where the batch has its log-probabilities.
            frozen: the parameters that are not trained, to be joined with those that are.
        """
        ...


Loop = tuple[Callable[[Params], State], StepFunction[State, Batch]]


class TrainState(NamedTuple):
    """What an optimizer step changes.

    Attributes:
        params: what is trained, any pytree; what is not is a step's ``frozen``.
        opt_state: the optimizer's.
        step: scalar int32, optimizer steps taken.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array


def initial_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    """The state before the first step.

    Args:
        optimizer: any Optax transformation.
        params: any pytree.

    Raises:
        ValueError: for parameters narrower than float32.
    """
    check_trainable("init", params)
    return TrainState(params, optimizer.init(params), jnp.int32(0))


def descend(optimizer: optax.GradientTransformation, state: TrainState, gradient: Params) -> tuple[TrainState, Metrics]:
    """The state one optimizer step further, and what there is to say of the step.

    Args:
        optimizer: the one that the state was made with.
        state: before the step.
        gradient: of the loss, like ``state.params``.

    Returns:
        The state, and ``grad_norm`` before any clipping and ``lost_updates`` (see ``lost_share``).
    """
    params, opt_state = optimizer_step(optimizer, gradient, state.params, state.opt_state)
    lost = lost_share(gradient, state.params, params)
    told = {"grad_norm": optax.global_norm(gradient), "lost_updates": lost}
    return TrainState(params, opt_state, state.step + 1), told


def reference_log_probs(
    where: str,
    score: Callable[[Params], jax.Array],
    batch: Any,
    reference: Params | None,
    needed: bool,
    without: str,
) -> jax.Array | None:
    """The reference's log-probabilities: as the batch has them, from its parameters, or None where none are read.

    Args:
        where: the loop, for errors.
        score: ``params → [B, T]``, without a gradient; called only where needed.
        batch: a record with ``completions`` and ``ref_log_probs``.
        reference: parameters, or None.
        needed: whether anything reads them.
        without: what to take where there is no reference, for errors.

    Returns:
        ``[B, T]`` in nats, or None.

    Raises:
        ValueError: where they are needed and neither the batch nor ``reference`` has them, or where both do.
    """
    given = batch.ref_log_probs
    checks.same_shape(where, tokens=batch.completions.tokens, ref_log_probs=given)
    if given is not None and reference is not None:
        raise ValueError(f"{where}: got batch.ref_log_probs and reference, wanted one of them; leave one out.")
    if not needed:
        return None
    if given is None and reference is None:
        raise checks.NoReference(
            f"{where}: a reference is read, got neither batch.ref_log_probs nor reference; give one of them (the "
            f"parameters are the policy's at its start), or take {without}."
        )
    return given if reference is None else score(reference)


def learned_batch(rows: CreditedCompletions) -> PolicyBatch:
    """What a loss reads of rows besides the policy's own numbers, which are zeros here.

    Args:
        rows: with their advantages.
    """
    taken = rows.completions
    scores = rows.scores if rows.scores is None else jnp.broadcast_to(rows.scores[:, None], taken.mask.shape)
    return PolicyBatch(
        log_probs=jnp.zeros_like(taken.log_probs),
        old_log_probs=taken.log_probs,
        advantages=rows.advantages,
        mask=taken.mask,
        ref_log_probs=rows.ref_log_probs,
        given=getattr(taken, "given", None),
        scores=scores,
        staleness=rows.staleness,
    )


def reweigh(uniform: jax.Array, rows: CreditedCompletions) -> jax.Array | None:
    """Weights of a mean over drawn tokens as the current policy would draw them, ``uniform · factors / Σ``.

    Args:
        uniform: ``token_mean`` of the mask.
        rows: with a correction's factors; None without them.
    """
    if rows.factors is None:
        return None
    drawn = rows.completions.drawn
    alike = jnp.where(drawn, uniform, 0.0)
    taken = jnp.where(drawn, uniform * rows.factors, 0.0)
    total = taken.sum()
    return taken * jnp.where(total > 0, alike.sum() / jnp.where(total > 0, total, 1.0), 0.0)


PolicyUpdate = Callable[[TrainState, CreditedCompletions, Params | None, float | jax.Array], tuple[TrainState, Metrics]]


def policy_update(
    log_probs: LogProbs, objective: Objective, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> PolicyUpdate:
    """One optimizer step on ``policy_loss − entropy_coef · mean entropy of a token``, and what routers cost.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats; of ``by_tokens`` parts are
            computed without their padding. A third array is the ``divergence`` that terms read.
        objective: its ``advantage`` is not read.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in; a part may hold parts of groups.

    Returns:
        ``(state, batch, frozen, entropy_coef) → (state, metrics)``.

    Raises:
        ValueError: for parts of rows, where the objective reads several rows at once.
    """
    if reads_whole_batches(objective) and micro_batches > 1:
        raise ValueError(
            f"policy_update: micro_batches is {micro_batches}, and the objective reads several rows at once; give "
            "whole minibatches (micro_batches 1), or another trust region."
        )

    def update(
        state: TrainState, batch: CreditedCompletions, frozen: Params | None, entropy_coef: float | jax.Array
    ) -> tuple[TrainState, Metrics]:
        weights = objective.weighting(batch.completions.mask)
        weights = weights if batch.factors is None else weights * batch.factors
        uniform = token_mean(batch.completions.mask)
        sums = weights, uniform, reweigh(uniform, batch)
        own = term_weights(objective.terms, learned_batch(batch))
        routed = routers(log_probs, join_trees(state.params, frozen), batch.completions, micro_batches)

        def loss(params: Params, part: tuple[CreditedCompletions, Any, Any]) -> tuple[jax.Array, Metrics]:
            rows, (weights, uniform, reweighted), own = part
            taken = rows.completions
            (current, entropy, *further), cost, told = routed(join_trees(params, frozen), taken)
            learned = learned_batch(rows)._replace(log_probs=current, entropy=entropy)
            learned = learned._replace(divergence=further[0]) if further else learned
            learned = learned._replace(weights=weights, uniform=uniform, reweighted=reweighted, terms=own)
            value, metrics = policy_loss(objective, learned)
            entropy = jnp.where(taken.mask, uniform * entropy, 0.0).sum()
            told |= {"entropy": jax.lax.stop_gradient(entropy)}
            return value - entropy_coef * entropy + cost, metrics | told

        rows = (batch._replace(factors=None), sums, own)
        gradient, metrics = summed_gradient(loss, state.params, rows, micro_batches, tokens_of(log_probs))
        state, told = descend(optimizer, state, gradient)
        return state, router_metrics(metrics) | told

    return update


@check_arguments
def policy_loop(
    log_probs: LogProbs, objective: Objective, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> Loop[TrainState, CreditedCompletions]:
    """``init(params)`` and ``step(state, batch, *, key, reference, frozen)`` on completions with advantages.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        objective: five functions.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in; a part may hold parts of groups.

    Returns:
        The pair; a batch is ``CreditedCompletions``, and ``key`` is not read. Metrics are those of ``policy_loss``,
        ``entropy`` (nats per token) and those of ``descend``.

    Raises:
        ValueError: at trace time, for a batch that is no ``CreditedCompletions``, rows that micro-batches do not
            divide, a KL term without a reference, or two references.
    """
    update = policy_update(log_probs, objective, optimizer, micro_batches)

    def step(
        state: TrainState,
        batch: CreditedCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        del key
        checks.record("policy_loop", "batch", batch, CreditedCompletions)

        def score(params: Params) -> jax.Array:
            return fixed_log_probs(log_probs, join_trees(params, frozen), batch.completions, micro_batches)

        there = reference is not None or batch.ref_log_probs is not None
        needed = objective.kl is not None or (there and bool(objective.terms))  # which may read it
        ref_log_probs = reference_log_probs("policy_loop", score, batch, reference, needed, "an objective with kl=None")
        return update(state, batch._replace(ref_log_probs=ref_log_probs), frozen, 0.0)

    return partial(initial_state, optimizer), step


class Anchor(NamedTuple):
    """What holds a policy that imitates to the model that it began as.

    Attributes:
        compared: ``(params, the reference's params, completions) → (log_probs, entropy, divergence)``, all ``[B, T]``,
            nats, such as ``compared_rows(config, reverse_kl)``.
        coef: weight of a token's divergence, per nat; may be traced.
    """

    compared: Distilled
    coef: float | jax.Array


def beside(compared: Any, reference: Params, params: Params, rows: Any) -> Any:
    """A policy's numbers and its divergence from a reference, as of the policy alone.

    Args:
        compared: ``(params, reference, rows) → (log_probs, entropy, divergence)``.
        reference: whole parameters.
        params: the policy's.
        rows: completions.
    """
    return compared(params, reference, rows)


def _anchored(
    log_probs: LogProbs, anchor: Anchor | None, reference: Params | None, frozen: Params | None
) -> LogProbs | Callable[..., Any]:
    """The numbers that a supervised step reads, with the divergence where there is an anchor."""
    if anchor is None:
        return log_probs
    if reference is None:
        raise checks.NoReference(
            "supervised_loop: the anchor is a divergence from a reference, got reference None; give step reference=, "
            "the parameters that training began with, or no anchor."
        )
    return partial(beside, anchor.compared, join_trees(reference, frozen))


@check_arguments
def supervised_loop(
    log_probs: LogProbs,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    trust_region: TrustRegion = score_function,
    anchor: Anchor | None = None,
) -> Loop[TrainState, Completions]:
    """``init(params)`` and ``step(state, completions, *, key, reference, frozen)``: maximum likelihood, token mean.

    It is the policy loss with advantage 1, the score function and behavior log-probabilities of 0. Limiting cases:
    with ``cispo(ceiling=1)`` a token weighs its own probability, which is DFT (arXiv 2508.05629); with an anchor by the
    reverse KL besides, ASFT (arXiv 2509.23753, whose authors' code takes the forward KL), which is DFT for a weight of
    0.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in.
        trust_region: of a token's log-probability and an advantage of 1.
        anchor: what is paid for leaving the reference; None for nothing.

    Returns:
        The pair; a batch is ``Completions``, or what else ``log_probs`` reads with their ``tokens``, ``mask`` and
        ``log_probs``, as ``Packed`` has. ``key`` is for adapters with a dropout alone, and ``reference``, parameters,
        is read with an anchor alone.
        Metrics are ``loss`` (nats per token), ``entropy``, with an anchor ``kl``, and those of ``descend``.

    Raises:
        ValueError: at trace time, for an anchor without a reference.
    """
    terms = () if anchor is None else (Term("kl", from_teacher, anchor.coef),)
    objective = Objective(lambda scored: scored.scores, token_ratio, trust_region, token_mean, terms=terms)

    def step(
        state: TrainState,
        batch: Completions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        batch = with_dropout(batch, key)
        update = policy_update(_anchored(log_probs, anchor, reference, frozen), objective, optimizer, micro_batches)
        shape = batch.tokens.shape
        credited = CreditedCompletions(batch._replace(log_probs=jnp.zeros(shape)), jnp.ones(shape))
        state, metrics = update(state, credited, frozen, 0.0)
        told = {name: metrics[name] for name in ("entropy", "kl", "grad_norm", "lost_updates") if name in metrics}
        told |= {name: value for name, value in metrics.items() if name.startswith("router/")}
        held = 0.0 if anchor is None else anchor.coef * metrics["kl"]
        return state, {"loss": metrics["policy_loss"] + held} | told

    return partial(initial_state, optimizer), step
