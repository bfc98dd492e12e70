"""What the commands' settings share: fields with their help, checks of ranges, and the groups of fields in common.

Plain values, checked when made, no imports beyond the standard library. A field's ``metadata`` holds its ``help`` line,
the ``group`` it is listed under, where the default is ``None`` what happens ``then``, and perhaps the ``metavar`` that
stands for its value; ``rlax_llm.cli`` makes the command line and the checks of YAML files from them.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# Where a run is and which file began it are no part of what the run computes, so they stay out of its config.yaml.
_PLACES = ("out", "resume", "config")

LARGEST_SEED = 2**32 - 1
"""JAX reads the last 32 bits of a seed and no more, so a larger one would be another's run."""
LARGEST_COUNT = 2**31 - 1
"""Steps, rows and tokens are counted in 32 bits."""
_LARGEST_FLOAT, _SMALLEST_FLOAT = 3.4e38, 1.2e-38  # of float32
_COLDEST = 1e-6  # below it, logits divided by a temperature leave float32
_MAY_BE_INFINITE = ("max_grad_norm",)
_MAY_BE_EMPTY = ("prompt",)
_MAY_BE_LARGE = (("control", "steps"),)  # counted on the host

MODEL_HELP = (
    "Language model: 'char' (small character model, made on the spot), 'smollm2' (SmolLM2-135M-Instruct), "
    "a Hugging Face directory (RUN_DIR/model of a run too), a directory of adapters (RUN_DIR/model_adapter), a .gguf "
    "file, or a Hugging Face hub id."
)
CHOSEN = "chosen for the model"
CONFIG_HELP = (
    "YAML file of settings, keys as the flags with underscores; flags given beside it win over it. It is code, as it "
    "may name a reward and an optimizer, which are imported."
)
_OUT_HELP = "Directory of the run: config.yaml, metrics.jsonl, completions.jsonl, curves.png, summary.json, model/."
_RESUME_HELP = (
    "Go on with an interrupted run from its directory, with its settings; only --steps may change. The directory is "
    "code: what its config.yaml names as reward and optimizer is imported."
)


def option(default: Any, group: str, text: str, then: str | None = None, metavar: str | None = None) -> Any:
    """A field with what the command line says of it: group, help, what happens where it is None, its metavar."""
    metadata = {"group": group, "help": text, "then": then, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelSettings:
    """The model that is trained."""

    model: str = option("char", "model", MODEL_HELP, metavar="MODEL")
    dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "model",
        "Number format of the computation, and of a base under adapters; what is trained is float32.",
    )
    remat: bool | None = option(
        None, "model", "Recompute activations in the backward pass: a tenth of the memory.", "on except for 'char'"
    )
    lora_rank: int = option(
        0, "model", "Train adapters of this rank instead of the weights; 0 trains the weights.", metavar="INT"
    )
    lora_alpha: float | None = option(None, "model", "An adapter counts alpha / rank times.", "twice the rank")
    lora_targets: str | None = option(
        None, "model", "Projections that have an adapter, as q,v.", "q,k,v,o,gate,up,down", "NAMES"
    )

    def check_model(self) -> None:
        """Check the ranges of these fields."""
        at_least(self, 0, "lora_rank")
        above_zero(self, "lora_alpha")
        command = getattr(self, "command", "")
        for name in ("lora_alpha", "lora_targets"):
            if getattr(self, name) is not None and not self.lora_rank:
                raise ValueError(f"{command}: {name} is given without lora_rank; give both.")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What completions are drawn from."""

    temperature: float = option(1.0, "sampling", "Sampling temperature, above 0.")
    top_k: int = option(0, "sampling", "Sample among the k likeliest tokens; 0 is off.")
    top_p: float = option(1.0, "sampling", "Sample among the likeliest tokens that hold this probability; 1 is off.")
    min_p: float = option(
        0.0, "sampling", "Sample among tokens at least this times as likely as the likeliest; 0 is off."
    )
    min_new_tokens: int = option(0, "sampling", "Shortest completion, tokens: none stops before.")
    logit_bias: str | None = option(
        None,
        "sampling",
        "Added to the logits of tokens, as 42=-2.5,7=-inf; -inf bans a token.",
        "no bias",
        "TOKEN_ID=BIAS,...",
    )

    def check_sampler(self) -> None:
        """Check the ranges of these fields."""
        command, longest = getattr(self, "command", ""), getattr(self, "max_new_tokens", None)
        at_least(self, 0, "top_k", "min_new_tokens")
        check_temperature(self)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"{command}: top_p is {self.top_p}, wanted a number above 0 and up to 1.")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"{command}: min_p is {self.min_p}, wanted a number from 0 to 1.")
        if longest is not None and self.min_new_tokens > longest:
            raise ValueError(
                f"{command}: min_new_tokens is {self.min_new_tokens}, wanted at most max_new_tokens, {longest}."
            )
        logit_bias_of(self)


def logit_bias_of(config: SamplerSettings) -> tuple[tuple[int, float], ...]:
    """The pairs of token id and bias that ``logit_bias`` names.

    Raises:
        ValueError: for text that is no list of ``TOKEN_ID=BIAS``.

    >>> logit_bias_of(SamplerSettings(logit_bias="42=-2.5,7=-inf"))
    ((42, -2.5), (7, -inf))
    """
    pairs = []
    for part in [] if config.logit_bias is None else config.logit_bias.split(","):
        token, _, bias = part.partition("=")
        try:
            pairs.append((int(token), float(bias)))
        except ValueError:
            raise ValueError(
                f"{getattr(config, 'command', '')}: logit_bias holds {part!r}, wanted TOKEN_ID=BIAS; give pairs with "
                "commas between them, as 42=-2.5,7=-inf."
            ) from None
    return tuple(pairs)


@dataclass(frozen=True)
class OptimizerSettings:
    """How it is trained."""

    steps: int | None = option(None, "training", "Training steps.", CHOSEN)
    optimizer: str = option(
        "adamw",
        "training",
        "'adamw', or MODULE:FUNCTION or FILE.py:FUNCTION that returns an Optax transformation given a schedule.",
        metavar="OPTIMIZER",
    )
    learning_rate: float | None = option(None, "training", "Peak learning rate.", CHOSEN)
    schedule: Literal["constant", "cosine", "linear"] = option(
        "linear", "training", "Learning rate after the warm-up; cosine and linear end at 0."
    )
    warmup_steps: int = option(0, "training", "Steps over which the learning rate rises from 0.")
    weight_decay: float = option(0.0, "training", "Decoupled weight decay of adamw.")
    max_grad_norm: float = option(1.0, "training", "Largest global gradient norm; 'inf' is off.")
    seed: int = option(0, "training", "Everything random follows from it.")

    def check_optimizer(self) -> None:
        """Check the ranges of these fields."""
        at_least(self, 1, "steps")
        at_least(self, 0, "warmup_steps", "weight_decay")
        above_zero(self, "learning_rate", "max_grad_norm")


@dataclass(frozen=True)
class BatchSettings:
    """The rows of a step, where they come from a file."""

    batch_size: int | None = option(None, "training", "Examples per step.", CHOSEN)
    micro_batch_size: int | None = option(
        None, "training", "Examples per micro-batch: less memory, same gradient.", "the whole batch at once"
    )
    max_prompt_tokens: int | None = option(None, "training", "Longest prompt, tokens.", CHOSEN)
    max_new_tokens: int | None = option(None, "training", "Longest completion, tokens.", CHOSEN)

    def check_batch(self) -> None:
        """Check the ranges of these fields."""
        at_least(self, 1, "batch_size", "micro_batch_size", "max_prompt_tokens", "max_new_tokens")
        check_divides(self, "micro_batch_size", "batch_size")


@dataclass(frozen=True)
class RunSettings:
    """What is measured and kept on the way."""

    eval_every: int | None = option(
        None, "run", "Steps between held-out evaluations; 0 is only first and last.", CHOSEN
    )
    eval_size: int | None = option(
        None, "run", "Held-out prompts per evaluation; 0 holds out none.", "chosen for the model, or all of eval_data"
    )
    eval_data: str | None = option(
        None, "run", "File of held-out rows, of the form of --data.", "rows of the data itself", "DATA"
    )
    save_every: int = option(50, "run", "Steps between checkpoints; 0 is only at the end or at Ctrl-C.")
    out: str | None = option(None, "run", _OUT_HELP, "runs/COMMAND-DATE-TIME", "DIR")
    resume: str | None = option(None, "run", _RESUME_HELP, "a new run", "RUN_DIR")
    config: str | None = option(None, "run", CONFIG_HELP, "no file", "FILE.yaml")

    def check_run(self) -> None:
        """Check the ranges of these fields."""
        at_least(self, 0, "eval_size", "eval_every", "save_every")
        if self.eval_data is None:
            return
        command = getattr(self, "command", "")
        if getattr(self, "data", None) is None:
            raise ValueError(f"{command}: eval_data is given without data; give both.")
        if self.eval_size == 0:
            raise ValueError(f"{command}: eval_data is given and eval_size is 0; leave one out.")


def as_dict(config: Any) -> dict[str, Any]:
    """What a run's ``config.yaml`` holds: its command and every setting but where it is kept.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> saved = as_dict(SftSettings(seed=3, out="runs/a"))
    >>> saved["command"], saved["seed"], "out" in saved
    ('sft', 3, False)
    """
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _PLACES}
    return {"command": config.command, **settings}


def filled_in(config: Any, chosen: Mapping[str, Any]) -> Any:
    """The same settings with each ``None`` replaced by the value ``chosen`` for it, where there is one.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> filled_in(SftSettings(steps=5), {"steps": 100, "batch_size": 32}).batch_size
    32
    """
    missing = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def check_values(config: Any) -> None:
    """Raise for a value that no setting takes: of another type, not finite, beyond what can be counted, empty text.

    What is traced is passed over, and so is ``None`` where a setting may be left open. Every command's settings begin
    their checks here.

    Raises:
        ValueError: naming the command and the setting.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> SftSettings(learning_rate=float("inf"))
    Traceback (most recent call last):
    ValueError: sft: learning_rate is inf, wanted a finite number.
    >>> SftSettings(seed=2**32)
    Traceback (most recent call last):
    ValueError: sft: seed is 4294967296, wanted a whole number from 0 to 4294967295.
    """
    for name, types in _types(type(config)).items():
        value = getattr(config, name)
        wanted = None if value is None and type(None) in types else _wanted(config.command, name, value, types)
        if wanted is not None:
            raise ValueError(f"{config.command}: {name} is {value!r}, wanted {wanted}.")


@functools.cache
def _types(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types, or the choices, that each setting takes."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        found[field.name] = tuple(choice for option in options for choice in _choices(option) or (option,))
    return found


def _choices(option: Any) -> tuple[Any, ...]:
    return typing.get_args(option) if typing.get_origin(option) is Literal else ()


def _wanted(command: str, name: str, value: Any, types: tuple[Any, ...]) -> str | None:
    """What a setting takes instead of the value, or None where it takes it."""
    if value is None:
        return "a value"
    if int in types:
        return _wanted_count(command, name, value)
    if float in types:
        return _wanted_number(name, value)
    if str in types:
        return _wanted_text(name, value)
    choices = [choice for choice in types if isinstance(choice, str)]
    return f"one of {', '.join(choices)}" if choices and value not in choices else None


def _wanted_count(command: str, name: str, value: Any) -> str | None:
    if isinstance(value, bool | float | str):
        return "a whole number"
    if not isinstance(value, int):
        return None
    if name == "seed":
        return None if 0 <= value <= LARGEST_SEED else f"a whole number from 0 to {LARGEST_SEED}"
    largest = LARGEST_COUNT**2 if (command, name) in _MAY_BE_LARGE else LARGEST_COUNT
    return None if value <= largest else f"a whole number of at most {largest}"


def _wanted_number(name: str, value: Any) -> str | None:
    if isinstance(value, bool | str):
        return "a number"
    if not isinstance(value, int | float) or (value == float("inf") and name in _MAY_BE_INFINITE):
        return None
    # NaN compares with nothing.
    return None if abs(value) <= _LARGEST_FLOAT else "a finite number"


def _wanted_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return "text"
    if not value.strip() and name not in _MAY_BE_EMPTY:
        return "text that is not empty"
    return "text without a NUL character" if "\0" in value else None


def at_least(config: Any, bound: int, *names: str) -> None:
    """Raise for a number below the bound; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= bound:
            raise ValueError(f"{config.command}: {name} is {value}, wanted at least {bound}.")


def above_zero(config: Any, *names: str) -> None:
    """Raise for a number that is not positive in float32; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= _SMALLEST_FLOAT:
            raise ValueError(f"{config.command}: {name} is {value}, wanted a number greater than 0.")


def check_temperature(config: Any) -> None:
    """Raise for a temperature that is so near 0 that logits divided by it are infinite; 0 itself is greedy."""
    if 0 < config.temperature < _COLDEST:
        raise ValueError(f"{config.command}: temperature is {config.temperature}, wanted at least {_COLDEST}.")


def check_divides(config: Any, part: str, whole: str) -> None:
    """Raise unless the setting ``part`` divides the setting ``whole``; what is None or 0 is passed over."""
    size, total = getattr(config, part), getattr(config, whole)
    if size and total and total % size:
        raise ValueError(f"{config.command}: {part} is {size}, wanted a divisor of {whole}, which is {total}.")


def check_micro_batch(config: Any) -> None:
    """Raise unless ``micro_batch_size`` divides the prompts of a minibatch; what is None is passed over."""
    size, total = config.micro_batch_size, (config.batch_size or 0) // config.minibatches
    if size and total % size:
        raise ValueError(
            f"{config.command}: micro_batch_size is {size}, wanted a divisor of the {total} prompts of a minibatch."
        )
