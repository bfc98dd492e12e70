"""The settings of ``rlax-llm chat``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.fields import Part, at_least, option
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import DrawSettings, check_shortest
from rlax_llm.commands.shared_settings import ModelSettings, SeedSettings


@dataclass(frozen=True, kw_only=True)
class TalkSettings(Part):
    """What stands before the conversation."""

    system: str | None = option(None, "Text of the system's message.", "the chat template's own", "TEXT")


@dataclass(frozen=True, kw_only=True)
class TurnSettings(DrawSettings):
    """How an answer is drawn."""

    max_new_tokens: int = option(512, "Longest answer, tokens.")
    temperature: float = option(0.7, "Sampling temperature; 0 takes the likeliest token each time.")

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 1, "max_new_tokens")
        check_shortest(self.min_new_tokens, self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class ChatSettings(OnMachine):
    """Settings of ``rlax-llm chat``: talk with a model.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "chat"

    model: ModelSettings
    conversation: TalkSettings
    sampling: TurnSettings
    machine: MachineSettings
    run: SeedSettings
