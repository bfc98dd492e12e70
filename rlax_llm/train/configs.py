"""The settings of the language-model commands as frozen dataclasses; those of control are in ``control_settings``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.train.settings import (
    CHOSEN,
    CONFIG_HELP,
    BatchSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    above_zero,
    at_least,
    check_divides,
    option,
)

_TRAINED_MODEL_HELP = (
    "Language model: 'smollm2' (SmolLM2-135M-Instruct), a Hugging Face directory (RUN_DIR/model of a run), "
    "a .gguf file, or a Hugging Face hub id."
)
TASK_HELP = (
    "Prompts and their rewards: arithmetic (12+34=), arithmetic-words (for chat models) or reasoning-gym:NAME, with "
    "settings if wanted: arithmetic,largest=50 or reasoning-gym:chain_sum,min_terms=2."
)
DATA_HELP = "JSON lines file of your own, instead of a task: in each line a 'prompt', and columns for the reward."
REWARD_HELP = (
    "Reward, needed with --data: MODULE:FUNCTION or FILE.py:FUNCTION of signature "
    "f(prompts, completions, **columns) -> floats, or exact_answer or integer_answer (column 'answer')."
)


@dataclass(frozen=True)
class GrpoConfig(RunSettings, OptimizerSettings, ModelSettings):
    """Settings of ``rlax-llm grpo``: reinforcement learning of a language model from groups of completions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> GrpoConfig(group_size=1)
    Traceback (most recent call last):
    ValueError: grpo: group_size is 1, wanted at least 2.
    """

    command: ClassVar[str] = "grpo"

    task: str = option("arithmetic", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", REWARD_HELP, "the task's own", "MODULE:FUNCTION")

    recipe: Literal["grpo", "dr_grpo", "dapo", "rloo"] = option(
        "grpo", "objective", "Named objective: advantage, trust region, weighting and KL term."
    )
    kl_coef: float | None = option(
        None, "objective", "Weight of the KL term; 0 needs no reference model.", "the recipe's"
    )
    eps: float | None = option(
        None, "objective", "Half-width of the ratio clip (its lower side in dapo).", "the recipe's"
    )
    eps_high: float | None = option(None, "objective", "Half-width of the clip above 1.", "the recipe's")

    groups: int | None = option(None, "rollout", "Prompts per step.", CHOSEN)
    group_size: int | None = option(None, "rollout", "Completions per prompt.", CHOSEN)
    max_prompt_tokens: int | None = option(None, "rollout", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "rollout", "Longest completion, tokens.", CHOSEN)
    temperature: float = option(1.0, "rollout", "Sampling temperature, above 0.")
    top_k: int = option(0, "rollout", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "rollout", "Sample among the likeliest tokens that hold this probability; 1 is off.")

    warm_start_steps: int | None = option(
        None, "training", "Supervised steps before, on the task's own answers.", "chosen for 'char', 0 for other models"
    )
    micro_batch_groups: int | None = option(
        None, "training", "Groups per micro-batch: less memory, same gradient.", "all groups at once"
    )

    def __post_init__(self) -> None:
        """Check the ranges."""
        self.check_model()
        self.check_optimizer()
        self.check_run()
        at_least(self, 1, "groups", "micro_batch_groups", "max_prompt_tokens", "max_new_tokens")
        at_least(self, 2, "group_size")
        at_least(self, 0, "warm_start_steps", "top_k", "kl_coef")
        above_zero(self, "temperature", "eps", "eps_high")
        check_top_p(self)
        _check_task(self)
        check_divides(self, "micro_batch_groups", "groups")


@dataclass(frozen=True)
class SftConfig(RunSettings, BatchSettings, OptimizerSettings, ModelSettings):
    """Settings of ``rlax-llm sft``: supervised training on prompts and their answers.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "sft"

    task: str = option("arithmetic", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(
        None,
        "task",
        "Demonstrations, instead of a task: a .jsonl or .parquet file, a data set's directory or its hub id, with "
        "columns prompt and completion, or messages, or text.",
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
        self.check_optimizer()
        self.check_model()
        self.check_run()
        self.check_batch()
        at_least(self, 0, "packed_tokens")


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of ``rlax-llm generate``: print what a model answers to a prompt.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "generate"

    prompt: str = dataclasses.field(metadata={"group": "prompt", "help": "The text to answer.", "metavar": "PROMPT"})

    model: str = option("smollm2", "model", _TRAINED_MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )

    max_new_tokens: int = option(256, "sampling", "Longest completion, tokens.")
    temperature: float = option(0.0, "sampling", "Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, "sampling", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "sampling", "Sample among the likeliest tokens that hold this probability; 1 is off.")
    samples: int = option(1, "sampling", "Number of answers; several need a temperature above 0.")
    seed: int = option(0, "sampling", "Everything random follows from it.")
    config: str | None = option(None, "run", CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "max_new_tokens", "samples")
        at_least(self, 0, "temperature", "top_k", "seed")
        check_top_p(self)
        _check_samples(self)


@dataclass(frozen=True)
class EvalConfig:
    """Settings of ``rlax-llm eval``: reward and accuracy of a model on held-out prompts.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.
    """

    command: ClassVar[str] = "eval"

    model: str = option("smollm2", "model", _TRAINED_MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )

    task: str = option("arithmetic-words", "task", TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", REWARD_HELP, "the task's own", "MODULE:FUNCTION")
    size: int = option(256, "task", "Held-out prompts.")

    max_prompt_tokens: int | None = option(None, "sampling", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "sampling", "Longest completion, tokens.", CHOSEN)
    temperature: float = option(0.0, "sampling", "Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, "sampling", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "sampling", "Sample among the likeliest tokens that hold this probability; 1 is off.")
    samples: int = option(1, "sampling", "Completions per prompt; several need a temperature above 0.")
    seed: int = option(0, "sampling", "Everything random follows from it.")

    out: str | None = option(None, "run", "Directory for summary.json and completions.jsonl.", "print only", "DIR")
    config: str | None = option(None, "run", CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "size", "samples", "max_prompt_tokens", "max_new_tokens")
        at_least(self, 0, "temperature", "top_k", "seed")
        check_top_p(self)
        _check_samples(self)
        _check_task(self)


Config = GrpoConfig | SftConfig | GenerateConfig | EvalConfig


def check_top_p(config: Any) -> None:
    """Raise unless ``top_p`` is a probability above 0."""
    if not 0 < config.top_p <= 1:
        raise ValueError(f"{config.command}: top_p is {config.top_p}, wanted a number above 0 and up to 1.")


def _check_samples(config: Any) -> None:
    if config.samples > 1 and config.temperature == 0:
        raise ValueError(
            f"{config.command}: samples is {config.samples} at temperature 0, where all are the same; "
            "give a temperature above 0."
        )


def _check_task(config: Any) -> None:
    if config.data is not None and config.reward is None:
        raise ValueError(f"{config.command}: data is given without reward, and a file has none of its own; give both.")
