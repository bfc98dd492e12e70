"""The data and the commands of the experiment on SmolLM2, without running it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.positive_sentences import __main__ as experiment
from experiments.positive_sentences.tasks import (
    HELD_OUT,
    TOPICS,
    label_rows,
    positive,
    preference_rows,
    prompt,
    write_rows,
)
from rlax_llm.cli.configuration import parse
from rlax_llm.data.preferences import read_labelled, read_pairs
from rlax_llm.train.ppo_settings import PpoConfig
from rlax_llm.train.preference_settings import DpoConfig, KtoConfig, RewardConfig

CONFIGS = {"reward": RewardConfig, "ppo": PpoConfig, "dpo": DpoConfig, "kto": KtoConfig}
TEXTS = [["I love the rain.", "It rains.", "I hate rain.", "Rain."], ["Bread.", "Good bread.", "Bread!", "Bad bread."]]


def test_topics_are_shared_out():
    assert len(TOPICS) == 64 and len(HELD_OUT) == 16
    assert len({*TOPICS, *HELD_OUT}) == 80


def test_the_judge_is_a_reward_function():
    best, middle, worst, _ = positive([], TEXTS[0], columns=None)
    assert -1 <= worst < middle == 0 < best <= 1


@pytest.mark.parametrize("per_topic", [1, 3, 100])
def test_pairs_are_in_the_judges_order_and_readable(per_topic, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", preference_rows(TEXTS, TOPICS[:2], per_topic))
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    # Five of the six pairs of four texts differ in score.
    assert len(pairs) == 2 * min(per_topic, 5)
    for pair in pairs:
        better, worse = (positive([], [dict(*side)["content"]])[0] for side in (pair.chosen, pair.rejected))
        assert better > worse
    assert [pair.prompt for pair in pairs[:: min(per_topic, 5)]] == [prompt(topic) for topic in TOPICS[:2]]


def test_labels_are_desirable_above_the_median(tmp_path):
    write_rows(tmp_path / "labels.jsonl", label_rows(TEXTS, TOPICS[:2]))
    rows = read_labelled(tmp_path / "labels.jsonl")
    assert [row.label for row in rows] == [True, False, False, False, False, True, False, False]


def test_the_commands_are_settings_of_the_command_line():
    place = Path("DATA")
    commands = experiment.commands(experiment.Settings(), place)
    assert len(commands) == 1 + 4 * 3
    for name, (command, *flags) in commands.items():
        config = parse(CONFIGS[command], flags, "")
        assert dataclasses.asdict(config)["lora_rank"] == 8, name
        assert config.steps == 24
