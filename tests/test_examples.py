"""The examples run as they are, on public names alone."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {
        "dpo_pairs",
        "grpo_addition",
        "ppo_cartpole",
        "ppo_rlhf",
        "trpo_pendulum",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_stays_on_the_public_face(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    tree = ast.parse(text)
    imported = {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module or "")])
    }
    assert imported <= {"sys", "time", "jax", "jax.numpy", "matplotlib.pyplot", "optax", "rlax_llm"}
    attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    private = [name for name in attributes if name.startswith("_") and name != "_replace"]
    assert not private


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_comes_with_its_curve(path):
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"python examples/{path.name}" in page
    assert f"(curves/{path.stem}.png)" in page
    assert 1000 < (path.parent / "curves" / f"{path.stem}.png").stat().st_size < 60_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_draws_its_curve(path, tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir)}
    environment = os.environ | cache | {"MPLBACKEND": "Agg"}
    command = [sys.executable, str(path), "--quick"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (tmp_path / f"{path.stem}.png").stat().st_size > 1000
