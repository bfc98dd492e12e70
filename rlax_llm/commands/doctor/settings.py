"""The settings of ``rlax-llm doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.fields import Part, option, word
from rlax_llm.commands.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ExaminedSettings(Part):
    """What is looked at, and how it is told."""

    runs: tuple[str, ...] = word("Directories of runs.", "RUN_DIR")
    json: bool = option(False, "Print what is found as JSON, one object for each run.")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Settings):
    """Settings of ``rlax-llm doctor``: say in words why a run does not learn.

    >>> DoctorSettings.of(runs=("runs/a", "runs/b")).run.runs
    ('runs/a', 'runs/b')
    """

    command: ClassVar[str] = "doctor"

    run: ExaminedSettings
