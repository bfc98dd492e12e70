"""The settings of ``rlax-llm data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlax_llm.commands.defaults import model_defaults
from rlax_llm.commands.descriptions import BASE_MODEL_HELP, SPLIT_HELP
from rlax_llm.commands.fields import Part, at_least, option, word
from rlax_llm.commands.sampling_settings import LimitSettings
from rlax_llm.commands.settings import Settings
from rlax_llm.commands.task_settings import NEW_LINE, SeparatorSettings

STEPS = "process"
"""Use of completions of labeled steps, which ``reward --process`` reads."""


@dataclass(frozen=True, kw_only=True)
class TableSettings(Part):
    """What is looked at."""

    files: tuple[str, ...] = word(
        "A .jsonl, .json (gzipped if wanted) or .parquet file, a data set's directory or its hub id; or several.",
        "FILE",
    )
    split: str = option("train", SPLIT_HELP)
    use: Literal["sft", "reward", "process", "dpo", "kto", "grpo", "ppo", "online", "distill"] | None = option(
        None, "Command that is to read it; process is reward --process.", "the one that its columns are for"
    )
    every_turn: bool = option(False, "As of sft: learn all that the assistant says in 'messages'.")
    rows: int = option(2, "Rows whose tokens are shown.")

    def check(self) -> None:
        """Check the range."""
        at_least(self, 0, "rows")


@dataclass(frozen=True, kw_only=True)
class ReaderSettings(Part):
    """Whose tokenizer and chat template reads it."""

    model: str = option("smollm2", BASE_MODEL_HELP, metavar="MODEL", values=("char", "smollm2"))


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Settings of ``rlax-llm data``: what a training command makes of a file.

    Raises:
        ValueError: a value is out of its range.
    """

    command: ClassVar[str] = "data"

    file: TableSettings
    steps: SeparatorSettings
    model: ReaderSettings
    limits: LimitSettings

    def __post_init__(self) -> None:
        """Check that a separator is read."""
        use = self.file.use
        if self.steps.step_separator != NEW_LINE and use not in (None, STEPS):
            raise ValueError(
                f"step_separator is given with use {use}, whose completions are not read in steps; leave one out."
            )

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The limits that the command has for the model; where its columns are to choose the command, those of most."""
        use = given.get("use") or "sft"
        return model_defaults("reward" if use == STEPS else use, given, "smollm2")
