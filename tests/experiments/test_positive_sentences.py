"""The data and the commands of the experiment on SmolLM2, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.positive_sentences import __main__ as experiment
from experiments.positive_sentences.tasks import (
    HELD_OUT,
    TOPICS,
    demonstration_rows,
    label_rows,
    positive,
    preference_rows,
    prompt,
    write_rows,
)
from rlax_llm.cli.configuration import parse
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.data.preferences import read_demonstrations, read_labeled, read_pairs

SETTINGS = {"sft": SftSettings, "reward": RewardSettings, "ppo": PpoSettings, "dpo": DpoSettings, "kto": KtoSettings}
TEXTS = [["I love the rain.", "It rains.", "I hate rain.", "Rain."], ["Bread.", "Great bread.", "Bread!", "Bad bread."]]


def test_topics_are_shared_out():
    assert len(TOPICS) == 64 and len(HELD_OUT) == 16
    assert len({*TOPICS, *HELD_OUT}) == 80


def test_the_judge_is_a_reward_function():
    best, middle, worst, _ = positive([], TEXTS[0], columns=None)
    assert -1 <= worst < middle == 0 < best <= 1


def test_demonstrations_are_first_sentences_about_the_topic(tmp_path):
    said = [
        ["Rain is coming down today. It is", "rain", '"The rain', "Snow is coming down today."],
        ["No bread was left! So"],
    ]
    write_rows(tmp_path / "sft.jsonl", demonstration_rows(said, TOPICS[:2]))
    rows = read_demonstrations(tmp_path / "sft.jsonl")
    assert [dict(row.completion[-1])["content"] for row in rows] == ["Rain is coming down today.", "No bread was left!"]
    assert [list(map(dict, row.prompt)) for row in rows] == [prompt(topic) for topic in TOPICS[:2]]


@pytest.mark.parametrize("per_topic", [1, 3, 100])
def test_pairs_are_in_the_judges_order_and_readable(per_topic, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", preference_rows(TEXTS, TOPICS[:2], per_topic))
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert len(pairs) == 2 * min(per_topic, 5)
    for pair in pairs:
        better, worse = (positive([], [dict(*side)["content"]])[0] for side in (pair.chosen, pair.rejected))
        assert better > worse
    assert [pair.prompt for pair in pairs[:: min(per_topic, 5)]] == [prompt(topic) for topic in TOPICS[:2]]


def test_labels_follow_the_sign_of_the_score(tmp_path):
    write_rows(tmp_path / "labels.jsonl", label_rows(TEXTS, TOPICS[:2]))
    rows = read_labeled(tmp_path / "labels.jsonl")
    assert [row.label for row in rows] == [True, False, True, False]


def test_the_commands_are_settings_of_the_command_line():
    place = Path("DATA")
    commands = experiment.commands(experiment.Settings(), place)
    assert list(commands)[:2] == ["sft", "reward"]
    for name, (command, *flags) in commands.items():
        settings = parse(SETTINGS[command], flags, "")
        assert settings.model.lora_rank == 16, name
        assert settings.optimizer.learning_rate == (1e-3 if name == "sft" else 5e-4)
