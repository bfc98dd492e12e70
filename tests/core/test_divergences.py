from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from rlax_llm.core import vocabulary
from rlax_llm.core.buckets import TopTokens, bucket_log_probs, top_token_divergences, top_tokens
from rlax_llm.core.divergences import (
    Predictions,
    comparison,
    forward_kl,
    jensen_shannon,
    plain_token_divergences,
    reverse_kl,
    token_divergences,
)
from rlax_llm.core.kl import top_k_kl
from rlax_llm.core.log_probs import token_log_probs
from rlax_llm.core.penalties import Penalties
from rlax_llm.core.token_sets import to_bits

N, V, D_STUDENT, D_TEACHER = 19, 37, 6, 4
BETAS = (0.1, 0.5, 0.9)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 rows: the last of 19 is nearly all padding."""
    monkeypatch.setattr(vocabulary, "ROWS_OF_A_CHUNK", 8)
    monkeypatch.setattr(vocabulary, "LOGITS", 0)


pytestmark = pytest.mark.usefixtures("float64", "small_chunks")


def predictions(width: int, seed: int, temperature: float = 1.0) -> Predictions:
    random = np.random.default_rng(seed)
    hidden, head = random.normal(size=(N, width)), random.normal(size=(V, width))
    return Predictions(jnp.asarray(hidden), jnp.asarray(head), temperature)


def both(temperature: float = 1.0) -> tuple[Predictions, Predictions]:
    return predictions(D_STUDENT, 0, temperature), predictions(D_TEACHER, 1, temperature)


TARGETS = np.random.default_rng(2).integers(0, V, N).astype(np.int32)


def literal_kl(p, log_p, log_q):
    return sum(p[v] * (log_p[v] - log_q[v]) for v in range(len(p)) if p[v] > 0)


def literal(student: Predictions, teacher: Predictions, beta: float, kept=None) -> np.ndarray:
    """GKD's equation 1, row by row and word by word; β of 0 and 1 are the two KLs."""
    rows = []
    for n in range(N):
        logits = [np.asarray(x.head) @ np.asarray(x.hidden[n]) / x.temperature for x in (student, teacher)]
        inside = np.ones(V, bool) if kept is None else kept[n]
        log_p, log_q = (x[inside] - logsumexp(x[inside]) for x in logits)
        p, q = np.exp(log_p), np.exp(log_q)
        log_m = np.log(beta * q + (1 - beta) * p)
        rows.append(
            literal_kl(q, log_q, log_p)
            if beta == 0
            else literal_kl(p, log_p, log_q)
            if beta == 1
            else beta * literal_kl(q, log_q, log_m) + (1 - beta) * literal_kl(p, log_p, log_m)
        )
    return np.array(rows)


def weighed(function, hidden, head) -> jax.Array:
    return (jnp.cos(jnp.arange(N)) * function(hidden, head)).sum()


def slopes(function, student: Predictions):
    return jax.jit(jax.grad(partial(weighed, function), argnums=(0, 1)))(student.hidden, student.head)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("beta", [0.0, *BETAS, 1.0])
def test_values_and_gradients_equal_the_plain_form(beta, temperature):
    student, teacher = both(temperature)
    divergence = jensen_shannon(beta)
    np.testing.assert_allclose(
        token_divergences(student, teacher, divergence), literal(student, teacher, beta), 0, 1e-12
    )
    np.testing.assert_allclose(
        plain_token_divergences(student, teacher, divergence), literal(student, teacher, beta), 0, 1e-12
    )

    def of(function):
        return lambda hidden, head: function(student._replace(hidden=hidden, head=head), teacher, divergence)

    for found, wanted in zip(
        slopes(of(token_divergences), student), slopes(of(plain_token_divergences), student), strict=True
    ):
        np.testing.assert_allclose(found, wanted, 0, 1e-12)
        assert np.abs(wanted).max() > 1e-3


def test_what_stands_beside_a_divergence_is_token_log_probs_and_has_its_gradient():
    """On a sampler's sets, with its bias and penalties, of which the student's slopes know too."""
    student, teacher = both(0.7)
    kept = np.random.default_rng(3).random((N, V)) < 0.5
    kept[np.arange(N), TARGETS] = True
    given, history = Penalties(1.3, 0.2, 0.1), jnp.asarray(np.random.default_rng(4).integers(0, 2 * V, (N, 5)))
    more = {"kept": to_bits(kept), "bias": np.linspace(-1, 1, V), "penalties": (given, history)}

    def ours(hidden, head):
        found = comparison(student._replace(hidden=hidden, head=head), teacher, TARGETS, reverse_kl, **more)
        return found.log_probs + 0.3 * found.entropy

    def theirs(hidden, head):
        log_probs, entropy = token_log_probs(hidden, head, TARGETS, 0.7, **more)
        return log_probs + 0.3 * entropy

    np.testing.assert_allclose(ours(*student[:2]), theirs(*student[:2]), 0, 1e-12)
    for found, wanted in zip(slopes(ours, student), slopes(theirs, student), strict=True):
        np.testing.assert_allclose(found, wanted, 0, 1e-12)
    found = comparison(student, teacher, TARGETS, forward_kl, **more)
    wanted = token_log_probs(*teacher[:2], TARGETS, 0.7, **more)[0]
    np.testing.assert_allclose(found.teacher_log_probs, wanted, 0, 1e-12)


def test_a_divergence_on_a_samplers_set_is_that_of_the_two_renormalized_on_it():
    student, teacher = both()
    kept = np.random.default_rng(3).random((N, V)) < 0.3
    kept[np.arange(N), TARGETS] = True
    for beta in (0.0, 0.5, 1.0):
        found = comparison(student, teacher, TARGETS, jensen_shannon(beta), to_bits(kept)).divergence
        np.testing.assert_allclose(found, literal(student, teacher, beta, kept), 0, 1e-12)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon(0.3)])
def test_a_teacher_equal_to_the_student_teaches_nothing(divergence):
    student, _ = both()

    def of(hidden, head):
        return token_divergences(student._replace(hidden=hidden, head=head), student, divergence)

    np.testing.assert_allclose(of(*student[:2]), 0, atol=1e-15)
    for slope in slopes(of, student):
        np.testing.assert_allclose(slope, 0, atol=1e-14)


@pytest.mark.parametrize(("end", "kl"), [(0, forward_kl), (1, reverse_kl)])
def test_jensen_shannon_divided_by_what_goes_to_zero_goes_to_the_kls(end, kl):
    student, teacher = both(4.0)
    wanted = token_divergences(student, teacher, kl)
    apart = []
    for small in (1e-3, 1e-5):
        found = token_divergences(student, teacher, jensen_shannon(abs(end - small)))
        assert np.all(np.asarray(found) < 0.1 * wanted)
        apart.append(np.abs(found / small - wanted).max())
    assert apart[1] < 1e-3
    assert apart[1] < apart[0] / 50
    np.testing.assert_array_equal(token_divergences(student, teacher, jensen_shannon(end)), wanted)


def test_jensen_shannon_at_a_half_is_symmetric_and_at_most_log_2():
    student, teacher = both(0.05)
    one, other = (token_divergences(*pair, jensen_shannon(0.5)) for pair in ((student, teacher), (teacher, student)))
    np.testing.assert_allclose(one, other, 0, 1e-12)
    assert np.all(np.asarray(one) <= np.log(2) + 1e-12)
    assert np.asarray(one).max() > 0.6


def test_a_certain_teacher_is_cross_entropy():
    student, _ = both()
    teacher = Predictions(jnp.asarray(np.eye(V)[TARGETS]), 1e6 * jnp.eye(V))
    log_probs = token_log_probs(*student[:2], TARGETS)[0]
    np.testing.assert_allclose(token_divergences(student, teacher, forward_kl), -log_probs, 0, 1e-12)


def test_a_traced_beta_and_vmap():
    student, teacher = both()

    def slope(beta, hidden):
        return jax.grad(lambda x: token_divergences(student._replace(hidden=x), teacher, jensen_shannon(beta)).sum())(
            hidden
        )

    together = jax.jit(jax.vmap(slope, (0, None)))(jnp.array(BETAS), student.hidden)
    for beta, found in zip(BETAS, together, strict=True):
        np.testing.assert_allclose(found, slope(beta, student.hidden), 0, 1e-12)


def test_several_divergences_at_once():
    student, teacher = both()
    found = token_divergences(student, teacher, lambda p, q: {"a": forward_kl(p, q), "b": reverse_kl(p, q)})
    for name, divergence in (("a", forward_kl), ("b", reverse_kl)):
        np.testing.assert_allclose(found[name], token_divergences(student, teacher, divergence), 0, 1e-12)


def test_errors():
    student, teacher = both()
    with pytest.raises(ValueError, match="the heads have 37 and 36 tokens, wanted one vocabulary"):
        token_divergences(student, teacher._replace(head=teacher.head[1:]), forward_kl)
    with pytest.raises(ValueError, match="have 19, 18 and 19 rows, wanted one number"):
        token_divergences(student, teacher._replace(hidden=teacher.hidden[1:]), forward_kl)
    with pytest.raises(ValueError, match="k is 38, wanted from 1 to the 37 tokens"):
        top_tokens(teacher, V + 1)
    with pytest.raises(ValueError, match="wanted one more than the tokens"):
        top_token_divergences(student, TopTokens(jnp.zeros((N, 2), jnp.int32), jnp.zeros((N, 2))), forward_kl)
    with pytest.raises(ValueError, match=r"ids has shape \(3, 2\), wanted \[N, K\] with N = 19"):
        bucket_log_probs(student, jnp.zeros((3, 2), jnp.int32))


# The teacher's likeliest tokens


def plain_buckets(student: Predictions, ids) -> jax.Array:
    """Through one array of logits."""
    log_p = jax.nn.log_softmax(student.hidden @ student.head.T / student.temperature)
    own = jnp.take_along_axis(log_p, ids, -1)
    others = jnp.ones((N, V)).at[jnp.arange(N)[:, None], ids].set(0.0)
    return jnp.concatenate([own, jnp.log((others * jnp.exp(log_p)).sum(-1, keepdims=True))], -1)


@pytest.mark.parametrize("k", [1, 5, V - 1])
def test_buckets_and_their_gradients_equal_the_plain_form(k):
    student, teacher = both(0.8)
    ids = top_tokens(teacher, k).ids

    def of(function):
        def total(hidden, head):
            found = function(student._replace(hidden=hidden, head=head), ids)
            return (found * jnp.sin(1.0 + jnp.arange(k + 1))).sum(-1)

        return total

    np.testing.assert_allclose(bucket_log_probs(student, ids), plain_buckets(student, ids), 0, 1e-11)
    for found, wanted in zip(slopes(of(bucket_log_probs), student), slopes(of(plain_buckets), student), strict=True):
        np.testing.assert_allclose(found, wanted, 0, 1e-11)
        assert np.abs(wanted).max() > 1e-3


def test_top_tokens_are_the_likeliest_and_a_tail():
    _, teacher = both(0.8)
    log_q = log_softmax(np.asarray(teacher.hidden @ teacher.head.T) / 0.8, axis=-1)
    found = top_tokens(teacher, 5)
    order = np.argsort(-log_q, -1)[:, :5]
    np.testing.assert_array_equal(found.ids, order)
    np.testing.assert_allclose(found.log_probs[:, :5], np.take_along_axis(log_q, order, -1), 0, 1e-12)
    np.testing.assert_allclose(np.exp(found.log_probs).sum(-1), 1, 0, 1e-12)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl, jensen_shannon(0.3)])
def test_all_tokens_are_the_full_divergence_and_fewer_a_lower_bound(divergence):
    student, teacher = both()

    def of(k):
        top = top_tokens(teacher, k)
        return lambda hidden, head: top_token_divergences(student._replace(hidden=hidden, head=head), top, divergence)

    def full(hidden, head):
        return token_divergences(student._replace(hidden=hidden, head=head), teacher, divergence)

    np.testing.assert_allclose(of(V)(*student[:2]), full(*student[:2]), 0, 1e-12)
    for found, wanted in zip(slopes(of(V), student), slopes(full, student), strict=True):
        np.testing.assert_allclose(found, wanted, 0, 1e-12)
    found = [np.asarray(of(k)(*student[:2])) for k in (1, 4, 16, V)]
    assert all(np.all(fewer <= more + 1e-12) for fewer, more in pairwise(found))
    assert np.all(found[0] < found[-1])


def test_with_reverse_kl_it_is_top_k_kl():
    student, teacher = both()
    top = top_tokens(teacher, 5)
    own = bucket_log_probs(student, top.ids)[:, :5]
    np.testing.assert_allclose(
        top_token_divergences(student, top, reverse_kl), top_k_kl(own, top.log_probs[:, :5]), 0, 1e-12
    )


def temporary_bytes(function) -> int:
    with jax.enable_x64(False):
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4096, 32), (150_000, 32))]

        def total(hidden, head, teacher_hidden, teacher_head):
            return function(Predictions(hidden, head), Predictions(teacher_hidden, teacher_head)).sum()

        return (
            jax.jit(jax.grad(total, argnums=(0, 1)))
            .lower(*shapes, *shapes)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )


def test_a_tenth_of_the_memory(monkeypatch):
    monkeypatch.undo()
    divergence = jensen_shannon(0.5)
    plain = temporary_bytes(lambda *two: plain_token_divergences(*two, divergence))
    assert temporary_bytes(lambda *two: token_divergences(*two, divergence)) <= plain / 10
    few = temporary_bytes(lambda student, teacher: top_token_divergences(student, top_tokens(teacher, 64), divergence))
    assert few <= plain / 10
