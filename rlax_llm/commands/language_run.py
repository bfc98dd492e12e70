"""A run of a language model: a phase, or a warm start and then a phase, in a session of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlax_llm.commands.sessions import heading, open_session, title
from rlax_llm.host.curves import BY_COMMAND, PANELS, draw_curves
from rlax_llm.host.endings import report, summary
from rlax_llm.host.phase import Phase
from rlax_llm.host.progress import say
from rlax_llm.host.run import Plan, run_phases
from rlax_llm.host.run_directory import RunDirectory


def run_language(config: Any, phase: Phase, params: Any, warm_start: Phase | None = None) -> RunDirectory:
    """Run a phase to its last step, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        config: settings of a command that trains, in full.
        phase: the main one.
        params: what training begins with.
        warm_start: goes before.
    """
    steps = config.run.steps
    session = open_session(config, 0 if warm_start is None else config.run.warm_start_steps)
    panels = BY_COMMAND.get(config.command, PANELS)

    def summarize() -> dict[str, Any]:
        return summary(session, heading(config), steps)

    def draw(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
        draw_curves(path, metrics, title(config), panels)

    with session.running(summarize, draw) as stop:
        run_phases(session, phase, Plan(steps, config.run.eval_every), params, stop, warm_start)
    say(report(session, steps))
    return session.directory
