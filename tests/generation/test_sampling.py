from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import chisquare

from rlax_llm.generation.sampling import Categorical, Draw, greedy, inverse_cdf, top_p_threshold

LARGE = 49_152
SETTINGS = {
    "plain": Categorical(),
    "hot": Categorical(1.7),
    "cold": Categorical(0.4),
    "top_k": Categorical(top_k=5),
    "top_p": Categorical(top_p=0.8),
    "top_k_then_top_p": Categorical(0.9, top_k=8, top_p=0.7),
    "all_kept": Categorical(top_k=10**6, top_p=1.0),
    "min_p": Categorical(0.8, min_p=0.1),
    "biased": Categorical(1.3, logit_bias=((0, 3.0), (1, -np.inf))),
    "all_cuts": Categorical(1.2, top_k=12, top_p=0.9, min_p=0.2, logit_bias=((1, 4.0), (0, -np.inf))),
}
each = pytest.mark.parametrize("sampler", SETTINGS.values(), ids=SETTINGS.keys())


def kept_by(sampler: Categorical, logits: np.ndarray) -> np.ndarray:
    """Tokens kept, by sorting: bias, temperature, top-k, top-p, min-p (the order of transformers); ties are kept."""
    logits = logits + biases(sampler, len(logits))
    tempered = logits.astype(np.float64) / sampler.temperature
    order = np.argsort(-tempered, kind="stable")
    if sampler.top_k is not None and sampler.top_k < len(order):
        order = order[tempered[order] >= tempered[order[sampler.top_k - 1]]]
    if sampler.top_p is not None and sampler.top_p < 1:
        mass = np.cumsum(softmax(tempered[order]))
        last = int(np.argmax(mass >= sampler.top_p - 1e-7))
        order = order[tempered[order] >= tempered[order[last]]]
    if sampler.min_p is not None:
        order = order[np.exp(tempered[order] - tempered.max()) >= sampler.min_p - 1e-7]
    kept = np.zeros(len(logits), bool)
    kept[order] = True
    return kept & np.isfinite(logits)


def biases(sampler: Categorical, size: int) -> np.ndarray:
    added = np.zeros(size, np.float32)
    for token, bias in sampler.logit_bias:
        added[token] = bias
    return added


def kept_sets(draw: Draw, size: int) -> np.ndarray:
    """What a draw says was kept ``[B, V]``, by NumPy's own unpacking."""
    if draw.kept is None:
        return np.ones((len(draw.tokens), size), bool)
    words = np.asarray(draw.kept).astype("<u4")
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[:, :size].astype(bool)


def distribution(sampler: Categorical, logits: np.ndarray) -> np.ndarray:
    """Log-probabilities of the distribution that is drawn from, −inf where nothing is."""
    tempered = (logits + biases(sampler, len(logits))).astype(np.float64) / sampler.temperature
    tempered = np.where(kept_by(sampler, logits), tempered, -np.inf)
    return tempered - logsumexp(tempered)


def language_like(size: int, rows: int, seed: int = 0, spread: float = 2.5) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, size)) * spread).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def once(sampler, key, logits):
    return sampler(key, logits)


cut_at = jax.jit(top_p_threshold)
drawn = jax.jit(lambda key, tempered, kept: inverse_cdf(key, jnp.tile(tempered, (256, 1)), jnp.tile(kept, (256, 1))))


def draws(sampler, key, logits: np.ndarray, count: int) -> np.ndarray:
    """Many draws from one row of logits, its kept set found once."""
    tempered = (jnp.asarray(logits) + biases(sampler, len(logits))) / sampler.temperature
    kept = kept_sets(once(sampler, key, logits[None]), len(logits))[0]
    return np.concatenate([drawn(k, tempered, kept).tokens for k in jax.random.split(key, count // 256)])


def assert_drawn_from(tokens: np.ndarray, log_probs: np.ndarray) -> None:
    """Chi-square over tokens expected at least ten times; the rarer ones together are one bin."""
    expected = np.exp(log_probs) * len(tokens)
    observed = np.bincount(tokens, minlength=len(expected))
    assert observed[expected == 0].sum() == 0
    common = expected >= 10
    bins = [np.append(x[common], x[~common].sum()) for x in (observed, expected)]
    if bins[1][-1] < 10:
        bins = [x[:-1] + np.eye(len(x) - 1)[0] * x[-1] for x in bins]
    if len(bins[0]) > 1:
        assert chisquare(bins[0], bins[1] * (bins[0].sum() / bins[1].sum())).pvalue > 1e-4


@each
@pytest.mark.parametrize("size", [600])
def test_frequencies_match_the_distribution(sampler, size):
    logits = language_like(size, 1)[0]
    assert_drawn_from(draws(sampler, jax.random.key(1), logits, 25_600), distribution(sampler, logits))


@each
def test_a_whole_draw_at_a_time_matches_too(sampler):
    logits = language_like(23, 1)[0]
    draw = once(sampler, jax.random.key(2), np.tile(logits, (20_000, 1)))
    log_probs = distribution(sampler, logits)
    assert_drawn_from(np.asarray(draw.tokens), log_probs)
    np.testing.assert_allclose(draw.log_probs, log_probs[draw.tokens], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "sampler",
    [Categorical(0.6), Categorical(top_k=50), Categorical(top_p=0.9), Categorical(0.8, 200, 0.9)],
    ids=["temperature", "top_k", "top_p", "both"],
)
def test_frequencies_match_for_a_large_vocabulary(sampler):
    logits = language_like(LARGE, 1, spread=3.0)[0]
    assert_drawn_from(draws(sampler, jax.random.key(2), logits, 5_120), distribution(sampler, logits))


@each
@pytest.mark.parametrize("size", [2, 600])
def test_kept_sets_and_log_probs_equal_the_sorted_form(sampler, size):
    logits = language_like(size, 64, seed=3)
    draw = once(sampler, jax.random.key(4), logits)
    sets = kept_sets(draw, size) & np.isfinite(biases(sampler, size))
    for row in range(len(logits)):
        np.testing.assert_array_equal(sets[row], kept_by(sampler, logits[row]))
        expected = distribution(sampler, logits[row])[draw.tokens[row]]
        np.testing.assert_allclose(draw.log_probs[row], expected, rtol=1e-5, atol=2e-6)


FLAT, PEAKED, MIXED = np.zeros(2000), np.eye(2000)[7] * 60, language_like(2000, 1, seed=5, spread=0.05)[0]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("together", [False, True])
def test_nuclei_of_every_size(top_p, together):
    """Ties of the whole vocabulary, a nucleus of one, and large ones; alone and beside each other."""
    rows = np.stack([FLAT, PEAKED, MIXED, language_like(2000, 1, seed=6)[0]]).astype(np.float32)
    batches = [rows] if together else list(rows[:, None])
    thresholds = np.concatenate([cut_at(x, top_p) for x in batches])
    kept = rows >= thresholds[:, None]
    np.testing.assert_array_equal(kept, [kept_by(Categorical(top_p=top_p), row) for row in rows])
    assert kept[:2].sum(-1).tolist() == [2000, 1]
    assert (kept[2].sum() > 256) == (top_p >= 0.3)


@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.99])
def test_the_sorted_form_and_bisection_agree(top_p):
    """A top-k cut that leaves a token of no mass out is no cut: the two ways to a nucleus meet."""
    logits = language_like(500, 32, seed=7)
    logits[:, 3] = -60.0
    one, other = (once(Categorical(0.8, top_k, top_p), jax.random.key(0), logits) for top_k in (499, None))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("sampler", "logits", "kept"),
    [
        (Categorical(top_k=2), [1.0, 3.0, 3.0, 3.0, 0.0], [1, 2, 3]),
        (Categorical(top_k=1), [2.0, 2.0, 2.0], [0, 1, 2]),
        (Categorical(top_k=3), [1.0, 3.0, 2.0, 1.0], [0, 1, 2, 3]),
        (Categorical(top_p=0.5), [1.0, 1.0, 1.0, -5.0], [0, 1, 2]),
        (Categorical(top_p=0.1), [1.0, 1.0, 0.0], [0, 1]),
        (Categorical(top_k=2, top_p=0.1), [5.0, 1.0, 1.0], [0]),
        (Categorical(top_k=3), [0.0, -np.inf, 1.0, -np.inf, -np.inf], [0, 2]),
        (Categorical(top_k=1), [0.0, -np.inf, 1.0, -np.inf], [2]),
        (Categorical(top_p=0.999), [0.0, -np.inf, 1.0, -np.inf], [0, 2]),
        (Categorical(top_k=3, top_p=0.6), [0.0, -np.inf, 1.0, -np.inf], [2]),
        (Categorical(0.01), [0.0, -np.inf, 1.0, 1.0], [0, 2, 3]),
        (Categorical(), [-np.inf, -np.inf, 4.0], [2]),
        (Categorical(top_k=1), [1e38, 9e37, -3e38], [0]),
        (Categorical(top_k=2), [1.0, 1.0000001, 0.99999994], [0, 1]),
    ],
)
def test_ties_and_excluded_tokens(sampler, logits, kept):
    logits = np.array(logits, np.float32)
    draw = once(sampler, jax.random.key(0), logits[None])
    assert np.flatnonzero(kept_sets(draw, len(logits))[0] & np.isfinite(logits)).tolist() == kept
    tokens = draws(sampler, jax.random.key(8), logits, 2560)
    assert set(tokens.tolist()) <= set(kept)
    assert np.all(np.isfinite(draw.log_probs))


@pytest.mark.parametrize("position", [0, 255, 256, 511, 699])
@pytest.mark.parametrize("uniform", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
def test_the_ends_of_the_unit_interval_never_draw_a_token_of_probability_zero(monkeypatch, position, uniform):
    """At uniform numbers of exactly 0 and just below 1, with one token possible in three blocks."""
    logits = np.full((1, 700), -np.inf, np.float32)
    logits[0, position] = 2.0
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform, jnp.float32))
    draw = Categorical()(jax.random.key(0), logits)
    assert draw.tokens.tolist() == [position]
    assert draw.log_probs.tolist() == [0.0]


def test_draws_at_the_ends_follow_the_cumulative_distribution(monkeypatch):
    logits = language_like(600, 1, seed=9)
    logits[0, [0, 1, 300, 598, 599]] = -np.inf
    for uniform in (0.0, 0.25, 0.999999):
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, u=uniform: jnp.full(shape, u, jnp.float32))
        token = int(Categorical()(jax.random.key(0), logits).tokens[0])
        mass = np.exp(distribution(Categorical(), logits[0]))
        blocks = np.cumsum([mass[i : i + 256].sum() for i in range(0, 600, 256)])
        block = int((blocks <= uniform).sum())
        inside = np.cumsum(mass[block * 256 : (block + 1) * 256])
        assert token == block * 256 + int((inside <= uniform * inside[-1]).sum())
        assert mass[token] > 0


def test_greedy_takes_the_first_of_ties_and_says_the_full_log_probability():
    logits = np.array([[0.0, 2.0, 2.0], [1.0, -np.inf, 0.5], [5.0, 5.0, 5.0]], np.float32)
    draw = greedy(None, logits)
    assert draw.tokens.tolist() == [1, 0, 0]
    assert draw.tokens.dtype == jnp.int32
    np.testing.assert_allclose(draw.log_probs, logits.max(-1) - logsumexp(logits, axis=-1), rtol=1e-6)
    assert draw.kept is None
    draw = greedy(None, logits, ((1, -np.inf), (0, 4.0)))
    assert draw.tokens.tolist() == [0, 0, 0]
    biased = logits + np.array([4.0, -np.inf, 0.0], np.float32)
    np.testing.assert_allclose(draw.log_probs, biased[:, 0] - logsumexp(biased, axis=-1), rtol=1e-5)


def test_limits_of_the_categorical():
    logits = language_like(300, 16, seed=10)
    key = jax.random.key(0)
    for near_greedy in (Categorical(1e-4), Categorical(top_k=1), Categorical(top_p=1e-6)):
        draw = once(near_greedy, key, logits)
        np.testing.assert_array_equal(draw.tokens, greedy(key, logits).tokens)
        np.testing.assert_allclose(draw.log_probs, np.zeros(16), atol=1e-6)
    everything, plain = (once(s, key, logits) for s in (Categorical(top_k=300, top_p=1.0), Categorical()))
    jax.tree.map(np.testing.assert_array_equal, everything, plain)
    assert plain.kept is None
    everything, plain = (once(Categorical(0.7, min_p=p), key, logits) for p in (1e-30, None))
    np.testing.assert_array_equal(everything.tokens, plain.tokens)
    assert kept_sets(everything, 300).all()
    certain = once(Categorical(min_p=1.0), key, logits)
    np.testing.assert_array_equal(certain.tokens, logits.argmax(-1))


def test_one_key_one_draw_and_rows_of_their_own():
    logits = np.zeros((64, 1000), np.float32)
    first, second = (once(Categorical(), jax.random.key(3), logits).tokens for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) > 48
    assert np.any(first != once(Categorical(), jax.random.key(4), logits).tokens)


def test_bfloat16_logits_are_drawn_in_float32():
    draw = Categorical(0.7, top_k=4)(jax.random.key(0), jnp.asarray(language_like(50, 3), jnp.bfloat16))
    assert (draw.log_probs.dtype, draw.kept.dtype, draw.tokens.dtype) == (jnp.float32, jnp.uint32, jnp.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "Categorical: temperature is 0.0, wanted a number greater than 0."),
        ({"temperature": -1}, "Categorical: temperature is -1, wanted a number greater than 0."),
        ({"top_k": 0}, "Categorical: top_k is 0, wanted at least 1, or None to keep every token."),
        ({"top_p": 0.0}, "Categorical: top_p is 0.0, wanted a number in (0, 1], or None for no cut."),
        ({"top_p": 1.5}, "Categorical: top_p is 1.5, wanted a number in (0, 1], or None for no cut."),
        ({"min_p": 0}, "Categorical: min_p is 0, wanted a number in (0, 1], or None for no cut."),
        (
            {"logit_bias": ((3, np.inf),)},
            "Categorical: logit_bias of token 3 is inf, wanted a number, or -inf to ban the token.",
        ),
        (
            {"logit_bias": ((3, 1.0), (3, 2.0))},
            "Categorical: logit_bias: token 3 is given twice; give each token id from 0 on once.",
        ),
        (
            {"logit_bias": ((-1, 1.0),)},
            "Categorical: logit_bias: token -1 is not an id; give each token id from 0 on once.",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError) as caught:
        Categorical(**arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (((4, 1.0),), "Categorical: logit_bias names token 4, the vocabulary has 4; give ids below that."),
        (
            tuple((token, -np.inf) for token in range(4)),
            "Categorical: logit_bias bans all 4 tokens; leave one at least.",
        ),
    ],
)
def test_a_bias_that_does_not_fit_the_vocabulary(bias, message):
    with pytest.raises(ValueError) as caught:
        Categorical(logit_bias=bias)(jax.random.key(0), jnp.zeros((1, 4)))
    assert str(caught.value) == message
