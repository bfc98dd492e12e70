from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlax_llm.core.recurrence import cut_product, reverse_affine_scan
from rlax_llm.credit.returns import (
    discounted_returns,
    gae,
    lambda_returns,
    multistep_errors,
    n_step_returns,
    td_errors,
    td_targets,
    total_return,
)

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
STEPS = 6
numbers = st.floats(-10, 10, allow_subnormal=False)
shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, allow_subnormal=False))


def arrays(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(elements, min_size=STEPS, max_size=STEPS).map(np.array)


# rewards, discounts, values, next_values, traces
streams = st.tuples(arrays(numbers), arrays(shares), arrays(numbers), arrays(numbers), arrays(shares))


def stream(seed: int, steps: int = STEPS) -> list[np.ndarray]:
    """A stream with a termination after step 1 and a truncation after step 3."""
    random = np.random.default_rng(seed)
    rewards, values, next_values = random.normal(size=(3, steps))
    discounts, traces = random.uniform(0.5, 1, (2, steps))
    discounts[1] = traces[3] = 0
    return [rewards, discounts, values, next_values, traces]


# The definitions, as sums over what follows a step, with Python's own loops; none of them is a recurrence.


def literal_affine(offsets, factors, last):
    result = []
    for t in range(len(offsets)):
        terms = [np.prod(factors[t:k]) * offsets[k] for k in range(t, len(offsets))]
        result.append(sum(terms) + np.prod(factors[t:]) * last)
    return np.array(result)


def literal_n_steps(t, n, rewards, discounts, next_values):
    """n rewards from t on and the value behind them."""
    total, factor = 0.0, 1.0
    for k in range(t, t + n):
        total += factor * rewards[k]
        factor *= discounts[k]
    return total + factor * next_values[t + n - 1]


def literal_lambda_return(t, longest, rewards, discounts, next_values, traces):
    """The mixture of the returns of 1, 2, … steps; the longest takes the weight that is left."""
    total, left = 0.0, 1.0
    for n in range(1, longest + 1):
        share = 1.0 if n == longest else 1 - traces[t + n - 1]
        total += left * share * literal_n_steps(t, n, rewards, discounts, next_values)
        left *= traces[t + n - 1]
    return total


def literal_gae(rewards, discounts, values, next_values, traces):
    advantages = []
    for t in range(len(rewards)):
        total, factor = 0.0, 1.0
        for k in range(t, len(rewards)):
            total += factor * (rewards[k] + discounts[k] * next_values[k] - values[k])
            factor *= discounts[k] * traces[k]
        advantages.append(total)
    return np.array(advantages)


AFFINE, RETURNS, TOTAL = jax.jit(reverse_affine_scan), jax.jit(discounted_returns), jax.jit(total_return)
TD, GAE, LAMBDA = jax.jit(td_errors), jax.jit(gae), jax.jit(lambda_returns)
N_STEP = {n: jax.jit(lambda r, g, v, c, n=n: n_step_returns(r, g, v, n, c)) for n in (1, 2, 4, STEPS, 50)}
MULTISTEP = jax.jit(multistep_errors)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@few
@given(data=streams, last=numbers)
def test_the_recurrence_is_its_sum(data, last):
    offsets, factors = data[:2]
    close(AFFINE(offsets, factors, last), literal_affine(offsets, factors, last))


def test_the_recurrence_takes_trailing_axes_and_scalars():
    random = np.random.default_rng(0)
    offsets, factors = random.normal(size=(2, STEPS, 2, 3))
    last = random.normal(size=(2, 3))
    for i, j in np.ndindex(2, 3):
        expected = literal_affine(offsets[:, i, j], factors[:, i, j], last[i, j])
        close(reverse_affine_scan(offsets, factors, last)[:, i, j], expected)
    close(reverse_affine_scan(offsets, 1.0)[0], offsets.sum(0))
    close(reverse_affine_scan(offsets, 0.0, last), offsets)
    assert reverse_affine_scan(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


@few
@given(data=streams, last=numbers)
def test_discounted_returns_equal_the_sum(data, last):
    rewards, discounts = data[:2]
    close(RETURNS(rewards, discounts, last), literal_affine(rewards, discounts, last))
    close(RETURNS(rewards, 1.0, 0.0), np.cumsum(rewards[::-1])[::-1])
    np.testing.assert_array_equal(RETURNS(rewards, 0.0, last), rewards)


@few
@given(data=streams)
def test_gae_equals_the_sum(data):
    rewards, discounts, values, next_values, _ = data
    close(GAE(*data), literal_gae(*data))
    expected = [rewards[t] + discounts[t] * next_values[t] - values[t] for t in range(STEPS)]
    close(TD(*data[:4]), expected)
    close(GAE(*data[:4], 0.0), expected)


@few
@given(data=streams)
def test_lambda_returns_equal_the_mixture_of_n_step_returns(data):
    rewards, discounts, _, next_values, traces = data
    expected = [literal_lambda_return(t, STEPS - t, rewards, discounts, next_values, traces) for t in range(STEPS)]
    close(LAMBDA(rewards, discounts, next_values, traces), expected)


@pytest.mark.parametrize("n", N_STEP)
@few
@given(data=streams)
def test_n_step_returns_equal_the_sum_also_at_the_end_of_the_stream(n, data):
    rewards, discounts, _, next_values, traces = data
    lengths = [min(n, STEPS - t) for t in range(STEPS)]
    plain = [literal_n_steps(t, m, rewards, discounts, next_values) for t, m in enumerate(lengths)]
    close(N_STEP[n](rewards, discounts, next_values, np.ones(STEPS)), plain)
    mixed = [literal_lambda_return(t, m, rewards, discounts, next_values, traces) for t, m in enumerate(lengths)]
    close(N_STEP[n](rewards, discounts, next_values, traces), mixed)


@few
@given(data=streams, weights=arrays(numbers))
def test_multistep_errors_equal_the_sum(data, weights):
    rewards, discounts, values, next_values, traces = data
    errors = weights * (rewards + discounts * next_values - values)
    close(MULTISTEP(*data, weights), literal_affine(errors, discounts * traces, 0.0))


def test_total_return_is_that_of_the_own_episode():
    rewards, discounts, *_ = stream(1)
    first, second = (literal_affine(rewards[part], discounts[part], 0.0)[0] for part in (slice(0, 2), slice(2, None)))
    close(TOTAL(rewards, discounts), [first] * 2 + [second] * (STEPS - 2))
    close(TOTAL(rewards, 1.0), [rewards.sum()] * STEPS)
    discounts[-1] = 0  # the stream's own end is no beginning
    close(TOTAL(rewards, discounts)[:2], [first] * 2)


# Identities.


@few
@given(data=streams)
def test_identities(data):
    rewards, discounts, values, bootstrap, traces = data
    next_values = np.append(values[1:], bootstrap[0])
    close(GAE(rewards, discounts, values, next_values, 1.0), RETURNS(rewards, discounts, bootstrap[0]) - values)
    close(
        GAE(rewards, discounts, values, next_values, traces) + values, LAMBDA(rewards, discounts, next_values, traces)
    )
    close(LAMBDA(rewards, discounts, bootstrap, 0.0), td_targets(rewards, discounts, bootstrap))
    close(LAMBDA(rewards, discounts, bootstrap, 1.0), RETURNS(rewards, discounts, bootstrap[-1]))
    np.testing.assert_array_equal(GAE(rewards, discounts, 0.0, 0.0, 1.0), RETURNS(rewards, discounts, 0.0))


def test_gae_of_constant_parameters_is_the_papers_sum_over_each_episode():
    """Episodes of three, one and two steps: terminated, truncated, and still running at the end of the stream."""
    random, gamma, lambda_ = np.random.default_rng(2), 0.9, 0.8
    rewards, discounts, values, next_values, traces, expected = ([] for _ in range(6))
    for length, terminated, truncated in [(3, True, False), (1, False, True), (2, False, False)]:
        r, v = random.normal(size=length), random.normal(size=length + 1)
        bootstrap = 0.0 if terminated else v[-1]
        after = np.append(v[1:-1], bootstrap)
        deltas = r + gamma * after - v[:-1]
        for t in range(length):
            expected.append(sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, length)))
        rewards.extend(r)
        values.extend(v[:-1])
        next_values.extend(v[1:])  # of a terminated episode's last state, too: it must not be read
        discounts.extend([gamma] * (length - 1) + [0.0 if terminated else gamma])
        traces.extend([lambda_] * (length - 1) + [0.0 if truncated else lambda_])
    close(GAE(*map(np.array, (rewards, discounts, values, next_values, traces))), expected)


ALL = {
    "discounted_returns": lambda r, g, v, w, c: discounted_returns(r, g, w[-1]),
    "td_errors": lambda r, g, v, w, c: td_errors(r, g, v, w),
    "gae": gae,
    "lambda_returns": lambda r, g, v, w, c: lambda_returns(r, g, w, c),
    "n_step_returns": lambda r, g, v, w, c: n_step_returns(r, g, w, 3, c),
    "total_return": lambda r, g, v, w, c: total_return(r, g),
}
JITTED = {name: jax.jit(function) for name, function in ALL.items()}
each = pytest.mark.parametrize("name", ALL)


@pytest.mark.parametrize("name", ["gae", "lambda_returns", "n_step_returns", "td_errors"])
@pytest.mark.parametrize("cut", ["termination", "truncation"])
def test_two_episodes_in_one_stream_are_as_if_each_stood_alone(name, cut):
    data = stream(3)
    data[1 if cut == "termination" else 4][2] = 0
    apart = [ALL[name](*(x[part] for x in data)) for part in (slice(0, 3), slice(3, None))]
    close(ALL[name](*data), np.concatenate(apart))


@each
def test_gradients_equal_finite_differences(name):
    rewards, discounts, *others = map(jnp.asarray, stream(4))
    if name == "total_return":  # the discounts say where an episode ends: a step there, not a slope
        function, given = lambda r: JITTED[name](r, discounts, *others), (rewards,)
    else:
        function, given = JITTED[name], (rewards, discounts, *others)
    check_grads(function, given, order=1, modes=("fwd", "rev"), eps=1e-6, rtol=1e-6)


def test_the_gradient_of_a_cut_is_right_where_it_is_a_number():
    gradient = jax.grad(lambda a: AFFINE(jnp.array([1.0, 2.0, 3.0]), a, 0.0)[0])(jnp.array([0.0, 0.5, 0.5]))
    close(gradient, [3.5, 0.0, 0.0])  # y[1] itself, and nothing further on
    close(jax.grad(lambda a: cut_product(a, jnp.array(jnp.nan)))(0.0), 0.0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e308])
@pytest.mark.parametrize("name", ["gae", "lambda_returns", "discounted_returns", "td_errors"])
def test_nothing_behind_a_termination_is_read(name, garbage):
    rewards, discounts, values, next_values, traces = stream(5)
    clean = np.asarray(JITTED[name](rewards, discounts, values, next_values, traces))[:2]
    for x in (rewards, values, traces):
        x[2:] = garbage
    next_values[1:] = garbage
    data = tuple(map(jnp.asarray, (rewards, discounts, values, next_values, traces)))
    np.testing.assert_array_equal(np.asarray(JITTED[name](*data))[:2], clean)
    gradients = jax.grad(lambda r, v, w: JITTED[name](r, data[1], v, w, 0.9)[:2].sum(), (0, 1, 2))(
        data[0], data[2], data[3]
    )
    assert np.all(np.isfinite(gradients))
    assert not np.any(np.asarray(gradients)[:, 2:])
    assert gradients[2][1] == 0


def test_a_full_trace_never_reads_the_values_in_between():
    rewards, discounts, _, next_values, _ = stream(6)
    hidden = np.where(np.arange(STEPS) < STEPS - 1, np.nan, next_values)
    close(LAMBDA(rewards, discounts, hidden, 1.0), LAMBDA(rewards, discounts, next_values, 1.0))


@each
def test_either_layout_jit_scan_and_one_by_one_agree(name):
    columns = [np.stack(x, 1) for x in zip(*(stream(seed) for seed in range(3)))]
    rows = [x.T for x in columns]
    alone = np.stack([JITTED[name](*stream(seed)) for seed in range(3)])
    close(jax.vmap(JITTED[name])(*rows), alone)
    close(jax.vmap(JITTED[name], 1, 1)(*columns), alone.T)
    close(jax.lax.scan(lambda c, x: (c, ALL[name](*x)), 0, tuple(map(jnp.asarray, rows)))[1], alone)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int32])
def test_narrow_numbers_are_summed_in_float32_or_wider(name, dtype):
    data = [jnp.asarray(4 * x, dtype) for x in stream(7)]
    exact = JITTED[name](*(np.asarray(x.astype(jnp.float32), np.float64) for x in data))
    result = JITTED[name](*data)
    assert result.dtype == jnp.float32 or (dtype == jnp.int32 and result.dtype == jnp.float64)
    np.testing.assert_allclose(result, exact, rtol=2e-6, atol=2e-6)


def test_four_thousand_bfloat16_ones_are_counted():
    ones = jnp.ones(4096, jnp.bfloat16)
    np.testing.assert_array_equal(RETURNS(ones, jnp.ones_like(ones), 0.0), np.arange(4096, 0, -1))


@pytest.mark.parametrize("magnitude", [80.0, 1e30])
def test_extreme_rewards_stay_finite(magnitude):
    data = [jnp.asarray(x, jnp.float32) for x in stream(8)]
    data[0] = data[0] * magnitude
    for name in ("gae", "lambda_returns", "n_step_returns"):
        assert np.all(np.isfinite(JITTED[name](*data)))


# The six weights of the policy gradient, on a game of three moves whose eight courses can all be written down.

COURSES = np.array(list(itertools.product([0, 1], repeat=3)))
REWARD = np.random.default_rng(9).normal(size=14)  # of each state and action


def states(course: np.ndarray) -> np.ndarray:
    """A state is the moves so far: 0; 1, 2; 3, 4, 5, 6."""
    return np.array([0, 1 + course[0], 3 + 2 * course[0] + course[1]])


STATES = np.array([states(course) for course in COURSES])
REWARDS = REWARD[2 * STATES + COURSES]


def log_probs(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.reshape(7, 2))[STATES, COURSES]


def state_values(logits: jax.Array) -> np.ndarray:
    """True values, by averaging over all courses that pass through a state."""
    chances = np.exp(log_probs(logits))
    values = np.zeros(8)  # the last is behind the end
    for state in range(7):
        passing = [(i, t) for i, t in np.ndindex(8, 3) if STATES[i, t] == state]
        weights = np.array([chances[i, t:].prod() for i, t in passing])
        values[state] = (weights * np.array([REWARDS[i, t:].sum() for i, t in passing])).sum() / weights.sum()
    return values


def test_all_six_weights_have_the_gradient_of_the_expected_return():
    logits = jnp.asarray(np.random.default_rng(10).normal(size=14))
    expected = jax.grad(lambda x: (jnp.exp(log_probs(x).sum(1)) * REWARDS.sum(1)).sum())(logits)
    table = state_values(logits)
    values, next_values = table[STATES], table[np.append(STATES[:, 1:], np.full((8, 1), 7), 1)]
    discounts = np.broadcast_to([1.0, 1.0, 0.0], (8, 3))
    forms = {
        "total return": jax.vmap(total_return)(REWARDS, discounts),
        "return to go": jax.vmap(discounted_returns)(REWARDS, discounts),
        "minus a baseline": jax.vmap(discounted_returns)(REWARDS, discounts) - values,
        "Q": jax.vmap(td_targets)(REWARDS, discounts, next_values),
        "advantage": jax.vmap(gae)(REWARDS, discounts, values, next_values, np.full((8, 3), 0.7)),
        "TD residual": jax.vmap(td_errors)(REWARDS, discounts, values, next_values),
    }
    chances = np.exp(np.asarray(log_probs(logits)).sum(1))
    gradient = jax.grad(lambda x, form: (chances[:, None] * form * log_probs(x)).sum())
    for name, form in forms.items():
        np.testing.assert_allclose(gradient(logits, form), expected, rtol=1e-10, atol=1e-12, err_msg=name)


# Errors.

SHORT, LONG, BATCH = jnp.zeros(3), jnp.zeros(4), jnp.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reverse_affine_scan(jnp.array(1.0), 1.0), "offsets is a scalar, wanted [T, ...]"),
        (lambda: reverse_affine_scan(SHORT, LONG), "factors has shape (4,), offsets has (3,)"),
        (lambda: reverse_affine_scan(BATCH, BATCH, LONG), "last has shape (4,), one step of offsets has (3,)"),
        (lambda: discounted_returns(BATCH, 1.0), "discounted_returns: rewards has shape (2, 3), wanted [T]"),
        (lambda: discounted_returns(SHORT, LONG), "discounted_returns: discounts has shape (4,), rewards has (3,)"),
        (lambda: discounted_returns(SHORT, 1.0, SHORT), "last has shape (3,), one step of offsets has ()"),
        (lambda: total_return(SHORT, LONG), "total_return: discounts has shape (4,), rewards has (3,)"),
        (lambda: td_targets(SHORT, 1.0, LONG), "td_targets: next_values has shape (4,), rewards has (3,)"),
        (lambda: td_errors(SHORT, 1.0, LONG, SHORT), "td_errors: values has shape (4,), rewards has (3,)"),
        (lambda: lambda_returns(SHORT, 1.0, LONG), "lambda_returns: next_values has shape (4,), rewards has (3,)"),
        (lambda: lambda_returns(SHORT, 1.0, SHORT, LONG), "lambda_returns: traces has shape (4,), rewards has (3,)"),
        (lambda: lambda_returns(BATCH, 1.0, BATCH), "lambda_returns: rewards has shape (2, 3), wanted [T]"),
        (lambda: n_step_returns(SHORT, 1.0, SHORT, 0), "n_step_returns: n is 0, wanted a whole number of at least 1"),
        (lambda: n_step_returns(SHORT, LONG, SHORT, 2), "n_step_returns: discounts has shape (4,), rewards has (3,)"),
        (lambda: gae(SHORT, 1.0, LONG, SHORT, 1.0), "values has shape (4,), rewards has (3,)"),
        (lambda: gae(BATCH, 1.0, BATCH, BATCH, 1.0), "rewards has shape (2, 3), wanted [T]; vmap over the other axes"),
        (lambda: multistep_errors(SHORT, 1.0, 0.0, 0.0, LONG), "traces has shape (4,), rewards has (3,)"),
        (lambda: multistep_errors(SHORT, 1.0, 0.0, 0.0, 1.0, LONG), "weights has shape (4,), rewards has (3,)"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
