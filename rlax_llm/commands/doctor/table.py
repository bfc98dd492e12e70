"""Every diagnosis, in the order in which they are told: what explains others stands first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlax_llm.commands.doctor import control, preferences, scores, steps, texts
from rlax_llm.commands.doctor.finding import FEWEST_STEPS, Diagnosis, Finding
from rlax_llm.host.evidence import Evidence

DIAGNOSES: tuple[Diagnosis, ...] = (
    *scores.DIAGNOSES,
    *texts.DIAGNOSES,
    *steps.DIAGNOSES,
    *preferences.DIAGNOSES,
    *control.DIAGNOSES,
)


class Found(NamedTuple):
    """A diagnosis that a run has.

    Attributes:
        diagnosis: the one.
        finding: what it found.
    """

    diagnosis: Diagnosis
    finding: Finding

    @property
    def change(self) -> str:
        """What to do about it."""
        return self.finding.change or self.diagnosis.change


def applicable(evidence: Evidence) -> list[Diagnosis]:
    """Those that can be made of a run: of its command, and where it has steps enough to judge by."""
    of_command = [diagnosis for diagnosis in DIAGNOSES if evidence.command in diagnosis.commands]
    enough = len(evidence.rows) >= FEWEST_STEPS
    return [diagnosis for diagnosis in of_command if enough or diagnosis.find in steps.AT_ONCE]


def examine(evidence: Evidence) -> list[Found]:
    """Everything that is found in a run.

    Args:
        evidence: of the run.

    >>> from pathlib import Path
    >>> rows = [{"step": i, "reward": 0.0, "accuracy": 0.0, "frac_reward_zero_std": 1.0} for i in range(1, 9)]
    >>> [found.diagnosis.name for found in examine(Evidence(Path("runs/a"), {"command": "grpo"}, rows))]
    ['all failed']
    """
    found = [(diagnosis, diagnosis.find(evidence)) for diagnosis in applicable(evidence)]
    return [Found(diagnosis, finding) for diagnosis, finding in found if finding is not None]


def faults(evidence: Evidence) -> Sequence[Found]:
    """What is wrong with a run, without what only explains."""
    return [found for found in examine(evidence) if found.diagnosis.fault]
