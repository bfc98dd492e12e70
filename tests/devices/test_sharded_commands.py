"""Commands on eight devices leave what they leave on one."""

from __future__ import annotations

import json

import jax
import pytest

from rlax_llm.commands import machine
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.ppo.run import run_ppo
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.run import run_dpo
from rlax_llm.commands.preference.settings import DpoSettings
from tests.devices.run_records import check_same

SHARED = {"steps": 2, "batch_size": 8, "eval_size": 5, "eval_every": 1, "learning_rate": 1e-4, "optimizer": "sgd"}
SAMPLED = SHARED | {"max_new_tokens": 3, "max_prompt_tokens": 16, "warm_start_steps": 1}
GROUPS = {"group_size": 4}
REWARD = """def different_characters(prompts, completions, **columns):
    return [float(len(set(completion))) for completion in completions]
"""
RUNS = {
    "grpo": (
        run_grpo,
        GrpoSettings,
        SAMPLED | {"group_size": 4, "kl_coef": 0.1, "lora_rank": 2, "micro_batch_size": 16},
    ),
    "ppo": (run_ppo, PpoSettings, SAMPLED | {"epochs": 2, "warm_start_steps": 0}),
    "dpo": (run_dpo, DpoSettings, SHARED),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_on_one_device_and_on_eight(name, tmp_path, monkeypatch):
    run, settings, given = RUNS[name]
    if name != "dpo":  # scores that differ, whatever is drawn: those of right answers would all be 0
        (tmp_path / "own.py").write_text(REWARD)
        given = given | {"reward": f"{tmp_path / 'own.py'}:different_characters"}
    devices = jax.devices()
    monkeypatch.setattr(machine.jax, "devices", lambda: devices[:1])
    alone = run(settings.of(**given, out=str(tmp_path / "alone"))).path
    monkeypatch.undo()
    shared = run(settings.of(**given, out=str(tmp_path / "shared"), mesh="data=2,fsdp=2,tensor=2")).path
    check_same(shared, alone)
    if name != "dpo":
        told = [(path / "completions.jsonl").read_text() for path in (shared, alone)]
        assert [json.loads(x)["completion"] for x in told[0].splitlines()] == [
            json.loads(x)["completion"] for x in told[1].splitlines()
        ]


def test_what_devices_do_not_divide_is_said(capsys):
    def run(**given: object) -> None:
        run_grpo(GrpoSettings.of(**SAMPLED | GROUPS | given))

    with pytest.raises(ValueError, match=r"grpo: mesh: data 2 . fsdp 2 is 4 devices, and there are 8; give sizes"):
        run(mesh="data=2,fsdp=2")
    with pytest.raises(ValueError, match=r"mesh data=8 has 8 devices along data and fsdp, .* the 12 and 128 rows"):
        run(mesh="data=8", batch_size=3)
    with pytest.raises(ValueError, match=r"grpo: mesh has tensor=8, which does not divide the 4 query heads"):
        run(mesh="tensor=8")
    with pytest.raises(ValueError, match="axis 'tensr' is unknown; did you mean 'tensor'"):
        GrpoSettings.of(mesh="tensr=8")
    with machine.meshed("sft", GrpoSettings.of().machine, (12,)):
        assert "sft: 4 of 8 devices are used, which divide the 12 rows" in capsys.readouterr().out
        assert jax.sharding.get_mesh().size == 4
