from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.credit.returns import gae, lambda_returns
from rlax_llm.credit.token_returns import decoupled_gae, length_adaptive_trace, token_steps

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
STEPS = 7
numbers = st.floats(-10, 10, allow_subnormal=False)


def arrays(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(elements, min_size=STEPS, max_size=STEPS).map(np.array)


token_gae = jax.jit(lambda *args: gae(*token_steps(*args)))
completions = st.tuples(
    arrays(numbers), arrays(numbers), arrays(st.booleans()), st.floats(0.1, 1), st.floats(0, 1), numbers
)


def literal(rewards, values, mask, discount, trace, bootstrap):
    """GAE of the chosen tokens alone, written down without the others, each with the rewards up to the next."""
    chosen = [t for t in range(STEPS) if mask[t]]
    advantages = {}
    for i, t in enumerate(chosen):
        total, factor = 0.0, 1.0
        for j in range(i, len(chosen)):
            end = chosen[j + 1] if j + 1 < len(chosen) else STEPS
            after = values[end] if j + 1 < len(chosen) else bootstrap
            total += factor * (sum(rewards[chosen[j] : end]) + discount * after - values[chosen[j]])
            factor *= discount * trace
        advantages[t] = total
    return advantages


@few
@given(data=completions)
def test_credit_passes_over_unchosen_tokens_undecayed(data):
    advantages = token_gae(*data)
    for t, expected in literal(*data).items():
        np.testing.assert_allclose(advantages[t], expected, rtol=1e-10, atol=1e-10)


@few
@given(data=completions)
def test_equals_the_carrying_loop_of_the_peers_where_no_reward_is_on_an_unchosen_token(data):
    rewards, values, mask, discount, trace, bootstrap = data
    rewards = np.where(mask, rewards, 0.0)
    after, advantage, expected = bootstrap, 0.0, np.zeros(STEPS)
    for t in reversed(range(STEPS)):
        if mask[t]:
            advantage = rewards[t] + discount * after - values[t] + discount * trace * advantage
            after = values[t]
        expected[t] = advantage
    np.testing.assert_allclose(
        token_gae(rewards, values, mask, discount, trace, bootstrap), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_values_of_unchosen_tokens_are_never_read(garbage):
    mask = np.array([False, True, True, False, False, True, False])
    rewards, values = np.random.default_rng(0).normal(size=(2, STEPS))
    clean = token_gae(rewards, values, mask, 0.9, 0.8, 0.3)
    dirty = jnp.where(mask, values, garbage)
    np.testing.assert_array_equal(token_gae(rewards, dirty, mask, 0.9, 0.8, 0.3), clean)
    gradient = np.asarray(jax.grad(lambda v: jnp.square(token_gae(rewards, v, mask, 0.9, 0.8, 0.3)).sum())(dirty))
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[~mask])
    assert np.all(gradient[mask])


@pytest.mark.parametrize("garbage", [np.nan, 1e9])
def test_rewards_before_the_first_chosen_token_have_no_action_and_are_dropped(garbage):
    mask = np.array([False, False, True, True, False, True, False])
    rewards, values = np.random.default_rng(1).normal(size=(2, STEPS))
    clean = np.asarray(token_gae(rewards, values, mask, 0.9, 0.8, 0.0))[mask]
    rewards[:2] = garbage
    np.testing.assert_array_equal(np.asarray(token_gae(rewards, values, mask, 0.9, 0.8, 0.0))[mask], clean)
    assert np.asarray(token_steps(rewards, values, mask).rewards)[:2].tolist() == [0, 0]


def test_every_reward_from_the_first_chosen_token_on_is_kept():
    mask = np.array([False, True, False, False, True, False, False])
    rewards = 2.0 ** np.arange(STEPS)
    steps = token_steps(rewards, np.zeros(STEPS), mask)
    assert steps.rewards.tolist() == [0, 2 + 4 + 8, 0, 0, 16 + 32 + 64, 0, 0]


def test_all_chosen_is_the_plain_stream():
    rewards, values = np.random.default_rng(2).normal(size=(2, STEPS))
    steps = token_steps(rewards, values, np.ones(STEPS, bool), 0.9, 0.8, 0.7)
    for actual, expected in zip(steps, (rewards, 0.9, values, np.append(values[1:], 0.7), 0.8)):
        np.testing.assert_allclose(actual, np.broadcast_to(expected, STEPS), rtol=1e-15)


def test_no_token_chosen_gives_zeros():
    rewards, values = np.random.default_rng(3).normal(size=(2, STEPS))
    np.testing.assert_array_equal(token_gae(rewards, values, np.zeros(STEPS, bool), 0.9, 0.8, 0.7), np.zeros(STEPS))


def test_padding_on_either_side_changes_nothing():
    rewards, values = np.random.default_rng(4).normal(size=(2, STEPS))
    mask = np.array([True, False, True, True, False, True, True])
    plain = token_gae(rewards, values, mask, 0.9, 0.8, 0.7)
    padded = [np.pad(x, (3, 2)) for x in (rewards, values, mask)]
    np.testing.assert_allclose(token_gae(*padded, 0.9, 0.8, 0.7)[3:-2], plain, rtol=1e-14)


def test_rows_of_a_batch_and_a_trace_for_each():
    random = np.random.default_rng(5)
    rewards, values = random.normal(size=(2, 4, STEPS))
    mask = random.random((4, STEPS)) < 0.6
    traces = length_adaptive_trace(mask.sum(1), 0.5)
    batch = jax.vmap(token_gae, (0, 0, 0, None, 0, None))(rewards, values, mask, 0.9, traces, 0.0)
    for i in range(4):
        for t, expected in literal(rewards[i], values[i], mask[i], 0.9, float(traces[i]), 0.0).items():
            np.testing.assert_allclose(batch[i, t], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int32])
def test_narrow_numbers_are_summed_in_float32(dtype):
    """Among them whole-number rewards: a score of 0.7 beside them is not cut to 0."""
    mask = jnp.array([True, False, True, True, False, True, False])
    rewards, values = jnp.arange(STEPS, dtype=dtype), jnp.ones(STEPS, dtype)
    steps = token_steps(rewards, values, mask, 1.0, 0.5, 0.5)
    assert {x.dtype for x in steps[:4]} <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}
    np.testing.assert_allclose(gae(*steps), token_gae(np.arange(7.0), np.ones(7), mask, 1.0, 0.5, 0.5), rtol=1e-6)


def test_length_adaptive_trace_equals_the_formula():
    for length in (21, 100, 4096):
        np.testing.assert_allclose(length_adaptive_trace(length, 0.05), 1 - 1 / (0.05 * length), rtol=1e-12)
    assert length_adaptive_trace(jnp.array([0, 1, 20])).tolist() == [0, 0, 0]
    gradient = jax.vmap(jax.grad(length_adaptive_trace, 1), (0, None))(jnp.array([0.0, 100.0]), 0.05)
    np.testing.assert_allclose(gradient, [0, 1 / (0.05**2 * 100)], rtol=1e-10)
    # The coefficients of a stream without end sum to what the paper sets them to.
    np.testing.assert_allclose((float(length_adaptive_trace(1000, 0.05)) ** np.arange(10_000)).sum(), 50, rtol=1e-10)


def test_decoupled_gae_is_two_estimates():
    random = np.random.default_rng(6)
    rewards, values = random.normal(size=(2, STEPS))
    next_values = np.append(values[1:], 0.0)
    advantages, targets = decoupled_gae(rewards, 0.9, values, next_values, 0.6)
    np.testing.assert_allclose(advantages, gae(rewards, 0.9, values, next_values, 0.6), rtol=1e-12)
    np.testing.assert_allclose(targets, lambda_returns(rewards, 0.9, next_values, 1.0), rtol=1e-12)
    # Whatever the critic says, its targets with λ = 1 are the discounted rewards.
    other = decoupled_gae(rewards, 0.9, 5 * values, 5 * next_values, 0.6)[1]
    np.testing.assert_allclose(other, targets, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        decoupled_gae(rewards, 0.9, values, next_values, 0.6, 0.6)[1], advantages + values, rtol=1e-12
    )


def test_neither_estimate_of_decoupled_gae_reads_across_a_truncation():
    """Two streams in one are the two by themselves, for the policy and for the critic."""
    random = np.random.default_rng(8)
    rewards, values, next_values = random.normal(size=(3, STEPS))
    discounts, traces = np.full(STEPS, 0.9), np.full(STEPS, 0.6)
    traces[2] = 0.0
    found = decoupled_gae(rewards, discounts, values, next_values, traces)
    parts = [
        decoupled_gae(*(x[cut] for x in (rewards, discounts, values, next_values)), 0.6)
        for cut in (slice(0, 3), slice(3, None))
    ]
    for one, *others in zip(found, *parts, strict=True):
        np.testing.assert_allclose(one, np.concatenate(others), rtol=1e-12)
    for value_trace in (0.0, 0.5, 1.0):
        cut = np.where(traces == 0, 0.0, value_trace)
        np.testing.assert_array_equal(
            decoupled_gae(rewards, discounts, values, next_values, traces, value_trace)[1],
            decoupled_gae(rewards, discounts, values, next_values, traces, cut)[1],
        )
    # An array of the critic's own is taken as it is; a policy's λ of 0, as a scalar, cuts the critic nowhere.
    uncut = decoupled_gae(rewards, discounts, values, next_values, traces, np.ones(STEPS))[1]
    np.testing.assert_array_equal(uncut, decoupled_gae(rewards, discounts, values, next_values, 0.0)[1])
    assert abs(uncut[0] - found[1][0]) > 0.1


def test_one_stream_of_tokens_serves_policy_and_critic():
    mask = np.array([False, True, False, True, False, True, False])
    rewards, values = np.random.default_rng(7).normal(size=(2, STEPS))
    steps = token_steps(rewards, values, mask, trace=0.5)
    advantages, targets = decoupled_gae(*steps)
    for t, expected in literal(rewards, values, mask, 1.0, 0.5, 0.0).items():
        np.testing.assert_allclose(advantages[t], expected, rtol=1e-10)
        np.testing.assert_allclose(targets[t], rewards[t:].sum(), rtol=1e-10)


@pytest.mark.parametrize("trace", [0.0, length_adaptive_trace(3), np.zeros(STEPS)])
def test_a_short_completions_trace_of_0_does_not_cut_the_critic(trace):
    """VAPO's λ is 0 for a completion of at most 20 tokens; only the policy's estimate is then one step long."""
    mask = np.array([False, True, False, True, False, True, False])
    rewards, values = np.random.default_rng(9).normal(size=(2, STEPS))
    advantages, targets = decoupled_gae(*token_steps(rewards, values, mask, trace=trace))
    for t, expected in literal(rewards, values, mask, 1.0, 0.0, 0.0).items():
        np.testing.assert_allclose(advantages[t], expected, rtol=1e-10)
        np.testing.assert_allclose(targets[t], rewards[t:].sum(), rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: token_steps(jnp.zeros(3), jnp.zeros(4), jnp.ones(3, bool)),
            "token_steps: values has shape (4,), rewards has (3,)",
        ),
        (
            lambda: token_steps(jnp.zeros(3), jnp.zeros(3), jnp.ones(4, bool)),
            "token_steps: mask has shape (4,), rewards has (3,)",
        ),
        (
            lambda: token_steps(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3), bool)),
            "token_steps: rewards has shape (2, 3), wanted [T]; vmap over the other axes.",
        ),
        (
            lambda: token_steps(jnp.zeros(3), jnp.zeros(3), jnp.ones(3, bool), jnp.ones(4)),
            "token_steps: discount has shape (4,), rewards has (3,)",
        ),
        (
            lambda: length_adaptive_trace(10, 0.0),
            "length_adaptive_trace: alpha is 0.0, wanted a number greater than 0.",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
