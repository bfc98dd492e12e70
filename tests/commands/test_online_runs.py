"""``rlax-llm online`` in whole: every recipe, a reward model for its judge, who is refused, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.run import run_online
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.preference.run import run_dpo
from rlax_llm.commands.preference.settings import DpoSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.huggingface import write_model, write_scalar
from rlax_llm.models.scalar import init_scalar, small_normal
from rlax_llm.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.characters(ALPHABET + "\n")
CONFIG = DecoderConfig(TOKENIZER.vocab_size, 16, 32, 1, 2, 2, 8, max_positions=64)
SMALL = {"batch_size": 4, "eval_size": 4, "eval_every": 0, "steps": 2, "max_new_tokens": 4, "max_prompt_tokens": 8}
ONLINE = SMALL | {"schedule": "constant", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A policy, and a reward model with its vocabulary."""
    place = tmp_path_factory.mktemp("models")
    params = decoder.init_decoder(CONFIG, jax.random.key(0))
    write_model(place / "policy", CONFIG, params, TOKENIZER)
    write_scalar(place / "judge", CONFIG, init_scalar(params, jax.random.key(1), small_normal), TOKENIZER)
    return place


def lines_of(directory) -> list[dict]:
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["step"]]


def run(models: Path, out: Path, **given) -> list[dict]:
    told = ONLINE | {"model": str(models / "policy"), "out": str(out), "reward_model": str(models / "judge")}
    return lines_of(run_online(OnlineSettings.of(**told | given)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"recipe": "online_dpo", "group_size": 4}, "frac_paired"),
        ({"recipe": "xpo", "alpha": 0.1, "group_size": 2, "micro_batch_size": 4}, "rivals/reward"),
        ({"recipe": "nash_md", "mixture": 0.5, "group_size": 2}, "rivals/reward"),
        ({"recipe": "a_star_po", "rivals": 2, "beta": 0.1}, "rivals/reward"),
        ({"recipe": "raft", "group_size": 4, "lora_rank": 2}, "reward_std"),
    ],
)
def test_every_recipe_with_a_reward_model(models, tmp_path, given, told):
    lines = run(models, tmp_path / "run", **given)
    assert len(lines) == 2
    assert all(line[told] is not None and line["grad_norm"] > 0 for line in lines)
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_a_run_goes_on_as_if_it_had_not_ended(models, tmp_path):
    """With a reference that has moved, and rivals of a mixture with it."""
    same = {"recipe": "nash_md", "reference_every": 1, "reference_mix": 0.5}
    whole = run(models, tmp_path / "whole", steps=3, **same)
    run(models, tmp_path / "part", steps=2, **same)
    told = ONLINE | same | {"model": str(models / "policy"), "reward_model": str(models / "judge")}
    settings = OnlineSettings.of(**told)
    found = lines_of(run_online(settings.changed(resume=str(tmp_path / "part"), steps=3)))
    for name in ("reward", "rivals/reward", "policy_loss", "kl", "grad_norm"):
        assert found[-1][name] == pytest.approx(whole[-1][name], rel=1e-5)
    assert whole[-1]["kl"] > 0


def test_groups_read_together_and_a_mixed_reference_in_grpo(models, tmp_path):
    told = SMALL | {"model": str(models / "policy"), "group_size": 4, "learning_rate": 1e-2, "warm_start_steps": 0}
    told |= {"reward_model": str(models / "judge")}
    gvpo = told | {"recipe": "gvpo", "beta": 0.5, "minibatches": 2, "epochs": 2}
    assert lines_of(run_grpo(GrpoSettings.of(**gvpo, out=str(tmp_path / "gvpo"))))[0]["grad_norm"] > 0
    moving = told | {"kl_coef": 0.1, "reference_every": 1, "steps": 3}
    still, half, copied = (
        lines_of(run_grpo(GrpoSettings.of(**moving | {"out": str(tmp_path / name)} | more)))[-1]["kl"]
        for name, more in (
            ("still", {"reference_every": 0}),
            ("half", {"reference_mix": 0.5}),
            ("copied", {}),
        )
    )
    assert still > half > copied
    with pytest.raises(ValueError, match="recipe gvpo reads several completions at once"):
        run_grpo(GrpoSettings.of(**told | {"recipe": "gvpo", "micro_batch_size": 2}))


def test_tpo_and_a_moving_reference_in_dpo(models, tmp_path):
    rows = [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a), "gold": f"{a + b}"}
        for a in range(1, 5)
        for b in range(1, 5)
    ]
    data = tmp_path / "triples.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    told = SMALL | {"model": str(models / "policy"), "eval_size": None}
    lines: list[dict] = []
    for name, given in {
        "file": {"recipe": "tpo", "data": str(data)},
        "sums": {"recipe": "tpo_length", "eval_size": 4},
        "moving": {"reference_every": 1, "reference_mix": 0.5, "eval_size": 4},
    }.items():
        lines = lines_of(run_dpo(DpoSettings.of(**told | given | {"out": str(tmp_path / name)})))
        assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    assert lines[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    data.write_text("\n".join(json.dumps({name: row[name] for name in row if name != "gold"}) for row in rows))
    with pytest.raises(ValueError, match="no column 'gold'"):
        run_dpo(DpoSettings.of(**told, recipe="tpo", data=str(data), out=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_size": 1}, "group_size is 1, and recipe online_dpo compares completions"),
        ({"rivals": 2}, "recipe online_dpo has no rivals"),
        ({"recipe": "xpo", "rivals": 2}, "rivals is 2, and recipe xpo wants one for each of the 1 completions"),
        ({"recipe": "nash_md", "rivals": 0}, "rivals is 0, and recipe nash_md compares with a rival's"),
        ({"recipe": "nash_md", "slots": 4}, "slots is given with recipe nash_md"),
        ({"recipe": "raft", "beta": 0.5}, "recipe raft has no beta; leave it out, or take one of online_dpo"),
        ({"recipe": "raft", "reference_every": 2}, "reference_every is 2 and nothing reads a reference"),
        ({"reference_mix": 0.5}, "reference_mix is given without reference_every"),
        ({"micro_batch_size": 3}, "micro_batch_size is 3, wanted an even divisor of the 8 completions"),
        ({"recipe": "onlin_dpo"}, "there is no recipe 'onlin_dpo'; did you mean 'online_dpo'"),
    ],
)
def test_what_is_refused(models, tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        run(models, tmp_path / "run", **given)
