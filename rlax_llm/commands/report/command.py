"""What the command line says of ``report``; without JAX, which it does not need."""

from __future__ import annotations

from rlax_llm.commands.report.settings import ReportSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        ReportSettings,
        "rlax_llm.commands.report.run:run_report",
        "write a page of HTML on one run or several",
        """Write one page of HTML on one run or several: curves, distributions, prompts, completions by token, settings.

It needs no network and no server: open it in a browser, or send it to somebody.

Examples:
  rlax-llm report runs/words
  rlax-llm report runs/a runs/b runs/c --out compared.html""",
    ),
)
