"""What one accelerator does with random weights: its ceilings, decoding, the learner and a GRPO step.

One JSON line per measurement, each with its share of the ceiling measured in the same run: decoding against the memory
that must be read per token, the learner and the step against the matrix products that must be done. A measurement that
does not fit or fails says so in its line, and the others go on. Those that would begin after ``--limit`` seconds are
named in a last line. Imports nothing of commands, files or tokenizers.

    python accelerator.py
    python accelerator.py --models tiny --completions 16 --limit 60
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import interleaved, parser, ready, report, seconds

from rlax_llm.core.types import Completions, Groups
from rlax_llm.generation.engine import Request, generate, generate_at_once
from rlax_llm.generation.sampling import Categorical
from rlax_llm.loops.group import group_loop
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.recipes.group import grpo

SHAPES = {
    "tiny": DecoderConfig(512, 64, 256, 2, 4, 2, 16),
    "smollm2-135m": DecoderConfig(49_152, 576, 1_536, 30, 9, 3, 64, max_positions=8_192),
    "qwen3-0.6b": DecoderConfig(151_936, 1_024, 3_072, 28, 16, 8, 128, qk_norm=True, max_positions=40_960),
}


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
    """Tokens per second of a whole generation, prompts included: in one program, and by doubling caches."""
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
    computed = args.groups * args.prompt + args.groups * args.group_size * new
    flops = 6 * matrix_parameters(params) * computed
    return {
        "tokens_per_second": batch.tokens.size / taken,
        "seconds": taken,
        "compile_seconds": compiled,
        "share_of_ceiling": flops / taken / 1e12 / args.matmul_speed,
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


def measurements(args: argparse.Namespace) -> Iterator[tuple[str, str, str | None, int]]:
    """Names of measure, model and arithmetic, and new tokens: the short before the long, bfloat16 first."""
    for new in sorted(args.completions):
        for model in args.models:
            for dtype in ("bfloat16", None) if new == min(args.completions) else ("bfloat16",):
                for name in args.measures:
                    yield name, model, dtype, new


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--models", nargs="+", choices=SHAPES, default=["smollm2-135m", "qwen3-0.6b"])
    made.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    made.add_argument("--groups", type=int, default=8, help="prompts")
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--prompt", type=int, default=128, help="tokens")
    made.add_argument("--completions", type=int, nargs="+", default=[256, 1024], help="new tokens")
    made.add_argument("--limit", type=float, default=480.0, help="seconds; what would begin later is left out")
    args = made.parse_args()
    began = time.perf_counter()
    device = jax.devices()[0].device_kind
    found = ceilings()
    args.copy_speed, args.matmul_speed = found["copy_gb_per_second"], found["bf16_tflops"]
    report("accelerator_ceilings", device=device, **found)
    left = []
    for name, model, dtype, new in measurements(args):
        told = {"model": model, "compute_dtype": dtype or "float32", "new_tokens": new}
        if time.perf_counter() - began > args.limit:
            left.append([name, *told.values()])
            continue
        shared = {"groups": args.groups, "group_size": args.group_size, "prompt": args.prompt}
        config = dataclasses.replace(SHAPES[model], compute_dtype=dtype)
        try:
            figures = MEASURES[name](config, args, new)
        except Exception as error:  # out of memory, or what the compiler refuses: a finding, and no end
            figures = {"failed": f"{type(error).__name__}: {error}"[:300]}
        report(f"accelerator_{name}", device=device, **told, **shared, **figures)
        jax.clear_caches()
    if left:
        report("accelerator_left_out", device=device, limit=args.limit, measurements=left)


if __name__ == "__main__":
    main()
