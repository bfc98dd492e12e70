"""REINFORCE on the letters' true reward with the KL to the reference in one place or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.kl_estimators.estimators import ESTIMATES, IN_SCORE
from experiments.letters import Exact, Language, drawn, exact, repeated, some_prompts, true_reward
from rlax_llm import group_loop
from rlax_llm.core.types import Groups, PolicyBatch, Scored
from rlax_llm.credit.groups import kl_in_score, leave_one_out, per_group
from rlax_llm.policy.coupled import Coupled
from rlax_llm.policy.objectives import Objective
from rlax_llm.policy.ratios import token_ratio
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.policy.weightings import sequence_sum

Params = Any
NO_KL = "no KL"
K1_LOSS, *LOSSES = (f"{name} as a loss" for name in ESTIMATES)
PLACES = (NO_KL, IN_SCORE, K1_LOSS, *LOSSES)
"""Where the KL is; the rows of ``eye(7)[:, 1:]`` are their weights."""


class Training(NamedTuple):
    """Of one run; ``beta`` in units of reward per nat, ``learning_rate`` of Adam, falling to 0."""

    beta: float = 0.15
    steps: int = 250
    prompts: int = 8
    group_size: int = 8
    learning_rate: float = 2e-3


def placed(beta: float, weights: jax.Array) -> Objective:
    """Sums over a completion's tokens, with β times ``weights``: of k1 in the score, and of each estimate as a loss."""

    def loss(log_ratio: jax.Array, batch: PolicyBatch) -> jax.Array:
        del log_ratio
        log_p, log_ref = batch.log_probs, jnp.asarray(batch.ref_log_probs)
        estimates = weights[1:] @ jnp.stack([estimate(log_p, log_ref) for estimate in ESTIMATES.values()])
        # No ``kl_penalty``: it refuses k1.
        # An equal part of a completion's estimate on each of its tokens: the objective adds them up.
        return jnp.broadcast_to((beta * estimates / batch.mask.sum(-1))[:, None], batch.mask.shape)

    def advantage(scored: Scored) -> jax.Array:
        in_score: Any = beta * weights[0]
        return kl_in_score(per_group(leave_one_out), in_score)(scored)

    return Objective(advantage, token_ratio, score_function, sequence_sum, Coupled(loss))


def trained(
    language: Language, training: Training, weights: jax.Array
) -> Callable[[jax.Array, Params], tuple[Params, Exact]]:
    """``(key, base) →`` the policy after training from ``base``, and its exact reward and KL."""
    objective = placed(training.beta, weights)
    rate = optax.linear_schedule(training.learning_rate, 0.0, training.steps)
    init, update = group_loop(language.log_probs(training.group_size), objective, optax.adam(rate))

    def step(state: Any, key: jax.Array, base: Params) -> tuple[Any, Any]:
        which, draw = jax.random.split(key)
        rows = drawn(language, state.params, some_prompts(language, which, training.prompts), draw, training.group_size)
        groups = Groups(rows, true_reward(rows).reshape(-1, training.group_size))
        return update(state, groups, reference=base)

    def run(key: jax.Array, base: Params) -> tuple[Params, Exact]:
        params = repeated(step, init(base), key, training.steps, lambda key: key, base=base).params
        return params, exact(language, params, base)

    return run
