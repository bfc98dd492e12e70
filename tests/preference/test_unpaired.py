from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlax_llm.preference.implicit_rewards import Responses, log_ratio
from rlax_llm.preference.links import compare_with_zero, logistic, misranking
from rlax_llm.preference.unpaired import (
    LabeledBatch,
    bco,
    desirable_weight_range,
    kto,
    label_mean,
    mismatched_rows,
    reference_point,
    running_mean,
    unpaired_loss,
    unpaired_value,
    update_running_mean,
)

pytestmark = pytest.mark.usefixtures("float64")
few = settings(max_examples=25, deadline=None)
ROWS, WIDTH, BETA = 5, 4, 0.3


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# The papers' losses of one response with log-ratio x, label d and the reference point.
LITERAL = {
    "kto": (kto(BETA), lambda x, d, z: 1 - sigma(BETA * x - z) if d else 1 - sigma(z - BETA * x)),
    "bco": (bco(BETA), lambda x, d, z: -math.log(sigma(BETA * x - z) if d else sigma(-(BETA * x - z)))),
}
each = pytest.mark.parametrize("name", LITERAL)
STEPS = {
    name: jax.jit(
        jax.value_and_grad(
            lambda x, batch, reference, algorithm=algorithm: unpaired_loss(
                algorithm, batch._replace(responses=batch.responses._replace(log_probs=x)), reference
            ),
            has_aux=True,
        )
    )
    for name, (algorithm, _) in LITERAL.items()
}
POINT = jax.jit(lambda rows: reference_point(log_ratio(BETA), rows))


def step(name: str, batch: LabeledBatch, reference: float = 0.4):
    return STEPS[name](batch.responses.log_probs, batch, reference)


def batch_of(seed: int = 0) -> LabeledBatch:
    random = np.random.default_rng(seed)
    mask = np.arange(WIDTH) < random.integers(1, WIDTH + 1, (ROWS, 1))
    log_probs, ref_log_probs = -random.exponential(0.7, size=(2, ROWS, WIDTH))
    return LabeledBatch(Responses(log_probs, mask, ref_log_probs), random.random(ROWS) < 0.5, random.random(ROWS))


def log_ratios(responses: Responses) -> list[float]:
    return [
        sum(p - q for p, q, keep in zip(row, ref_row, mask) if keep)
        for row, mask, ref_row in zip(*(np.asarray(x) for x in responses[:3]))
    ]


def literal(name: str, batch: LabeledBatch, reference: float) -> float:
    rows = zip(log_ratios(batch.responses), batch.desirable, batch.weights)
    return sum(weight * LITERAL[name][1](x, label, reference) for x, label, weight in rows)


@each
@pytest.mark.parametrize("reference", [0.0, 0.4])
def test_equals_the_formula_with_its_gradient(name, reference):
    batch, width = batch_of(), 1e-6
    (loss, _), gradient = step(name, batch, reference)
    np.testing.assert_allclose(loss, literal(name, batch, reference), rtol=1e-12)
    numeric, log_probs = np.zeros((ROWS, WIDTH)), batch.responses.log_probs
    for index in np.ndindex(ROWS, WIDTH):
        kept = log_probs[index]
        log_probs[index] = kept + width
        up = literal(name, batch, reference)
        log_probs[index] = kept - width
        numeric[index] = (up - literal(name, batch, reference)) / (2 * width)
        log_probs[index] = kept
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-9)
    assert not np.asarray(gradient)[~batch.responses.mask].any()
    eager = unpaired_loss(LITERAL[name][0], batch, reference)[0]
    np.testing.assert_allclose(eager, loss, rtol=1e-12)


@each
@few
@given(seed=st.integers(0, 1000), reference=st.floats(-80, 80))
def test_micro_batches_sum_to_the_whole(name, seed, reference):
    batch = batch_of(seed)
    (loss, metrics), gradient = step(name, batch, reference)
    halves = np.arange(ROWS) < 2, np.arange(ROWS) >= 2  # padded to one shape with weights of 0
    parts = [step(name, batch._replace(weights=np.where(half, batch.weights, 0)), reference) for half in halves]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, rtol=1e-12)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], gradient, rtol=1e-12)
    for key in metrics.keys() - {"reference"}:
        np.testing.assert_allclose(sum(part[0][1][key] for part in parts), metrics[key], rtol=1e-9, atol=1e-12)


@few
@given(seed=st.integers(0, 1000))
def test_a_pair_against_zero_is_the_paired_link(seed):
    w, r = np.random.default_rng(seed).normal(scale=5, size=2)
    for link in (logistic, misranking):
        values = unpaired_value(link, np.array([w, r]), np.array([True, False]), 0.0)
        np.testing.assert_allclose(values.sum(), compare_with_zero(link)(w, r), rtol=1e-12)


def test_limiting_cases():
    batch = batch_of(1)
    at_reference = batch._replace(responses=batch.responses._replace(ref_log_probs=batch.responses.log_probs))
    np.testing.assert_allclose(step("kto", at_reference, 0.0)[0][0], batch.weights.sum() / 2, rtol=1e-12)
    np.testing.assert_allclose(step("bco", at_reference, 0.0)[0][0], batch.weights.sum() * math.log(2), rtol=1e-12)
    # The value saturates at both ends; the classifier's loss goes on for what is wrong.
    reference = np.array([80.0])
    assert abs(step("kto", batch, 80.0)[1]).max() < 1e-20
    assert abs(step("bco", batch, 80.0)[1]).max() > 0.01
    assert np.isfinite(unpaired_value(logistic, np.array([-80.0]), np.array([True]), reference)).all()


@each
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 80.0])
def test_what_is_masked_or_of_weight_zero_is_never_read(name, garbage):
    batch = batch_of(2)
    batch.weights[1] = 0
    expected = step(name, batch)
    log_probs, mask, ref_log_probs = batch.responses[:3]
    read = mask & (batch.weights != 0)[:, None]
    dirty = Responses(np.where(read, log_probs, garbage), mask, np.where(read, ref_log_probs, garbage))
    jax.tree.map(np.testing.assert_array_equal, step(name, batch._replace(responses=dirty)), expected)
    assert not expected[1][1].any()


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_extreme_log_ratios_are_finite_in_every_precision(name, dtype, value):
    batch = batch_of(3)
    log_probs, ref_log_probs = (np.full((ROWS, WIDTH), x) for x in (-81 + max(value, 0), -81 + max(-value, 0)))
    responses = Responses(jnp.asarray(log_probs, dtype), batch.responses.mask, jnp.asarray(ref_log_probs, dtype))
    (loss, _), gradient = step(name, LabeledBatch(responses, batch.desirable, batch.weights.astype(np.float32)))
    assert loss.dtype == jnp.float32
    assert gradient.dtype == dtype
    assert np.isfinite(np.asarray([loss, *gradient.ravel()], np.float64)).all()


def test_metrics_equal_the_formula_and_carry_no_gradient():
    batch = batch_of(4)
    metrics = step("kto", batch)[0][1]
    for name, label in (("desirable", True), ("undesirable", False)):
        rows = [(x, w) for x, w, d in zip(log_ratios(batch.responses), batch.weights, batch.desirable) if d == label]
        np.testing.assert_allclose(metrics[f"{name}_reward"], sum(BETA * x * w for x, w in rows), rtol=1e-12)
        np.testing.assert_allclose(metrics[f"{name}_weight"], sum(w for _, w in rows), rtol=1e-12)
    assert metrics["reference"] == 0.4
    gradient = jax.grad(
        lambda x: unpaired_loss(kto(), batch._replace(responses=batch.responses._replace(log_probs=x)), 0.0)[1][
            "desirable_reward"
        ]
    )(batch.responses.log_probs)
    assert not gradient.any()


# The reference point


@pytest.mark.parametrize("seed", range(6))
def test_reference_point_equals_the_formula(seed):
    responses = batch_of(seed).responses
    responses.mask[1] = False  # padding counts in no denominator
    ratios = [x for x, mask in zip(log_ratios(responses), responses.mask) if mask.any()]
    mean = BETA * sum(ratios) / len(ratios)
    np.testing.assert_allclose(POINT(responses), max(mean, 0.0), rtol=1e-12)
    swapped = Responses(responses.ref_log_probs, responses.mask, responses.log_probs)
    np.testing.assert_allclose(POINT(swapped), max(-mean, 0.0), rtol=1e-12)


def test_reference_point_has_no_gradient_and_is_zero_at_the_reference():
    responses = batch_of(5).responses
    gradient = jax.grad(lambda x: reference_point(log_ratio(), responses._replace(log_probs=x)))(responses.log_probs)
    assert not gradient.any()
    assert POINT(responses._replace(ref_log_probs=responses.log_probs)) == 0
    assert POINT(responses._replace(mask=np.zeros((ROWS, WIDTH), bool))) == 0


def test_the_loss_never_differentiates_its_reference():
    batch = batch_of(6)
    assert jax.grad(lambda z: unpaired_loss(kto(), batch, z)[0])(0.4) == 0


@pytest.mark.parametrize(("size", "offset"), [(2, 1), (5, 1), (5, -1), (4, 3)])
def test_mismatched_rows_are_a_permutation_without_a_fixed_point(size, offset):
    rows = np.asarray(mismatched_rows(size, offset))
    assert sorted(rows) == list(range(size))
    assert all(rows[i] == (i - offset) % size != i for i in range(size))


# Weights


def test_label_mean_equals_the_formula():
    mask = np.array([[1, 1], [0, 1], [0, 0], [1, 0]], bool)
    desirable = np.array([True, False, True, False])
    np.testing.assert_allclose(label_mean(mask, desirable), np.array([1, 1, 0, 1]) / 3, rtol=1e-6)
    np.testing.assert_allclose(label_mean(mask, desirable, 1.2, 0.5), np.array([1.2, 0.5, 0, 0.5]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(label_mean(mask & False, desirable), np.zeros(4))


@few
@given(desirable=st.integers(1, 1000), undesirable=st.integers(1, 1000), weight=st.floats(0.1, 10))
def test_desirable_weight_range_is_that_of_equation_8(desirable, undesirable, weight):
    for bound, ratio in zip(desirable_weight_range(desirable, undesirable, weight), (1, 4 / 3)):
        np.testing.assert_allclose(bound * desirable / (weight * undesirable), ratio, rtol=1e-12)


# The running mean


def test_running_mean_is_the_mean_of_everything_so_far():
    random = np.random.default_rng(7)
    values, masks = random.normal(100, 5, size=(6, 3)), random.random((6, 3)) < 0.6
    masks[2] = False
    values[~masks] = np.nan

    def update(state, batch):
        state = update_running_mean(state, *batch)
        return state, state

    _, states = jax.lax.scan(update, running_mean(), (values, masks))
    seen: list[float] = []
    for row, mask, mean, count in zip(values, masks, *states):
        seen += [x for x, keep in zip(row, mask) if keep]
        np.testing.assert_allclose(mean, sum(seen) / len(seen), rtol=1e-12)
        assert count == len(seen)


def test_running_mean_has_no_gradient_and_keeps_its_first_value_without_any():
    assert jax.grad(lambda x: update_running_mean(running_mean(), x, np.ones(2, bool)).mean)(jnp.ones(2)).tolist() == [
        0,
        0,
    ]
    assert update_running_mean(running_mean(), np.full(2, np.nan), np.zeros(2, bool)) == (0, 0)


# Errors

BATCH = batch_of(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: unpaired_loss(kto(), BATCH._replace(weights=np.ones(3)), 0.0),
            "unpaired_loss: desirable has shape (5,), weights has (3,)",
        ),
        (
            lambda: unpaired_loss(kto(), BATCH._replace(responses=jax.tree.map(lambda x: x[:2], BATCH.responses)), 0.0),
            "unpaired_loss: responses has shape (2,), weights has (5,)",
        ),
        (
            lambda: unpaired_loss(kto(), BATCH._replace(responses=BATCH.responses._replace(ref_log_probs=None)), 0.0),
            "log_ratio: ref_log_probs is None; give the reference's",
        ),
        (
            lambda: reference_point(log_ratio(), BATCH.responses._replace(ref_log_probs=None)),
            "log_ratio: ref_log_probs is None; give the reference's",
        ),
        (lambda: kto(0.0), "log_prob: beta is 0.0, wanted a number greater than 0."),
        (lambda: bco(-1.0), "log_prob: beta is -1.0, wanted a number greater than 0."),
        (
            lambda: unpaired_value(logistic, np.ones(2), np.ones(3, bool), 0.0),
            "unpaired_value: desirable has shape (3,), rewards",
        ),
        (
            lambda: mismatched_rows(1),
            "mismatched_rows: a batch of 1 shifted by 1 pairs every prompt with its own completion; give a larger",
        ),
        (lambda: mismatched_rows(4, 8), "mismatched_rows: a batch of 4 shifted by 8 pairs every prompt with its own"),
        (lambda: label_mean(np.ones((2, 3), bool), np.ones(3, bool)), "label_mean: rows has shape (2,), desirable has"),
        (
            lambda: desirable_weight_range(0, 5),
            "desirable_weight_range: desirable is 0, wanted a number greater",
        ),
        (lambda: desirable_weight_range(5, 0), "desirable_weight_range: undesirable is 0, wanted a number greater"),
        (
            lambda: desirable_weight_range(5, 5, -1.0),
            "desirable_weight_range: undesirable_weight is -1.0, wanted a number greater than 0.",
        ),
        (
            lambda: update_running_mean(running_mean(), np.ones(2), np.ones(3, bool)),
            "update_running_mean: mask has shape (3,), values has (2,)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)
