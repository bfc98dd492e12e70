"""Whole training runs on control tasks against PureJaxRL, rejax, Stoix, stable-baselines3 and sb3-contrib's TRPO.

    python control.py --seeds 1 8 64 \\
        --peer "purejaxrl=/envs/jax/bin/python --purejaxrl /src/purejaxrl" --peer rejax=/envs/jax/bin/python \\
        --peer "stoix=/envs/stoix/bin/python --stoix /src/stoix" \\
        --peer sb3_ppo=/envs/sb3/bin/python --peer sb3_trpo=/envs/sb3/bin/python [--ours "--recipe trpo"]

Each side runs in a process, and each peer in a virtual environment, of its own, one after the other; the order turns
with every repeat, and every repeat compiles anew. What a peer's environment needs, what is changed to run it, its
settings and what its ``return`` is stand at the head of its ``peers/run_….py``.

One JSON line for each environment and number of seeds, medians over the repeats: environment steps per second after
compilation, seconds to trace and to compile, peak memory, returns; and ``ours_over``, ours divided by each peer's, of
steps/s and of the seconds before the first step. A peer that is not given, or that fails, is null, and ``sides`` says
why. sb3 trains seeds one after another: it runs at most ``--sequential-seeds`` of them; ``seeds_run`` says how many.

On an accelerator set ``XLA_PYTHON_CLIENT_PREALLOCATE=false``: this process holds the device beside the one it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import parser, report

HERE = Path(__file__).resolve().parent
PEERS = {
    "purejaxrl": ["run_purejaxrl.py"],
    "rejax": ["run_rejax.py"],
    "stoix": ["run_stoix.py"],
    "sb3_ppo": ["run_sb3.py", "--algorithm", "ppo"],
    "sb3_trpo": ["run_sb3.py", "--algorithm", "trpo"],
}
SEQUENTIAL = ("sb3_ppo", "sb3_trpo")
TIMES = ("steps_per_second", "trace_seconds", "compile_seconds", "peak_megabytes")
RETURNS = ("return_mean", "return_std", "greedy_mean", "greedy_std")


def peer(text: str) -> tuple[str, list[str]]:
    """``NAME=PYTHON [ARGUMENTS]`` → the name and the command that runs it."""
    name, _, command = text.partition("=")
    words = shlex.split(command)
    if name not in PEERS or not words:
        expected = "NAME=PYTHON [ARGUMENTS] with NAME one of " + ", ".join(PEERS)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    if not os.access(words[0], os.X_OK) or not Path(words[0]).is_file():
        raise argparse.ArgumentTypeError(f"{words[0]} is no program; give the python of {name}'s virtual environment")
    script, *fixed = PEERS[name]
    return name, [words[0], str(HERE / "peers" / script), *fixed, *words[1:]]


def ours(text: str) -> list[str]:
    return [sys.executable, str(HERE / "control_ours.py"), *shlex.split(text)]


def run(command: list[str], seconds: float) -> dict[str, Any] | str:
    """The last line that a side printed, or one sentence about why there is none."""
    # A cache of compiled programs would make every compilation but the first one free.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"failed: took more than {seconds:.0f} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reasons = done.stderr.strip().splitlines()
        return f"failed: {reasons[-1] if reasons else f'exit status {done.returncode}, nothing printed'}"
    try:
        return json.loads(lines[-1])
    except json.JSONDecodeError:
        return f"failed: its last line is no JSON: {lines[-1][:80]!r}"


def rounds(commands: Mapping[str, list[str]], repeats: int, seconds: float) -> dict[str, dict[str, Any] | str]:
    """Every side's figures: A B C, C B A, …; a side that fails once is not run again. Times are medians."""
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    failures: dict[str, str] = {}
    for repeat in range(repeats):
        for name in list(commands)[:: -1 if repeat % 2 else 1]:
            if name in failures:
                continue
            line = run([*commands[name], "--repeats", "1"], seconds)
            if isinstance(line, str):
                failures[name] = line
            else:
                lines[name].append(line)
    medians = {
        name: found[-1] | {key: statistics.median(line[key] for line in found) for key in TIMES}
        for name, found in lines.items()
        if name not in failures
    }
    return failures | medians


def ratios(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float | None]:
    """Ours over theirs; None where theirs is 0 (nothing is compiled)."""

    def before(line: Mapping[str, Any]) -> float:
        return line["trace_seconds"] + line["compile_seconds"]

    quotients = {"steps_per_second": (mine["steps_per_second"], theirs["steps_per_second"])}
    if theirs["compile_seconds"]:
        quotients["trace_and_compile_seconds"] = before(mine), before(theirs)
        quotients["compile_seconds"] = mine["compile_seconds"], theirs["compile_seconds"]
    return {name: a / b if b else None for name, (a, b) in quotients.items()}


def configuration(args: argparse.Namespace, environment: str, seeds: int) -> None:
    """Measure every side of one configuration and print its line."""
    commands = ({} if args.only_peers else {"ours": args.ours}) | dict(args.peer)
    for name, command in commands.items():
        count = min(seeds, args.sequential_seeds) if name in SEQUENTIAL else seeds
        shared = ["--environment", environment, "--seeds", str(count), "--steps", str(args.steps)]
        commands[name] = [*command, *shared]
    found = rounds(commands, args.repeats, args.timeout)
    names = ["ours", *PEERS]
    measured = {name: line for name, line in found.items() if not isinstance(line, str)}
    sides = {name: "measured" if name in measured else found.get(name, "not given") for name in names}
    keys = (*TIMES, *RETURNS, "seeds", "steps", "settings", "library")
    figures = {key: {name: measured.get(name, {}).get(key) for name in names} for key in keys}
    over = {
        name: ratios(measured["ours"], measured[name]) if {"ours", name} <= set(measured) else None for name in PEERS
    }
    taken = {"seeds_run": figures.pop("seeds"), "steps_run": figures.pop("steps")}
    report("control", environment=environment, seeds=seeds, sides=sides, **figures, **taken, ours_over=over)


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--peer", type=peer, action="append", default=[], metavar="NAME=PYTHON [ARGUMENTS]")
    made.add_argument("--ours", type=ours, default=ours(""), help="arguments more for control_ours.py")
    made.add_argument("--only-peers", action="store_true", help="for returns that stand beside a run of ours")
    made.add_argument("--environments", nargs="+", default=["CartPole-v1", "Pendulum-v1"])
    made.add_argument("--seeds", type=int, nargs="+", default=[1, 8, 64])
    made.add_argument("--steps", type=int, default=100_000, help="environment steps of each run")
    made.add_argument("--sequential-seeds", type=int, default=1, help="most seeds that sb3 trains")
    made.add_argument("--timeout", type=float, default=3600, help="seconds that one process may take")
    args = made.parse_args()
    for environment in args.environments:
        for seeds in args.seeds:
            configuration(args, environment, seeds)


if __name__ == "__main__":
    main()
