"""What two runs left: their metrics without clocks, and their models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

TOLERANCE = 1e-5
CLOCKS = ("seconds", "per_second", "mfu", "peak_memory")


def numbers(directory: Path) -> list[dict[str, float]]:
    """The lines of metrics, without what the machine's speed decides."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: x for name, x in line.items() if isinstance(x, float) and not any(clock in name for clock in CLOCKS)}
        for line in lines
    ]


def check_same(mine: Path, theirs: Path) -> None:
    """Assert that two runs measured the same and left the same model."""
    for got, wanted in zip(numbers(mine), numbers(theirs), strict=True):
        assert got == pytest.approx(wanted, rel=TOLERANCE, abs=TOLERANCE)
    weights, others = (load_file(path / "model" / "model.safetensors") for path in (mine, theirs))
    assert weights.keys() == others.keys()
    for name, values in weights.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=TOLERANCE)
