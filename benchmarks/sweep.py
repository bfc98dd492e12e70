"""A sweep of whole runs of language-model RL, vmapped into one program, against the same runs one after another.

Seeds and learning rates differ from run to run. Every side is a process of its own. ``together`` is ``over_seeds``: one
program, shared out over a device for each core; ``vmapped`` is ``jax.vmap`` on one device; ``in_turn`` calls one
compiled run, itself a scan, once for each. In ``ratio`` both sides are compiled already; in ``ratio_cold`` nothing is,
and the runs in turn compile each its own program, as a command for each of them does.

    python sweep.py
    python sweep.py --runs 64 --repeats 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

# JAX is imported where it is used: each side decides about its devices before.
import sides


def program(args: argparse.Namespace) -> Callable[[Any, Any], Any]:
    """``(key, learning rate) → rewards [steps]``: a run from initial parameters of its own."""
    import jax
    import jax.numpy as jnp
    import optax

    from rlax_llm.generation.request import Request
    from rlax_llm.generation.sampling import Categorical
    from rlax_llm.loops.group import group_loop
    from rlax_llm.loops.language import Prompts, fresh_sampling, language_loop
    from rlax_llm.models import decoder
    from rlax_llm.models.scoring import group_log_probs
    from rlax_llm.recipes import group as recipes

    config = sides.tiny_shape(args)
    prompts = Prompts(jnp.arange(args.vocab)[:, None], jnp.ones((args.vocab, 1), bool), jnp.arange(args.vocab))
    request = Request(Categorical(), (), args.tokens, args.group_size)

    def reward(completions: Any, wanted: Any) -> Any:
        return (completions.tokens[:, 1:] == wanted[:, None]).mean(-1)

    def run(key: Any, rate: Any) -> Any:
        collector = fresh_sampling(config, prompts, reward, request, args.prompts)
        update = group_loop(group_log_probs(config, (args.group_size, 1)), recipes.dapo(), optax.adam(rate))
        init, step = language_loop(collector, update)
        first, order = jax.random.split(key)
        state = init(decoder.init_decoder(config, first))
        return jax.lax.scan(step, state, jax.random.split(order, args.steps))[1]["reward"]

    return run


def in_turn(alone: Callable, keys: Any, rates: Any) -> list[Any]:
    """Every run by itself."""
    return [alone(key, rate) for key, rate in zip(keys, rates, strict=True)]


def side(line: Connection, args: argparse.Namespace, name: str) -> None:
    """A side's process."""
    import jax
    import jax.numpy as jnp

    from rlax_llm.loops.seeds import cores_as_devices, on_devices, over_seeds

    if name == "together":
        cores_as_devices(args.runs)
    keys, rates = jax.random.split(jax.random.key(0), args.runs), jnp.geomspace(1e-3, 1e-2, args.runs)
    run = program(args)
    forms = {"together": partial(over_seeds, run, args.runs), "vmapped": partial(jax.vmap, run)}
    if name in forms:
        call = partial(jax.jit(forms[name]()), *on_devices((keys, rates), args.runs))
        first = call
    else:
        alone = jax.jit(run)
        call, first = partial(in_turn, alone, keys, rates), partial(alone, keys[0], rates[0])
    begun = time.perf_counter()
    jax.block_until_ready(first())
    compiling = time.perf_counter() - begun

    def step() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    sides.serve(line, args, step)
    late = jnp.stack([rewards[-10:].mean() for rewards in call()])
    line.send({"first_call": compiling, "best_reward": float(late.max())})


def ratios(taken: Mapping[str, float]) -> dict[str, float]:
    return {name: taken["in_turn"] / seconds for name, seconds in taken.items() if name != "in_turn"}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=sides.Help)
    made.add_argument("--repeats", type=int, default=5, help="of each side, after one to warm up; the median counts")
    made.add_argument("--runs", type=int, default=16)
    sizes = {"prompts": 4, "group_size": 4, "tokens": 8, "steps": 100}
    for name, default in sizes.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    sides.shape_options(made, block=1)
    made.set_defaults(width=32, layers=1, vocab=16)
    args = sides.checked(made, runs=2, prompts=1, group_size=2, tokens=1, steps=10)
    from common import interleaved, report

    workers = {name: sides.Worker(side, args, name) for name in ("together", "vmapped", "in_turn")}
    taken = interleaved(workers, args.repeats)
    found = {name: worker.close() for name, worker in workers.items()}
    firsts = {name: one["first_call"] for name, one in found.items()}
    shape = {name: getattr(args, name) for name in ("runs", "width", "layers", "vocab", *sizes)}
    report(
        "sweep",
        **shape,
        seconds=taken,
        ratio=ratios(taken),
        first_call=firsts,
        ratio_cold=args.runs * firsts["in_turn"] / firsts["together"],
        best_reward={name: one["best_reward"] for name, one in found.items()},
    )


if __name__ == "__main__":
    main()
