"""``--router-replay`` of small mixtures: a run and a resumed one, and ratios to a sampler that chose otherwise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from rlax_llm.commands.distill.run import run_distill
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.ppo.run import run_ppo
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.shared_settings import TrainedModelSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import load_model
from rlax_llm.models.tokenizer import Tokenizer

SMALL = {
    "task": "arithmetic,largest=9",
    "batch_size": 4,
    "max_prompt_tokens": 16,
    "max_new_tokens": 8,
    "eval_every": 0,
    "eval_size": 4,
    "router_replay": True,
}


def written(path, experts):
    """The path of a model over the characters of the arithmetic task."""
    tokenizer = Tokenizer.characters(ALPHABET)
    config = DecoderConfig(tokenizer.vocab_size, 32, 24, 2, 4, 2, 8, max_positions=64, experts=experts)
    write_model(path, config, init_decoder(config, jax.random.key(0)), tokenizer)
    return str(path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return written(tmp_path_factory.mktemp("mixture"), Experts(8, 2, 24))


def test_a_run_through_its_samplers_experts_resumes(mixture, tmp_path):
    settings = GrpoSettings.of(
        **SMALL,
        model=mixture,
        group_size=4,
        warm_start_steps=0,
        save_every=1,
        sampler_dtype="int8",
        micro_batch_size=2,
        kl_coef=0.1,
        steps=2,
        schedule="constant",
    )

    def rows(**given):
        return [row for row in run_grpo(settings.changed(**given)).metrics() if row["step"] > 0]

    whole = rows(out=str(tmp_path / "whole"))
    assert 0 < whole[0]["router/mismatch"] < 0.1 and abs(whole[0]["sampler/kl"]) < 0.1
    rows(out=str(tmp_path / "half"), steps=1)
    again = rows(resume=str(tmp_path / "half"))
    for name in ("reward", "policy_loss", "kl", "sampler/kl", "router/mismatch", "grad_norm"):
        assert [row[name] for row in again] == [row[name] for row in whole], name


def by_ppo(model, out):
    """How far the ratios of its first update are from 1, and the share of its experts that are not the router's."""
    given = {"warm_start_steps": 0, "epochs": 1, "kl_coef": 0.0, "model": model, "out": out, "steps": 1}
    row = run_ppo(PpoSettings.of(**SMALL, **given)).metrics()[-1]
    return abs(row["val/ratio"] - 1) + row["val/ratio_var"], row["router/mismatch"]


def by_distillation(model, out):
    """The same of the student's own tokens; all of MiniLLM's loss is read, a divergence and a ratio."""
    given = {"recipe": "minillm", "teacher": model, "model": model, "out": out, "steps": 1}
    row = run_distill(DistillSettings.of(**SMALL, **given)).metrics()[-1]
    return row["kl_old"], row["router/mismatch"]


@pytest.mark.parametrize("command", [by_ppo, by_distillation])
def test_ratios_are_one_where_a_sampler_chose_other_experts(command, tmp_path, monkeypatch):
    """One expert of weight 1, so that a router decides on nothing but who it is; the sampler has another router."""
    own = Learner.sampled

    def other(self, *given):
        found = own(self, *given)
        return found | {"layers": found["layers"] | {"router": jnp.roll(found["layers"]["router"], 1, -1)}}

    monkeypatch.setattr(Learner, "sampled", other)
    model = written(tmp_path / "model", Experts(8, 1, 24))
    off, mismatch = command(model, str(tmp_path / "run"))
    assert off < 1e-5 and mismatch > 0.5


def test_adapters_of_experts_are_refused_by_the_setting(mixture, tmp_path):
    given = {"model": mixture, "task": "arithmetic", "max_new_tokens": 8, "max_prompt_tokens": 16}
    settings = GrpoSettings.of(**given, lora_rank=2, lora_targets="q,gate")
    with pytest.raises(ValueError, match=r"^lora_targets names 'gate', .*; name q, k, v or o"):
        run_grpo(settings.changed(out=str(tmp_path / "run")))
    every = TrainedModelSettings(model=mixture, remat=False, lora_alpha=4.0, lora_rank=2, base_dtype="float32")
    learner = language_learner(every, load_model(mixture), 0)
    assert learner.config.adapter_shapes["layers"].keys() == {f"{name}_lora_{part}" for name in "qkvo" for part in "ab"}
