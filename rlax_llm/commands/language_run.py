"""A run of a language model: a phase, or a warm start and then a phase, in a session of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlax_llm.commands.doctor.run import advice
from rlax_llm.commands.sessions import TrainingSettings, heading, open_session
from rlax_llm.commands.sft.phase import WarmStart
from rlax_llm.host.curves import BY_COMMAND, PANELS, draw_curves
from rlax_llm.host.endings import report, summary
from rlax_llm.host.phase import Phase
from rlax_llm.host.progress import say
from rlax_llm.host.run import Plan, run_phases
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models.functional import Params


def run_language(
    settings: TrainingSettings,
    phase: Phase,
    params: Params,
    warm_start: WarmStart | None = None,
    recipe: str | None = None,
) -> RunDirectory:
    """Run a phase to its last step, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        settings: of the command.
        phase: the main one.
        params: what training begins with.
        warm_start: goes before.
        recipe: that the summary names, where the command has several.
    """
    steps, named = settings.run.steps, heading(settings)
    session = open_session(settings, 0 if warm_start is None else warm_start.steps)
    panels = BY_COMMAND.get(settings.command, PANELS)

    def summarize() -> dict[str, Any]:
        return summary(session, named if recipe is None else named | {"recipe": recipe}, steps)

    def draw(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
        draw_curves(path, metrics, " · ".join(named.values()), panels)

    with session.running(summarize, draw) as stop:
        run_phases(session, phase, Plan(steps, settings.run.eval_every), params, stop, warm_start)
    say("\n".join([report(session, steps), *advice(session.directory.path)]))
    return session.directory
