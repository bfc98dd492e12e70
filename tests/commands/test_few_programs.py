"""A whole run on ragged prompts compiles few programs."""

from __future__ import annotations

import json

import numpy as np

from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.generation import engine, rollout
from rlax_llm.host.compiled import compiled

OURS = ("prefill", "prefill_behind", "decode", "speculate", "update", "lambda", "reference", "scores")
"""Those that run a model: rollout, reference, update, evaluation, and what is recorded; others only move arrays."""


def test_a_run_on_ragged_prompts_compiles_at_most_twelve_programs(tmp_path, monkeypatch):
    """With rows that leave, as where a generation is much work, and completions of a few tokens up to the limit."""
    monkeypatch.setattr(rollout, "LEAST", 0)
    monkeypatch.setattr(engine, "FIRST_ROOM", 2)
    random = np.random.default_rng(0)
    rows = [{"prompt": "1+" * int(n) + "1=", "answer": "2"} for n in random.integers(1, 44, 64)]
    (tmp_path / "ragged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = GrpoSettings.of(
        data=str(tmp_path / "ragged.jsonl"),
        reward="exact_answer",
        batch_size=8,
        group_size=5,
        steps=12,
        eval_every=6,
        eval_size=21,
        max_new_tokens=37,
        max_prompt_tokens=91,
        kl_coef=0.01,
        logit_bias="1=2",  # the stop token, which comes often
        warm_start_steps=0,
        save_every=0,
    )
    before = compiled()
    run_grpo(config.changed(out=str(tmp_path / "first")))
    first = compiled().since(before).programs
    ours = {name: count for name, count in first.items() if name in OURS}
    assert {"prefill", "decode", "update"} <= set(ours)
    assert ours["decode"] >= 5, ours  # rows left
    assert sum(ours.values()) <= 12, ours
