"""Each experiment runs in its quick form, and what is committed of its full one belongs together."""

from __future__ import annotations

import importlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from experiments.common import interval, percent, plain, reflowed, said

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = (
    "actor_critic",
    "control_returns",
    "dpo_and_ipo",
    "gae_lambda",
    "kl_estimators",
    "kto_label_balance",
    "policy_gradient_weights",
    "ppo_against_trpo",
    "reward_kl_frontier",
    "reward_model",
    "rock_paper_scissors",
    "staleness",
    "trpo_line_search",
    "value_model_start",
)
"""What is measured over seeds; what else lies there is not of this form."""
LONG = ("chain_sum", "dapo_ablation", "distillation", "group_biases", "narrow_sampling", "positive_sentences")
"""Run for minutes even at their smallest: commands on SmolLM2, one seed, or a program to compile for each variant."""


def experiment(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}.__main__")


@pytest.mark.parametrize("name", NAMES)
def test_quick_form_runs(name, tmp_path, capsys):
    experiment(name).main(["--quick", "--out", str(tmp_path)])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip().endswith(text.strip())
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))["settings"]


@pytest.mark.parametrize("name", NAMES + LONG)
def test_committed_text_says_what_the_committed_numbers_say(name):
    numbers = json.loads((EXPERIMENTS / name / "numbers.json").read_text(encoding="utf-8"))
    text = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
    assert reflowed(experiment(name).report(numbers)) == text


@pytest.mark.parametrize("name", NAMES + LONG)
def test_committed_numbers_come_from_the_settings_in_the_code(name):
    numbers = json.loads((EXPERIMENTS / name / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["settings"] == plain(experiment(name).Settings())
    assert numbers["settings"].get("seeds", 16) >= 16
    assert (EXPERIMENTS / name / "figure.png").exists()


@pytest.mark.parametrize("name", NAMES + LONG)
def test_committed_numbers_are_finite(name):
    def finite(value: Any) -> bool:
        if isinstance(value, dict):
            return all(finite(item) for item in value.values())
        if isinstance(value, list):
            return all(finite(item) for item in value)
        return not isinstance(value, float) or math.isfinite(value)

    assert finite(json.loads((EXPERIMENTS / name / "numbers.json").read_text(encoding="utf-8")))


def test_interval_is_students():
    # 2.131450 is the 97.5 % quantile at 15 degrees of freedom, that of sixteen seeds.
    samples = list(range(16))
    measured = interval([*samples, math.nan])
    half = 2.131450 * statistics.stdev(samples) / 4
    assert measured["samples"] == 16 and measured["mean"] == 7.5
    assert measured["high"] == pytest.approx(7.5 + half, rel=1e-3)
    assert measured["low"] == pytest.approx(7.5 - half, rel=1e-3)


def test_interval_of_nothing():
    assert interval([math.nan])["samples"] == 0
    assert said(interval([math.nan])) == percent(interval([math.nan])) == "none"


def test_words_for_an_interval():
    measured = {"mean": -0.5, "low": -1.25, "high": 0.25}
    assert said(measured) == "−0.50 (−1.25 to 0.25)"
    assert percent(measured, 0) == "−50 % (−125 to 25)"
