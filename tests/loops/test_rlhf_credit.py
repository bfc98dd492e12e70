from __future__ import annotations

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rlhf_tables import (
    KEY,
    ONCE,
    PPO,
    REFERENCE,
    SGD,
    B,
    T,
    V,
    assert_same,
    batch,
    parameters,
    scores_of,
    stepped,
    table,
    table_values,
)
from scipy.special import log_softmax

from rlax_llm.core.types import Completions, ScoredCompletions
from rlax_llm.loops.minibatches import Passes, minibatch_rows
from rlax_llm.loops.rlhf import RlhfLearning, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, bootstrapped_at_limit, terminated_at_limit

pytestmark = pytest.mark.usefixtures("float64")


def literal_credit(mask, log_probs, ref, values, scores, truncated, numbers, bootstraps):
    """Rewards, advantages and targets of each row's chosen tokens, as lists over (row, column)."""
    beta, discount, trace, value_trace = numbers
    advantages, targets, kls = {}, {}, {}
    for b in range(B):
        chosen = [t for t in range(T) if mask[b, t]]
        if np.isnan(scores[b]) or not chosen:
            continue
        rewards = [-beta * (log_probs[b, t] - ref[b, t]) for t in chosen]
        rewards[-1] += scores[b]
        behind = values["behind"][b] if bootstraps and truncated[b] else 0.0
        following = [values["now"][b, t] for t in chosen[1:]] + [behind]
        running = target = 0.0
        for i, t in reversed(list(enumerate(chosen))):
            delta = rewards[i] + discount * following[i] - values["now"][b, t]
            running = delta + discount * trace * running
            target = delta + discount * value_trace * target
            advantages[b, t], targets[b, t] = running, target + values["now"][b, t]
            kls[b, t] = log_probs[b, t] - ref[b, t]
    return advantages, targets, kls


def literal_step(params, completions, scores, numbers, bootstraps):
    """A step of SGD of rate 1 with PPO's clip on whitened advantages: parameters and metrics, by loops."""
    logits, table_of_values = np.asarray(params["policy"]["logits"]), np.asarray(params["value"]["values"])
    tokens, valid, mask, log_probs, truncated = (np.asarray(x) for x in completions[:5])
    log_p, previous = log_softmax(logits, -1), np.roll(tokens, 1, -1)
    ref = log_softmax(REFERENCE, -1)[previous, tokens]
    last_valid = [np.flatnonzero(row)[-1] for row in valid]
    behind = table_of_values[tokens[np.arange(B), last_valid]]
    values = {"now": table_of_values[previous], "behind": behind}
    credit = literal_credit(mask, log_probs, ref, values, scores, truncated, numbers, bootstraps)
    advantages, targets, kls = credit
    count, raw = max(len(advantages), 1), np.array([*advantages.values()])
    spread = np.sqrt(raw.var(ddof=1) + 1e-8) if len(raw) > 1 else np.sqrt(1e-8)
    slope, value_slope, value_loss, loss, clipped = np.zeros((V, V)), np.zeros(V), 0.0, 0.0, 0
    for (b, t), advantage in advantages.items():
        whitened = (advantage - raw.mean()) / spread
        before, token = previous[b, t], tokens[b, t]
        ratio = np.exp(log_p[before, token] - log_probs[b, t])
        held = (ratio > 1.2 and whitened > 0) or (ratio < 0.8 and whitened < 0)
        loss += max(-whitened * ratio, -whitened * np.clip(ratio, 0.8, 1.2)) / count
        clipped += held / count
        if not held:
            slope[before] -= whitened * ratio * (np.eye(V)[token] - np.exp(log_p[before])) / count
        error = values["now"][b, t] - targets[b, t]
        value_slope[before] += 0.1 * error / count
        value_loss += 0.5 * error**2 / count
    rows = {b for b, _ in advantages}
    mean = (lambda x: sum(x) / len(rows)) if rows else (lambda x: 0.0)
    kl, score = mean(kls.values()), mean(scores[b] for b in rows)
    metrics = {
        "kl": kl,
        "kl_per_token": sum(kls.values()) / count,
        "score": score,
        "non_score_reward": -numbers[0] * kl,
        "rlhf_reward": score - numbers[0] * kl,
        "policy_loss": loss,
        "value_loss": value_loss,
        "clip_fraction": clipped,
        "advantage_mean": raw.mean() if len(raw) else 0.0,
        "grad_norm": np.sqrt((slope**2).sum()),
        "unscored_rows": sum(np.isnan(scores[b]) and mask[b].any() for b in range(B)),
        "empty_rows": sum(not row.any() for row in mask),
    }
    return logits - slope, table_of_values - value_slope, metrics


@pytest.fixture(scope="module")
def two_steps(float64):
    """A step that terminates at the limit and one that bootstraps there, of traced numbers: one compilation each."""

    def with_ending(ending):
        @jax.jit
        def run(completions, scores, beta, discount, trace, value_trace):
            shaping = Shaping(
                kl=KlInReward(beta), ending=ending, discount=discount, trace=trace, value_trace=value_trace
            )
            init, step = rlhf_loop(table, table_values, PPO, SGD, shaping, ONCE)
            return step(
                init(parameters()),
                ScoredCompletions(completions, scores),
                key=KEY,
                reference={"logits": jnp.asarray(REFERENCE)},
            )

        return run

    return with_ending(terminated_at_limit), with_ending(bootstrapped_at_limit)


unit = st.floats(0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(
    mask=hnp.arrays(bool, (B, T - 1)),
    scores=hnp.arrays(float, B, elements=st.one_of(st.just(np.nan), st.floats(-3, 3))),
    truncated=hnp.arrays(bool, B),
    numbers=st.tuples(st.floats(0.0, 2.0), unit, unit, unit),
    seed=st.integers(0, 99),
)
def test_a_step_is_its_transcription(two_steps, mask, scores, truncated, numbers, seed):
    completions = batch(np.pad(mask, ((0, 0), (1, 0))), seed, truncated=truncated)
    within = {"rtol": 1e-6, "atol": 1e-6}  # weights are float32
    for bootstraps, run in enumerate(two_steps):
        state, metrics = run(completions, scores, *numbers)
        logits, values, expected = literal_step(parameters(), completions, scores, numbers, bootstraps)
        np.testing.assert_allclose(state.params["policy"]["logits"], logits, **within)
        np.testing.assert_allclose(state.params["value"]["values"], values, **within)
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, **within, err_msg=name)


FAST = {"policy": optax.adam(0.05), "value": optax.adam(0.3)}


def paper_loss(params, rows: Completions, advantages, values, targets, mask):
    """PPO's loss in the shape of its paper, on some rows."""
    count = mask.sum()
    ratio = jnp.exp(table(params["policy"], rows)[0] - rows.log_probs)
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    now = table_values(params["value"], rows)
    held = values + jnp.clip(now - values, -0.2, 0.2)
    error = jnp.maximum(jnp.square(now - targets), jnp.square(held - targets))
    return jnp.where(mask, -surrogate + 0.1 * 0.5 * error, 0.0).sum() / count


@pytest.mark.parametrize("minibatches", [1, 2])
def test_epochs_are_optimizer_steps_on_the_papers_loss(minibatches):
    completions, scores, params = batch(), scores_of(), parameters()
    learning = RlhfLearning(epochs=3, minibatches=minibatches)
    state, metrics = stepped(Shaping(kl=KlInReward(0.3)), learning, completions, scores, optimizers=FAST)

    mask, log_probs = np.asarray(completions.mask), np.asarray(completions.log_probs)
    tokens = np.asarray(completions.tokens)
    ref = log_softmax(REFERENCE, -1)[np.roll(tokens, 1, -1), tokens]
    now = np.asarray(table_values(params["value"], completions))
    numbers = (0.3, 1.0, 0.95, 0.95)
    found = literal_credit(mask, log_probs, ref, {"now": now}, np.asarray(scores), np.zeros(B), numbers, False)
    advantages, targets = np.zeros((B, T)), np.zeros((B, T))
    for array, entries in zip((advantages, targets), found, strict=False):
        for place, value in entries.items():
            array[place] = value
    chosen = advantages[mask]
    advantages = (advantages - chosen.mean()) / np.sqrt(chosen.var(ddof=1) + 1e-8)

    states = {name: FAST[name].init(params[name]) for name in params}
    for order in np.asarray(minibatch_rows(B, KEY, Passes(*learning[:2], learning.group_size))):
        rows = jax.tree.map(lambda x, order=order: x[order], completions)
        gradient = jax.grad(paper_loss)(params, rows, advantages[order], now[order], targets[order], mask[order])
        for name in params:
            updates, states[name] = FAST[name].update(gradient[name], states[name], params[name])
            params[name] = optax.apply_updates(params[name], updates)
    assert_same(state.params, params, 1e-6)  # weights are float32
    assert metrics["approx_kl"] > 1e-3 and metrics["value_clip_fraction"] > 0
