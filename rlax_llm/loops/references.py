"""A reference that moves: TR-DPO's, as a loop around any other loop that reads one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlax_llm.core import checks
from rlax_llm.core.arguments import check_arguments
from rlax_llm.core.types import Metrics, Params
from rlax_llm.loops.policy import Loop


@check_arguments
def moved(
    reference: Params, params: Params, steps: int | jax.Array, every: int = 1, share: float | jax.Array = 1.0
) -> Params:
    """``ref ← (1 − a) · ref + a · π`` after each N steps, else the reference as it is (TR-DPO, arXiv 2404.09656).

    Limiting cases: a copy of the policy for a = 1; an exponential moving average of it for ``every = 1``.

    Args:
        reference: any pytree.
        params: like it.
        steps: that were taken, from 1; may be traced.
        every: N ≥ 1.
        share: a, from 0 to 1; may be traced.

    Returns:
        Like the reference.

    Raises:
        ValueError: for an N or a share out of its range.

    >>> float(moved(jnp.array(0.0), jnp.array(2.0), steps=4, every=2, share=0.25))
    0.5
    >>> float(moved(jnp.array(0.0), jnp.array(2.0), steps=3, every=2))
    0.0
    """
    checks.at_least_one("moved", every=every)
    checks.not_negative("moved", share=share, **{"1 − share": 1 - share})
    due = jnp.asarray(steps) % every == 0

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(due, ((1 - share) * old + share * new).astype(old.dtype), old)

    return jax.tree.map(move, reference, params)


class FollowingState(NamedTuple):
    """What a step changes.

    Attributes:
        learner: of the loop inside.
        reference: parameters, as they are after the last move.
        taken: scalar int32, steps of the loop, those among them that learned nothing too.
    """

    learner: Any
    reference: Params
    taken: jax.Array

    @property
    def params(self) -> Params:
        """What is trained."""
        return self.learner.params

    @property
    def opt_state(self) -> Any:
        """The optimizer's."""
        return self.learner.opt_state

    @property
    def step(self) -> jax.Array:
        """Optimizer steps taken."""
        return self.learner.step


@check_arguments
def following_reference(loop: Loop[Any, Any], every: int, share: float = 1.0) -> Loop[FollowingState, Any]:
    """A loop whose reference begins as what is trained does, and moves to it after each ``every`` steps.

    The reference is part of the state, so a run that goes on has the one that it had. Limiting case: the loop itself,
    with its start as reference, for as long as nothing has moved.

    Args:
        loop: a pair ``(init, step)``.
        every: N ≥ 1, steps of the loop.
        share: a of ``moved``, above 0.

    Returns:
        The pair; ``reference`` is not to be given.

    Raises:
        ValueError: for an N or a share out of its range; at trace time, for a reference beside its own.
    """
    checks.at_least_one("following_reference", every=every)
    checks.positive("following_reference", share=share)
    start, learn = loop

    def init(params: Params) -> FollowingState:
        return FollowingState(start(params), jax.tree.map(jnp.copy, params), jnp.int32(0))

    def step(
        state: FollowingState,
        batch: Any,
        *,
        key: jax.Array | None = None,
        reference: Params | None = None,
        frozen: Params | None = None,
    ) -> tuple[FollowingState, Metrics]:
        if reference is not None:
            raise ValueError("following_reference: the reference follows the policy, got one too; leave it out.")
        learner, metrics = learn(state.learner, batch, key=key, reference=state.reference, frozen=frozen)
        taken = state.taken + 1
        return FollowingState(learner, moved(state.reference, learner.params, taken, every, share), taken), metrics

    return init, step
