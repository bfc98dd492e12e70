from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.credit.off_policy import retrace, truncated_ratio, vtrace
from rlax_llm.credit.returns import gae, lambda_returns, multistep_errors, td_targets

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
STEPS = 6
numbers = st.floats(-10, 10, allow_subnormal=False)
shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, allow_subnormal=False))
ratios = st.floats(-3, 3, allow_subnormal=False)
VTRACE = jax.jit(vtrace)
RETRACE = jax.jit(retrace)
CEILINGS = {pair: jax.jit(lambda *data, pair=pair: vtrace(*data, *pair)) for pair in [(1.0, 1.0), (2.0, 0.5)]}


def arrays(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(elements, min_size=STEPS, max_size=STEPS).map(np.array)


# rewards, discounts, values, next_values, log_ratio, traces
streams = st.tuples(arrays(numbers), arrays(shares), arrays(numbers), arrays(numbers), arrays(ratios), arrays(shares))


def stream(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    rewards, values, next_values, log_ratio = random.normal(size=(4, STEPS))
    discounts, traces = random.uniform(0.5, 1, (2, STEPS))
    return [rewards, discounts, values, next_values, log_ratio, traces]


def literal_vtrace(rewards, discounts, values, next_values, log_ratio, traces, weight_ceiling, trace_ceiling):
    """Equation 1 of the paper for each start s as a sum of products, then its policy-gradient advantage."""
    ratio = np.exp(log_ratio)
    rho = [min(weight_ceiling, x) for x in ratio]
    c = [traces[t] * min(trace_ceiling, ratio[t]) for t in range(STEPS)]
    targets = np.zeros(STEPS)
    for s in range(STEPS):
        targets[s] = values[s]
        for t in range(s, STEPS):
            delta = rho[t] * (rewards[t] + discounts[t] * next_values[t] - values[t])
            targets[s] += np.prod([discounts[i] * c[i] for i in range(s, t)]) * delta
    advantages = np.zeros(STEPS)
    for s in range(STEPS):
        after = next_values[s]
        if s + 1 < STEPS:
            after = after + traces[s] * (targets[s + 1] - values[s + 1])
        advantages[s] = rho[s] * (rewards[s] + discounts[s] * after - values[s])
    return targets, advantages


def literal_retrace(rewards, discounts, values, next_values, log_ratio, traces):
    targets = np.zeros(STEPS)
    for s in range(STEPS):
        targets[s], factor = values[s], 1.0
        for t in range(s, STEPS):
            if t > s:
                factor *= discounts[t - 1] * traces[t - 1] * min(1.0, np.exp(log_ratio[t]))
            targets[s] += factor * (rewards[t] + discounts[t] * next_values[t] - values[t])
    return targets


@pytest.mark.parametrize("ceilings", CEILINGS)
@few
@given(data=streams)
def test_vtrace_equals_the_sum(ceilings, data):
    for actual, expected in zip(CEILINGS[ceilings](*data), literal_vtrace(*data, *ceilings)):
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_with_equal_ceilings_the_advantages_are_the_errors():
    result = CEILINGS[1.0, 1.0](*stream(8))
    np.testing.assert_allclose(result.advantages, result.targets - stream(8)[2], rtol=1e-10, atol=1e-12)
    result = CEILINGS[2.0, 0.5](*stream(8))
    assert np.abs(result.advantages - (result.targets - stream(8)[2])).max() > 0.1


def test_vtrace_advantages_are_the_papers_on_one_unbroken_stream():
    rewards, discounts, values, _, log_ratio, _ = stream(0)
    next_values = np.append(values[1:], 0.7)
    targets, advantages = VTRACE(rewards, discounts, values, next_values, log_ratio)
    after = np.append(targets[1:], 0.7)
    expected = np.minimum(1, np.exp(log_ratio)) * (rewards + discounts * after - values)
    np.testing.assert_allclose(advantages, expected, rtol=1e-12)


@few
@given(data=streams)
def test_retrace_equals_the_sum(data):
    np.testing.assert_allclose(RETRACE(*data), literal_retrace(*data), rtol=1e-10, atol=1e-10)


@few
@given(data=streams)
def test_on_policy_both_are_gae(data):
    rewards, discounts, values, next_values, _, traces = data
    advantages = gae(rewards, discounts, values, next_values, traces)
    result = VTRACE(rewards, discounts, values, next_values, np.zeros(STEPS), traces)
    np.testing.assert_allclose(result.advantages, advantages, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(result.targets, values + advantages, rtol=1e-10, atol=1e-10)
    expected = values + advantages
    actual = RETRACE(rewards, discounts, values, next_values, np.zeros(STEPS), traces)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


def test_limiting_cases():
    rewards, discounts, values, next_values, log_ratio, traces = stream(1)
    one_step = td_targets(rewards, discounts, next_values)
    np.testing.assert_allclose(RETRACE(rewards, discounts, values, next_values, log_ratio, 0.0), one_step, rtol=1e-12)
    everything = vtrace(rewards, discounts, values, next_values, log_ratio, traces, np.inf, np.inf)
    ratio = np.exp(log_ratio)
    sampled = multistep_errors(rewards, discounts, values, next_values, traces * ratio, ratio)
    np.testing.assert_allclose(everything.targets - values, sampled, rtol=1e-12, atol=1e-12)
    nothing = VTRACE(rewards, discounts, values, next_values, np.full(STEPS, -np.inf), traces)
    np.testing.assert_array_equal(nothing.targets, values)
    np.testing.assert_array_equal(nothing.advantages, np.zeros(STEPS))
    # Ratios above the ceilings are as good as on policy.
    capped = VTRACE(rewards, discounts, values, next_values, np.full(STEPS, 5.0), traces)
    np.testing.assert_allclose(capped.advantages, gae(*stream(1)[:4], traces), rtol=1e-12)


@pytest.mark.parametrize("estimator", ["vtrace targets", "vtrace advantages", "retrace"])
@pytest.mark.parametrize("cut", ["termination", "truncation"])
def test_two_episodes_in_one_stream_are_as_if_each_stood_alone(estimator, cut):
    function = {
        "vtrace targets": lambda *data: vtrace(*data).targets,
        "vtrace advantages": lambda *data: vtrace(*data).advantages,
        "retrace": retrace,
    }[estimator]
    data = stream(2)
    data[1 if cut == "termination" else 5][2] = 0
    apart = [function(*(x[part] for x in data)) for part in (slice(0, 3), slice(3, None))]
    np.testing.assert_allclose(function(*data), np.concatenate(apart), rtol=1e-12)


def test_retrace_on_policy_of_action_values_of_a_value_is_the_lambda_return():
    rewards, discounts, values, _, _, traces = stream(3)
    next_values = np.append(values[1:], 0.3)
    expected = lambda_returns(rewards, discounts, next_values, traces)
    actual = RETRACE(rewards, discounts, values, next_values, np.zeros(STEPS), traces)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("function", [lambda *data: VTRACE(*data), lambda *data: RETRACE(*data)], ids=["v", "re"])
def test_gradients_equal_finite_differences(function):
    data = stream(4)
    data[4] = np.where(np.abs(data[4]) < 0.1, 0.5, data[4])  # away from the ceiling's edge
    check_grads(function, tuple(map(jnp.asarray, data)), order=1, modes=("fwd", "rev"), eps=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("extreme", [80.0, -80.0, 1000.0, -1000.0])
def test_extreme_ratios_have_finite_values_and_gradients(dtype, extreme):
    data = [jnp.asarray(x, dtype) for x in stream(5)]
    data[4] = jnp.full(STEPS, extreme, dtype)

    def total(log_ratio):
        given = (*data[:4], log_ratio, data[5])
        return sum(x.sum() for x in VTRACE(*given)) + RETRACE(*given).sum()

    value, gradient = jax.value_and_grad(total)(data[4])
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert extreme < 0 or not np.any(gradient)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e308])
def test_nothing_behind_a_termination_is_read(garbage):
    data = stream(6)
    data[1][1] = 0
    clean = [np.asarray(x)[:2] for x in (*VTRACE(*data), RETRACE(*data))]
    for index in (0, 2, 4, 5):
        data[index][2:] = garbage
    data[3][1:] = garbage
    for actual, expected in zip((*VTRACE(*data), RETRACE(*data)), clean):
        np.testing.assert_array_equal(np.asarray(actual)[:2], expected)


def test_bfloat16_is_computed_in_float32():
    data = [jnp.asarray(x, jnp.bfloat16) for x in stream(7)]
    exact = [np.asarray(x.astype(jnp.float32), np.float64) for x in data]
    for actual, expected in zip((*VTRACE(*data), RETRACE(*data)), (*VTRACE(*exact), RETRACE(*exact))):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_truncated_ratio():
    log_ratio = np.array([-80.0, -1.0, 0.0, np.log(1.9), 1.0, 80.0, 1000.0])
    np.testing.assert_allclose(truncated_ratio(log_ratio, 2.0), np.minimum(2.0, np.exp(log_ratio.clip(max=99))))
    gradient = jax.vmap(jax.grad(lambda x: truncated_ratio(x, 2.0)))(log_ratio)
    np.testing.assert_allclose(gradient, np.where(log_ratio < np.log(2), np.exp(log_ratio.clip(max=99)), 0))
    assert np.isnan(truncated_ratio(np.nan, 2.0))  # a fault stays visible


def test_either_layout():
    columns = [np.stack(x, 1) for x in zip(*(stream(seed) for seed in range(3)))]
    by_column = jax.vmap(VTRACE, 1, 1)(*columns)
    by_row = jax.vmap(VTRACE)(*(x.T for x in columns))
    for seed in range(3):
        for column, row, alone in zip(by_column, by_row, VTRACE(*stream(seed))):
            np.testing.assert_allclose(column[:, seed], alone, rtol=1e-12)
            np.testing.assert_allclose(row[seed], alone, rtol=1e-12)


SHORT, LONG, BATCH = jnp.zeros(3), jnp.zeros(4), jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vtrace(SHORT, 1.0, SHORT, SHORT, LONG), "vtrace: log_ratio has shape (4,), rewards has (3,)"),
        (lambda: vtrace(SHORT, 1.0, SHORT, SHORT, SHORT, LONG), "vtrace: traces has shape (4,), rewards has (3,)"),
        (lambda: vtrace(BATCH, 1.0, BATCH, BATCH, BATCH), "vtrace: rewards has shape (2, 3), wanted [T]"),
        (
            lambda: vtrace(SHORT, 1.0, SHORT, SHORT, SHORT, 1.0, 0.0),
            "vtrace: weight_ceiling is 0.0, wanted a number greater than 0.",
        ),
        (
            lambda: vtrace(SHORT, 1.0, SHORT, SHORT, SHORT, 1.0, 1.0, -1.0),
            "vtrace: trace_ceiling is -1.0, wanted a number greater than 0.",
        ),
        (lambda: retrace(SHORT, 1.0, LONG, SHORT, SHORT), "retrace: values has shape (4,), rewards has (3,)"),
        (lambda: retrace(BATCH, 1.0, BATCH, BATCH, BATCH), "retrace: rewards has shape (2, 3), wanted [T]"),
        (lambda: truncated_ratio(SHORT, 0.0), "truncated_ratio: ceiling is 0.0, wanted a number greater than 0."),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
