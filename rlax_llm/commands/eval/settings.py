"""The settings of ``rlax-llm eval``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.descriptions import INTEGERS_HELP, REWARD_HELP, REWARDS, SPLIT_HELP, TASK_HELP, TASKS
from rlax_llm.commands.fields import Part, at_least, check_countable, option, resolved
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import DrawSettings, LimitSettings, check_samples, check_shortest
from rlax_llm.commands.shared_settings import CONFIG_HELP, SEED_HELP, ModelSettings
from rlax_llm.commands.task_settings import check_integer_answers

BUILT_IN_SIZE = 256
"""Held-out prompts of a task that is no file."""

_TASKS_HELP = (
    f"{TASK_HELP} Several are measured one after another; reasoning-gym:algebra (or another of its categories) and "
    "reasoning-gym:all are all tasks of that name."
)
_FILES_HELP = (
    "Files of your own, instead of a task or beside one: .jsonl, .json or .parquet, gzipped if wanted, in each row a "
    "'prompt' and columns for the reward; or of the columns of GSM8K (question, answer) or MATH (problem, solution), "
    "which have the reward math_answer. Rows that cannot be used are left out, counted and named."
)
_REWARD_THEN = "the task's own; math_answer of files like GSM8K or MATH"


@dataclass(frozen=True, kw_only=True)
class MeasuredTaskSettings(Part):
    """What is measured on: one set of prompts, or several."""

    task: tuple[str, ...] | None = option(
        None,
        _TASKS_HELP,
        "without --data arithmetic-words, or arithmetic for a model without a chat template",
        "TASK",
        values=TASKS,
    )
    data: tuple[str, ...] | None = option(None, _FILES_HELP, "the tasks alone", "FILE")
    split: str = option("train", SPLIT_HELP)
    reward: str | None = option(None, REWARD_HELP, _REWARD_THEN, "REWARD", values=REWARDS)
    integer_answers: bool = option(False, INTEGERS_HELP)
    size: int | None = resolved("Prompts of a set at most.", f"all of a file, {BUILT_IN_SIZE} of a built-in task")
    by: str | None = option(None, "Column of a file whose values have a line each, as level.", "none", "COLUMN")

    def check(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "size")
        if self.data is None and self.size is None:
            raise ValueError("size is None, wanted a whole number, as there is no data.")
        check_integer_answers(self.integer_answers, self.data)

    @property
    def built_in_size(self) -> int:
        """Prompts of a task that is no file."""
        return BUILT_IN_SIZE if self.size is None else self.size


@dataclass(frozen=True, kw_only=True)
class MeasuredSamplingSettings(DrawSettings, LimitSettings):
    """How completions are sampled to be measured."""

    temperature: float = option(0.0, "Sampling temperature; 0 takes the likeliest token each time.")
    samples: int = option(1, "Completions per prompt; several need a temperature above 0.")

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 1, "samples")
        check_shortest(self.min_new_tokens, self.max_new_tokens)
        check_samples(self.samples, self.temperature)
        check_countable(self.row_tokens, {"samples": self.samples})


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings(Part):
    """What is compared, and what is kept."""

    against: str | None = option(
        None,
        "What to compare with, prompt by prompt: another model, or the --out of an earlier eval.",
        "none",
        "MODEL_OR_DIR",
        values=("smollm2",),
    )
    seed: int = option(0, SEED_HELP)
    out: str | None = option(None, "Directory for summary.json, summary.md and completions.jsonl.", "print only", "DIR")
    config: str | None = option(None, CONFIG_HELP, "no file", "FILE.yaml")


@dataclass(frozen=True, kw_only=True)
class EvalSettings(OnMachine):
    """Settings of ``rlax-llm eval``: what a model solves of held-out prompts.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "eval"

    model: ModelSettings
    task: MeasuredTaskSettings
    sampling: MeasuredSamplingSettings
    machine: MachineSettings
    run: MeasuringSettings

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model; and of a file, all rows."""
        size = BUILT_IN_SIZE if given.get("data") is None else None
        return model_defaults(cls.command, given, "smollm2") | {"size": size}
