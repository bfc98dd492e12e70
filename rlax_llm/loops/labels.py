"""Optimizer steps on labels, desirable or not, as pure ``(init, step)`` pairs: KTO and its relatives.

Row 2b of a ``Completions`` is prompt b with its own completion, row 2b + 1 with another prompt's (*mismatched*), from
which KTO takes its reference point; BCO's is a running mean of the rewards, which the loop carries. Each is taken over
the whole batch and before the gradient, so micro-batches change the memory and nothing else. A completion without a
token is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, LabeledCompletions, Metrics, Params
from rlax_llm.loops.balance import Routers, router_metrics, routers
from rlax_llm.loops.parts import fixed_log_probs, summed_gradient, tokens_of
from rlax_llm.loops.policy import Loop, TrainState, descend, initial_state, reference_log_probs
from rlax_llm.models.dropout import with_dropout
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.weightings import token_mean
from rlax_llm.preference.implicit_rewards import Responses, Reward, log_prob, log_ratio
from rlax_llm.preference.marks import reads_reference
from rlax_llm.preference.unpaired import (
    LabeledBatch,
    Unpaired,
    label_mean,
    reference_point,
    running_mean,
    unpaired_loss,
    update_running_mean,
)

ReferencePoint = Callable[[Reward, Callable[[], Responses]], tuple[jax.Array, Metrics]]


_WITHOUT = "a reward that reads none (marks.reference_free says so of your own)"


class CarriedReference(NamedTuple):
    """A reference point with a memory of earlier batches.

    Attributes:
        init: ``() → memory``, any pytree.
        step: ``(reward, own, mismatched, memory) → (z0, memory, metrics)``; ``own()`` and ``mismatched()`` give the
            rows with the policy's and the reference's log-probabilities, in a pass of their own without a gradient.
    """

    init: Callable[[], Any]
    step: Callable[[Reward, Callable[[], Responses], Callable[[], Responses], Any], tuple[jax.Array, Any, Metrics]]


class LabelState(NamedTuple):
    """What a step on labels changes.

    Attributes:
        params: what is trained, any pytree; what is not is a step's ``frozen``.
        opt_state: the optimizer's.
        step: scalar int32, optimizer steps taken.
        memory: the reference point's, empty where it has none.
    """

    params: Params
    opt_state: optax.OptState
    step: jax.Array
    memory: Any = ()


LabelLoop = Loop[LabelState, LabeledCompletions]


def reference_point_of_mismatched(reward: Reward, mismatched: Callable[[], Responses]) -> tuple[jax.Array, Metrics]:
    """KTO's reference point of the whole batch's mismatched rows, ``z0 = max(0, mean reward)`` (arXiv 2402.01306).

    Args:
        reward: the loss's own; it carries β.
        mismatched: gives the mismatched rows, with the policy's and the reference's log-probabilities.

    Returns:
        z0 in the reward's units, and the metric ``kl``: the same of log-ratios in nats, which is ``z0/β`` for
        ``kto(β)``.
    """
    rows = mismatched()
    return reference_point(reward, rows), {"kl": reference_point(log_ratio(), rows)}


def zero_reference(reward: Reward, mismatched: Callable[[], Responses]) -> tuple[jax.Array, Metrics]:
    """A reference point of 0, as in the unpaired APO-zero (arXiv 2408.06266); no mismatched row is read.

    Args:
        reward: not read.
        mismatched: not called.

    Returns:
        0, and no metric.
    """
    return jnp.zeros(()), {}


def _after_rewards(
    reward: Reward, own: Callable[[], Responses], mismatched: Callable[[], Responses], memory: Any
) -> tuple[jax.Array, Any, Metrics]:
    del mismatched
    rows = own()
    rewards = reward(rows.log_probs, rows.ref_log_probs, rows.mask)
    memory = update_running_mean(memory, rewards, rows.mask.any(-1))
    return memory.mean, memory, {}


running_mean_reward: CarriedReference = CarriedReference(running_mean, _after_rewards)
"""BCO's δ (arXiv 2404.04656): the mean reward of all labels so far, the present batch's included, as peers take it."""


def _with_memory(reference: ReferencePoint | CarriedReference) -> CarriedReference:
    """A reference point of one batch as one that remembers nothing."""
    if isinstance(reference, CarriedReference):
        return reference

    def step(reward: Reward, own: Any, mismatched: Callable[[], Responses], memory: Any) -> tuple:
        del own
        point, metrics = reference(reward, mismatched)
        return point, memory, metrics

    return CarriedReference(tuple, step)


def _check_labels(batch: LabeledCompletions, micro_batches: int) -> int:
    """Rows per label, 1 or 2."""
    checks.record("label_loop", "batch", batch, LabeledCompletions)
    desirable = batch.desirable
    rows = batch.completions.tokens.shape[0]
    labels = desirable.size
    if desirable.ndim != 1 or rows not in (labels, 2 * labels):
        raise ValueError(
            f"label_loop: desirable has shape {desirable.shape} for {rows} rows, wanted [B] for 2B rows (for B rows "
            "without mismatched ones); give each prompt a label."
        )
    if labels % micro_batches:
        raise ValueError(f"label_loop: micro_batches is {micro_batches}, wanted a divisor of the {labels} labels.")
    return rows // labels


def _label_sums(reward: Reward, responses: Responses, desirable: jax.Array) -> Metrics:
    """Counts, and sums of rewards and log-probabilities, of each label."""
    rewards = reward(responses.log_probs, responses.ref_log_probs, responses.mask)
    totals = log_prob()(responses.log_probs, None, responses.mask)
    sums: Metrics = {}
    for label, rows in (("desirable", desirable), ("undesirable", ~desirable)):
        counted = rows & responses.mask.any(-1)
        sums |= {label: counted.sum(), f"{label}_reward": jnp.where(counted, rewards, 0.0).sum()}
        sums |= {f"{label}_log_prob": jnp.where(counted, totals, 0.0).sum()}
    return sums


def _label_means(sums: Metrics) -> Metrics:
    """The same as means, NaN where the batch has none of a label."""
    means = dict(sums)
    for label in ("desirable", "undesirable"):
        means |= {name: sums[name] / sums[label] for name in (f"{label}_reward", f"{label}_log_prob")}
    return means | {"margin": means["desirable_reward"] - means["undesirable_reward"]}


def _label_terms(unpaired: Unpaired) -> Callable[..., tuple[jax.Array, Metrics]]:
    """``(log-probabilities, params, rows, reference point) → (loss, metrics)``, all of them sums over the rows."""

    def loss(routed: Routers, params: Params, rows: tuple, point: jax.Array) -> tuple[jax.Array, Metrics]:
        taken, ref_log_probs, desirable, weights, uniform = rows
        (current, entropy), cost, told = routed(params, taken)
        responses = Responses(current, taken.mask, ref_log_probs)
        value, _ = unpaired_loss(unpaired, LabeledBatch(responses, desirable, weights), point)
        metrics = {"loss": value, "entropy": jnp.where(taken.mask, uniform * entropy, 0.0).sum()} | told
        return value + cost, jax.lax.stop_gradient(metrics | _label_sums(unpaired.reward, responses, desirable))

    return loss


def _interleaved(rows: tuple, count: int) -> list[tuple]:
    """Every ``count``-th row from the first one, from the second one, and so on."""
    return [jax.tree.map(lambda x, first=first: x[first::count], rows) for first in range(count)]


def _mismatched(score: Callable[[Completions], jax.Array], rows: list[tuple], labels: int) -> Responses:
    """The rows with another prompt's completion, and both policies' log-probabilities of them."""
    if len(rows) == 1:
        raise ValueError(
            f"label_loop: got {labels} rows for {labels} labels, wanted a mismatched row after each for the reference "
            "point; add them, or take zero_reference."
        )
    taken, ref_log_probs = rows[1]
    return Responses(score(taken), taken.mask, ref_log_probs)


@check_arguments
def label_loop(
    log_probs: LogProbs,
    unpaired: Unpaired,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    desirable_weight: float | jax.Array = 1.0,
    undesirable_weight: float | jax.Array = 1.0,
    reference_point: ReferencePoint | CarriedReference = reference_point_of_mismatched,
) -> LabelLoop:
    """``init(params)`` and ``step(state, labels, *, key, reference, frozen)``: a policy from labels.

    A first pass without a gradient takes the reference point over the mismatched rows of the *whole* batch; the
    gradient is then that of the prompts' own completions, whatever the micro-batches. Limiting case: for a reference
    that is the policy and class weights of 1, the loss is ½ for ``kto``.

    Args:
        log_probs: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats, of rows that share no
            prompt (groups of 1): own and mismatched completions are taken apart; of ``by_tokens`` parts are computed
            without their padding.
        unpaired: reward and link.
        optimizer: any Optax transformation.
        micro_batches: parts that the labels are taken in.
        desirable_weight: λ_D ≥ 0.
        undesirable_weight: λ_U ≥ 0.
        reference_point: ``reference_point_of_mismatched``, ``zero_reference`` (each ``(reward, mismatched) → (z0,
            metrics)``) or ``running_mean_reward``, which the state carries from step to step: BCO's, with the recipe
            ``bco``.

    Returns:
        The pair; a batch is ``LabeledCompletions``, and ``key`` is for adapters with a dropout alone, which drop
        nothing where the reference point is taken. Its mismatched rows may be left out where ``reference_point`` reads
        none. The reference policy comes as the batch's ``ref_log_probs`` of all rows or as ``reference``, its
        parameters. Metrics: ``loss``; ``reference`` (z0, in the reward's units) and,
        where z0 is that of mismatched rows, ``kl`` (z0/β, nats); means over each label, NaN where the batch has none:
        ``desirable_reward``, ``undesirable_reward``, ``desirable_log_prob``, ``undesirable_log_prob``, and the rewards'
        ``margin``; counts ``desirable`` and ``undesirable``; ``entropy`` (nats per completion token); and those of
        ``descend``.

    Raises:
        ValueError: for a negative class weight; at trace time, for rows that do not fit the labels or lack the
            mismatched ones, labels that micro-batches do not divide, no reference where one is read, or two.

    >>> from rlax_llm.preference.unpaired import kto
    >>> mask, zeros = jnp.ones((2, 1), bool), jnp.zeros((2, 1))
    >>> rows = Completions(jnp.array([[0], [1]]), mask, mask, zeros, jnp.zeros(2, bool))
    >>> bandit = lambda params, rows: (jax.nn.log_softmax(params)[rows.tokens], jnp.zeros(rows.tokens.shape))
    >>> init, step = label_loop(bandit, kto(1.0), optax.sgd(8.0), reference_point=zero_reference)
    >>> batch = LabeledCompletions(rows, jnp.array([True, False]))
    >>> step(init(jnp.zeros(2)), batch, reference=jnp.zeros(2))[0].params.tolist()
    [1.0, -1.0]
    """
    checks.not_negative("label_loop", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    needs_reference = reads_reference(unpaired.reward)
    compared = _with_memory(reference_point)
    loss = _label_terms(unpaired)

    def init(params: Params) -> LabelState:
        start = initial_state(optimizer, params)
        return LabelState(params=start.params, opt_state=start.opt_state, step=start.step, memory=compared.init())

    def step(
        state: LabelState,
        batch: LabeledCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[LabelState, Metrics]:
        def score(params: Params, taken: Completions) -> jax.Array:
            return fixed_log_probs(log_probs, join_trees(params, frozen), taken, micro_batches)

        completions, desirable = with_dropout(batch.completions, key), batch.desirable
        per_label = _check_labels(batch, micro_batches)
        of_reference = partial(score, taken=completions)
        ref_log_probs = reference_log_probs(
            "label_loop",
            of_reference,
            batch,
            reference,
            needs_reference,
            _WITHOUT,
        )
        rows = _interleaved((completions, ref_log_probs), per_label)
        still = partial(score, state.params)
        own, ref = rows[0]
        mismatched = partial(_mismatched, still, rows, desirable.size)
        point, memory, metrics = compared.step(
            unpaired.reward, lambda: Responses(still(own), own.mask, ref), mismatched, state.memory
        )
        weights = label_mean(own.mask, desirable, desirable_weight, undesirable_weight)
        learned = (own, ref, desirable, weights, token_mean(own.mask))
        routed = routers(log_probs, join_trees(state.params, frozen), own, micro_batches)
        gradient, sums = summed_gradient(
            lambda params, rows: loss(routed, join_trees(params, frozen), rows, point),
            state.params,
            learned,
            micro_batches,
            tokens_of(log_probs),
        )
        metrics |= _label_means(router_metrics(sums)) | {"reference": point}
        start = TrainState(params=state.params, opt_state=state.opt_state, step=state.step)
        now, told = descend(optimizer, start, gradient)
        return LabelState(params=now.params, opt_state=now.opt_state, step=now.step, memory=memory), metrics | told

    return init, step
