"""The settings of ``rlax-llm generate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from rlax_llm.commands.settings import CONFIG_HELP, SamplerSettings, at_least, check_values, option
from rlax_llm.commands.task_settings import TRAINED_MODEL_HELP, check_samples


@dataclass(frozen=True)
class GenerateSettings(SamplerSettings):
    """Settings of ``rlax-llm generate``: print what a model answers to a prompt.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "generate"

    prompt: str = dataclasses.field(metadata={"group": "prompt", "help": "The text to answer.", "metavar": "PROMPT"})
    _: dataclasses.KW_ONLY

    model: str = option("smollm2", "model", TRAINED_MODEL_HELP, metavar="MODEL")
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
        check_samples(self)
