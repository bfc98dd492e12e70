from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from rlax_llm.core import vocabulary
from rlax_llm.core.log_probs import plain_token_log_probs, token_log_probs
from rlax_llm.core.token_sets import EVERY, to_bits

D, V = 6, 37


def inputs(count: int, seed: int = 0, dtype=np.float64) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    hidden, head = random.normal(size=(count, D)), random.normal(size=(V, D))
    return hidden.astype(dtype), head.astype(dtype), random.integers(0, V, count).astype(np.int32)


def literal(hidden, head, targets, temperature=1.0, sets=None, bias=0.0):
    """Row by row, in NumPy: softmax over the tokens of a set."""
    log_probs, entropies = [], []
    for n in range(len(hidden)):
        logits = (head @ hidden[n] + bias) / temperature
        kept = (np.ones(len(head), bool) if sets is None else sets[n].copy()) & np.isfinite(logits)
        kept[targets[n]] = True
        log_p = logits[kept] - logsumexp(logits[kept])
        log_probs.append(logits[targets[n]] - logsumexp(logits[kept]))
        entropies.append(-(np.exp(log_p) * log_p).sum())
    return np.array(log_probs), np.array(entropies)


def plain(hidden, head, targets, temperature, sets, bias):
    """The same through one array of logits, for JAX to differentiate."""
    logits = (hidden @ head.T + bias) / temperature
    kept = (sets & jnp.isfinite(bias)) | (jnp.arange(head.shape[0]) == targets[:, None])
    log_p = jax.nn.log_softmax(jnp.where(kept, logits, -1e300))
    return jnp.take_along_axis(log_p, targets[:, None], -1)[:, 0], -jnp.where(kept, jnp.exp(log_p) * log_p, 0).sum(-1)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 rows, and no program that was traced with others."""
    monkeypatch.setattr(vocabulary, "ROWS_OF_A_CHUNK", 8)
    monkeypatch.setattr(vocabulary, "LOGITS", 0)


@pytest.fixture
def float32():
    """JAX's default, also after tests of this module that turned float64 on."""
    with jax.enable_x64(False):
        yield


def floors(hidden, head, temperature, share, bias=0.0) -> np.ndarray:
    """Log-probabilities that this share of the tokens is below."""
    tempered = (hidden @ head.T + bias) / temperature
    return np.quantile(tempered - logsumexp(tempered, axis=1, keepdims=True), share, axis=1)


def above(hidden, head, temperature, limits, bias=0.0) -> np.ndarray:
    tempered = (hidden @ head.T + bias) / temperature
    return tempered - logsumexp(tempered, axis=1, keepdims=True) >= limits[:, None]


BIAS = np.where(np.arange(V) % 5 == 1, -np.inf, np.linspace(-1, 1, V))  # some tokens are banned


@pytest.mark.usefixtures("float64", "small_chunks")
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("share", [None, 0.51, 0.95])
@pytest.mark.parametrize("form", ["set", "floor", "biased set", "biased floor"])
@pytest.mark.parametrize("count", [1, 19])
def test_values_and_gradients_equal_the_plain_form(count, form, temperature, share):
    """Everything, half of the tokens, or few of them; as a set, and as a floor that gives the same set."""
    hidden, head, targets = inputs(count)
    bias = BIAS if form.startswith("biased") else np.zeros(V)
    targets = np.where(np.isfinite(bias[targets]), targets, 0).astype(np.int32)
    limits = np.full(count, -np.inf) if share is None else floors(hidden, head, temperature, share, bias)
    sets = above(hidden, head, temperature, limits, bias)
    expected = literal(hidden, head, targets, temperature, sets, bias)
    first_bar, second_bar = np.random.default_rng(9).normal(size=(2, count))
    kept = None if share is None else to_bits(sets) if form.endswith("set") else jnp.asarray(limits)

    def weighed(function, hidden, head):
        return sum((bar * x).sum() for bar, x in zip((first_bar, second_bar), function(hidden, head), strict=True))

    def chunked(hidden, head):
        added = bias if form.startswith("biased") else None
        return token_log_probs(hidden, head, targets, temperature, kept, added)

    for value, wanted in zip(chunked(hidden, head), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    gradients = jax.jit(jax.grad(partial(weighed, chunked), argnums=(0, 1)))(hidden, head)
    plainly = partial(weighed, lambda hidden, head: plain(hidden, head, targets, temperature, sets, bias))
    for value, wanted in zip(gradients, jax.jit(jax.grad(plainly, argnums=(0, 1)))(hidden, head), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-9)
        assert np.abs(wanted).max() > 1e-3


@pytest.mark.usefixtures("float64", "small_chunks")
def test_the_plain_oracle_of_the_package_is_the_formula():
    hidden, head, targets = inputs(19)
    for value, wanted in zip(plain_token_log_probs(hidden, head, targets), literal(hidden, head, targets), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64", "small_chunks")
@pytest.mark.parametrize(
    ("every", "only"),
    [(jnp.full(9, -jnp.inf), jnp.full(9, jnp.inf)), (np.full((9, 2), EVERY), np.zeros((9, 2), np.uint32))],
    ids=["floor", "set"],
)
def test_limits_of_what_is_kept(every, only):
    hidden, head, targets = (jnp.asarray(x) for x in inputs(9))
    everything = token_log_probs(hidden, head, targets, 1.0, every)
    for value, wanted in zip(everything, token_log_probs(hidden, head, targets), strict=True):
        np.testing.assert_array_equal(value, wanted)
    # Only the target is left: it is certain, and nothing is learned from it.

    def alone(hidden):
        return sum(x.sum() for x in token_log_probs(hidden, head, targets, 1.0, only))

    np.testing.assert_allclose(token_log_probs(hidden, head, targets, 1.0, only), 0, atol=1e-12)
    np.testing.assert_allclose(jax.grad(alone)(hidden), 0, atol=1e-12)


@pytest.mark.usefixtures("float64", "small_chunks")
def test_a_constant_added_to_all_logits_changes_nothing():
    """The logits are a sum, one of whose parts is the same for every token."""
    hidden, head, targets = inputs(9)
    hidden[:, 0] = 1.0
    shifted = head + np.array([2.5] + [0.0] * (D - 1))
    limits = floors(hidden, head, 0.7, 0.6)
    for kept in (None, limits, to_bits(above(hidden, head, 0.7, limits))):
        both = [token_log_probs(hidden, x, targets, 0.7, kept) for x in map(jnp.asarray, (head, shifted))]
        for value, wanted in zip(*both, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    assert np.abs(both[0][0]).min() > 1e-3


@pytest.mark.usefixtures("float64", "small_chunks")
def test_a_banned_target_is_impossible_and_spoils_no_other_row():
    """Padding: rows whose target is banned, with nothing kept or with all of it; no weight is on them."""
    hidden, head, _ = (jnp.asarray(x) for x in inputs(9))
    targets, bias = jnp.arange(9) % 3, np.where(np.arange(V) == 0, -np.inf, 0.0)
    own = targets != 0
    for kept in (None, np.where(own[:, None], EVERY, np.uint32(0)) + np.zeros((9, 2), np.uint32)):

        def total(hidden, head, kept=kept):
            values = token_log_probs(hidden, head, targets, 1.0, kept, bias)
            return sum(jnp.where(own, x, 0.0).sum() for x in values)

        assert np.all(np.asarray(token_log_probs(hidden, head, targets, 1.0, kept, bias)[0])[~own] == -np.inf)
        slopes = jax.grad(total, argnums=(0, 1))(hidden, head)
        assert all(np.isfinite(slope).all() for slope in slopes)
        np.testing.assert_array_equal(slopes[0][~own], 0)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (jnp.zeros((9, V), bool), "bool of shape (9, 37)"),
        (jnp.zeros((9, 1), jnp.uint32), "uint32 of shape (9, 1)"),
        (jnp.zeros(8), "float32 of shape (8,)"),
    ],
)
@pytest.mark.usefixtures("float32")
def test_errors(kept, told):
    hidden, head, targets = inputs(9, dtype=np.float32)
    with pytest.raises(ValueError) as caught:
        token_log_probs(hidden, head, targets, 1.0, kept)
    assert str(caught.value) == (
        f"token_log_probs: kept is {told}, wanted uint32 (9, 2) or float (9,); give the sets that were sampled from, "
        "packed by to_bits, or floors of log-probability."
    )


@pytest.mark.usefixtures("float64", "small_chunks")
def test_the_score_averages_to_zero_over_the_distribution():
    hidden, head, _ = inputs(1)
    targets, repeated = np.arange(V, dtype=np.int32), np.repeat(hidden, V, 0)
    values = token_log_probs(repeated, head, targets)[0]
    np.testing.assert_allclose(np.exp(values).sum(), 1, rtol=1e-12)
    score = jax.grad(lambda h: (np.exp(values) * token_log_probs(h, jnp.asarray(head), targets)[0]).sum())
    np.testing.assert_allclose(score(jnp.asarray(repeated)).sum(0), np.zeros(D), atol=1e-12)


@pytest.mark.usefixtures("float64", "small_chunks")
def test_gradient_of_the_temperature():
    hidden, head, targets = (jnp.asarray(x) for x in inputs(9))
    slope = jax.grad(lambda t: token_log_probs(hidden, head, targets, t)[0].sum())(1.7)
    ends = [literal(*(np.asarray(x) for x in (hidden, head, targets)), 1.7 + e)[0].sum() for e in (-1e-6, 1e-6)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-6, rtol=1e-7)


@pytest.mark.usefixtures("float64", "small_chunks")
def test_vmap_and_jit_of_the_gradient():
    hidden, head, targets = (jnp.stack([jnp.asarray(x)] * 2) for x in inputs(9))
    hidden = hidden * jnp.array([1.0, 2.0])[:, None, None]

    def loss(hidden, head, targets, temperature):
        log_prob, entropy = token_log_probs(hidden, head, targets, temperature)
        return (log_prob + 0.1 * entropy).sum()

    temperatures = jnp.array([1.0, 0.5])
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1))))(hidden, head, targets, temperatures)
    for i in range(2):
        one = jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden[i], head[i], targets[i], temperatures[i])
        for value, wanted in zip(together, one, strict=True):
            np.testing.assert_allclose(value[i], wanted, atol=1e-12)


@pytest.mark.usefixtures("float64", "small_chunks")
def test_padding_rows_of_the_last_chunk_reach_no_gradient():
    """Nine rows are two chunks: the second is nearly all padding."""
    hidden, head, targets = (jnp.asarray(x) for x in inputs(vocabulary.ROWS_OF_A_CHUNK + 1))
    sets = above(hidden, head, 1.0, floors(hidden, head, 1.0, 0.5))

    def chunked(head):
        return token_log_probs(hidden, head, targets, 1.0, to_bits(sets))[0].sum()

    wanted = jax.grad(lambda head: plain(hidden, head, targets, 1.0, sets, jnp.zeros(V))[0].sum())(head)
    np.testing.assert_allclose(jax.grad(chunked)(head), wanted, atol=1e-9)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_bfloat16_is_as_exact_as_its_inputs(temperature):
    """The logits of bfloat16 inputs are formed in float32, also where a temperature divides them."""
    random = np.random.default_rng(1)
    hidden, head = (jnp.asarray(random.normal(size=s), jnp.bfloat16) for s in ((33, 64), (V, 64)))
    targets = jnp.asarray(random.integers(0, V, 33), jnp.int32)
    exact = literal(*(np.asarray(x, np.float64) for x in (hidden, head)), np.asarray(targets), temperature)
    for value, wanted in zip(token_log_probs(hidden, head, targets, temperature), exact, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
    gradients = jax.grad(lambda *x: token_log_probs(*x, targets, temperature)[0].sum(), argnums=(0, 1))(hidden, head)
    wide = [x.astype(jnp.float32) for x in (hidden, head)]
    wanted = jax.grad(lambda *x: token_log_probs(*x, targets, temperature)[0].sum(), argnums=(0, 1))(*wide)
    for value, full in zip(gradients, wanted, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(value.astype(jnp.float32), full, atol=0.02 * float(jnp.abs(full).max()))


@pytest.mark.usefixtures("float32")
def test_a_tenth_of_the_memory():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1024, 64), (49_152, 64))]
    targets = jax.ShapeDtypeStruct((1024,), jnp.int32)

    def temporary_bytes(function) -> int:
        gradient = jax.grad(lambda h, w, y: sum(x.sum() for x in function(h, w, y)), argnums=(0, 1))
        return jax.jit(gradient).lower(*shapes, targets).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(token_log_probs) <= temporary_bytes(plain_token_log_probs) / 10
