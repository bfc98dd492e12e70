"""Runs of the command line as parts of an experiment: a finished one is read again, an interrupted one goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(command: Sequence[str], out: Path) -> dict[str, Any]:
    """The summary of a command's run: read, gone on with, or begun."""
    summary = out / "summary.json"
    # An evaluation writes its summary at its end, and does not say that it is finished.
    if not (summary.exists() and json.loads(summary.read_text(encoding="utf-8")).get("finished", True)):
        program = Path(sys.executable).with_name("rlax-llm")
        begun = (out / "checkpoints").exists()
        told = [command[0], "--resume", str(out)] if begun else [*command, "--out", str(out)]
        subprocess.run([str(program), *told], check=True)
    return json.loads(summary.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``metrics.jsonl`` or ``completions.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def told(command: Sequence[str], place: Path) -> str:
    """The command as a person types it, as a line of code; ``place`` is called DATA."""
    return "    " + " ".join(["rlax-llm", *(word.replace(str(place), "DATA") for word in command)])
