"""The README's library examples run as they stand, on a small model in the place of the named one."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jax
import numpy as np
import optax

import rlax_llm
from rlax_llm.commands.grpo.settings import TRPO, GrpoSettings
from rlax_llm.commands.setup import build_model
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.recipes.registry import recipes

README = Path(__file__).parent.parent / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run(example: str, names: dict) -> dict:
    exec(compile(example, str(README), "exec"), names)
    return names


def test_the_language_model_example_runs(monkeypatch):
    monkeypatch.setattr(
        rlax_llm, "load_model", lambda name: build_model("grpo", GrpoSettings.of().model, 0), raising=False
    )
    scores = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    names = run(EXAMPLES[0], {"questions": ["1+2=", "12+34=", "5+5="], "scores": scores})
    completions, metrics = names["completions"], names["metrics"]
    assert completions.mask.sum(-1).min() >= 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert int(names["state"].step) == 1


def test_the_one_program_example_runs():
    config = DecoderConfig(5, 16, 32, 1, 2, 2, 8)
    names = {
        "jax": jax,
        "optax": optax,
        "rl": rlax_llm,
        "config": config,
        "params": decoder.init_decoder(config, jax.random.key(0)),
        "prompts": rlax_llm.Prompts(np.arange(5)[:, None], np.ones((5, 1), bool), np.arange(5)),
        "reward": lambda completions, wanted: (completions.tokens[:, 1:] == wanted[:, None]).mean(-1),
        "request": rlax_llm.Request(rlax_llm.Categorical(), (), 3, 4),
        "log_probs": rlax_llm.group_log_probs(config, (4, 1)),
        "steps": 2,
        "keys": jax.random.split(jax.random.key(1), 2),
        "learning_rates": np.array([1e-3, 1e-2], np.float32),
    }
    rewards = run(EXAMPLES[1], names)["rewards"]
    assert rewards.shape == (2, 2) and np.isfinite(rewards).all()


def test_the_control_example_runs():
    keys, rates = jax.random.split(jax.random.key(0), 3), np.array([1e-3, 1e-2], np.float32)
    names = {"jax": jax, "optax": optax, "rl": rlax_llm, "keys": keys, "learning_rates": rates, "iterations": 2}
    returns = run(EXAMPLES[2], names)["returns"]
    assert returns.shape == (3, 2, 2)
    assert (returns > 5).all()
    assert len(EXAMPLES) == 3


def test_the_example_of_a_mesh_runs_on_the_devices_that_are_here():
    page = README.parent / "docs" / "scaling.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = run(example, {})
    assert int(names["state"].step) == 1
    assert np.isfinite(names["metrics"]["grad_norm"]) and names["metrics"]["grad_norm"] > 0


def named_in(text: str) -> set[str]:
    return set(re.findall(r"`([\w]+)`", text))


def test_every_recipe_and_every_extra_is_named():
    readme = README.read_text(encoding="utf-8")
    listed = re.search(r"\*\*Recipes\*\* of.*?\n\n", readme, re.DOTALL)
    assert listed is not None
    own = {name for name in recipes("group") if ":" not in name}
    assert own | {TRPO} <= named_in(listed[0])
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"]) - {"experiments", "dev", "docs", "parity"}
    install = (README.parent / "docs" / "installation.md").read_text(encoding="utf-8")
    assert extras <= named_in(install)
    assert extras - {"tasks"} <= named_in(readme)
