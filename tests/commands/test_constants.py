"""Weights are arguments of a command's programs, and no constants in them, which are compiled and kept once more."""

from __future__ import annotations

import json
import warnings

import jax
import pytest

from rlax_llm.commands.distill.run import run_distill
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.run import run_online
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.ppo.run import run_ppo
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.run import run_dpo, run_kto, run_reward
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.sft.run import run_sft
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.characters(ALPHABET + "\n")
CONFIG = DecoderConfig(TOKENIZER.vocab_size, 32, 64, 1, 2, 2, 16, max_positions=64)
ALL = {"batch_size": 4, "steps": 1, "max_new_tokens": 5, "max_prompt_tokens": 8, "eval_size": 4, "lora_rank": 2}
DRAWN = {"task": "arithmetic,largest=9", "group_size": 2}
COMMANDS = {
    "grpo": (run_grpo, GrpoSettings, DRAWN | {"kl_coef": 0.1}),
    "ppo": (run_ppo, PpoSettings, DRAWN),
    "online": (run_online, OnlineSettings, DRAWN | {"recipe": "nash_md"}),
    "distill": (run_distill, DistillSettings, DRAWN | {"recipe": "opd"}),
    "sft": (run_sft, SftSettings, {}),
    "dpo": (run_dpo, DpoSettings, {}),
    "kto": (run_kto, KtoSettings, {}),
    "reward": (run_reward, RewardSettings, {}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_weights_are_constants_of_a_program(name, tmp_path):
    """Of a run with adapters, whose base is the same at every step."""
    run, settings, own = COMMANDS[name]
    base, largest = tmp_path / "base", CONFIG.hidden_size * CONFIG.intermediate_size * 4
    write_model(base, CONFIG, init_decoder(CONFIG, jax.random.key(0)), TOKENIZER)
    own = own | {"teacher": str(base)} if name == "distill" else own
    before = jax.config.jax_captured_constants_warn_bytes
    jax.clear_caches()
    try:
        jax.config.update("jax_captured_constants_warn_bytes", largest)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run(settings.of(**ALL, **own, model=str(base), out=str(tmp_path / "run")))
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", before)
    captured = [str(one.message) for one in said if "constants were captured" in str(one.message)]
    assert not captured, json.dumps(captured)
