"""The settings of ``rlax-llm eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlax_llm.commands.settings import CHOSEN, CONFIG_HELP, SamplerSettings, at_least, check_values, option
from rlax_llm.commands.task_settings import (
    DATA_HELP,
    EVAL_SIZE,
    INTEGERS_HELP,
    REWARD_HELP,
    TASK_HELP,
    TRAINED_MODEL_HELP,
    check_samples,
    check_task,
)


@dataclass(frozen=True)
class EvalSettings(SamplerSettings):
    """Settings of ``rlax-llm eval``: reward and accuracy of a model on held-out prompts.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "eval"

    model: str = option("smollm2", "model", TRAINED_MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )

    task: str | None = option(
        None, "task", TASK_HELP, "arithmetic-words, or arithmetic for a model without a chat template", "TASK"
    )
    data: str | None = option(None, "task", DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", REWARD_HELP, "the task's own", "MODULE:FUNCTION")
    integer_answers: bool = option(False, "task", INTEGERS_HELP)
    size: int | None = option(
        None, "task", "Prompts at most.", f"all of a file, {EVAL_SIZE} held-out ones of a built-in task"
    )

    max_prompt_tokens: int | None = option(None, "sampling", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "sampling", "Longest completion, tokens.", CHOSEN)
    temperature: float = option(0.0, "sampling", "Sampling temperature; 0 takes the likeliest token each time.")
    samples: int = option(1, "sampling", "Completions per prompt; several need a temperature above 0.")
    seed: int = option(0, "sampling", "Everything random follows from it.")

    out: str | None = option(None, "run", "Directory for summary.json and completions.jsonl.", "print only", "DIR")
    config: str | None = option(None, "run", CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        at_least(self, 1, "size", "samples", "max_prompt_tokens", "max_new_tokens")
        at_least(self, 0, "temperature")
        self.check_sampler()
        check_samples(self)
        check_task(self)
