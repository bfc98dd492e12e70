from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.core.types import Trajectory
from rlax_llm.credit import streams as credits

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=30, deadline=None)
STEPS = 7
GAMMA = 0.8
numbers = st.floats(-10, 10, allow_subnormal=False)
unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, allow_subnormal=False))


def lists(elements: st.SearchStrategy, size: int = STEPS) -> st.SearchStrategy:
    return st.lists(elements, min_size=size, max_size=size).map(np.array)


class Stream:
    """Episodes one behind the other as a run has them; ``behind[t]`` is the value of the state that step t led to."""

    def __init__(self, rewards, values, behind, ends, discount=GAMMA):
        ends = np.asarray(ends)
        self.rewards, self.values, self.discount = rewards, values, discount
        self.terminated, self.truncated = ends == "terminated", ends == "truncated"
        goes_on = ends == "goes on"
        goes_on[-1] = False
        self.behind = np.where(goes_on, np.append(values[1:], 0.0), behind)

    def last(self, t: int) -> int:
        """The last step of t's episode that is in the stream."""
        return next(k for k in range(t, STEPS) if self.terminated[k] or self.truncated[k] or k == STEPS - 1)

    def first(self, t: int) -> int:
        return next(k for k in range(t, -1, -1) if k == 0 or self.terminated[k - 1] or self.truncated[k - 1])

    def n_steps(self, t: int, n: int) -> float:
        """n rewards, and the value behind them unless the episode is over."""
        total = sum(self.discount**k * self.rewards[t + k] for k in range(n))
        return total + (0 if self.terminated[t + n - 1] else self.discount**n * self.behind[t + n - 1])

    def mixture(self, t: int, lambda_: float) -> float:
        """The returns of 1, 2, … steps with weights (1 − λ) λ^(n − 1); the longest takes what is left."""
        longest = self.last(t) - t + 1
        shares = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, longest)] + [lambda_ ** (longest - 1)]
        return sum(share * self.n_steps(t, n) for n, share in enumerate(shares, 1))

    @property
    def trajectory(self) -> Trajectory:
        cut = self.truncated | (np.arange(STEPS) == STEPS - 1)
        arrays = (self.rewards, self.discount * ~self.terminated, 1.0 - cut, self.values, self.behind)
        return Trajectory(*(jnp.asarray(x, float) for x in arrays))


streams = st.builds(
    Stream,
    lists(numbers),
    lists(numbers),
    lists(numbers),
    lists(st.sampled_from(["terminated", "truncated", "goes on"])),
)


def every_kind_of_end(seed: int) -> Stream:
    rewards, values, behind = np.random.default_rng(seed).normal(size=(3, STEPS))
    return Stream(rewards, values, behind, ["goes on", "terminated", "goes on", "truncated", *["goes on"] * 3])


def whole(s: Stream, t: int) -> float:
    return s.n_steps(s.first(t), s.last(t) - s.first(t) + 1)


def to_go(s: Stream, t: int) -> float:
    return s.n_steps(t, s.last(t) - t + 1)


LITERAL = {
    "total_return": whole,
    "return_to_go": to_go,
    "return_minus_baseline": lambda s, t: to_go(s, t) - s.values[t],
    "q_value": lambda s, t: s.n_steps(t, 1),
    "gae": lambda s, t: s.mixture(t, 0.7) - s.values[t],
    "td_residual": lambda s, t: s.n_steps(t, 1) - s.values[t],
    "lambda_return": lambda s, t: s.mixture(t, 0.7),
}
CREDITS = {
    name: jax.jit(getattr(credits, name)(0.7) if name in ("gae", "lambda_return") else getattr(credits, name))
    for name in LITERAL
}
NAMES = pytest.mark.parametrize("name", CREDITS)


@NAMES
@given(stream=streams)
@few
def test_a_credit_is_its_definition(name, stream):
    expected = [LITERAL[name](stream, t) for t in range(STEPS)]
    np.testing.assert_allclose(CREDITS[name](stream.trajectory), expected, rtol=1e-9, atol=1e-9)


gae, lambda_return = (
    jax.jit(lambda trajectory, lambda_, f=f: f(lambda_)(trajectory)) for f in (credits.gae, credits.lambda_return)
)


@given(stream=streams)
@few
def test_limiting_cases(stream):
    trajectory = stream.trajectory
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    found = {name: credit(trajectory) for name, credit in CREDITS.items()}
    close(gae(trajectory, 1.0), found["return_minus_baseline"])
    close(found["return_minus_baseline"], found["return_to_go"] - stream.values)
    close(gae(trajectory, 0.0), found["td_residual"])
    close(found["td_residual"], found["q_value"] - stream.values)
    close(lambda_return(trajectory, 1.0), found["return_to_go"])
    close(lambda_return(trajectory, 0.0), found["q_value"])
    for t in range(STEPS):
        close(found["total_return"][t], found["return_to_go"][stream.first(t)])


@given(stream=streams, lambda_=unit)
@few
def test_the_critics_target_is_the_advantage_plus_the_value(stream, lambda_):
    trajectory = stream.trajectory
    difference = lambda_return(trajectory, lambda_) - gae(trajectory, lambda_)
    np.testing.assert_allclose(difference, stream.values, rtol=1e-9, atol=1e-9)


@NAMES
@given(stream=streams)
@few
def test_a_cut_is_an_end_whose_reward_holds_the_value_behind_it(name, stream):
    cut = stream.trajectory
    value = cut.discounts * cut.next_values * (cut.traces == 0)
    ended = cut._replace(
        rewards=cut.rewards + value,
        discounts=cut.discounts * cut.traces,
        traces=jnp.ones(STEPS),
    )
    np.testing.assert_allclose(CREDITS[name](cut), CREDITS[name](ended), rtol=1e-9, atol=1e-9)


@NAMES
@pytest.mark.parametrize("end", [1, 3])
@pytest.mark.parametrize("wrong", [1e9, np.nan])
def test_the_next_episode_does_not_matter(name, end, wrong):
    """Step 1 terminates and step 3 is truncated; all behind them changes, and behind a termination its value too."""
    stream = every_kind_of_end(0)
    before = stream.trajectory
    behind = jnp.arange(STEPS) > end
    after = Trajectory(*(jnp.where(behind, wrong, x) for x in before))
    if end == 1:
        after = after._replace(next_values=after.next_values.at[end].set(wrong))
    np.testing.assert_array_equal(CREDITS[name](after)[: end + 1], CREDITS[name](before)[: end + 1])


@NAMES
@pytest.mark.parametrize("end", [1, 3])
def test_the_episode_before_does_not_matter(name, end):
    before = every_kind_of_end(1).trajectory
    earlier = jnp.arange(STEPS) <= end
    after = before._replace(
        rewards=jnp.where(earlier, 1e9, before.rewards), values=jnp.where(earlier, 1e9, before.values)
    )
    np.testing.assert_array_equal(CREDITS[name](after)[end + 1 :], CREDITS[name](before)[end + 1 :])


@NAMES
def test_what_the_credit_of_a_truncated_episode_does_read(name):
    """The value behind the cut at step 3 counts for steps 2 and 3, but for a one-step credit's step 2."""
    before = every_kind_of_end(2).trajectory
    change = CREDITS[name](before._replace(next_values=before.next_values.at[3].add(1.0))) - CREDITS[name](before)
    one_step = name in ("q_value", "td_residual")
    first = {"total_return": GAMMA**2, "gae": GAMMA**2 * 0.7, "lambda_return": GAMMA**2 * 0.7}.get(name, GAMMA**2)
    last = GAMMA**2 if name == "total_return" else GAMMA
    expected = [0, 0, 0 if one_step else first, last, 0, 0, 0]
    np.testing.assert_allclose(change, expected, atol=1e-12)


@NAMES
def test_streams_side_by_side(name):
    both = [every_kind_of_end(seed).trajectory for seed in (3, 4)]
    side = jax.tree.map(lambda *x: jnp.stack(x, 1), *both)
    found = jax.vmap(CREDITS[name], 1, 1)(side)
    for i, trajectory in enumerate(both):
        np.testing.assert_allclose(found[:, i], CREDITS[name](trajectory), rtol=1e-12)


@pytest.mark.parametrize("name", ["gae", "lambda_return"])
@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_errors_say_what_got_wanted(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name}: lambda_ is {wrong}, wanted a number from 0 to 1\.$"):
        getattr(credits, name)(wrong)


# The policy gradient of a small decision process, with every trajectory enumerated. State 0 leads to 1 or 2; state 1 to
# 3 or to the end; 2 to 3; 3 to the end. Rewards depend on state and action, transitions are random.

STATES, ACTIONS, LONGEST, END = 4, 2, 3, 4
FOLLOWING = {
    (0, 0): {1: 0.7, 2: 0.3},
    (0, 1): {1: 0.2, 2: 0.8},
    (1, 0): {3: 0.9, END: 0.1},
    (1, 1): {3: 0.4, END: 0.6},
    (2, 0): {3: 1.0},
    (2, 1): {3: 1.0},
    (3, 0): {END: 1.0},
    (3, 1): {END: 1.0},
}
REWARDS = np.random.default_rng(0).normal(size=(STATES, ACTIONS))
LOGITS = np.random.default_rng(1).normal(size=(STATES, ACTIONS))


def paths(state: int = 0) -> list[tuple[list[tuple[int, int, int]], float]]:
    """Every way to the end as (state, action, next state), with the probability of its transitions."""
    if state == END:
        return [([], 1.0)]
    return [
        ([(state, action, following), *rest], share * probability)
        for action in range(ACTIONS)
        for following, share in FOLLOWING[state, action].items()
        for rest, probability in paths(following)
    ]


def true_values(probabilities: np.ndarray) -> np.ndarray:
    values = np.zeros(STATES + 1)
    for state in (3, 2, 1, 0):
        for action in range(ACTIONS):
            behind = sum(share * values[s] for s, share in FOLLOWING[state, action].items())
            values[state] += probabilities[state, action] * (REWARDS[state, action] + behind)
    return values


def expected_return(logits: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    return sum(
        probability * jnp.exp(sum(log_probs[s, a] for s, a, _ in path)) * sum(REWARDS[s, a] for s, a, _ in path)
        for path, probability in paths()
    )


@functools.cache
def enumerated() -> tuple[np.ndarray, ...]:
    """All trajectories as arrays ``[N, T]``: states, actions, next states, alive; and their probabilities."""
    every = paths()
    steps = np.zeros((len(every), LONGEST, 3), int)
    alive = np.zeros((len(every), LONGEST), bool)
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    weights = np.empty(len(every))
    for i, (path, probability) in enumerate(every):
        steps[i, : len(path)], alive[i, : len(path)] = path, True
        weights[i] = probability * np.prod([probabilities[s, a] for s, a, _ in path])
    np.testing.assert_allclose(weights.sum(), 1.0)
    return *np.moveaxis(steps, -1, 0), alive, weights


def expected_gradient(credit: credits.Credit, values: np.ndarray) -> np.ndarray:
    states, actions, following, alive, weights = enumerated()
    trajectory = Trajectory(
        rewards=jnp.where(alive, REWARDS[states, actions], 1e3),
        discounts=jnp.where(alive, following != END, 1.0),
        traces=jnp.ones(alive.shape).at[:, -1].set(0.0),
        values=jnp.where(alive, values[states], 1e3),
        next_values=jnp.where(alive, values[following], 1e3),
    )
    psi = jax.vmap(credit)(trajectory)

    def surrogate(logits: jax.Array) -> jax.Array:
        return (weights[:, None] * jnp.where(alive, psi * jax.nn.log_softmax(logits)[states, actions], 0.0)).sum()

    return np.asarray(jax.grad(surrogate)(LOGITS))


TRUE = true_values(np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True))
LEARNED = np.append(np.random.default_rng(2).normal(size=STATES), 0.0)
FORMS = [
    credits.total_return,
    credits.return_to_go,
    credits.return_minus_baseline,
    credits.q_value,
    credits.gae(0.6),
    credits.td_residual,
]


def test_all_six_weights_have_the_policy_gradient_with_the_true_values():
    gradient = np.asarray(jax.jit(jax.grad(expected_return))(LOGITS))
    assert np.abs(gradient).max() > 0.05
    for credit in FORMS:
        np.testing.assert_allclose(expected_gradient(credit, TRUE), gradient, rtol=1e-9, atol=1e-12)


def test_learned_values_bias_those_weights_that_bootstrap_from_them():
    gradient = np.asarray(jax.jit(jax.grad(expected_return))(LOGITS))
    bias = [np.abs(expected_gradient(credit, LEARNED) - gradient).max() for credit in FORMS]
    np.testing.assert_allclose(bias[:3], 0, atol=1e-12)
    assert min(bias[3:]) > 0.01
    # The longer the trace, the less of the wrong values is read.
    longer = [np.abs(expected_gradient(credits.gae(x), LEARNED) - gradient).max() for x in (0.0, 0.5, 0.9, 1.0)]
    assert longer == sorted(longer, reverse=True)


def test_the_variance_falls_from_the_first_weight_to_the_last():
    """At the true values; the trace of the covariance of one trajectory's gradient, enumerated."""
    states, actions, following, alive, weights = enumerated()
    log_softmax = jax.nn.log_softmax(LOGITS)
    score = np.eye(ACTIONS)[actions] - np.exp(log_softmax)[states]

    def spread(credit: credits.Credit) -> float:
        shape = alive.shape
        given = (REWARDS[states, actions], following != END, np.ones(shape), TRUE[states], TRUE[following])
        psi = np.asarray(jax.vmap(credit)(Trajectory(*(jnp.asarray(x, float) for x in given))))
        gradients = np.zeros((len(weights), STATES, ACTIONS))
        for i, t in itertools.product(*map(range, shape)):
            if alive[i, t]:
                gradients[i, states[i, t]] += psi[i, t] * score[i, t]
        mean = np.einsum("n,nsa->sa", weights, gradients)
        return float((weights * np.square(gradients - mean).sum((1, 2))).sum())

    total, to_go, baseline, *_, residual = map(spread, FORMS)
    assert residual <= baseline <= to_go <= total
