"""Single functions against rlax's (vmapped) and a plain NumPy version: GAE, V-trace, GRPO's advantage, PPO, DPO.

Milliseconds of a compiled call; the two losses with their gradients. Where rlax has no such function, or is not
installed, its side is null and ``rlax`` says why. For GAE and V-trace ``shape`` is that of the arrays and
``time_axis`` the axis that the recurrence runs over.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, parser, report

from rlax_llm.core.types import Scored
from rlax_llm.credit.groups import per_group, z_score
from rlax_llm.credit.off_policy import vtrace
from rlax_llm.credit.returns import gae
from rlax_llm.policy.trust_regions import clip
from rlax_llm.preference.implicit_rewards import Responses
from rlax_llm.preference.pairs import PreferenceBatch, preference_loss
from rlax_llm.recipes.preference import dpo

SHAPES = [(128, 4096), (4096, 64)]
GAMMA, LAMBDA, EPS, BETA = 0.99, 0.95, 0.2, 0.1
ABSENT = "not installed"
NONE_THERE = "has no such function"


def rlax_module(name: str) -> Any:
    """One of rlax's modules, or None where it is not installed."""
    return importlib.import_module(f"rlax._src.{name}") if importlib.util.find_spec("rlax") else None


def streams(key: jax.Array, shape: tuple[int, int], time_axis: int) -> list[jax.Array]:
    """Rewards, discounts with terminations, log-ratios, and the values of one state more, as rlax takes them."""
    keys = jax.random.split(key, 4)
    rewards, log_ratio = jax.random.normal(keys[0], shape), 0.3 * jax.random.normal(keys[1], shape)
    discounts = GAMMA * jax.random.bernoulli(keys[2], 0.99, shape)
    values = jax.random.normal(keys[3], [n + (axis == time_axis) for axis, n in enumerate(shape)])
    return [rewards, discounts, values, log_ratio]


def numpy_errors(rewards, discounts, values, next_values, traces, weights=1.0) -> np.ndarray:
    """Time on axis 0, a Python loop over it."""
    offsets, factors = weights * (rewards + discounts * next_values - values), discounts * traces
    errors, error = np.empty_like(rewards), np.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        error = offsets[t] + factors[t] * error
        errors[t] = error
    return errors


def numpy_gae(rewards, discounts, values, _log_ratio) -> np.ndarray:
    return numpy_errors(rewards, discounts, values[:-1], values[1:], np.float32(LAMBDA))


def numpy_vtrace(rewards, discounts, values, log_ratio) -> tuple[np.ndarray, np.ndarray]:
    rho, now, after = np.minimum(1, np.exp(log_ratio)), values[:-1], values[1:]
    errors = numpy_errors(rewards, discounts, now, after, LAMBDA * rho, rho)
    onward = np.concatenate([errors[1:], np.zeros_like(errors[:1])])
    return now + errors, rho * (rewards + discounts * (after + np.float32(LAMBDA) * onward) - now)


def numpy_z_score(scores) -> np.ndarray:
    return (scores - scores.mean(1, keepdims=True)) / (scores.std(1, ddof=1, keepdims=True) + np.float32(1e-4))


def numpy_ppo(log_ratio, advantages) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient by hand."""
    ratio = np.exp(log_ratio)
    plain, clipped = ratio * advantages, np.clip(ratio, 1 - EPS, 1 + EPS) * advantages
    return -np.minimum(plain, clipped).mean(), np.where(plain <= clipped, -plain, 0) / np.float32(ratio.size)


def numpy_dpo(chosen, rejected, ref_chosen, ref_rejected) -> tuple[np.ndarray, ...]:
    """The loss and its gradients by hand; every token counts."""
    margin = BETA * ((chosen - ref_chosen).sum(1) - (rejected - ref_rejected).sum(1))
    slope = (-BETA / len(margin) / (1 + np.exp(margin)))[:, None]
    ones = np.ones_like(chosen)
    return np.logaddexp(0, -margin).mean(), slope * ones, -slope * ones


def our_ppo(log_ratio: jax.Array, advantages: jax.Array) -> jax.Array:
    return clip(EPS)(log_ratio, advantages).mean()


DPO = dpo(BETA)


def our_dpo(chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array) -> jax.Array:
    mask, weights = jnp.ones(chosen.shape, bool), jnp.full(len(chosen), 1 / len(chosen))
    sides = Responses(chosen, mask, ref_chosen), Responses(rejected, mask, ref_rejected)
    return preference_loss(DPO, PreferenceBatch(*sides, weights))[0]


def flat(gradient: tuple[jax.Array, Any]) -> list[jax.Array]:
    return jax.tree.leaves(gradient)


def our_gae(r, g, v, _):
    return gae(r, g, v[:-1], v[1:], LAMBDA)


def our_vtrace(r, g, v, x):
    return tuple(vtrace(r, g, v[:-1], v[1:], x, LAMBDA))


def peer_gae(r, g, v, _):
    return rlax_module("multistep").truncated_generalized_advantage_estimation(r, g, jnp.float32(LAMBDA), v)


def peer_vtrace(r, g, v, x):
    estimate = rlax_module("vtrace").vtrace_td_error_and_advantage
    result = estimate(v[:-1], v[1:], r, g, jnp.exp(x), jnp.float32(LAMBDA))
    return result.errors + v[:-1], result.pg_advantage


def recurrent(args, key: jax.Array, shape: tuple[int, int], time_axis: int) -> None:
    data = streams(key, shape, time_axis)

    def lifted(function: Callable) -> Callable:
        return jax.vmap(function, 1 - time_axis, 1 - time_axis)

    def along_time(function: Callable) -> Callable:
        def call(*arrays: np.ndarray) -> Any:
            result = function(*(np.moveaxis(x, time_axis, 0) for x in arrays))
            return jax.tree.map(lambda x: np.moveaxis(x, 0, time_axis), result)

        return call

    for name, ours, theirs, plain in [
        ("gae", our_gae, peer_gae, numpy_gae),
        ("vtrace", our_vtrace, peer_vtrace, numpy_vtrace),
    ]:
        peer = lifted(theirs) if rlax_module("multistep") else ABSENT
        measure(args, name, data, lifted(ours), peer, along_time(plain), shape=shape, time_axis=time_axis)


def pointwise(args, key: jax.Array, shape: tuple[int, int]) -> None:
    keys = jax.random.split(key, 6)
    scores, ratios, advantages = (jax.random.normal(k, shape) for k in keys[:3])
    log_probs = [-jax.random.exponential(k, shape) / 8 for k in (*keys[2:5], keys[5])]
    policy_gradients = rlax_module("policy_gradients")

    def peer_ppo(log_ratio, advantages):
        return jax.vmap(lambda r, a: policy_gradients.clipped_surrogate_pg_loss(r, a, EPS))(
            jnp.exp(log_ratio), advantages
        ).mean()

    def advantage(scores):
        return per_group(z_score)(Scored(scores, scores, scores > 0))

    peer = jax.value_and_grad(peer_ppo) if policy_gradients else ABSENT
    measure(args, "grpo_advantage", [scores], advantage, NONE_THERE, numpy_z_score, shape=shape)
    measure(args, "ppo_clip", [0.3 * ratios, advantages], jax.value_and_grad(our_ppo), peer, numpy_ppo, shape=shape)
    gradient = jax.value_and_grad(our_dpo, (0, 1))
    measure(args, "dpo", log_probs, lambda *x: flat(gradient(*x)), NONE_THERE, numpy_dpo, shape=shape)


def measure(args, name: str, data: list, ours: Callable, peer: Callable | str, plain: Callable, **facts: Any) -> None:
    """Time all sides of one function, compare their results and print the line."""
    arrays = [np.asarray(x) for x in data]
    programs = {"ours": jax.jit(ours)} | ({} if isinstance(peer, str) else {"rlax": jax.jit(peer)})
    compiled = {side: program.lower(*data).compile() for side, program in programs.items()}
    sides: dict[str, Callable] = {side: lambda p=p: p(*data) for side, p in compiled.items()}
    sides["numpy"] = lambda: plain(*arrays)
    results = {side: [np.asarray(x) for x in jax.tree.leaves(call())] for side, call in sides.items()}
    difference = {
        side: max(float(np.abs(a - b).max()) for a, b in zip(results["ours"], result, strict=True))
        for side, result in results.items()
        if side != "ours"
    }
    # Compiled sides alternate among themselves: what follows NumPy's loop starts with a cold cache.
    numpy_side = {"numpy": sides.pop("numpy")}
    times = interleaved(sides, args.repeats) | interleaved(numpy_side, args.repeats)
    ratios = {f"{side}_over_ours": times[side] / times["ours"] for side in times if side != "ours"}
    report(
        f"functions.{name}",
        **facts,
        milliseconds={side: 1e3 * t for side, t in times.items()},
        **ratios,
        rlax=peer if isinstance(peer, str) else "measured",
        largest_difference=difference,
    )


def main() -> None:
    made = parser(__doc__, repeats=31)
    made.add_argument("--divide", type=int, default=1, help="divide both sides of every shape, to try it out")
    args = made.parse_args()
    key = jax.random.key(0)
    for rows, columns in SHAPES:
        shape = (rows // args.divide, columns // args.divide)
        for time_axis in (0, 1):
            recurrent(args, key, shape, time_axis)
        pointwise(args, key, shape)


if __name__ == "__main__":
    main()
