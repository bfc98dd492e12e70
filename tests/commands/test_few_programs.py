"""A whole run on ragged prompts compiles few programs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from rlax_llm.cli import compilation_cache
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.generation import ladders
from rlax_llm.host.compiled import Compiled, compiled

OURS = (
    "prefill",
    "prefill_and_decode",
    "prefill_behind",
    "read_again",
    "decode",
    "move_and_decode",
    "generate_at_once",
    "speculate",
)
"""Those that run a model to draw."""

_KEEPING = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def compiled_by(path, **given) -> Compiled:
    """All that a run compiles or reads: model, optimizer, rollout, reference, update, evaluation and records."""
    random = np.random.default_rng(0)
    path.mkdir(exist_ok=True)
    rows = [{"prompt": "1+" * int(n) + "1=", "answer": "2"} for n in random.integers(1, 44, 64)]
    (path / "ragged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = GrpoSettings.of(
        data=str(path / "ragged.jsonl"),
        reward="exact_answer",
        batch_size=8,
        group_size=5,
        eval_size=21,
        max_new_tokens=37,
        max_prompt_tokens=91,
        kl_coef=0.01,
        logit_bias="1=2",  # the stop token, which comes often
        warm_start_steps=0,
        save_every=0,
        out=str(path / "run"),
        **given,
    )
    jax.clear_caches()  # each run counts alone, and writes all that it compiles to the disk
    before = compiled()
    run_grpo(settings)
    return compiled().since(before)


def programs_of(path, **given) -> Counter[str]:
    """Their names."""
    return compiled_by(path, **given).programs


@pytest.mark.parametrize(
    ("given", "most"), [({}, 6), ({"slots": 20, "speculate": "off"}, 10), ({"partial_rollouts": 4}, 12)]
)
def test_a_run_on_ragged_prompts_compiles_few_programs(tmp_path, given, most):
    found = programs_of(tmp_path, steps=4, eval_every=2, **given)
    assert sum(found.values()) <= most, found


def test_a_second_start_compiles_nothing(tmp_path, monkeypatch):
    """No program holds a key, a path or an array of the run: all are found in the cache on the disk."""
    given: Any = {"ahead": 1, "pattern": "[0-9]+", "speculate": "3"}
    keeping = {name: getattr(jax.config, name) for name in _KEEPING}
    try:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", keeping[_KEEPING[0]])
        monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
        compilation_cache.turn_on()
        compiled_by(tmp_path / "first", steps=2, eval_every=2, **given)
        again = compiled_by(tmp_path / "again", steps=2, eval_every=2, **given)
    finally:
        for name, value in keeping.items():
            jax.config.update(name, value)
    assert again.lines()[0].startswith("Nothing was compiled: "), again.programs - again.read


def test_rows_that_leave_take_few_programs(tmp_path, monkeypatch):
    """As where a generation is much work, with completions of a few tokens up to the limit."""
    monkeypatch.setattr(ladders, "LEAST", 0)
    monkeypatch.setattr(ladders, "FIRST_ROOM", 2)
    found = programs_of(tmp_path, steps=12, eval_every=6)
    assert found["move_and_decode"] >= 3, found  # rows left
    assert sum(found[name] for name in OURS) <= 7, found
    assert sum(found.values()) <= 12, found
