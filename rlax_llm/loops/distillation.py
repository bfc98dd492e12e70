"""Distillation as a pure ``(init, step)`` pair: group policy optimization whose reference is a teacher.

One body serves them all: the student's tokens are paid by the teacher's log-probabilities (an advantage), or compared
with its predictions over the vocabulary (a term of the loss), or both.
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
from rlax_llm.core.types import NOTHING_KNOWN, Groups, Metrics, Params
from rlax_llm.loops.group import ONCE, GroupLearning, GroupState, group_loop
from rlax_llm.loops.language import Collector, dated
from rlax_llm.loops.parts import fixed_log_probs
from rlax_llm.loops.policy import Loop, beside
from rlax_llm.models.distilling import Distilled, TeacherLogProbs
from rlax_llm.models.scoring import LogProbs
from rlax_llm.policy.distillation import Distillation

NOBODY = ()
Joined = Callable[[Params, Params | None], Params]


def by_itself(teacher: Params, frozen: Params | None) -> Params:
    """The teacher's own parameters, which hold all of it.

    Args:
        teacher: of a step.
        frozen: not read.

    >>> by_itself({"w": 1}, {"v": 2})
    {'w': 1}
    """
    del frozen
    return teacher


class Views(NamedTuple):
    """How student and teacher read completions.

    Attributes:
        student: ``(params, completions) → (log_probs, entropy)``, both ``[B, T]``, nats.
        teacher: the same of the teacher's parameters, for an advantage or a KL term; None where nothing reads it.
        compared: ``(params, teacher's params, completions) → (log_probs, entropy, divergence)``; None without one.
        joined: ``(teacher, frozen) → the teacher's params``: ``join_trees`` where it is adapters over the student's
            frozen base, which is then held once.
    """

    student: LogProbs
    teacher: TeacherLogProbs | None = None
    compared: Distilled | None = None
    joined: Joined = by_itself


class DistillationState(NamedTuple):
    """What a step changes.

    Attributes:
        learner: of ``group_loop``.
        teacher: the parameters of a teacher that follows the student; empty of one that does not.
    """

    learner: GroupState
    teacher: Params

    @property
    def params(self) -> Params:
        """What is trained."""
        return self.learner.params

    @property
    def step(self) -> jax.Array:
        """Optimizer steps taken."""
        return self.learner.step


@check_arguments
def distillation_loop(
    views: Views,
    distillation: Distillation,
    optimizer: optax.GradientTransformation,
    learning: GroupLearning = ONCE,
) -> Loop[DistillationState, Groups]:
    """``init(params)`` and ``step(state, groups, *, key, reference, frozen)``: a student learns from a teacher.

    Whose completions a batch holds is the caller's: the student's, or given ones (λ of ``Distillation.on_policy`` says
    how often). Limiting cases: for a teacher equal to the student the gradient is 0; without a divergence it is
    ``group_loop`` whose reference is the teacher; with the forward KL to a certain teacher it is ``supervised_loop``.

    Args:
        views: how both models read completions.
        distillation: what is paid, and whether the teacher follows the student.
        optimizer: any Optax transformation.
        learning: epochs, minibatches and what else there is to choose.

    Returns:
        The pair; a batch is ``Groups``, its scores NaN where there is no reward. ``reference`` is the teacher's
        parameters; None where the teacher follows the student, or where rows hold what it said (``TopTokens``). Metrics
        are those of ``group_loop``; where the teacher's log-probabilities are read ``kl`` is of the student from it
        (k3), and ``divergence`` is the term.

    Raises:
        ValueError: for a divergence without ``views.compared``; as ``group_loop``; at trace time, for a teacher beside
            one that follows the student.
    """
    if distillation.divergence is not None and views.compared is None:
        raise ValueError(
            "distillation_loop: there is a divergence and views.compared is None; give distilled_log_probs of it."
        )
    objective, compared = distillation.loss, views.compared
    start = group_loop(views.student, objective, optimizer, learning)[0]

    def init(params: Params) -> DistillationState:
        own = NOBODY if distillation.follows is None else jax.tree.map(jnp.copy, params)
        return DistillationState(start(params), own)

    def step(
        state: DistillationState,
        batch: Groups,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[DistillationState, Metrics]:
        checks.record("distillation_loop", "batch", batch, Groups)
        teacher = _teacher(state, reference, frozen, views.joined)
        given = batch.ref_log_probs
        if given is None and views.teacher is not None and teacher is not None:
            parts = learning.minibatches * learning.micro_batches
            given = fixed_log_probs(views.teacher, teacher, batch.completions, parts)
        log_probs = views.student if distillation.divergence is None else partial(beside, compared, teacher)
        learn = group_loop(log_probs, objective, optimizer, learning)[1]
        learner, metrics = learn(state.learner, batch._replace(ref_log_probs=given), key=key, frozen=frozen)
        return DistillationState(learner, _followed(distillation.follows, learner.params, state.teacher)), metrics

    return init, step


def _teacher(state: DistillationState, reference: Params | None, frozen: Params | None, joined: Joined) -> Any:
    if isinstance(state.teacher, tuple) and state.teacher == NOBODY:
        return None if reference is None else joined(reference, frozen)
    if reference is not None:
        raise ValueError(
            "distillation_loop: the teacher follows the student, got a reference too; leave the reference out."
        )
    return join_trees(state.teacher, frozen)


def _followed(share: float | None, params: Params, teacher: Params) -> Params:
    """``teacher + share · (params − teacher)``."""
    if share is None:
        return teacher
    return optax.incremental_update(params, teacher, share)


@check_arguments
def given_or_drawn(collector: Collector, given: Groups, on_policy: float | jax.Array) -> Collector:
    """GKD's data (arXiv 2306.13649, algorithm 1): the student's completions in a share λ of the steps, else given ones.

    Given tokens are of no policy: they count as of the newest. Limiting cases: λ = 1 is the collector; λ = 0 draws of
    the given groups alone.

    Args:
        collector: of P groups.
        given: N ≥ P groups of the same shapes, of which each such step draws P without replacement.
        on_policy: λ, from 0 to 1; may be traced.

    Raises:
        ValueError: for a λ out of its range.
    """
    checks.not_negative("given_or_drawn", on_policy=on_policy, **{"1 − on_policy": 1 - on_policy})

    def collect(
        memory: Any, params: Params, key: jax.Array, version: jax.typing.ArrayLike
    ) -> tuple[Any, Groups, Metrics]:
        which, draw = jax.random.split(key)
        memory, drawn, metrics = collector.collect(memory, params, draw, version)
        drawn = dated(drawn, version)
        picked = _of_version(_picked(given, drawn.scores.shape[-2], jax.random.fold_in(which, 1)), drawn, version)
        own = jax.random.uniform(which) < on_policy
        either = partial(_either, own)
        told = [(x.known, x.staleness) for x in (drawn, picked)]
        known, staleness = jax.tree.map(either, *told, is_leaf=lambda x: x is None)
        drawn, picked = (x._replace(known=NOTHING_KNOWN, staleness=None) for x in (drawn, picked))
        taken = jax.tree.map(either, drawn, picked)._replace(known=known, staleness=staleness)
        return memory, taken, metrics | {"on_policy": own.astype(jnp.float32)}

    return Collector(collector.init, collect)


def _picked(given: Groups, count: int, key: jax.Array) -> Groups:
    """So many of the groups, without replacement."""
    total = given.scores.shape[-2]
    chosen = jax.random.permutation(key, total)[:count]
    return jax.tree.map(lambda x: _groups_of(x, chosen, total), given)


def _of_version(given: Groups, drawn: Groups, version: jax.typing.ArrayLike) -> Groups:
    """Given groups with this version, of rows or of tokens as the drawn ones have theirs."""
    versions = jax.tree.map(lambda x: jnp.full_like(x, version), drawn.completions.versions)
    return given._replace(completions=given.completions._replace(versions=versions))


def _either(own: jax.Array, drawn: jax.Array | None, given: jax.Array | None) -> jax.Array | None:
    """None where one of the two sides does not know it."""
    if drawn is None or given is None:
        return None
    return jnp.where(own, drawn, given.astype(drawn.dtype))


def _groups_of(x: jax.Array, chosen: jax.Array, total: int) -> jax.Array:
    """Some of N groups, of rows or of scores."""
    picked = x.reshape(total, -1, *x.shape[1:])[chosen]
    return picked.reshape(-1, *x.shape[1:]) if x.shape[0] != total else x[chosen]
