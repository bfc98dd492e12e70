from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.core.types import Scored
from rlax_llm.credit.batches import (
    batch_std,
    gdpo,
    gpg,
    informative_share,
    nonzero_share,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    returns_to_go,
    whiten_advantages,
)
from rlax_llm.credit.groups import centered, per_group, z_score

pytestmark = pytest.mark.usefixtures("float64")

few = settings(max_examples=20, deadline=None)
K, P, G, T = 2, 3, 4, 5
NAN = float("nan")


def batch(seed: int = 0, missing: float = 0.0) -> Scored:
    """Scores from a few values (so that groups have ties), masks with holes and an empty row."""
    random = np.random.default_rng(seed)
    scores = random.choice([0.0, 1.0, 2.5, -1.0], size=(P, G))
    scores = np.where(random.random((P, G)) < missing, NAN, scores)
    log_probs, ref_log_probs = -random.exponential(size=(2, P, G, T))
    mask = random.random((P, G, T)) < 0.7
    mask[0, 1] = False
    return Scored(scores, log_probs, mask, ref_log_probs)


def known(scores: np.ndarray) -> list[int]:
    return [i for i, score in enumerate(scores) if not np.isnan(score)]


def literal_centered(scores: np.ndarray) -> np.ndarray:
    result = np.zeros(scores.shape)
    for p in range(len(scores)):
        at = known(scores[p])
        for g in at if len(at) > 1 else []:
            result[p, g] = scores[p, g] - sum(scores[p, j] for j in at) / len(at)
    return result


def spread_of(values: list[float], ddof: int) -> float:
    mean = sum(values) / max(len(values), 1)
    return (sum((x - mean) ** 2 for x in values) / max(len(values) - ddof, 1)) ** 0.5


def literal_batch_std(scored: Scored, ddof=1, eps=1e-4) -> np.ndarray:
    std = spread_of([s for s in scored.scores.ravel() if not np.isnan(s)], ddof)
    return literal_centered(scored.scores) / (std + eps) if std else np.zeros((P, G))


def literal_whitened(credit: np.ndarray, taken: np.ndarray, ddof=1, eps=1e-8) -> np.ndarray:
    """Over a flat list of the chosen tokens, long completions so counting more often."""
    at = [i for i in np.ndindex(P, G, T) if taken[i]]
    mean = sum(credit[i] for i in at) / max(len(at), 1)
    variance = sum((credit[i] - mean) ** 2 for i in at) / max(len(at) - ddof, 1)
    result = np.zeros((P, G, T))
    for i in at:
        result[i] = (credit[i] - mean) / (variance + eps) ** 0.5
    return result


def literal_returns(scored: Scored, kl_coef: float, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """The list of a completion's chosen tokens, from its end; and which tokens are taken."""
    returns, taken = np.zeros((P, G, T)), np.zeros((P, G, T), bool)
    for p, g in np.ndindex(P, G):
        if np.isnan(scored.scores[p, g]):
            continue
        later, ahead = 0.0, scored.scores[p, g]
        for t in reversed([t for t in range(T) if scored.mask[p, g, t]]):
            k1 = scored.log_probs[p, g, t] - scored.ref_log_probs[p, g, t]
            later = ahead - kl_coef * k1 + discount * later
            ahead = 0.0
            returns[p, g, t], taken[p, g, t] = later, True
    return returns, taken


def literal_baseline(scored: Scored, ddof=1, eps=1e-8) -> np.ndarray:
    taken = scored.mask.copy()
    for p in range(P):
        at = known(scored.scores[p])
        for g in range(G):
            taken[p, g] &= g in at and len(at) > 1
    credit = np.broadcast_to(literal_centered(scored.scores)[..., None], (P, G, T))
    return literal_whitened(credit, taken, ddof, eps)


def literal_gpg(scored: Scored, f_norm=1.0) -> np.ndarray:
    """α = B / (B − M), M of the B completions being in groups without a difference."""
    groups = [[scored.scores[p, g] for g in known(scored.scores[p])] for p in range(P)]
    whole = sum(len(group) for group in groups)
    idle = sum(len(group) for group in groups if len(set(group)) < 2)
    return literal_centered(scored.scores) * (whole / (whole - idle) if whole > idle else 0.0) / f_norm


def literal_gpg_by_nonzero(scored: Scored) -> np.ndarray:
    flat = [s for s in scored.scores.ravel() if not np.isnan(s)]
    nonzero = sum(s != 0 for s in flat)
    return literal_centered(scored.scores) * (len(flat) / nonzero if nonzero else 0.0)


CASES = {
    "batch_std": (batch_std(), literal_batch_std),
    "batch_std_population": (batch_std(0, 0.01), lambda s: literal_batch_std(s, 0, 0.01)),
    "plus_plus": (reinforce_plus_plus(), lambda s: literal_whitened(*literal_returns(s, 0.0, 1.0))),
    "plus_plus_kl": (
        reinforce_plus_plus(0.3, 0.9, 0, 1e-3),
        lambda s: literal_whitened(*literal_returns(s, 0.3, 0.9), 0, 1e-3),
    ),
    "returns_to_go": (returns_to_go(0.3, 0.9), lambda s: literal_returns(s, 0.3, 0.9)[0]),
    "baseline": (reinforce_plus_plus_baseline(), literal_baseline),
    "gpg": (gpg(), literal_gpg),
    "gpg_half": (gpg(0.5), lambda s: literal_gpg(s, 0.5)),
    "gpg_nonzero": (gpg(share=nonzero_share), literal_gpg_by_nonzero),
}
COMPILED = {name: jax.jit(advantage) for name, (advantage, _) in CASES.items()}
each = pytest.mark.parametrize("name", CASES)


@each
@few
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_equals_the_formula(name, seed, missing):
    scored = batch(seed, missing)
    np.testing.assert_allclose(COMPILED[name](scored), CASES[name][1](scored), rtol=1e-9, atol=1e-9)


@each
def test_a_missing_score_has_no_advantage_and_a_lone_one_none_in_its_group(name):
    scored = batch(1)
    scored.scores[0, 2] = NAN
    scored.scores[1, 1:] = NAN
    advantages = np.asarray(COMPILED[name](scored))
    assert not np.any(advantages[0, 2])
    assert not np.any(advantages[1, 1:])
    if name not in ("plus_plus", "plus_plus_kl", "returns_to_go"):
        assert not np.any(advantages[1, 0])
    assert np.all(np.isfinite(advantages))


@each
@pytest.mark.parametrize("garbage", [NAN, np.inf, -np.inf, 80.0, -80.0])
def test_what_the_policy_did_not_choose_is_never_read(name, garbage):
    scored = batch(2, 0.2)
    clean = COMPILED[name](scored)
    spoilt = scored._replace(
        log_probs=np.where(scored.mask, scored.log_probs, garbage),
        ref_log_probs=np.where(scored.mask, scored.ref_log_probs, garbage),
    )
    np.testing.assert_array_equal(COMPILED[name](spoilt), clean)
    if clean.ndim == 3:
        assert not np.any(np.asarray(clean)[~scored.mask])


@each
def test_an_empty_batch_has_finite_advantages_of_zero(name):
    scored = batch(3)
    assert not np.any(COMPILED[name](scored._replace(scores=np.full((P, G), NAN))))
    nothing = np.asarray(COMPILED[name](scored._replace(mask=np.zeros((P, G, T), bool))))
    assert np.all(np.isfinite(nothing))
    if nothing.ndim == 3:
        assert not np.any(nothing)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"plus_plus_kl", "returns_to_go"}))
def test_equal_scores_give_zero_where_tokens_do_not_differ(name):
    for value in (0.0, 0.1, 1e6 + 0.1, -7.3):
        assert not np.any(COMPILED[name](batch(4)._replace(scores=np.full((P, G), value))))


@each
def test_single_and_half_precision(name):
    scored = batch(5)
    # Exact in bfloat16, so that only the arithmetic differs.
    coarse = [np.round(8 * x) / 8 for x in (scored.log_probs, scored.ref_log_probs)]
    scored = scored._replace(log_probs=coarse[0], ref_log_probs=coarse[1])
    exact = COMPILED[name](scored)
    for dtype in (jnp.float32, jnp.bfloat16):
        low = jax.tree.map(lambda x, dtype=dtype: x if x.dtype == bool else jnp.asarray(x, dtype), scored)
        advantages = COMPILED[name](low)
        assert advantages.dtype == "float32"
        np.testing.assert_allclose(advantages, exact, rtol=2e-5, atol=2e-5)


def test_one_group_under_batch_std_is_the_z_score():
    scored = batch(6)
    one = scored._replace(scores=scored.scores[:1])
    np.testing.assert_allclose(batch_std(1, 0.3)(one), per_group(lambda s: z_score(s, 1, 0.3))(one), rtol=1e-12)


def test_whitening_a_sequence_value_is_whitening_it_on_every_token():
    scored = batch(7, 0.2)

    def on_every_token(scored):
        return jnp.broadcast_to(per_group(centered)(scored)[..., None], scored.mask.shape)

    np.testing.assert_array_equal(
        whiten_advantages(per_group(centered))(scored), whiten_advantages(on_every_token)(scored)
    )


def test_groups_play_no_part_in_reinforce_plus_plus():
    scored = batch(8)
    regrouped = jax.tree.map(lambda x: x.reshape(P * G, 1, *x.shape[2:]), scored)
    one = reinforce_plus_plus(0.1)(regrouped)
    np.testing.assert_allclose(one.reshape(P, G, T), reinforce_plus_plus(0.1)(scored), rtol=1e-12)


def test_kl_weight_may_be_traced():
    scored = batch(9)
    many = jax.vmap(lambda coef: returns_to_go(coef)(scored))(jnp.array([0.0, 0.4]))
    np.testing.assert_allclose(many[0], returns_to_go()(scored), rtol=1e-12)
    np.testing.assert_allclose(many[1], returns_to_go(0.4)(scored), rtol=1e-12)
    np.testing.assert_allclose(
        returns_to_go()(scored._replace(ref_log_probs=None)), np.where(scored.mask, scored.scores[..., None], 0.0)
    )


def test_shares():
    scores = np.array([[0.0, 1.0, NAN], [1.0, 1.0, 1.0], [NAN, 2.0, NAN]])
    np.testing.assert_allclose(informative_share(scores), 2 / 6, rtol=1e-12)
    np.testing.assert_allclose(nonzero_share(scores), 5 / 6, rtol=1e-12)


def literal_gdpo(scores: np.ndarray, weights: np.ndarray, ddof=1, eps=1e-4) -> np.ndarray:
    total, counted = np.zeros((P, G)), np.zeros((P, G), bool)
    for k in range(K):
        deviations = literal_centered(scores[k])
        for p in range(P):
            at = known(scores[k, p])
            std = spread_of([scores[k, p, g] for g in at], ddof)
            for g in at if len(at) > 1 else []:
                counted[p, g] = True
                total[p, g] += weights[k] * deviations[p, g] / (std + eps) if std > 1e-12 else 0.0
    flat = [total[i] for i in np.ndindex(P, G) if counted[i]]
    std, mean = spread_of(flat, ddof), sum(flat) / max(len(flat), 1)
    return np.where(counted, (total - mean) / (std + eps), 0.0) if std > 1e-12 else np.zeros((P, G))


decoupled = jax.jit(gdpo)


@few
@given(seed=st.integers(0, 10**6), missing=st.sampled_from([0.0, 0.4, 0.8]))
def test_gdpo_equals_the_formula(seed, missing):
    random = np.random.default_rng(seed)
    scores = random.choice([0.0, 1.0, 30.0], size=(K, P, G))
    scores[random.random((K, P, G)) < missing] = NAN
    weights = random.normal(size=K)
    np.testing.assert_allclose(decoupled(scores, weights), literal_gdpo(scores, weights), rtol=1e-8, atol=1e-8)


def test_gdpo_tells_apart_what_the_z_score_of_the_sum_does_not():
    """One reward more in the first group, two in the second: the z-score of the sum is ±1 in both."""
    scores = np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    summed = jax.vmap(lambda s: z_score(s, 0, 0.0))(scores.sum(0))
    np.testing.assert_allclose(summed, [[-1, 1], [-1, 1]], rtol=1e-12)
    advantages = gdpo(scores, np.ones(2), 0, 0.0)
    np.testing.assert_allclose(advantages, np.array([[-1, 1], [-2, 2]]) / 2.5**0.5, rtol=1e-12)
    rescaled = gdpo(scores * np.array([1.0, 1000.0])[:, None, None], np.ones(2), 0, 0.0)
    np.testing.assert_allclose(rescaled, advantages, rtol=1e-12)


def test_gdpo_of_one_reward_in_one_group_is_the_z_score():
    scores = np.random.default_rng(0).normal(size=(1, 1, 6))
    expected = z_score(scores[0, 0], 1, 0.0)
    np.testing.assert_allclose(gdpo(scores, np.ones(1), 1, 0.0)[0], expected, rtol=1e-12)
    np.testing.assert_allclose(gdpo(scores, np.full(1, 7.0), 1, 0.0)[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gdpo(np.ones((2, 3)), np.ones(2)), "gdpo: scores has shape (2, 3), wanted [K, P, G]"),
        (
            lambda: gdpo(np.ones((2, 3, 4)), np.ones(3)),
            "gdpo: weights has shape (3,), scores has (2, 3, 4); give one weight for each of the 2 rewards.",
        ),
        (lambda: gdpo(np.ones((2, 3, 1)), np.ones(2)), "z_score: scores has shape (1,), and a group of one has no"),
        (lambda: gpg(0.0), "gpg: f_norm is 0.0, wanted a number greater than 0."),
        (
            lambda: reinforce_plus_plus(0.1)(batch()._replace(ref_log_probs=None)),
            "returns_to_go: ref_log_probs is None; give the reference's, or set kl_coef to 0.",
        ),
    ],
)
def test_errors_say_what_got_and_wanted(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
