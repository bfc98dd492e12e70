"""The settings of ``rlax-llm eval``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.descriptions import DATA_HELP, INTEGERS_HELP, REWARD_HELP, TASK_HELP
from rlax_llm.commands.fields import Part, at_least, check_countable, option, resolved
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.shared_settings import (
    CONFIG_HELP,
    SEED_HELP,
    DrawSettings,
    LimitSettings,
    ModelSettings,
    check_integer_answers,
    check_samples,
    check_shortest,
)

_SIZE = 256  # held-out prompts of a built-in task


@dataclass(frozen=True, kw_only=True)
class MeasuredTaskSettings(Part):
    """What is measured on."""

    task: str | None = option(
        None, TASK_HELP, "arithmetic-words, or arithmetic for a model without a chat template", "TASK"
    )
    data: str | None = option(None, DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, REWARD_HELP, "the task's own", "MODULE:FUNCTION")
    integer_answers: bool = option(False, INTEGERS_HELP)
    size: int | None = resolved("Prompts at most.", f"all of a file, {_SIZE} held-out ones of a built-in task")

    def check(self) -> None:
        """Check the ranges, and that data has a reward."""
        at_least(self, 1, "size")
        if self.data is not None and self.reward is None:
            raise ValueError("data is given without reward, and a file has none of its own; give both.")
        if self.data is None and self.size is None:
            raise ValueError("size is None, wanted a whole number, as there is no data.")
        check_integer_answers(self.integer_answers, self.data)


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
    """What is kept."""

    seed: int = option(0, SEED_HELP)
    out: str | None = option(None, "Directory for summary.json and completions.jsonl.", "print only", "DIR")
    config: str | None = option(None, CONFIG_HELP, "no file", "FILE.yaml")


@dataclass(frozen=True, kw_only=True)
class EvalSettings(OnMachine):
    """Settings of ``rlax-llm eval``: reward and accuracy of a model on held-out prompts.

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
        size = _SIZE if given.get("data") is None else None
        return model_defaults(cls.command, given, "smollm2") | {"size": size}
