"""The settings of ``sft``, ``generate`` and ``eval`` as frozen dataclasses, and what others share with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.settings import (
    CHOSEN,
    CONFIG_HELP,
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    SamplerSettings,
    at_least,
    check_values,
    option,
)

_TRAINED_MODEL_HELP = (
    "Language model: 'smollm2' (SmolLM2-135M-Instruct), a Hugging Face directory (RUN_DIR/model of a run), "
    "a directory of adapters (RUN_DIR/model_adapter), a .gguf file, or a Hugging Face hub id."
)
EVAL_SIZE = 256
TASK_HELP = (
    "Prompts and their rewards: arithmetic (12+34=), arithmetic-words (for chat models) or reasoning-gym:NAME, with "
    "settings if wanted: arithmetic,largest=50 or reasoning-gym:chain_sum,min_terms=2."
)
DATA_HELP = (
    "File of your own, instead of a task: .jsonl, .json or .parquet, gzipped if wanted, in each row a 'prompt' and "
    "columns for the reward. Rows that cannot be used are left out, counted and named."
)
INTEGERS_HELP = (
    "Ask for the sum of the integers in each 'answer' of the data, as m + n for m/n: a rule can check it (DAPO). "
    "Rows whose answer has no such form are left out."
)
REWARD_HELP = (
    "Reward, needed with --data: MODULE:FUNCTION or FILE.py:FUNCTION of signature f(prompts, completions, **columns) "
    "-> floats; exact_answer, integer_answer or math_answer (column 'answer'); format=REGEX, words=LIMIT or "
    "repetition=N; or a sum of them as 'integer_answer + 0.2*format=.*[0-9]', whose first tells right from wrong."
)


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


@dataclass(frozen=True)
class GenerateSettings(SamplerSettings):
    """Settings of ``rlax-llm generate``: print what a model answers to a prompt.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "generate"

    prompt: str = dataclasses.field(metadata={"group": "prompt", "help": "The text to answer.", "metavar": "PROMPT"})
    _: dataclasses.KW_ONLY

    model: str = option("smollm2", "model", _TRAINED_MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )

    max_new_tokens: int = option(256, "sampling", "Longest completion, tokens.")
    temperature: float = option(0.0, "sampling", "Sampling temperature; 0 takes the likeliest token each time.")
    samples: int = option(1, "sampling", "Number of answers; several need a temperature above 0.")
    seed: int = option(0, "sampling", "Everything random follows from it.")
    config: str | None = option(None, "run", CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_values(self)
        at_least(self, 1, "max_new_tokens", "samples")
        at_least(self, 0, "temperature")
        self.check_sampler()
        _check_samples(self)


@dataclass(frozen=True)
class EvalSettings(SamplerSettings):
    """Settings of ``rlax-llm eval``: reward and accuracy of a model on held-out prompts.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "eval"

    model: str = option("smollm2", "model", _TRAINED_MODEL_HELP, metavar="MODEL")
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
        _check_samples(self)
        check_task(self)


def _check_samples(config: Any) -> None:
    if config.samples > 1 and config.temperature == 0:
        raise ValueError(
            f"{config.command}: samples is {config.samples} at temperature 0, where all are the same; "
            "give a temperature above 0."
        )


def check_task(config: Any) -> None:
    """Raise where a data file has no reward."""
    if config.data is not None and config.reward is None:
        raise ValueError(f"{config.command}: data is given without reward, and a file has none of its own; give both.")
    if getattr(config, "integer_answers", False) and config.data is None:
        raise ValueError(f"{config.command}: integer_answers is given without data, whose answers it reads; give both.")
