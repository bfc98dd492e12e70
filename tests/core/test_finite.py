"""The guard against numbers that are not finite: what trips it, and what does not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from rlax_llm.core.finite import NOT_FINITE, not_finite_part, watch_finite
from rlax_llm.core.trees import all_finite
from rlax_llm.core.types import Completions, Groups
from rlax_llm.loops.group import group_loop, group_trpo_loop
from rlax_llm.loops.policy import supervised_loop
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.policy.weightings import token_mean
from rlax_llm.recipes.group import grpo


class State(NamedTuple):
    params: jax.Array
    step: jax.Array


@pytest.mark.parametrize(
    ("metrics", "params", "steps", "told"),
    [
        ({"loss": 1.0, "grad_norm": 2.0}, 1.0, 1, None),
        ({"loss": jnp.nan, "grad_norm": jnp.nan}, jnp.nan, 1, "loss"),
        ({"policy_loss": jnp.inf, "grad_norm": 0.0}, 1.0, 1, "loss"),
        ({"policy_loss": 0.0, "value_loss": -jnp.inf}, 1.0, 1, "loss"),
        ({"loss": 1.0, "grad_norm": jnp.inf}, 1.0, 1, "gradient"),
        ({"loss": 1.0, "value_grad_norm": jnp.nan}, 1.0, 1, "gradient"),
        ({"cg_residual": jnp.nan}, 1.0, 1, "gradient"),
        ({"loss": 1.0, "grad_norm": 1.0}, jnp.inf, 1, "parameters"),
        ({"loss": jnp.nan, "grad_norm": jnp.nan}, 1.0, 0, None),  # no optimizer step, having no token to learn from
        ({"loss": 1.0, "kl": jnp.nan, "desirable_reward": jnp.nan}, 1.0, 1, None),  # a batch without such a row
    ],
)
def test_what_is_not_finite_is_named_by_what_spoils_the_rest(metrics, params, steps, told):
    def step(state):
        return State(jnp.full(3, params), state.step + steps), {name: jnp.asarray(x) for name, x in metrics.items()}

    _, found = watch_finite(step)(State(jnp.ones(3), jnp.int32(0)))
    assert not_finite_part({name: float(x) for name, x in found.items()}) == told
    assert set(found) == {*metrics, NOT_FINITE}


def bandit(params, rows):
    return jax.nn.log_softmax(params)[rows.tokens], jnp.zeros(rows.tokens.shape)


def rows(chosen=True):
    mask, zeros = jnp.full((4, 1), chosen), jnp.zeros((4, 1))
    return Completions(jnp.array([[0], [1], [2], [0]]), mask, mask, zeros, jnp.zeros(4, bool))


@pytest.mark.parametrize("start", [0.0, jnp.nan, 3e38])
def test_a_loop_that_leaves_the_finite_numbers_trips_it(start):
    """From 3e38 a step of 1.5e38 leads to infinity though loss and gradient are finite."""
    init, step = supervised_loop(bandit, optax.scale(3e38 if start == 3e38 else 0.1))
    params = jnp.array([start, 0.0, 0.0])
    state, metrics = jax.jit(watch_finite(step))(init(params), rows())
    finite = bool(jnp.isfinite(state.params).all())
    assert (not_finite_part(metrics) is None) == finite == (start == 0.0)


@pytest.mark.parametrize("chosen", [True, False])
def test_a_batch_without_a_token_is_no_failure(chosen):
    init, step = group_loop(bandit, grpo(kl_coef=0.0), optax.sgd(0.1))
    state, metrics = jax.jit(watch_finite(step))(
        init(jnp.zeros(3)), Groups(rows(chosen), jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    )
    assert bool(jnp.isnan(metrics["policy_loss"])) != chosen and int(state.step) == chosen
    assert not_finite_part(metrics) is None


@pytest.mark.parametrize("score", [1.0, jnp.inf])
def test_trpo_which_stays_where_it_is_says_so(score):
    def advantage(scored):
        return scored.scores

    search = backtracking_search(improves_within(0.01))
    init, step = group_trpo_loop(
        lambda params, rows: jnp.broadcast_to(params, (4, 1, 3)), advantage, token_mean, natural_direction(0.01), search
    )
    groups = Groups(rows(), jnp.array([[0.0, score], [0.0, 0.0]]))
    state, metrics = jax.jit(watch_finite(step))(init(jnp.zeros(3)), groups)
    assert all_finite(state.params)
    assert not_finite_part(metrics) == (None if score == 1.0 else "gradient")
