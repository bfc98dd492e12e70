"""The settings of ``rlax-llm report``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlax_llm.commands.fields import Part, option, word
from rlax_llm.commands.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ReportedSettings(Part):
    """What is reported on, and where to."""

    runs: tuple[str, ...] = word("Directories of runs.", "RUN_DIR")
    out: str | None = option(None, "File of the page.", "report.html in the first run's directory", "FILE.html")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """Settings of ``rlax-llm report``: a page on runs.

    Raises:
        ValueError: a value is of a wrong type.
    """

    command: ClassVar[str] = "report"

    report: ReportedSettings
