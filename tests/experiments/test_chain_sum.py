"""The commands of the experiment on SmolLM2 and reasoning-gym, and what it reads of a run, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.chain_sum import __main__ as experiment
from rlax_llm.cli.configuration import parse
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.sft.settings import SftSettings


def test_the_commands_are_settings_of_the_command_line():
    commands = experiment.commands(experiment.Settings(), Path("DATA"))
    assert list(commands) == ["start", *experiment.RECIPES.values()]
    for name, (command, *flags) in commands.items():
        found = parse({"sft": SftSettings, "grpo": GrpoSettings}[command], flags, "")
        assert name == "start" or (found.objective.recipe, found.model.model) == (name, "DATA/start/model")


def test_every_model_is_sampled_from_on_the_same_prompts():
    settings = experiment.Settings()
    for name, (command, *flags) in experiment.evaluations(settings, Path("DATA")).items():
        found = parse(EvalSettings, flags, "")
        assert (command, found.model.model, found.run.seed) == ("eval", f"DATA/{name}/model", 0)
        assert found.task.size == settings.held_out
        assert (found.sampling.samples, found.sampling.temperature) == (settings.samples, 1)


def test_all_of_dapo_is_asked_for():
    flags = experiment.commands(experiment.Settings(), Path("DATA"))["dapo"]
    assert {"--dynamic-rounds", "--overlong-filter", "--overlong-buffer"} < set(flags)


def test_accuracy_is_compared_prompt_by_prompt(tmp_path):
    settings = experiment.Settings(steps=2, held_out=4)
    prompts = [[{"role": "user", "content": f"State the answer: {n} + 1 =\nBriefly."}] for n in range(4)]
    rows = [
        {"step": step, "prompt": prompt, "completion": "x", "reward": float(reward), "held_out": True}
        for step, rewards in ((0, [0, 0, 1, 1]), (2, [1, 1, 1, 0]))
        for prompt, reward in zip(prompts, rewards, strict=True)
    ]
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = [{"step": 0, "held_out_accuracy": 0.5}, {"step": 1, "accuracy": 0.25}, {"step": 2, "accuracy": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    found = experiment.measured(tmp_path, settings)
    assert (found["before"]["mean"], found["after"]["mean"], found["gain"]["mean"]) == (0.5, 0.75, 0.25)
    assert found["curves"]["accuracy"] == [[1, 0.25], [2, 0.5]]
    assert found["samples"][0] == ["0 + 1 =", "x", "x", 1.0]


@pytest.mark.parametrize("window", [1, 3])
def test_smoothing_is_the_mean_of_the_last_values(window):
    values = [1.0, 4.0, 2.0, 0.0, 5.0]
    wanted = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(5)]
    np.testing.assert_allclose(experiment.smoothed(values, window), wanted)
