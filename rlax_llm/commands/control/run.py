"""The command ``control`` as a function of its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlax_llm.commands.control.endings import report, summary
from rlax_llm.commands.control.phase import ControlPhase
from rlax_llm.commands.control.program import build
from rlax_llm.commands.control.settings import ControlSettings
from rlax_llm.commands.doctor.run import advice
from rlax_llm.commands.sessions import open_session
from rlax_llm.commands.settings import as_dict
from rlax_llm.envs.rendering import DRAWINGS, GRIDS
from rlax_llm.host.control_curves import draw_control_curves
from rlax_llm.host.progress import say
from rlax_llm.host.run import Plan, run_phases
from rlax_llm.host.run_directory import RunDirectory, writing
from rlax_llm.loops.seeds import cores_as_devices


def run_control(config: ControlSettings) -> RunDirectory:
    """Train over seeds in one program, evaluate greedily, and leave a run directory.

    A signal ends the run after its chunk; an error ends it too. What was done so far is written in either case.

    Args:
        config: the settings; those left open are the recipe's and the environment's own.

    Returns:
        The run directory.

    Raises:
        ImportError: where the environment's package is missing.
        ValueError: for settings that cannot work, and a run that leaves the finite numbers, in a sentence.
    """
    run, env, recipe = config.run, config.environment.env, config.objective.recipe
    cores_as_devices(run.seeds)
    program = build(config)
    if run.render and env not in (*DRAWINGS, *GRIDS):
        raise ValueError(f"control: cannot render {env}; leave render out, or take one of {[*DRAWINGS, *GRIDS]}.")
    phase = ControlPhase(f"{recipe} · {env}", program, run)
    session = open_session(config)
    greedy: dict[str, Any] = {}

    def summarize() -> dict[str, Any]:
        return summary(session, phase, {"command": "control", "env": env, "recipe": recipe}, greedy)

    def draw(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
        draw_control_curves(path, metrics, f"control · {recipe} · {env} · {run.seeds} seeds")

    with session.running(summarize, draw) as stop:
        if not session.resumed:
            _write_json(session.directory.path / "config.json", as_dict(config))
        # Greedy episodes are drawn at the end alone: a program of their own has to be compiled for them.
        run_phases(session, phase, Plan(program.iterations, eval_every=None), None, stop)
        if run.eval_steps and not stop():
            greedy |= phase.evaluate(session.state).metrics
        if greedy and run.render:
            best = int(np.argmax(greedy["greedy_return_seeds"]))
            phase.render(session.state, best, env, session.directory.path / "episode.gif")
    say("\n".join([report(session, summarize()), *advice(session.directory.path)]))
    return session.directory


def _write_json(path: Path, settings: Mapping[str, Any]) -> None:
    with writing(path):
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
