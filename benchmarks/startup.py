"""Seconds from starting ``rlax-llm grpo`` to its first finished step, with an empty and a warm compilation cache.

Read from outside: the clock starts with the process and stops when the step's line appears in ``metrics.jsonl``; then
the process is killed. ``default`` begins with a supervised warm start, its first step is one of that; with
``default_groups`` that takes one step, and the first step of reinforcement learning counts, as with ``smollm2``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import parser, report

COMMAND = [sys.executable, "-c", "from rlax_llm.cli.main import main; main()", "grpo"]
# Options, and the metric that the line of the awaited step has.
RUNS = {
    "default": ([], "loss"),
    "default_groups": (["--warm-start-steps", "1"], "reward"),
    "smollm2": (["--model", "smollm2", "--task", "arithmetic-words"], "reward"),
}


def lines_of(file: Path) -> list[dict]:
    """Whole lines that the run has written so far."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1] if line.strip()]


def launch(options: list[str], awaited: str, cache: Path, folder: Path, limit: float) -> float:
    """Seconds until a line has the metric ``awaited``; the process ends then."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    log = folder.parent / f"{folder.name}.log"
    start = time.perf_counter()
    with log.open("w") as output:
        command = [*COMMAND, "--out", str(folder), *options]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        while True:
            now = time.perf_counter() - start
            if any(line.get(awaited) is not None for line in lines_of(folder / "metrics.jsonl")):
                return now
            if process.poll() is not None or now > limit:
                raise SystemExit(f"startup: no step after {now:.0f} s:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    made = parser(__doc__, repeats=2)
    made.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    made.add_argument("--options", default="", help="further options of rlax-llm grpo, in one string")
    made.add_argument("--limit", type=float, default=150.0, help="seconds to wait for a step")
    args = made.parse_args()
    for name in args.runs:
        options, awaited = RUNS[name]
        options = [*options, *args.options.split()]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            empty = launch(options, awaited, place / "cache", place / "empty", args.limit)
            warm = [
                launch(options, awaited, place / "cache", place / f"warm{i}", args.limit) for i in range(args.repeats)
            ]
            size = sum(file.stat().st_size for file in (place / "cache").rglob("*") if file.is_file())
        seconds = {"empty_cache": empty, "warm_cache": statistics.median(warm)}
        report("startup", run=name, awaited=awaited, seconds=seconds, cache_megabytes=size / 1e6)


if __name__ == "__main__":
    main()
