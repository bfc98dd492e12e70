"""The notebooks of the documentation run, at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
SMALL = {"WARM_STEPS": 2, "STEPS": 12, "SEEDS": 2, "UPDATES": 5}
"""What the first cell of a notebook sets, for a run that takes seconds."""


def code(notebook: Path) -> list[str]:
    """The code of a notebook, a text for each cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, monkeypatch):
    monkeypatch.setattr(plt, "show", plt.close)
    names = {"__name__": notebook.stem}
    first, *rest = code(notebook)
    exec(compile(first, str(notebook), "exec"), names)
    assert names["ACCELERATOR"] is None
    names |= {name: value for name, value in SMALL.items() if name in names}
    for cell in rest:
        exec(compile(cell, str(notebook), "exec"), names)


def test_there_are_four_and_each_shows_what_it_put_out():
    assert len(NOTEBOOKS) == 4
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
        assert all(output["output_type"] != "error" for cell in cells for output in cell.get("outputs", ()))
