"""The commands by name, each read from its folder; without JAX, which is imported once a command runs."""

from __future__ import annotations

import importlib
from typing import NamedTuple

from rlax_llm.commands.settings import Settings

FOLDERS = (
    "grpo",
    "sft",
    "preference",
    "ppo",
    "distill",
    "online",
    "eval",
    "generate",
    "chat",
    "data",
    "control",
    "doctor",
    "report",
)
"""Those of ``rlax_llm.commands`` that hold a ``command.py``, in the order of ``rlax-llm --help``."""


class Command(NamedTuple):
    """A command: its settings, ``module:function`` that does it, and its help.

    Attributes:
        settings: their class, with its ``command``, the name.
        run: is imported when the command runs.
        summary: a line.
        description: what ``--help`` begins with.
    """

    settings: type[Settings]
    run: str
    summary: str
    description: str


def commands() -> dict[str, Command]:
    """Every command by its name.

    >>> "grpo" in commands(), commands()["dpo"].run
    (True, 'rlax_llm.commands.preference.run:run_dpo')
    """
    modules = [importlib.import_module(f"rlax_llm.commands.{folder}.command") for folder in FOLDERS]
    return {command.settings.command: command for module in modules for command in module.COMMANDS}
