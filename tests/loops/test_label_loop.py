"""The loop of labels: KTO by a literal oracle, and what must change nothing."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from preference_batches import log_sigma, numeric_gradient
from preference_tables import (
    BETA,
    PAIRS,
    PARAMS,
    REFERENCE,
    assert_gradient,
    assert_same,
    completions_of,
    mean_entropy,
    one_step,
    padded,
    refused,
    spoilt,
    table,
    totals,
)

from rlax_llm.core.types import Completions, LabeledCompletions
from rlax_llm.loops.labels import label_loop, reference_point_of_mismatched, running_mean_reward, zero_reference
from rlax_llm.preference import links
from rlax_llm.preference.implicit_rewards import log_prob, log_ratio, mean_log_prob
from rlax_llm.preference.marks import reads_reference
from rlax_llm.preference.pairs import per_response
from rlax_llm.preference.unpaired import bco, kto
from rlax_llm.recipes.preference import aot

pytestmark = pytest.mark.usefixtures("float64")


LABELS = np.array([True, False, False, True])


def literal_kto(params, completions: Completions, weights: tuple[float, float]) -> dict[str, float]:
    """The paper's loss; the reference point is of PARAMS, through which no gradient flows."""
    still = BETA * (totals(PARAMS, completions) - totals(REFERENCE, completions))[1::2]
    point = max(0.0, still.mean())
    rewards = BETA * (totals(params, completions) - totals(REFERENCE, completions))[::2]
    labels, log_probs = np.asarray(LABELS), totals(params, completions)[::2]
    losses = []
    for reward, desirable in zip(rewards, labels):
        value = math.exp(log_sigma(reward - point if desirable else point - reward))
        losses.append(weights[0] * (1 - value) if desirable else weights[1] * (1 - value))
    return {
        "loss": np.mean(losses),
        "reference": point,
        "kl": point / BETA,
        "desirable_reward": rewards[labels].mean(),
        "undesirable_reward": rewards[~labels].mean(),
        "margin": rewards[labels].mean() - rewards[~labels].mean(),
        "desirable_log_prob": log_probs[labels].mean(),
        "undesirable_log_prob": log_probs[~labels].mean(),
        "desirable": labels.sum(),
        "undesirable": (~labels).sum(),
        "entropy": mean_entropy(params, completions.mask[::2]),
    }


def label_cases() -> list[int]:
    """A batch with a reference point above 0, and one where it is cut."""
    points = [
        BETA * (totals(PARAMS, completions) - totals(REFERENCE, completions))[1::2].mean()
        for completions in map(completions_of, range(20))
    ]
    return [next(i for i, x in enumerate(points) if x > 0.1), next(i for i, x in enumerate(points) if x < -0.1)]


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("weights", [(1.3, 0.6), (1.0, 0.0)])
def test_kto_is_what_the_paper_writes(micro_batches, weights):
    loop = label_loop(table, kto(BETA), optax.sgd(1.0), micro_batches, *weights)
    above, below = (completions_of(seed) for seed in label_cases())
    for completions in (above, below):
        expected = literal_kto(PARAMS, completions, weights)
        assert (expected["reference"] > 0) == (completions is above)
        gradient, metrics = one_step(loop, PARAMS, LabeledCompletions(completions, LABELS), reference=REFERENCE)
        assert set(metrics) == {*expected, "grad_norm", "lost_updates"}
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-6, atol=1e-12, err_msg=name)
        assert_gradient(gradient, lambda params, rows=completions: literal_kto(params, rows, weights)["loss"])


@pytest.mark.parametrize("loss", [kto(BETA), kto(BETA)._replace(link=links.logistic)])
def test_a_reference_point_of_zero_reads_no_mismatched_row(loss):
    completions = completions_of(4)
    own = jax.tree.map(lambda x: x[::2], completions)

    def literal(params) -> float:
        rewards = BETA * (totals(params, own) - totals(REFERENCE, own))
        signed = np.where(np.asarray(LABELS), rewards, -rewards)
        value = [log_sigma(x) for x in signed]
        return np.mean([-x if loss.link is links.logistic else 1 - math.exp(x) for x in value])

    loop = label_loop(spoilt, loss, optax.sgd(1.0), 2, reference_point=zero_reference)
    gradient, metrics = one_step(loop, PARAMS, LabeledCompletions(own, LABELS), reference=REFERENCE)
    np.testing.assert_allclose(metrics["loss"], literal(PARAMS), rtol=1e-6)
    assert metrics["reference"] == 0
    assert "kl" not in metrics
    assert_gradient(gradient, literal)
    both = one_step(loop, PARAMS, LabeledCompletions(completions, LABELS), reference=REFERENCE)
    assert_same(both, (gradient, metrics))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_bco_compares_with_the_mean_reward_of_all_labels_so_far(micro_batches):
    """Three batches, the second with a padded row: δ counts every reward once, by the policy that met it."""
    init, step = label_loop(table, bco(BETA), optax.sgd(1.0), micro_batches, reference_point=running_mean_reward)
    step, state, seen = jax.jit(step), init(PARAMS), []
    for seed in range(3):
        own = jax.tree.map(lambda x: x[::2], completions_of(seed))
        if seed == 1:
            own = own._replace(mask=own.mask.at[2].set(False))
        there = np.asarray(own.mask).any(-1)
        before = jax.tree.map(np.asarray, state.params)

        def rewards(params, own=own) -> np.ndarray:
            return BETA * (totals(params, own) - totals(REFERENCE, own))

        seen += list(rewards(before)[there])
        point = sum(seen) / len(seen)

        def literal(params, point=point, there=there) -> float:
            signed = np.where(LABELS, 1, -1) * (rewards(params) - point)
            return np.mean([-log_sigma(x) for x in signed[there]])

        state, metrics = step(state, LabeledCompletions(own, jnp.asarray(LABELS)), reference=REFERENCE)
        np.testing.assert_allclose(metrics["reference"], point, rtol=1e-6)
        np.testing.assert_allclose(metrics["loss"], literal(before), rtol=1e-6)
        logits = np.array(before["logits"])
        expected = numeric_gradient(lambda literal=literal, logits=logits: literal({"logits": logits}), logits)
        np.testing.assert_allclose(before["logits"] - state.params["logits"], expected, rtol=0, atol=1e-7)
        assert "kl" not in metrics and float(state.memory.seen) == len(seen)


@pytest.mark.parametrize("desirable", [True, False])
def test_labels_of_one_kind(desirable):
    labels = jnp.full(PAIRS, desirable)
    loop = label_loop(table, kto(BETA), optax.sgd(1.0), 2)
    gradient, metrics = one_step(loop, PARAMS, LabeledCompletions(completions_of(0), labels), reference=REFERENCE)
    there, absent = ("desirable", "undesirable") if desirable else ("undesirable", "desirable")
    assert metrics[there] == PAIRS
    assert metrics[absent] == 0
    assert np.isfinite(metrics[f"{there}_reward"])
    for name in (f"{absent}_reward", f"{absent}_log_prob", "margin"):
        assert np.isnan(metrics[name])
    assert np.all(np.isfinite(gradient["logits"]))


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_labels_with_the_policy_as_its_own_reference(micro_batches):
    loop = label_loop(table, kto(BETA), optax.sgd(1.0), micro_batches)
    _, metrics = one_step(loop, PARAMS, LabeledCompletions(completions_of(0), LABELS), reference=PARAMS)
    np.testing.assert_allclose(metrics["loss"], 0.5, rtol=1e-12)
    for name in ("reference", "kl", "desirable_reward", "undesirable_reward", "margin"):
        assert metrics[name] == 0


def test_padding_and_garbage_change_no_label():
    completions, weights = completions_of(label_cases()[0]), (1.3, 0.6)
    expected = one_step(
        label_loop(table, kto(BETA), optax.sgd(1.0), 1, *weights),
        PARAMS,
        LabeledCompletions(completions, LABELS),
        reference=REFERENCE,
    )
    more, labels = padded(completions, 2, 0), jnp.repeat(LABELS, 2).at[1::2].set(jnp.array([True, True, False, True]))
    for micro_batches in (1, 8):
        loop = label_loop(spoilt, kto(BETA), optax.sgd(1.0), micro_batches, *weights)
        assert_same(one_step(loop, PARAMS, LabeledCompletions(more, labels), reference=REFERENCE), expected, rtol=1e-6)
        reference = jnp.where(more.mask, table(REFERENCE, more)[0], jnp.nan)
        assert_same(one_step(loop, PARAMS, LabeledCompletions(more, labels, reference)), expected, rtol=1e-6)


def test_rewards_of_labels_may_read_no_reference():
    loss = kto(BETA)._replace(reward=log_prob(BETA))
    loop = label_loop(table, loss, optax.sgd(1.0), reference_point=zero_reference)
    _, metrics = one_step(loop, PARAMS, LabeledCompletions(completions_of(0), LABELS))
    rewards = BETA * totals(PARAMS, completions_of(0))[::2]
    np.testing.assert_allclose(metrics["desirable_reward"], rewards[np.asarray(LABELS)].mean(), rtol=1e-6)
    assert not reads_reference(per_response(loss.reward))


def test_errors_of_labels():
    completions = completions_of(0)
    loop = label_loop(table, kto(), optax.sgd(1.0))
    for wrong in (LABELS[:3], LABELS[None], jnp.ones(16, bool)):
        refused(
            r"label_loop: desirable has shape .* for 8 rows, wanted \[B\]", loop, LabeledCompletions(completions, wrong)
        )
    own = jax.tree.map(lambda x: x[::2], completions)
    refused(
        r"got 4 rows for 4 labels, wanted a mismatched row after each",
        loop,
        LabeledCompletions(own, LABELS),
        reference=REFERENCE,
    )
    refused(r"label_loop: a reference is read", loop, LabeledCompletions(completions, LABELS))
    loop = label_loop(table, kto(), optax.sgd(1.0), 3)
    refused(
        r"label_loop: micro_batches is 3, wanted a divisor of the 4 labels",
        loop,
        LabeledCompletions(completions, LABELS),
    )
    with pytest.raises(ValueError, match=r"label_loop: undesirable_weight is -1\.0, wanted a number of at least 0"):
        label_loop(table, kto(), optax.sgd(1.0), undesirable_weight=-1.0)


def test_parts_of_a_reference_point():
    responses = per_response(mean_log_prob())
    assert not reads_reference(responses)
    assert reads_reference(per_response(log_ratio()))
    assert reads_reference(aot().rewards)
    assert zero_reference(log_ratio(), lambda: pytest.fail("read"))[0] == 0
    with pytest.raises(ZeroDivisionError):
        reference_point_of_mismatched(log_ratio(), lambda: 1 / 0)
