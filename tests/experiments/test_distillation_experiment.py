"""The additions, exact accuracy, and what is read off curves, without a run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.distillation import __main__ as experiment
from experiments.distillation import sums
from experiments.distillation.arms import GRPO, OPD, SFT, WHOLE
from rlax_llm.models import decoder

ROWS = [
    {"entry": {"metadata": {"expression": expression}}, "answer": answer}
    for expression, answer in (("12 + 34", "46"), ("50 - 12", "38"), ("99 + 99", "198"), ("12 + 34", "46"))
]


def text(tokens: jax.Array) -> str:
    return "".join((*sums.ALPHABET, ".")[int(token)] for token in tokens)


def test_additions_alone_are_taken_and_each_once():
    prompts = sums.encoded(ROWS)
    assert [text(row) for row in prompts.tokens] == ["12+34=", "99+99="]
    assert [text(row) for row in prompts.columns] == ["46..", "198."]


def test_the_stop_token_belongs_to_the_answer():
    rows = sums.answered(sums.encoded(ROWS))
    assert [text(row[mask]) for row, mask in zip(rows.tokens, rows.mask)] == ["46.", "198."]
    assert rows.valid.sum(-1).tolist() == [9, 10]


def test_right_answers_are_right_and_longer_ones_are_not():
    prompts = sums.encoded(ROWS)
    rows = sums.answered(prompts)
    longer = rows._replace(tokens=rows.tokens.at[0, -2].set(0))
    assert sums.right(rows, prompts.columns).tolist() == [1, 1]
    assert sums.right(longer, prompts.columns).tolist() == [0, 1]


def test_accuracy_is_the_probability_of_the_answer():
    shape = sums.Model(16, 1, 1, False).shape
    params, prompts = decoder.init_decoder(shape, jax.random.key(0)), sums.encoded(ROWS)
    every = jax.nn.log_softmax(decoder.logits(shape, params, sums.answered(prompts).tokens))
    answers = ((0, "46."), (1, "198."))
    wanted = [
        np.exp(sum(every[row, sums.WIDTH - 1 + place, prompts.columns[row, place]] for place in range(len(answer))))
        for row, answer in answers
    ]
    assert sums.accuracy(shape, params, prompts) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_the_first_time_at_a_level_lies_between_points():
    cost, right = np.array([[0.0, 10, 20, 30]] * 3), np.array([[0.2, 0.4, 0.3, 0.6], [0.2, 0.2, 0.2, 0.2], [0.5] * 4])
    np.testing.assert_allclose(experiment.first_at(cost, right, np.array([0.35, 0.35, 0.35])), [7.5, np.nan, 0])
    np.testing.assert_allclose(experiment.at(cost, right, np.array([5.0, 5, 5])), [0.3, 0.2, 0.5])


def test_seconds_are_in_steps_of_grpo():
    def curve(rise: float, seconds: list[float]) -> experiment.Curve:
        right = 0.4 + rise * np.arange(3) + np.array([[0.0], [0.01]])
        return experiment.Curve(right, np.array([[0.0, 100, 200]] * 2), np.array([seconds] * 2))

    curves = {SFT: curve(0.2, [4, 40]), OPD: curve(0.1, [3, 3]), WHOLE: curve(0.1, [2, 2]), GRPO: curve(0.05, [1, 1])}
    found = experiment.costs(curves, 8)[experiment.SECONDS]
    assert found[OPD].tolist() == [[0, 12, 24]] * 2 and found[SFT].tolist() == [[0, 88, 176]] * 2
    numbers = experiment.compared(curves, 0.7, 8)
    # At 8 seconds GRPO has ended, and the first has taken a third of its steps: 0.4 + 0.1 · 2 / 3 against 0.4 + 0.1.
    assert numbers["seconds"]["over_grpo"]["1.0"][OPD]["mean"] == pytest.approx(-0.1 / 3, rel=1e-3)
    assert numbers["tokens"]["over_grpo"]["1.0"][OPD]["mean"] == pytest.approx(0.1)
    assert numbers["tokens"]["of_grpo"][OPD]["mean"] == pytest.approx(0.5)
    assert numbers["seconds"]["of_grpo"][OPD]["mean"] == pytest.approx(1.5)
    assert (
        jnp.isfinite(numbers["tokens"]["to_half"][SFT]["mean"]) and numbers["tokens"]["to_half"][GRPO]["samples"] == 0
    )
