"""Optimizer steps of a process reward model, on completions whose steps are labeled, as a pure ``(init, step)`` pair.

Weights are taken over the whole batch and the loss is a sum, so micro-batches change the memory and nothing else.
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
from rlax_llm.core.types import Completions, Metrics, Params, SteppedCompletions
from rlax_llm.loops.parts import summed_gradient
from rlax_llm.loops.policy import Loop, TrainState, descend, initial_state
from rlax_llm.models.dropout import with_dropout
from rlax_llm.policy.weightings import token_mean
from rlax_llm.preference.links import logistic
from rlax_llm.preference.unpaired import unpaired_value

PrefixScores = Callable[[Params, Completions], jax.Array]


@check_arguments
def process_loop(
    scores: PrefixScores, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> Loop[TrainState, SteppedCompletions]:
    """``init(params)`` and ``step(state, steps, *, key, reference, frozen)``: a reward model from labels of steps.

    The loss is the mean over steps of the binary cross-entropy, ``−log σ(±z)`` with z the score at the step's last
    token, + where the step is right (arXiv 2305.20050, 2211.14275): ``unpaired_value`` of ``logistic`` and 0. Limiting
    cases: log 2 for scores of 0; of completions with one step each, one right and one wrong, half of ``reward_loop``'s
    with ``compare_with_zero(logistic)``.

    Args:
        scores: ``(params, completions) → [B, T]``, of each row up to and with token t, such as ``prefix_scores``.
        optimizer: any Optax transformation.
        micro_batches: parts that the rows are taken in.

    Returns:
        The pair; a batch is ``SteppedCompletions``; ``key`` is for adapters with a dropout alone, and ``reference`` is
        not read. Metrics, means over steps: ``loss`` in nats, and ``accuracy``, the share on the right side of 0 (0
        itself is wrong); and those of ``descend``.

    Raises:
        ValueError: at trace time, for shapes that differ, or rows that micro-batches do not divide.

    >>> mask, zeros = jnp.ones((1, 2), bool), jnp.zeros((1, 2))
    >>> rows = Completions(jnp.array([[0, 1]]), mask, mask, zeros, jnp.zeros(1, bool))
    >>> init, step = process_loop(lambda params, rows: params[rows.tokens], optax.sgd(2.0))
    >>> step(init(jnp.zeros(2)), SteppedCompletions(rows, mask, jnp.array([[True, False]])))[0].params.tolist()
    [0.5, -0.5]
    """

    def of_rows(params: Params, rows: tuple[SteppedCompletions, jax.Array]) -> tuple[jax.Array, Metrics]:
        taken, weights = rows
        values = jnp.where(taken.ends, scores(params, taken.completions), 0.0)
        loss = (weights * unpaired_value(logistic, values, taken.right, 0.0)).sum()
        told = (values != 0) & ((values > 0) == taken.right)
        return loss, jax.lax.stop_gradient({"loss": loss, "accuracy": (weights * told).sum()})

    def step(
        state: TrainState,
        batch: SteppedCompletions,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[TrainState, Metrics]:
        del reference
        checks.record("process_loop", "batch", batch, SteppedCompletions)
        checks.same_shape("process_loop", tokens=batch.completions.tokens, ends=batch.ends, right=batch.right)
        batch = batch._replace(completions=with_dropout(batch.completions, key))
        rows = (batch, token_mean(batch.ends))
        gradient, metrics = summed_gradient(
            lambda params, rows: of_rows(join_trees(params, frozen), rows), state.params, rows, micro_batches
        )
        state, told = descend(optimizer, state, gradient)
        return state, metrics | told

    return partial(initial_state, optimizer), step
