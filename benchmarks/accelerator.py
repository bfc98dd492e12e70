"""What one accelerator does with random weights: its ceilings, decoding, the learner, GRPO steps, control.

One JSON line per measurement, each with its share of the ceiling measured in the same run: decoding against the memory
that must be read per token, the learner against the matrix products that must be done. Of GRPO steps there is one of
ours alone and, where TRL is installed, one beside TRL's (``grpo_step.py``); whole control runs are those of
``control_ours.py``. A measurement that does not fit or fails says so in its line, and the others go on. Those that
would begin after ``--limit`` seconds are named in a last line. The order is that of importance.

    python accelerator.py
    python accelerator.py --small                   # the same measurements at their smallest, for a CPU
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import interleaved, parser, ready, report, seconds

from rlax_llm.commands.utilization import training_flops
from rlax_llm.core.chips import CHIPS
from rlax_llm.core.types import Completions, Groups
from rlax_llm.generation.engine import generate_at_once
from rlax_llm.generation.request import Request
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import group_loop
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.recipes.group import grpo

SHAPES = {
    "tiny": DecoderConfig(512, 64, 256, 2, 4, 2, 16),
    "smollm2-135m": DecoderConfig(49_152, 576, 1_536, 30, 9, 3, 64, max_positions=8_192),
    "qwen3-0.6b": DecoderConfig(151_936, 1_024, 3_072, 28, 16, 8, 128, qk_norm="head", max_positions=40_960),
    "qwen3-1.7b": DecoderConfig(151_936, 2_048, 6_144, 28, 16, 8, 128, qk_norm="head", max_positions=40_960),
}


class Case(NamedTuple):
    """One measurement of a model: its arithmetic, prompts, completions of each, and new tokens."""

    measure: str
    model: str
    dtype: str | None = "bfloat16"
    groups: int = 8
    group_size: int = 8
    new: int = 256


CASES = (
    Case("decode", "qwen3-0.6b"),
    Case("learner", "qwen3-0.6b", groups=1, group_size=4, new=8_192),
    Case("grpo_step", "qwen3-0.6b"),
    Case("decode", "qwen3-0.6b", groups=32),
    Case("decode", "qwen3-1.7b"),
    Case("learner", "qwen3-1.7b", groups=1, group_size=2, new=8_192),
    Case("decode", "qwen3-1.7b", groups=32),
    Case("learner", "qwen3-0.6b", new=1_024),
    Case("decode", "qwen3-0.6b", new=1_024),
    Case("grpo_step", "qwen3-0.6b", new=1_024),
    Case("decode", "smollm2-135m"),
    Case("learner", "smollm2-135m"),
    Case("grpo_step", "smollm2-135m"),
    Case("decode", "qwen3-0.6b", None),
    Case("learner", "qwen3-0.6b", None),
)
SMALL = tuple(Case(measure, "tiny", None, 2, 2, 16) for measure in ("decode", "learner", "grpo_step"))

AGAINST_TRL = (
    "--dtype bfloat16 --width 1024 --layers 16 --vocab 8192 --prompts 8 --prompt 128 --tokens 128 --block 1 --repeats 3"
)
SMALL_AGAINST_TRL = "--block 1 --repeats 1"
CONTROL = ("CartPole-v1", "Breakout-MinAtar")
HERE = Path(__file__).resolve().parent


def ceilings() -> dict[str, float]:
    """Copying (bytes read and written) and a bfloat16 product, the best of several calls."""
    inner = 8_192 if jax.default_backend() != "cpu" else 512
    block = jnp.ones((inner, inner, 8), jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    left = jax.random.normal(jax.random.key(0), (inner, inner), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    ready((copy(block), product(left)))
    copied = min(seconds(lambda: copy(block)) for _ in range(10))
    multiplied = min(seconds(lambda: product(left)) for _ in range(10))
    return {
        "copy_gb_per_second": 2 * block.nbytes / copied / 1e9,
        "bf16_tflops": 2 * inner**3 / multiplied / 1e12,
    }


def prompts(config: DecoderConfig, groups: int, width: int) -> tuple[jax.Array, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (groups, width))
    return jnp.asarray(tokens, jnp.int32), jnp.ones((groups, width), bool)


def completions(config: DecoderConfig, rows: int, prompt: int, new: int) -> Completions:
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (rows, prompt + new)).astype(np.int32)
    mask = np.broadcast_to(np.arange(prompt + new) >= prompt, tokens.shape)
    zeros = np.zeros(tokens.shape, np.float32)
    found = Completions(tokens, np.ones(tokens.shape, bool), mask, zeros, np.ones(rows, bool))
    return jax.tree.map(jnp.asarray, found)


def matrix_parameters(params: Any) -> int:
    """Weights that each token is multiplied with: all, the head counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def temporary_gigabytes(program: Any) -> dict[str, float]:
    found = program.memory_analysis()
    if found is None:
        return {}
    return {
        "temporary_gb": found.temp_size_in_bytes / 1e9,
        "argument_gb": found.argument_size_in_bytes / 1e9,
    }


def measure_decode(config: DecoderConfig, args: argparse.Namespace, new: int) -> dict[str, Any]:
    """Tokens per second of a whole generation, prompts included: in one program, and by caches that grow."""
    params = jax.jit(partial(init_decoder, config))(jax.random.key(0))
    request = Request(Categorical(), (), new, args.group_size)
    given = prompts(config, args.groups, args.prompt)
    sides: dict[str, Callable[[], Any]] = {
        "at_once": lambda: generate_at_once(config, params, given, jax.random.key(1), request),
        "doubling": lambda: generate(config, params, given, jax.random.key(1), request),
    }
    began = time.perf_counter()
    for side in sides.values():
        ready(side())
    compiled = time.perf_counter() - began
    taken = interleaved(sides, args.repeats, warm=False)
    rows = args.groups * args.group_size
    width = 2 if config.compute_dtype == "bfloat16" else 4
    keys_and_values = 2 * config.num_layers * config.num_kv_heads * config.head_dim * width
    per_step = matrix_parameters(params) * width + keys_and_values * (args.groups * args.prompt + rows * new / 2)
    return {
        "tokens_per_second": {name: rows * new / s for name, s in taken.items()},
        "milliseconds_per_token": {name: 1e3 * s / new for name, s in taken.items()},
        "compile_and_first_seconds": compiled,
        "read_gb_per_step": per_step / 1e9,
        "share_of_ceiling": {name: per_step / (s / new) / 1e9 / args.copy_speed for name, s in taken.items()},
    }


def measure_learner(config: DecoderConfig, args: argparse.Namespace, new: int) -> dict[str, Any]:
    """Tokens per second of forward and backward; flat rows count, though a group's prompt is computed once."""
    params = jax.jit(partial(init_decoder, config))(jax.random.key(0))
    batch = completions(config, args.groups * args.group_size, args.prompt, new)
    log_probs = group_log_probs(config, (args.group_size, args.prompt), remat=True)

    def loss(params):
        chosen, entropy = log_probs(params, batch)
        return -chosen.sum() / batch.mask.sum(), entropy.sum()

    began = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params).compile()
    compiled = time.perf_counter() - began
    taken = interleaved({"ours": lambda: program(params)}, args.repeats)["ours"]
    flops = training_flops(config, params, jax.device_get(batch), (args.group_size, args.prompt))
    chip = CHIPS.get(args.device)
    return {
        "tokens_per_second": batch.tokens.size / taken,
        "seconds": taken,
        "compile_seconds": compiled,
        "share_of_ceiling": flops / taken / 1e12 / args.matmul_speed,
        **({} if chip is None else {"mfu": flops / taken / chip.flops}),
        **temporary_gigabytes(program),
    }


def measure_step(config: DecoderConfig, args: argparse.Namespace, new: int) -> dict[str, Any]:
    """A whole GRPO step: sample, score on the device, learn, with AdamW; the sum of both parts apart."""
    params = jax.jit(partial(init_decoder, config))(jax.random.key(0))
    request = Request(Categorical(), (), new, args.group_size)
    given = prompts(config, args.groups, args.prompt)
    log_probs = group_log_probs(config, (args.group_size, args.prompt), remat=True)
    start, update = group_loop(log_probs, grpo(kl_coef=0.0), optax.adamw(1e-6))
    state = jax.jit(start)(params)
    del params

    def scored(drawn: Completions) -> jax.Array:
        even = (drawn.tokens % 2 == 0) & drawn.mask
        return even.sum(-1).reshape(args.groups, args.group_size).astype(jnp.float32)

    learn = jax.jit(lambda state, drawn: update(state, Groups(drawn, scored(drawn))), donate_argnums=0)
    drawn = ready(generate(config, state.params, given, jax.random.key(1), request))
    began = time.perf_counter()
    learn = learn.lower(state, drawn).compile()
    compiled = time.perf_counter() - began

    def step() -> None:
        nonlocal state
        fresh = generate(config, state.params, given, jax.random.key(int(state.step)), request)
        state, metrics = learn(state, fresh)
        ready(metrics)

    def learning() -> None:
        nonlocal state
        state, metrics = learn(state, drawn)
        ready(metrics)

    taken = interleaved({"step": step, "learn": learning}, args.repeats)
    rows = args.groups * args.group_size
    return {
        "seconds": taken,
        "new_tokens_per_second": rows * new / taken["step"],
        "sampling_share": 1 - taken["learn"] / taken["step"],
        "compile_seconds": compiled,
        **temporary_gigabytes(learn),
    }


MEASURES = {"decode": measure_decode, "learner": measure_learner, "grpo_step": measure_step}


def measure_case(case: Case, args: argparse.Namespace) -> None:
    """One line of a model's measurement."""
    config = dataclasses.replace(SHAPES[case.model], compute_dtype=case.dtype)
    own = argparse.Namespace(**vars(args) | {"groups": case.groups, "group_size": case.group_size})
    try:
        figures = MEASURES[case.measure](config, own, case.new)
    except Exception as error:  # out of memory, or what the compiler refuses: a finding, and no end
        figures = {"failed": f"{type(error).__name__}: {error}"[:300]}
    told = {"model": case.model, "compute_dtype": case.dtype or "float32", "new_tokens": case.new}
    shared = {"groups": case.groups, "group_size": case.group_size, "prompt": args.prompt}
    report(f"accelerator_{case.measure}", device=args.device, **told, **shared, **figures, **peak_gigabytes())
    jax.clear_caches()


def peak_gigabytes() -> dict[str, float]:
    """The most that the device held since this process began, where it says so."""
    found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {} if found is None else {"peak_gb": found / 1e9}


def measure_beside(name: str, script: str, options: str, args: argparse.Namespace) -> None:
    """The lines of another script, in a process of its own, with what this process leaves free of the device."""
    command = [sys.executable, str(HERE / script), *options.split()]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(
            command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=args.patience, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        failed = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        lines, failed = [], [f"more than {args.patience:.0f} seconds"]
    for line in lines:
        print(json.dumps(json.loads(line) | {"benchmark": f"accelerator_{name}", "device": args.device}), flush=True)
    for reason in failed:
        report(f"accelerator_{name}", device=args.device, command=f"{script} {options}", failed=reason[:300])


def measurements(args: argparse.Namespace) -> list[tuple[str, Callable[[], None]]]:
    """All, by what the last line calls them: models, then TRL's step beside ours, then control."""
    cases = SMALL if args.small else [case for case in CASES if case.model in args.models]
    found: list[tuple[str, Callable[[], None]]] = [
        (" ".join(map(str, case)), partial(measure_case, case, args)) for case in cases
    ]
    beside = []
    if importlib.util.find_spec("trl"):
        options = SMALL_AGAINST_TRL if args.small else AGAINST_TRL
        beside.append(("grpo_step_trl", "grpo_step.py", options))
    for environment in CONTROL:
        steps, seeds = (10_000, 1) if args.small else (500_000, 16)
        options = f"--environment {environment} --steps {steps} --seeds {seeds} --repeats 1"
        beside.append((f"control_{environment}", "control_ours.py", options))
    found += [(name, partial(measure_beside, name, script, options, args)) for name, script, options in beside]
    return found


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES), help="only these of the shapes")
    made.add_argument("--small", action="store_true", help="each measurement at its smallest")
    made.add_argument("--prompt", type=int, default=128, help="tokens")
    made.add_argument("--limit", type=float, default=400.0, help="seconds; what would begin later is left out")
    made.add_argument("--patience", type=float, default=150.0, help="seconds for a script beside this one")
    args = made.parse_args()
    began = time.perf_counter()
    args.device = jax.devices()[0].device_kind
    found = ceilings()
    args.copy_speed, args.matmul_speed = found["copy_gb_per_second"], found["bf16_tflops"]
    report("accelerator_ceilings", device=args.device, **found)
    left = []
    for name, measure in measurements(args):
        if time.perf_counter() - began > args.limit:
            left.append(name)
        else:
            measure()
    if left:
        report("accelerator_left_out", device=args.device, limit=args.limit, measurements=left)


if __name__ == "__main__":
    main()
