"""What the loop of a run asks of what is trained: a phase, its steps and its evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from rlax_llm.core.finite import NOT_FINITE, not_finite_part
from rlax_llm.host.failures import NotFinite
from rlax_llm.host.progress import Column

References = Callable[[Any, int], Any]
"""``(params, every) → params``: those of the last multiple of ``every`` steps, of 0 those of the first; see
``Session.reference``."""


class Done(NamedTuple):
    """What a step gives.

    Attributes:
        state: after it.
        metrics: its line of ``metrics.jsonl``.
        rows: records of ``completions.jsonl``, without their ``step``.
        steps: how far it went; a compiled chunk is many.
        details: further records, without their ``step``, by the name of their file, one of ``DETAILS``.
    """

    state: Any
    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = ()
    steps: int = 1
    details: Mapping[str, Sequence[Mapping[str, Any]]] = MappingProxyType({})


def no_rows() -> Sequence[Mapping[str, Any]]:
    """No records."""
    return ()


class Evaluation(NamedTuple):
    """What a state is worth.

    Attributes:
        metrics: go to the line of the step.
        rows: makes records of ``completions.jsonl``; it is called where they are kept, at the beginning and the end.
    """

    metrics: Mapping[str, Any]
    rows: Callable[[], Sequence[Mapping[str, Any]]] = no_rows


NOTHING = Evaluation({})


class Phase(Protocol):
    """A part of a run with an optimizer of its own: a warm start, or the run's main part.

    Its steps count from 0; what is random in a step follows from its number, so that a run that goes on from a
    checkpoint gives the numbers of an unbroken one.

    Attributes:
        title: of the progress display.
        columns: of the progress display.
        exports: whether ``export`` writes a model.
    """

    title: str
    columns: Sequence[Column]
    exports: bool = True

    def init(self, params: Any) -> Any:
        """The state before the first step.

        Args:
            params: what training begins with: the model's own, or what the phase before gives as its ``policy``.
        """
        ...

    def begin(self, state: Any, references: References) -> None:
        """Make what steps and evaluations need besides the state; called once in a process, before them.

        Args:
            state: where the phase begins, or goes on.
            references: gives the frozen reference, and keeps it with the run.
        """

    def step(self, state: Any, index: int) -> Done:
        """Do step ``index``.

        Raises:
            NotFinite: a number is not; nothing of the step is kept.
        """
        ...

    def evaluate(self, state: Any) -> Evaluation:
        """Measure a state on what was held out."""
        del state
        return NOTHING

    def policy(self, state: Any) -> Any:
        """The policy's parameters, what another phase can begin with."""
        return state.params

    def export(self, state: Any, path: Path) -> None:
        """Write the model.

        Args:
            state: any of the phase.
            path: of the model's directory.
        """

    def keep(self, place: Path, position: int) -> None:
        """Write what a state does not hold and a later process needs, before the state is written.

        Args:
            place: the folder of the checkpoints.
            position: the checkpoint's number.
        """

    def load(self, place: Path, position: int) -> None:
        """Read what ``keep`` wrote."""

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Look back on a run that has come to its end.

        Args:
            metrics: its lines.

        Raises:
            RunFailed: nothing was learned.
        """


def finite(metrics: Mapping[str, float], step: str, lower: str = "learning_rate") -> dict[str, float]:
    """The metrics of a step that ``watch_finite`` looked at whose numbers are finite, without the one that says so.

    Args:
        metrics: as numbers.
        step: what the step is called.
        lower: the setting to lower where they are not.

    Raises:
        NotFinite: loss, gradient or parameters are not.

    >>> finite({"loss": 0.5, NOT_FINITE: 0.0}, "step 1")
    {'loss': 0.5}
    >>> finite({"loss": 0.5, NOT_FINITE: 4.0}, "step 1", "radius")
    Traceback (most recent call last):
    rlax_llm.host.failures.NotFinite: the parameters of step 1 are not finite, and nothing of that step is kept; begin
    anew with a lower radius.
    """
    what = not_finite_part(metrics)
    if what is not None:
        verb = "are" if what == "parameters" else "is"
        raise NotFinite(
            f"the {what} of {step} {verb} not finite, and nothing of that step is kept; begin anew with a lower "
            f"{lower}."
        )
    return {name: value for name, value in metrics.items() if name != NOT_FINITE}
