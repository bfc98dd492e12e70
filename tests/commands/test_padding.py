"""A command that leaves the padding of completions out learns what it would with it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rlax_llm.commands import padding
from rlax_llm.commands.distill.run import run_distill
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.run import run_online
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.ppo.run import run_ppo
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.data.arithmetic import ALPHABET
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.characters(ALPHABET + "\n")
CONFIG = DecoderConfig(TOKENIZER.vocab_size, 16, 32, 1, 2, 2, 8, max_positions=64)
GIVEN = {
    "task": "arithmetic,largest=9",
    "batch_size": 4,
    "group_size": 2,
    "steps": 2,
    "max_new_tokens": 12,
    "max_prompt_tokens": 8,
}
GIVEN |= {"eval_every": 0, "eval_size": 4, "save_every": 0, "learning_rate": 1e-2, "schedule": "constant"}
COMMANDS = {
    "grpo": (run_grpo, GrpoSettings, {"kl_coef": 0.05, "reward": "format=[0-9]*"}),
    "ppo": (run_ppo, PpoSettings, {"reward": "format=[0-9]*"}),
    "online": (run_online, OnlineSettings, {"recipe": "nash_md", "reward": "format=[0-9]*"}),
    "online pairs": (run_online, OnlineSettings, {"recipe": "online_dpo", "reward": f"{__file__}:lengths"}),
    "distill": (run_distill, DistillSettings, {"recipe": "opd"}),
}


def lengths(completions, **_):
    """A reward that tells most pairs apart."""
    return [len(text) for text in completions]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "teacher")):
        write_model(place / name, CONFIG, init_decoder(CONFIG, jax.random.key(seed)), TOKENIZER)
    return place


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_without_padding_learns_what_it_would(name, models, tmp_path, monkeypatch):
    """Every step of it, to what sums in another order leave."""
    run, settings, own = COMMANDS[name]
    given = GIVEN | own | {"model": str(models / "student")}
    given |= {"teacher": str(models / "teacher")} if name == "distill" else {}
    wanted = run(settings.of(**given, out=str(tmp_path / "padded"))).metrics()
    monkeypatch.setattr(padding, "LEAST", 0)
    found = run(settings.of(**given, out=str(tmp_path / "without"))).metrics()
    norms, again = ([row["grad_norm"] for row in rows if row["step"]] for rows in (wanted, found))
    assert len(norms) == 2 and min(norms) > 0
    np.testing.assert_allclose(again, norms, rtol=1e-4)
