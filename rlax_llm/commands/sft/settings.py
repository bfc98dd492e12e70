"""The settings of ``rlax-llm sft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlax_llm.commands.settings import (
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    at_least,
    check_values,
    option,
)
from rlax_llm.commands.task_settings import TASK_HELP


@dataclass(frozen=True)
class SftSettings(RunSettings, BatchSettings, OptimizerSettings, ModelSettings):
    """Settings of ``rlax-llm sft``: supervised training on prompts and their answers.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "sft"

    task: str = option("arithmetic", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(
        None,
        "task",
        "Demonstrations, instead of a task: a .jsonl, .json (gzipped if wanted) or .parquet file, a data set's "
        "directory or its hub id, with columns prompt and completion, or messages, or text. Rows that cannot be used "
        "are left out, counted and named.",
        "the task",
        "DATA",
    )
    every_turn: bool = option(
        False, "task", "Learn all that the assistant says in 'messages', not its last message alone."
    )

    packed_tokens: int = option(
        0, "training", "Width of rows that examples share, each seeing itself alone; 0 gives each a row.", metavar="INT"
    )
    schedule: Literal["constant", "cosine", "linear"] = option(
        "constant", "training", "Learning rate after the warm-up; cosine and linear end at 0."
    )

    save_every: int = option(200, "run", "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        self.check_optimizer()
        self.check_model()
        self.check_run()
        self.check_batch()
        at_least(self, 0, "packed_tokens")
