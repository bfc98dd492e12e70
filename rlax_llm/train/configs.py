"""The settings of each command as frozen dataclasses: plain values, checked when made, no imports beyond the stdlib.

A field's ``metadata`` holds its ``help`` line, the ``group`` it is listed under, where the default is ``None`` what
happens ``then``, and perhaps the ``metavar`` that stands for its value; ``rlax_llm.cli`` makes the command line and the
checks of YAML files from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

# Where a run is and which file began it are no part of what the run computes, so they stay out of its config.yaml.
_PLACES = ("out", "resume", "config")

_MODEL_HELP = (
    "Language model: 'char' (small character model, made on the spot), 'smollm2' (SmolLM2-135M-Instruct), "
    "a Hugging Face directory (RUN_DIR/model of a run too), a .gguf file, or a Hugging Face hub id."
)
_TRAINED_MODEL_HELP = (
    "Language model: 'smollm2' (SmolLM2-135M-Instruct), a Hugging Face directory (RUN_DIR/model of a run), "
    "a .gguf file, or a Hugging Face hub id."
)
_TASK_HELP = (
    "Prompts and their rewards: arithmetic (12+34=), arithmetic-words (for chat models) or reasoning-gym:NAME, with "
    "settings if wanted: arithmetic,largest=50 or reasoning-gym:chain_sum,min_terms=2."
)
_DATA_HELP = "JSON lines file of your own, instead of a task: in each line a 'prompt', and columns for the reward."
_REWARD_HELP = (
    "Reward, needed with --data: MODULE:FUNCTION or FILE.py:FUNCTION of signature "
    "f(prompts, completions, **columns) -> floats, or exact_answer or integer_answer (column 'answer')."
)
_OUT_HELP = "Directory of the run: config.yaml, metrics.jsonl, completions.jsonl, curves.png, summary.json, model/."
_RESUME_HELP = "Go on with an interrupted run from its directory, with its settings; only --steps may change."
_CONFIG_HELP = "YAML file of settings, keys as the flags with underscores; flags given beside it win over it."
_CHOSEN = "chosen for the model"


def option(default: Any, group: str, text: str, then: str | None = None, metavar: str | None = None) -> Any:
    """A field with what the command line says of it: group, help, what happens where it is None, its metavar."""
    metadata = {"group": group, "help": text, "then": then, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class GrpoConfig:
    """Settings of ``rlax-llm grpo``: reinforcement learning of a language model from groups of completions.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> GrpoConfig(group_size=1)
    Traceback (most recent call last):
    ValueError: grpo: group_size is 1, wanted at least 2.
    """

    command: ClassVar[str] = "grpo"

    model: str = option("char", "model", _MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )
    remat: bool | None = option(
        None, "model", "Recompute activations in the backward pass: a tenth of the memory.", "on except for 'char'"
    )

    task: str = option("arithmetic", "task", _TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", _DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", _REWARD_HELP, "the task's own", "MODULE:FUNCTION")

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

    groups: int | None = option(None, "rollout", "Prompts per step.", _CHOSEN)
    group_size: int | None = option(None, "rollout", "Completions per prompt.", _CHOSEN)
    max_prompt_tokens: int | None = option(None, "rollout", "Longest prompt, tokens.", _CHOSEN)
    max_new_tokens: int | None = option(None, "rollout", "Longest completion, tokens.", _CHOSEN)
    temperature: float = option(1.0, "rollout", "Sampling temperature, above 0.")
    top_k: int = option(0, "rollout", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "rollout", "Sample among the likeliest tokens that hold this probability; 1 is off.")

    steps: int | None = option(None, "training", "Steps of reinforcement learning.", _CHOSEN)
    warm_start_steps: int | None = option(
        None, "training", "Supervised steps before, on the task's own answers.", "chosen for 'char', 0 for other models"
    )
    micro_batch_groups: int | None = option(
        None, "training", "Groups per micro-batch: less memory, same gradient.", "all groups at once"
    )
    optimizer: str = option(
        "adamw",
        "training",
        "'adamw', or MODULE:FUNCTION that returns an Optax transformation given a schedule.",
        metavar="OPTIMIZER",
    )
    learning_rate: float | None = option(None, "training", "Peak learning rate.", _CHOSEN)
    schedule: Literal["constant", "cosine", "linear"] = option(
        "linear", "training", "Learning rate after the warm-up; cosine and linear end at 0."
    )
    warmup_steps: int = option(0, "training", "Steps over which the learning rate rises from 0.")
    weight_decay: float = option(0.0, "training", "Decoupled weight decay of adamw.")
    clip_norm: float = option(1.0, "training", "Largest global gradient norm; 'inf' is off.")
    seed: int = option(0, "training", "Everything random follows from it.")

    eval_every: int | None = option(
        None, "run", "Steps between held-out evaluations; 0 is only first and last.", _CHOSEN
    )
    eval_size: int | None = option(None, "run", "Held-out prompts per evaluation.", _CHOSEN)
    save_every: int = option(50, "run", "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")
    out: str | None = option(None, "run", _OUT_HELP, "runs/grpo-DATE-TIME", "DIR")
    resume: str | None = option(None, "run", _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, "run", _CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "steps", "groups", "micro_batch_groups", "max_prompt_tokens", "max_new_tokens", "eval_size")
        at_least(self, 2, "group_size")
        at_least(self, 0, "warm_start_steps", "warmup_steps", "eval_every", "save_every", "top_k", "seed")
        at_least(self, 0, "weight_decay", "kl_coef")
        above_zero(self, "temperature", "learning_rate", "clip_norm", "eps", "eps_high")
        _check_top_p(self)
        _check_task(self)
        if self.groups and self.micro_batch_groups and self.groups % self.micro_batch_groups:
            raise ValueError(
                f"grpo: micro_batch_groups is {self.micro_batch_groups}, "
                f"wanted a divisor of groups, which is {self.groups}."
            )


@dataclass(frozen=True)
class SftConfig:
    """Settings of ``rlax-llm sft``: supervised training on prompts and their answers.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "sft"

    model: str = option("char", "model", _MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32", "model", "Number format of the parameters and of the computation."
    )
    remat: bool | None = option(
        None, "model", "Recompute activations in the backward pass: a tenth of the memory.", "on except for 'char'"
    )

    task: str = option("arithmetic", "task", _TASK_HELP, metavar="TASK")
    data: str | None = option(
        None,
        "task",
        "JSON lines file, instead of a task: 'prompt' and 'completion' keys in each line.",
        "the task",
        "FILE.jsonl",
    )

    batch_size: int | None = option(None, "training", "Examples per step.", _CHOSEN)
    micro_batch_size: int | None = option(
        None, "training", "Examples per micro-batch: less memory, same gradient.", "the whole batch at once"
    )
    max_prompt_tokens: int | None = option(None, "training", "Longest prompt, tokens.", _CHOSEN)
    max_new_tokens: int | None = option(None, "training", "Longest completion, tokens.", _CHOSEN)
    steps: int | None = option(None, "training", "Optimizer steps.", _CHOSEN)
    optimizer: str = option(
        "adamw",
        "training",
        "'adamw', or MODULE:FUNCTION that returns an Optax transformation given a schedule.",
        metavar="OPTIMIZER",
    )
    learning_rate: float | None = option(None, "training", "Peak learning rate.", _CHOSEN)
    schedule: Literal["constant", "cosine", "linear"] = option(
        "constant", "training", "Learning rate after the warm-up; cosine and linear end at 0."
    )
    warmup_steps: int = option(0, "training", "Steps over which the learning rate rises from 0.")
    weight_decay: float = option(0.0, "training", "Decoupled weight decay of adamw.")
    clip_norm: float = option(1.0, "training", "Largest global gradient norm; 'inf' is off.")
    seed: int = option(0, "training", "Everything random follows from it.")

    eval_every: int | None = option(
        None, "run", "Steps between held-out evaluations; 0 is only first and last.", _CHOSEN
    )
    eval_size: int | None = option(None, "run", "Held-out prompts per evaluation.", _CHOSEN)
    save_every: int = option(200, "run", "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")
    out: str | None = option(None, "run", _OUT_HELP, "runs/sft-DATE-TIME", "DIR")
    resume: str | None = option(None, "run", _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, "run", _CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "steps", "batch_size", "micro_batch_size", "max_prompt_tokens", "max_new_tokens", "eval_size")
        at_least(self, 0, "warmup_steps", "eval_every", "save_every", "seed", "weight_decay")
        above_zero(self, "learning_rate", "clip_norm")
        if self.batch_size and self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"sft: micro_batch_size is {self.micro_batch_size}, "
                f"wanted a divisor of batch_size, which is {self.batch_size}."
            )


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
    config: str | None = option(None, "run", _CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "max_new_tokens", "samples")
        at_least(self, 0, "temperature", "top_k", "seed")
        _check_top_p(self)
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

    task: str = option("arithmetic-words", "task", _TASK_HELP, metavar="TASK")
    data: str | None = option(None, "task", _DATA_HELP, "the task", "FILE.jsonl")
    reward: str | None = option(None, "task", _REWARD_HELP, "the task's own", "MODULE:FUNCTION")
    size: int = option(256, "task", "Held-out prompts.")

    max_prompt_tokens: int | None = option(None, "sampling", "Longest prompt, tokens.", _CHOSEN)
    max_new_tokens: int | None = option(None, "sampling", "Longest completion, tokens.", _CHOSEN)
    temperature: float = option(0.0, "sampling", "Sampling temperature; 0 takes the likeliest token each time.")
    top_k: int = option(0, "sampling", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "sampling", "Sample among the likeliest tokens that hold this probability; 1 is off.")
    samples: int = option(1, "sampling", "Completions per prompt; several need a temperature above 0.")
    seed: int = option(0, "sampling", "Everything random follows from it.")

    out: str | None = option(None, "run", "Directory for summary.json and completions.jsonl.", "print only", "DIR")
    config: str | None = option(None, "run", _CONFIG_HELP, "no file", "FILE.yaml")

    def __post_init__(self) -> None:
        """Check the ranges."""
        at_least(self, 1, "size", "samples", "max_prompt_tokens", "max_new_tokens")
        at_least(self, 0, "temperature", "top_k", "seed")
        _check_top_p(self)
        _check_samples(self)
        _check_task(self)


Config = GrpoConfig | SftConfig | GenerateConfig | EvalConfig


def as_dict(config: Any) -> dict[str, Any]:
    """What a run's ``config.yaml`` holds: its command and every setting but where it is kept.

    >>> saved = as_dict(SftConfig(seed=3, out="runs/a"))
    >>> saved["command"], saved["seed"], "out" in saved
    ('sft', 3, False)
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _PLACES}
    return {"command": config.command, **settings}


def filled_in(config: Config, chosen: Mapping[str, Any]) -> Any:
    """The same settings with each ``None`` replaced by the value ``chosen`` for it, where there is one.

    >>> filled_in(SftConfig(steps=5), {"steps": 100, "batch_size": 32}).batch_size
    32
    """
    missing = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def at_least(config: Any, bound: int, *names: str) -> None:
    """Raise for a number below the bound or infinite; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not (value >= bound and math.isfinite(value)):
            raise ValueError(f"{config.command}: {name} is {value}, wanted at least {bound}.")


def above_zero(config: Any, *names: str) -> None:
    """Raise for a number that is not positive; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{config.command}: {name} is {value}, wanted a number greater than 0.")


def _check_top_p(config: Any) -> None:
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
