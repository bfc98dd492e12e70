"""The settings of ``rlax-llm generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.fields import Part, at_least, check_countable, option, word
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import DrawSettings, check_samples, check_shortest
from rlax_llm.commands.shared_settings import ModelSettings, SeedSettings


@dataclass(frozen=True, kw_only=True)
class PromptSettings(Part):
    """What is asked."""

    prompt: str = word("The text to answer.", "PROMPT")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings(DrawSettings):
    """How answers are drawn."""

    max_new_tokens: int = option(256, "Longest completion, tokens.")
    temperature: float = option(0.0, "Sampling temperature; 0 takes the likeliest token each time.")
    samples: int = option(1, "Number of answers; several need a temperature above 0.")

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 1, "max_new_tokens", "samples")
        check_shortest(self.min_new_tokens, self.max_new_tokens)
        check_samples(self.samples, self.temperature)
        check_countable(self.max_new_tokens, {"samples": self.samples})


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(OnMachine):
    """Settings of ``rlax-llm generate``: print what a model answers to a prompt.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "generate"

    prompt: PromptSettings
    model: ModelSettings
    sampling: AnswerSettings
    machine: MachineSettings
    run: SeedSettings
