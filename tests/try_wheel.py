"""The wheel as a user has it: installed into an empty environment, used outside the repository.

python tests/try_wheel.py dist/*.whl                       # with each supported Python that is here
python tests/try_wheel.py dist/*.whl --pythons python3.13
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")

LIBRARY = """
import jax.numpy as jnp
import rlax_llm as rl
print(rl.__file__)
assert jnp.allclose(rl.centered(jnp.array([0.0, 1.0])), jnp.array([-0.5, 0.5]))
assert rl.dapo().kl is None
"""

COMMANDS = (
    ["--version"],
    ["grpo", "--help"],
    ["completion", "bash"],
    ["grpo", "--steps", "2", "--warm-start-steps", "5", "--eval-size", "8", "--out", "run"],
    ["eval", "--model", "run/model", "--task", "arithmetic", "--size", "8"],
    ["control", "--steps", "2000", "--seeds", "2", "--out", "control"],
)


def pythons() -> list[str]:
    """Interpreters of the supported versions, on the path or kept by pyenv, one of each version."""
    found: dict[str, str] = {}
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in SUPPORTED:
        places = [shutil.which(f"python{version}"), *map(str, kept.glob(f"{version}*/bin/python{version}"))]
        working = [place for place in places if place and _answers(place, version)]
        if working:
            found[version] = working[0]
    return list(found.values())


def _answers(python: str, version: str) -> bool:
    done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.startswith(f"Python {version}.")


def try_with(python: str, wheel: Path) -> None:
    """Install the wheel for one interpreter and use it.

    Raises:
        SystemExit: something did not work; what was said stands above.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "environment"
        _done([python, "-m", "venv", str(inside)], folder)
        own = inside / "bin" / "python"
        _done([str(own), "-m", "pip", "install", "--quiet", str(wheel)], folder)
        where = _done([str(own), "-c", LIBRARY], folder).strip()
        if not where.startswith(folder):
            raise SystemExit(f"{python}: rlax_llm came from {where}, not from the wheel.")
        for words in COMMANDS:
            _done([str(inside / "bin" / "rlax-llm"), *words], folder)
        if not (Path(folder) / "run" / "model" / "model.safetensors").exists():
            raise SystemExit(f"{python}: the run has left no model.")
        jax = _done([str(own), "-c", "import jax; print(jax.__version__)"], folder).strip()
    print(f"{wheel.name} works with {python}, jax {jax} ({time.perf_counter() - began:.0f} s)", flush=True)


def _done(command: list[str], folder: str) -> str:
    """What a command printed; without the repository on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"RLAX_LLM_CACHE": f"{folder}/cache"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Try the wheel with each interpreter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pythons", nargs="+", help="interpreters (default: each supported one that is here)")
    args = parser.parse_args()
    chosen = args.pythons or pythons()
    if not chosen:
        sys.exit(f"There is no Python of {', '.join(SUPPORTED)} here.")
    for python in chosen:
        try_with(python, args.wheel.resolve())


if __name__ == "__main__":
    main()
