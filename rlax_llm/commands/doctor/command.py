"""What the command line says of ``doctor``; without JAX, which it does not need."""

from __future__ import annotations

from rlax_llm.commands.doctor.settings import DoctorSettings
from rlax_llm.commands.table import Command

COMMANDS = (
    Command(
        DoctorSettings,
        "rlax_llm.commands.doctor.run:run_doctor",
        "say in words why a run does not learn",
        """Say in words why a run does not learn: what is wrong, the figures that show it, and what to change.

It reads what the run left (metrics.jsonl, completions.jsonl, config.yaml, summary.json), of a run that goes on too, and
changes nothing. Exit code 0 where nothing is found, 1 where something is.

Examples:
  rlax-llm doctor runs/mine
  rlax-llm doctor runs/*
  rlax-llm doctor runs/mine --json""",
    ),
)
