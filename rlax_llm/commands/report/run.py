"""The command ``report`` as a function of its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlax_llm.commands.report.reading import read_run
from rlax_llm.commands.report.settings import ReportSettings
from rlax_llm.core.processes import is_first
from rlax_llm.host import control_curves, curves
from rlax_llm.host.curves import Panel
from rlax_llm.host.run_directory import RunDirectory, write_at_once, writing
from rlax_llm.host.several_runs import runs_among

_HERE = Path(__file__).parent


def run_report(settings: ReportSettings) -> Path:
    """Write the page.

    Args:
        settings: of the command.

    Returns:
        Where it is.

    Raises:
        FileNotFoundError: a directory holds no run.
        ValueError: a file of a run is damaged, or a run is given twice.
    """
    given = settings.report.runs
    twice = next((path for path in given if given.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"report: {twice} is given twice; give each run once.")
    found = runs_among(given)
    page = made_page([read_run(run, name) for run, name in zip(found, _names(found), strict=True)])
    path = Path(settings.report.out or found[0].path / "report.html")
    with writing(path):
        write_at_once(path, page)
    if is_first():
        print(f"{path} ({len(page.encode()) / 1e3:.0f} kB): open it in a browser")
    return path


def _names(runs: list[RunDirectory]) -> list[str]:
    """The directories' names; where two are the same, their whole paths."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.path) for run in runs]


def made_page(runs: list[dict[str, Any]]) -> str:
    """The page, with its style, its program and its data inside.

    Args:
        runs: as ``read_run`` gives them.
    """
    data = json.dumps(
        {"runs": runs, "panels": _panels(runs)},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    # Nothing in the data ends the element that it stands in.
    data = data.replace("<", "\\u003c")
    # Half of a surrogate pair, which a completion may hold, has no UTF-8; as JSON's escape it is only characters.
    data = data.encode("utf-8", "backslashreplace").decode("utf-8")
    page = _without_margins((_HERE / "page.html").read_text(encoding="utf-8"))
    for name, text in (("page.css", None), ("page.js", None), ("data", data)):
        text = text if text is not None else _without_margins((_HERE / name).read_text(encoding="utf-8"))
        page = page.replace(f"{{{{{name}}}}}", text, 1)
    return page


def _without_margins(program: str) -> str:
    """Without what only its authors read: margins, and lines of comment."""
    lines = (line.strip() for line in program.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


def _panels(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, str]]]:
    """By command the titles and units of the quantities that stand first on the page.

    What the figure of a command does not show is called as in those of other commands, but for control, whose
    quantities are others under the same names.
    """
    figures = {"control": control_curves.PANELS} | curves.BY_COMMAND
    language = (*curves.PANELS, *(panel for panels in curves.BY_COMMAND.values() for panel in panels))
    commands = {run["settings"].get("command", "") for run in runs}
    measured = {name for run in runs for name in run["curves"]}
    return {
        command: _named(measured, (*figures.get(command, ()), *(() if command == "control" else language)))
        for command in sorted(commands)
    }


def _named(keys: set[str], panels: Sequence[Panel]) -> dict[str, dict[str, str]]:
    """Of each key what the first of its panels says."""
    return {panel.key: {"title": panel.title, "unit": panel.unit} for panel in reversed(panels) if panel.key in keys}
