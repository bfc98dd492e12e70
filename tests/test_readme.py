"""The README's library example runs as it stands, on a small model in the place of the named one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import rlax_llm
from rlax_llm.train.configs import GrpoConfig
from rlax_llm.train.setup import build_model

README = Path(__file__).parent.parent / "README.md"


def test_the_library_example_runs(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setattr(rlax_llm, "load_model", lambda name: build_model(GrpoConfig()), raising=False)
    scores = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    names = {"questions": ["1+2=", "12+34=", "5+5="], "scores": scores}
    exec(compile(example, str(README), "exec"), names)
    completions, metrics = names["completions"], names["metrics"]
    assert completions.mask.sum(-1).min() >= 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert int(names["state"].step) == 1
