"""Decode tokens/s of a model of SmolLM2-135M's shape, float32 against narrow weights and narrow keys and values.

Random weights, one program a side, one repeat of each in turn, of which the fastest counts; only decoding is timed,
behind a prompt. Where other processes take the cores, wall time says little: ``--cpu`` pins the process to one core and
counts its own seconds there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from common import parser, ready, report

from rlax_llm.generation.engine import decode, for_sampling, prefill, unrolled
from rlax_llm.generation.request import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.functional import Params

SMOLLM2 = DecoderConfig(49_152, 576, 1_536, 30, 9, 3, 64)
SIDES = {
    "float32": {},
    "bfloat16": {"sampler_dtype": "bfloat16"},
    "int8": {"sampler_dtype": "int8"},
    "int8, keys bfloat16": {"sampler_dtype": "int8", "cache_dtype": "bfloat16"},
    "int8, keys int8": {"sampler_dtype": "int8", "cache_dtype": "int8"},
}


def side(config: DecoderConfig, params: Params, batch: int, prompt: int, new: int, clock: Callable[[], float]):
    """Seconds that one row's token takes, for ``batch`` rows behind a prompt each."""
    request = Request(Categorical(), (), new, 1)
    tokens, valid = jnp.ones((batch, prompt), jnp.int32), jnp.ones((batch, prompt), bool)
    weights = for_sampling(config, params)
    shared, state = ready(prefill(config, weights, tokens, valid, jax.random.key(0), request, new))
    layers = ready(unrolled(config, weights))

    def run() -> float:
        fresh = ready(jax.tree.map(jnp.copy, state))
        start = clock()
        final = ready(decode(config, layers, shared, fresh, jnp.int32(new), request))
        assert int(final.step) == new
        return (clock() - start) / (batch * (new - 1))

    return run


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--batches", type=int, nargs="*", default=[1, 8])
    made.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    made.add_argument("--prompt", type=int, default=128)
    made.add_argument("--tokens", type=int, default=32, help="new tokens per row")
    made.add_argument("--layers", type=int, default=SMOLLM2.num_layers)
    made.add_argument("--cpu", action="store_true", help="one core, and the process's own seconds on it")
    args = made.parse_args()
    clock = time.process_time if args.cpu else time.perf_counter
    config = replace(SMOLLM2, num_layers=args.layers)
    params = init_decoder(config, jax.random.key(0))
    for batch in args.batches:
        runs = {
            name: side(replace(config, **SIDES[name]), params, batch, args.prompt, args.tokens, clock)
            for name in args.sides
        }
        best = dict.fromkeys(runs, float("inf"))
        for repeat in range(args.repeats + 1):
            for name, run in runs.items():
                taken = run()
                best[name] = min(best[name], taken) if repeat else best[name]
        rates = {name: 1 / taken for name, taken in best.items()}
        report(
            "narrow_weights",
            model="SmolLM2-135M's shape, random",
            layers=config.num_layers,
            batch=batch,
            prompt=args.prompt,
            new_tokens=args.tokens,
            clock="seconds of one core" if args.cpu else "wall",
            tokens_per_second=rates,
            against_float32={name: rate / rates["float32"] for name, rate in rates.items()},
        )


if __name__ == "__main__":
    if "--cpu" in sys.argv and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    main()
