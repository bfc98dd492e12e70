"""``grpo --router-replay`` of a small mixture: what a run tells, and a resumed one."""

from __future__ import annotations

import jax
import pytest

from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.shared_settings import TrainedModelSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models.config import DecoderConfig, Experts
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import load_model
from rlax_llm.models.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The path of a model over the characters of the arithmetic task."""
    path, tokenizer = tmp_path_factory.mktemp("mixture"), Tokenizer.characters(ALPHABET)
    config = DecoderConfig(tokenizer.vocab_size, 32, 24, 2, 4, 2, 8, max_positions=64, experts=Experts(8, 2, 24))
    write_model(path, config, init_decoder(config, jax.random.key(0)), tokenizer)
    return str(path)


def test_a_run_through_its_samplers_experts_resumes(mixture, tmp_path):
    settings = GrpoSettings.of(
        model=mixture,
        task="arithmetic,largest=9",
        batch_size=4,
        group_size=4,
        warm_start_steps=0,
        max_prompt_tokens=16,
        max_new_tokens=8,
        eval_every=0,
        eval_size=4,
        save_every=1,
        sampler_dtype="int8",
        micro_batch_size=2,
        kl_coef=0.1,
        router_replay=True,
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


def test_adapters_of_experts_are_refused_by_the_setting(mixture, tmp_path):
    given = {"model": mixture, "task": "arithmetic", "max_new_tokens": 8, "max_prompt_tokens": 16}
    settings = GrpoSettings.of(**given, lora_rank=2, lora_targets="q,gate")
    with pytest.raises(ValueError, match=r"^lora_targets names 'gate', .*; name q, k, v or o"):
        run_grpo(settings.changed(out=str(tmp_path / "run")))
    every = TrainedModelSettings(model=mixture, remat=False, lora_alpha=4.0, lora_rank=2, base_dtype="float32")
    learner = language_learner(every, load_model(mixture), 0)
    assert learner.config.adapter_shapes["layers"].keys() == {f"{name}_lora_{part}" for name in "qkvo" for part in "ab"}
