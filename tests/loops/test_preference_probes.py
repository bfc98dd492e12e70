"""Probes whose answer is known in closed form, on models of a few completions: where does each preference loss end?

A bandit over completions y with reference π_ref and rewards r. The policy that the KL-regularized objective
``E_π r − β KL(π‖π_ref)`` asks for is π* ∝ π_ref exp(r/β).
"""

from __future__ import annotations

from functools import partial
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logsumexp, softmax

from rlax_llm.core.types import Completions, LabeledCompletions, PairedCompletions
from rlax_llm.loops.labels import label_loop, zero_reference
from rlax_llm.loops.preference import preference_loop
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.preference import links
from rlax_llm.preference.implicit_rewards import log_ratio
from rlax_llm.preference.pairs import per_response
from rlax_llm.preference.unpaired import bco, kto
from rlax_llm.recipes.preference import dpo, ipo

pytestmark = pytest.mark.usefixtures("float64")

LETTERS, BETA = 3, 0.5
WORDS = np.array(list(product(range(LETTERS), repeat=2)), np.int32)  # all completions: two letters each
COUNT = len(WORDS)
ORDERED = np.array(list(combinations(range(COUNT), 2)))  # every pair of different completions once


def language(params, completions: Completions):
    """The smallest autoregressive model: logits of the first letter, and of the second given the first."""
    first, second = jax.nn.log_softmax(params["first"]), jax.nn.log_softmax(params["second"])
    x, y = completions.tokens[:, 0], completions.tokens[:, 1]
    log_probs = jnp.stack([first[x], second[x, y]], 1)
    return log_probs, jnp.zeros(log_probs.shape)


def rows_of(words) -> Completions:
    tokens = jnp.asarray(WORDS[np.asarray(words).ravel()])
    everything, zeros = jnp.ones(tokens.shape, bool), jnp.zeros(tokens.shape)
    return Completions(tokens, everything, everything, zeros, jnp.zeros(len(tokens), bool))


def policy_of(params) -> np.ndarray:
    """Probabilities of all completions."""
    return jnp.exp(language(params, rows_of(np.arange(COUNT)))[0].sum(-1))


def problem(seed: int):
    """A reference and rewards of the size that β makes matter."""
    random = np.random.default_rng(seed)
    reference = {"first": random.normal(size=LETTERS), "second": random.normal(size=(LETTERS, LETTERS))}
    return jax.tree.map(jnp.asarray, reference), random.normal(size=COUNT)


def optimum(reference: np.ndarray, rewards: np.ndarray, beta: float) -> np.ndarray:
    return softmax(np.log(reference) + rewards / beta)


def total_variation(p, q) -> float:
    return 0.5 * np.abs(np.asarray(p) - np.asarray(q)).sum(-1)


def trained(loop, params, steps: int, batch, **more):
    """All steps on one batch in one scan: the last state, and the metrics of every step."""
    init, step = loop
    return jax.lax.scan(lambda state, _: step(state, batch, **more), init(params), None, steps)


def settling(steps: int, rate: float = 0.05) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def soft_labels(link: links.Link, wins) -> links.Link:
    """A link in expectation over labels: ``wins [B]`` is how probably the first of a pair is preferred."""
    return lambda chosen, rejected: wins * link(chosen, rejected) + (1 - wins) * link(rejected, chosen)


def run_pairs(preference, wins, reference, steps: int = 600):
    softened = preference._replace(link=soft_labels(preference.link, wins))
    loop = preference_loop(language, softened, settling(steps))
    return trained(loop, reference, steps, PairedCompletions(rows_of(ORDERED)), reference=reference)[0].params


def bradley_terry(rewards: np.ndarray) -> np.ndarray:
    return expit(rewards[ORDERED[:, 0]] - rewards[ORDERED[:, 1]])


# DPO


@pytest.mark.parametrize("seed", range(3))
def test_dpo_in_expectation_reaches_the_optimal_policy(seed):
    reference, rewards = problem(seed)
    params = jax.jit(run_pairs, static_argnums=0)(dpo(BETA), bradley_terry(rewards), reference)
    start = np.asarray(policy_of(reference))
    wanted = optimum(start, rewards, BETA)
    assert total_variation(start, wanted) > 0.2
    assert total_variation(policy_of(params), wanted) < 1e-4


def test_dpo_on_sampled_preferences_comes_near_the_optimal_policy():
    """500 comparisons of each pair, over 16 seeds of the labels in one program."""
    reference, rewards = problem(0)
    comparisons, seeds = 500, 16
    wins = np.random.default_rng(1).binomial(comparisons, bradley_terry(rewards), (seeds, len(ORDERED))) / comparisons
    run = jax.jit(jax.vmap(lambda wins: policy_of(run_pairs(dpo(BETA), wins, reference))))
    distances = total_variation(run(jnp.asarray(wins)), optimum(np.asarray(policy_of(reference)), rewards, BETA))
    assert distances.shape == (seeds,)
    assert np.all(distances < 0.05)
    assert distances.max() > 1e-3  # labels are a sample: it is not the expectation


def test_dpo_teaches_a_decoder_the_optimal_policies_of_several_prompts():
    """Two prompts, completions of one token, rewards of each: every pair of tokens, each prompt computed once."""
    vocabulary, prompts, width, steps = 5, 2, 2, 400
    config = DecoderConfig(vocabulary, 16, 32, 1, 2, 2, 8)
    start = jax.jit(partial(decoder.init_decoder, config, dtype=jnp.float64))(jax.random.key(0))
    rewards = np.random.default_rng(2).normal(size=(prompts, vocabulary))
    pairs = np.array(list(combinations(range(vocabulary), 2)))
    ends = np.concatenate([pairs.ravel()] * prompts)[:, None]
    starts = np.repeat(np.array([[0, 1], [2, 3]]), 2 * len(pairs), 0)

    def batch(starts, ends) -> Completions:
        tokens = jnp.asarray(np.concatenate([starts, ends], 1), jnp.int32)
        mask, zeros = jnp.arange(width + 1) >= jnp.full((len(tokens), 1), width), jnp.zeros(tokens.shape)
        return Completions(tokens, jnp.ones(tokens.shape, bool), mask, zeros, jnp.zeros(len(tokens)) > 0)

    def policies(params) -> np.ndarray:
        everything = batch(
            np.repeat(starts[:: len(starts) // 2], vocabulary, 0), np.tile(np.arange(vocabulary), 2)[:, None]
        )
        log_probs = jax.jit(group_log_probs(config, (vocabulary, width)))(params, everything)[0]
        return np.exp(np.asarray(log_probs)[:, -1]).reshape(prompts, vocabulary)

    wins = expit(rewards[:, pairs[:, 0]] - rewards[:, pairs[:, 1]]).ravel()
    preference = dpo(BETA)._replace(link=soft_labels(links.logistic, wins))
    loop = preference_loop(group_log_probs(config, (2, width)), preference, settling(steps, 0.02))
    run = jax.jit(
        lambda: trained(loop, start, steps, PairedCompletions(batch(starts, ends)), reference=start)[0].params
    )
    reference = policies(start)
    wanted = softmax(np.log(reference) + rewards / BETA, -1)
    assert np.all(total_variation(reference, wanted) > 0.2)
    assert np.all(total_variation(policies(run()), wanted) < 0.01)


# One preference without noise


def two_arms(params, completions: Completions):
    log_probs = jax.nn.log_softmax(params)[completions.tokens]
    return log_probs, jnp.zeros(log_probs.shape)


def arm_pair() -> Completions:
    tokens = jnp.array([[0], [1]], jnp.int32)
    everything, zeros = jnp.ones((2, 1), bool), jnp.zeros((2, 1))
    return Completions(tokens, everything, everything, zeros, jnp.zeros(2, bool))


ARMS = np.array([0.3, -0.4])


def margins_of(preference, rate: float, steps: int) -> np.ndarray:
    """Margins of rewards before each step."""
    loop, start = preference_loop(two_arms, preference, optax.sgd(rate)), jnp.asarray(ARMS)
    run = jax.jit(lambda: trained(loop, start, steps, PairedCompletions(arm_pair()), reference=start)[1]["margin"])
    return np.asarray(run())


def test_dpo_never_stops_on_a_preference_without_noise():
    """Two arms and gradient descent of rate η on ``softplus(−m)``, where m = β (θ_w − θ_l) + const is the margin.

    A step adds ``2 β² η σ(−m)``: in the limit of small steps ``dm/dt = 2 β²/(1 + e^m)``, hence
    ``m + e^m = 1 + 2 β² t`` from m = 0, at t = η n: the margin grows like ``log t``, without bound.
    """
    rate, steps = 0.02, 100_000
    margins = margins_of(dpo(1.0), rate, steps)
    time = rate * np.arange(steps)
    np.testing.assert_allclose(margins + np.exp(margins), 1 + 2 * time, rtol=0.02)
    assert margins[-1] > 8
    decades = margins[[999, 9_999, 99_999]]
    np.testing.assert_allclose(np.diff(decades), np.log(10), rtol=0.15)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_ipo_stops_at_its_margin(tau):
    """``(Δ − 1/(2τ))²`` of two arms: a step multiplies the distance by ``1 − 4 η``, so Δ → 1/(2τ)."""
    rate, steps = 0.01, 2_000
    margins = margins_of(ipo(tau), rate, steps)
    np.testing.assert_allclose(margins, (1 - (1 - 4 * rate) ** np.arange(steps)) / (2 * tau), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(margins[-1], 1 / (2 * tau), rtol=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_ipo_in_expectation_reaches_the_policy_of_mean_win_rates(seed):
    """Squares of margins that are differences are least squares, solved by means over opponents:

    ``log π/π_ref = 1/τ · mean_j P(y ≻ y_j) + const`` (arXiv 2310.12036, theorem 1, with Ψ the identity).
    """
    tau = 0.4
    reference, rewards = problem(seed)
    whole = ipo(tau)._replace(rewards=per_response(log_ratio()))
    params = jax.jit(run_pairs, static_argnums=0)(whole, bradley_terry(rewards), reference)
    win_rates = expit(rewards[:, None] - rewards[None]).mean(1)
    wanted = softmax(np.log(np.asarray(policy_of(reference))) + win_rates / tau)
    assert total_variation(policy_of(params), wanted) < 1e-4
    assert total_variation(policy_of(params), policy_of(reference)) > 0.05


# KTO


def labeled(counts: np.ndarray, desirable: np.ndarray) -> tuple[Completions, jax.Array]:
    """Rows of own and mismatched completions: completion y ``counts[y]`` times, ``desirable[y]`` of them liked."""
    words = np.repeat(np.arange(COUNT), counts)
    labels = np.concatenate([np.arange(n) < liked for n, liked in zip(counts, desirable)])
    return rows_of(np.stack([words, np.roll(words, 1)], 1)), jnp.asarray(labels)


def kto_policy(reference: np.ndarray, share: np.ndarray, liked: np.ndarray) -> tuple[np.ndarray, float]:
    """The fixed point that ``test_kto_…`` derives, by nested bisection: π and z."""

    def log_policy(level: float, point: float) -> np.ndarray:
        def excess(log_p: float, k: int) -> float:
            u = BETA * (log_p - np.log(reference[k])) - point
            return np.log(share[k] * (2 * liked[k] - 1)) + log_expit(u) + log_expit(-u) - log_p - level

        kept = np.flatnonzero(liked > 0.5)
        log_p = np.full(COUNT, -np.inf)
        log_p[kept] = [brentq(excess, -300, 300, args=(k,), xtol=1e-13) for k in kept]
        return log_p

    def at(point: float) -> np.ndarray:
        level = brentq(lambda level: logsumexp(log_policy(level, point)), -50, 50, xtol=1e-13)
        return log_policy(level, point)

    def change(point: float) -> float:
        rewards = BETA * (at(point) - np.log(reference))
        return max(0.0, share[share > 0] @ rewards[share > 0]) - point

    point = 0.0 if change(0.0) <= 0 else brentq(change, 0.0, 20.0, xtol=1e-12)
    return np.exp(at(point)), point


def run_kto(counts, desirable, start, steps: int, loss=None, rate: float = 0.05, **more):
    completions, labels = labeled(counts, desirable)
    loop = label_loop(language, loss or kto(BETA), settling(steps, rate), **more)
    run = jax.jit(lambda: trained(loop, start, steps, LabeledCompletions(completions, labels), reference=start))
    state, metrics = run()
    return np.asarray(policy_of(state.params)), metrics


@pytest.mark.parametrize("seed", range(3))
def test_kto_ends_where_its_gradient_says_and_not_at_the_optimal_policy(seed):
    """KTO's fixed point for completions from μ, liked with probability s = σ(r), and class weights of 1.

    With R = β log π/π_ref and z the reference point, a completion's expected loss is
    ``s σ(z − R) + (1 − s) σ(R − z) = s − (2s − 1) σ(R − z)``: linear in the value σ(R − z), so alone it would send R
    to ±∞ by the *majority* of its labels. What holds it is Σ π = 1. For a softmax with logits θ,
    ``∂R_y/∂θ_k = β (1[y = k] − π_k)``, and z has no gradient, so with ``g_y = μ_y (2 s_y − 1) σ′(R_y − z)`` it
    vanishes where ``g_k = π_k Σ_y g_y``: where all s > ½,

        ``μ_k (2 s_k − 1) σ′(β log(π_k/π_ref,k) − z) = C π_k``,   ``z = max(0, Σ_y μ_y R_y)``.

    For β ≤ 1 the left side over π_k falls in π_k, so given C and z each π_k is one bisection, C follows from Σ π = 1,
    and z from itself. In general it is not π*: around R = z, where σ′ is flat, π_k ∝ μ_k (2 s_k − 1), whatever π_ref.
    """
    random = np.random.default_rng(seed)
    reference = problem(seed)[0]
    start = np.asarray(policy_of(reference))
    counts = random.integers(10, 40, COUNT)
    desirable = np.array([random.integers(n // 2 + 1, n) for n in counts])
    liked = desirable / counts
    found, metrics = run_kto(counts, desirable, reference, 3_000)
    wanted, point = kto_policy(start, counts / counts.sum(), liked)
    assert total_variation(found, wanted) < 1e-3
    np.testing.assert_allclose(metrics["reference"][-1], point, rtol=0, atol=1e-3)
    assert total_variation(start, wanted) > 0.1
    assert total_variation(found, optimum(start, np.log(liked / (1 - liked)), BETA)) > 0.1


def test_kto_gives_up_what_most_labels_are_against():
    """Where some s < ½, no π inside the simplex is at rest: those completions go to 0, the others settle as before."""
    random = np.random.default_rng(4)
    reference = problem(4)[0]
    start = np.asarray(policy_of(reference))
    counts = np.full(COUNT, 20)
    desirable = np.array([16, 14, 12, 18, 15, 8, 6, 4, 2])[random.permutation(COUNT)]
    against = desirable < 10
    found, metrics = run_kto(counts, desirable, reference, 3_000, rate=0.3)
    wanted, point = kto_policy(start, counts / counts.sum(), desirable / counts)
    assert found[against].sum() < 1e-4 < 0.1 < start[against].sum()
    assert total_variation(found, wanted) < 1e-3
    assert metrics["reference"][-1] == point == 0  # the data's mean log-ratio goes to −∞


@pytest.mark.parametrize("seed", range(2))
def test_labels_under_the_logistic_link_reach_the_optimal_policy(seed):
    """``−log σ(±R)`` against 0 is the likelihood of labels drawn from σ(R): at its best R = r, if π can.

    It can where Σ π_ref exp(r/β) = 1, and then π is π*: rewards are only known up to a constant, labels fix it.
    """
    reference, rewards = problem(seed)
    start = np.asarray(policy_of(reference))
    rewards = rewards - BETA * logsumexp(np.log(start) + rewards / BETA)
    counts = np.full(COUNT, 400)
    desirable = np.rint(counts * expit(rewards)).astype(int)
    found, metrics = run_kto(counts, desirable, reference, 800, bco(BETA), reference_point=zero_reference)
    wanted = optimum(start, rewards, BETA)
    assert total_variation(start, wanted) > 0.2
    assert total_variation(found, wanted) < 0.005
    assert "kl" not in metrics
