"""Against rlax: its own functions, run on the same streams, values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rlax._src import multistep
from rlax._src import vtrace as peer_vtrace

from rlax_llm.credit.off_policy import retrace, vtrace
from rlax_llm.credit.returns import discounted_returns, gae, lambda_returns, n_step_returns

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 11


def stream(seed: int) -> dict[str, jax.Array]:
    """Unbroken, as rlax has it, but for one termination: the next value is the value of the next step."""
    random = np.random.default_rng(seed)
    values = random.normal(size=STEPS + 1)
    discounts = random.uniform(0.5, 1, STEPS)
    discounts[4] = 0
    data = {
        "rewards": random.normal(size=STEPS),
        "discounts": discounts,
        "all_values": values,
        "log_ratio": random.normal(size=STEPS),
        "traces": random.uniform(0, 1, STEPS),
    }
    return {name: jnp.asarray(x) for name, x in data.items()}


def split(d: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A value is that of one step and the next value of the one before: the gradient is that of both."""
    return d | {"values": d["all_values"][:-1], "next_values": d["all_values"][1:]}


def peer_off_policy(d: dict[str, jax.Array], **ceilings: float):
    data = (d["values"], d["next_values"], d["rewards"], d["discounts"], jnp.exp(d["log_ratio"]), d["traces"])
    return peer_vtrace.vtrace_td_error_and_advantage(*data, stop_target_gradients=False, **ceilings)


def peer_retrace(d: dict[str, jax.Array]) -> jax.Array:
    """Its weight c belongs to the action that a step leads to, the λ of our ``traces[t]`` with it."""
    c = d["traces"][:-1] * jnp.minimum(1.0, jnp.exp(d["log_ratio"][1:]))
    return multistep.general_off_policy_returns_from_q_and_v(
        d["values"][1:], d["next_values"], d["rewards"], d["discounts"], c
    )


def given(d: dict[str, jax.Array], *names: str) -> list[jax.Array]:
    return [d[name] for name in names]


ON_POLICY = ("rewards", "discounts", "values", "next_values", "traces")
OFF_POLICY = ("rewards", "discounts", "values", "next_values", "log_ratio", "traces")
PAIRS = {
    "discounted returns": (
        lambda d: discounted_returns(d["rewards"], d["discounts"], d["next_values"][-1]),
        lambda d: multistep.discounted_returns(d["rewards"], d["discounts"], d["next_values"]),
    ),
    "lambda returns": (
        lambda d: lambda_returns(*given(d, "rewards", "discounts", "next_values", "traces")),
        lambda d: multistep.lambda_returns(*given(d, "rewards", "discounts", "next_values", "traces")),
    ),
    "GAE": (
        lambda d: gae(*given(d, *ON_POLICY)),
        lambda d: multistep.truncated_generalized_advantage_estimation(
            d["rewards"], d["discounts"], d["traces"], d["all_values"]
        ),
    ),
    "V-trace targets": (
        lambda d: vtrace(*given(d, *OFF_POLICY)).targets,
        lambda d: peer_off_policy(d).errors + d["values"],
    ),
    "V-trace advantages": (
        lambda d: vtrace(*given(d, *OFF_POLICY)).advantages,
        lambda d: peer_off_policy(d).pg_advantage,
    ),
    "V-trace, higher ceiling of the weights": (
        lambda d: jnp.stack(vtrace(*given(d, *OFF_POLICY), weight_ceiling=1.7)),
        lambda d: jnp.stack(
            [
                peer_off_policy(d, clip_rho_threshold=1.7).errors + d["values"],
                peer_off_policy(d, clip_rho_threshold=1.7, clip_pg_rho_threshold=1.7).pg_advantage,
            ]
        ),
    ),
    "per-decision importance sampling": (
        lambda d: vtrace(*given(d, *OFF_POLICY), weight_ceiling=np.inf, trace_ceiling=np.inf).targets - d["values"],
        # Its λ belongs to the state that a step leads to.
        lambda d: multistep.importance_corrected_td_errors(
            d["rewards"], d["discounts"], jnp.exp(d["log_ratio"]), d["traces"], d["all_values"]
        ),
    ),
    "Retrace": (lambda d: retrace(*given(d, *OFF_POLICY)), peer_retrace),
}
for n in (1, 3, STEPS - 1, STEPS, STEPS + 4):
    PAIRS[f"{n}-step returns"] = (
        lambda d, n=n: n_step_returns(*given(d, "rewards", "discounts", "next_values"), n, d["traces"]),
        lambda d, n=n: multistep.n_step_bootstrapped_returns(
            *given(d, "rewards", "discounts", "next_values"), n, d["traces"]
        ),
    )


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_values_and_gradients_are_those_of_rlax(pair):
    weights = np.random.default_rng(100).normal(size=STEPS)
    both = [
        jax.jit(jax.value_and_grad(lambda d, f=f: ((f(split(d)) * weights).sum(), f(split(d))), has_aux=True))
        for f in pair
    ]
    for seed in range(3):
        (_, value), gradient = both[0](stream(seed))
        (_, expected), expected_gradient = both[1](stream(seed))
        np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
        for name in gradient:
            np.testing.assert_allclose(gradient[name], expected_gradient[name], rtol=1e-9, atol=1e-9, err_msg=name)
