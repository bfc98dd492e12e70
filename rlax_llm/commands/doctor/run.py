"""The command ``doctor`` as a function of its settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlax_llm.commands.doctor.finding import DRAWN, EVERY, FEWEST_STEPS
from rlax_llm.commands.doctor.settings import DoctorSettings
from rlax_llm.commands.doctor.table import Found, applicable, examine, faults
from rlax_llm.core.processes import is_first
from rlax_llm.core.wording import counted
from rlax_llm.host.evidence import Evidence, read_evidence
from rlax_llm.host.progress import say
from rlax_llm.host.run_directory import RunDirectory, understanding
from rlax_llm.host.several_runs import runs_among


class Examined(NamedTuple):
    """What is found in some runs.

    Attributes:
        runs: what each left, and what is found in it.
    """

    runs: Sequence[tuple[Evidence, Sequence[Found]]]

    @property
    def exit_code(self) -> int:
        """1 where a run has a fault, else 0."""
        return int(any(found.diagnosis.fault for _, all_found in self.runs for found in all_found))


def run_doctor(settings: DoctorSettings) -> Examined:
    """Say what is found in runs.

    Args:
        settings: of the command.

    Raises:
        FileNotFoundError: a directory holds no run.
        ValueError: a file in it is damaged.
    """
    read = [read_evidence(run.path) for run in runs_among(settings.run.runs)]
    runs = []
    for evidence in read:
        with understanding(RunDirectory(evidence.path).completions_path):
            runs.append((evidence, examine(evidence)))
    for evidence, found in runs:
        say(json.dumps(as_json(evidence, found), ensure_ascii=False) if settings.run.json else told(evidence, found))
    return Examined(runs)


def as_json(evidence: Evidence, found: Sequence[Found]) -> dict[str, Any]:
    """What is found in a run, as JSON has it.

    Args:
        evidence: of the run.
        found: in it.
    """
    return {
        "run": str(evidence.path),
        "command": evidence.command,
        "steps": len(evidence.rows),
        "completions": len(evidence.completions),
        "missing": list(evidence.missing),
        "looked_for": [diagnosis.name for diagnosis in applicable(evidence)],
        "found": [
            {"name": one.diagnosis.name, "fault": one.diagnosis.fault, "what": one.finding.what, "change": one.change}
            for one in found
        ],
    }


def told(evidence: Evidence, found: Sequence[Found]) -> str:
    """What is found in a run, for a person.

    Args:
        evidence: of the run.
        found: in it.
    """
    lines = [f"{evidence.path}: {_read(evidence)}"]
    wrong = [one for one in found if one.diagnosis.fault]
    for one in wrong:
        lines += ["", f"✗ {one.diagnosis.name}", f"  {one.finding.what}", f"  → {one.change}"]
    for one in found:
        if not one.diagnosis.fault:
            lines += ["", f"· {one.diagnosis.name}, no fault", f"  {one.finding.what}", f"  → {one.change}"]
    return "\n".join([*lines, "", _verdict(evidence, len(wrong))])


def _read(evidence: Evidence) -> str:
    parts = [evidence.command or "a run without a command", counted(len(evidence.rows), "step")]
    if evidence.completions:
        parts.append(f"{counted(len(evidence.completions), 'completion')} read")
    elif evidence.command in DRAWN:
        parts.append("no completions.jsonl to read")
    if not evidence.summary:
        on = (
            f" (if it was killed, rlax-llm {evidence.command} --resume {shlex.quote(str(evidence.path))} goes on)"
            if evidence.rows
            else ""
        )
        parts.append(f"not ended yet{on}")
    return ", ".join(parts)


def _verdict(evidence: Evidence, count: int) -> str:
    looked = [diagnosis.name for diagnosis in applicable(evidence) if diagnosis.fault]
    if evidence.command not in EVERY:
        return f"Nothing to look for in a run of {evidence.command or 'no command'}; give one of {', '.join(EVERY)}."
    few = len(evidence.rows) < FEWEST_STEPS
    if few:
        are = "is" if len(evidence.rows) == 1 else "are"
        few_steps = f"{counted(len(evidence.rows), 'step')} {are} too few to judge by"
        return f"{few_steps}; {FEWEST_STEPS} are enough for most diagnoses."
    if count:
        return f"{count} of {len(looked)} diagnoses."
    return f"Nothing found; looked for: {'; '.join(looked)}."


def advice(path: Path) -> list[str]:
    """A line for the end of a run in which something is found; none where nothing is, or it cannot be read.

    Args:
        path: of the run's directory.
    """
    if not is_first():
        return []
    found = faults(read_evidence(path))
    if not found:
        return []
    names = ", ".join(one.diagnosis.name for one in found)
    return [f"It does not learn as it should ({names}); rlax-llm doctor {shlex.quote(str(path))} says more"]
