"""Our side of ``control.py``: whole training runs with the settings that a peer publishes for the task.

It runs as ``rlax-llm control`` does: seeds shared out over the devices, of which a CPU is given one for each core
(``--devices 1`` takes that away), and on a CPU the compiler's first level of effort instead of its third
(``--effort 3``). ``return`` is the mean of the episodes that ended in the last tenth of the updates, for each seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import statistics
import time

from protocol import arguments, positive, print_line, spread

from rlax_llm.commands.control.program import ControlSettings, build
from rlax_llm.host.compiling import compile_with_effort
from rlax_llm.loops.control import evaluate_greedily
from rlax_llm.loops.seeds import cores_as_devices, on_devices, over_seeds, state_numbers

EPISODES = 128


def late(metrics: dict) -> np.ndarray:
    """Mean return of the episodes of the last tenth of the updates."""
    last = max(1, metrics["episodes"].shape[1] // 10)
    counts, returns = (np.asarray(metrics[name])[:, -last:] for name in ("episodes", "episode_return"))
    return np.where(counts > 0, returns * counts, 0.0).sum(1) / np.maximum(counts.sum(1), 1)


def main() -> None:
    made = arguments(__doc__, ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "Breakout-MinAtar", "Asterix-MinAtar"])
    made.add_argument("--recipe", default="ppo")
    made.add_argument("--devices", type=positive, help="host devices of a CPU (default: one a core)")
    made.add_argument("--effort", type=positive, default=1, help="the compiler's level on a CPU")
    args = made.parse_args()
    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    else:
        cores_as_devices(args.seeds)
    config = ControlSettings.of(env=args.environment, recipe=args.recipe, seeds=args.seeds, steps=args.steps)
    program = build(config)

    def run(key: jax.Array) -> tuple:
        init_key, steps_key = jax.random.split(key)
        return jax.lax.scan(program.step, program.init(init_key), jax.random.split(steps_key, program.iterations))

    keys = on_devices(jax.random.split(jax.random.key(0), args.seeds), args.seeds)
    numbers = state_numbers(jax.eval_shape(program.init, keys[0]))
    start = time.perf_counter()
    lowered = jax.jit(over_seeds(run, args.seeds, numbers)).lower(keys)
    traced = time.perf_counter()
    compiled = compile_with_effort(lowered, args.effort)
    times = {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}
    taken = []
    for _ in range(args.repeats):
        begun = time.perf_counter()
        states, metrics = jax.block_until_ready(compiled(keys))
        taken.append(time.perf_counter() - begun)
    greedy = evaluate_greedily(
        program.environment, program.policy, program.collecting._replace(environments=EPISODES), 500
    )
    returns = jax.jit(over_seeds(lambda state, key: greedy(state, key)[0].mean(), args.seeds))(states, keys)
    figures = times | {"run_seconds": statistics.median(taken)}
    figures |= spread("return", late(metrics)) | spread("greedy", np.asarray(returns))
    figures |= {"library": f"jax {jax.__version__}, {jax.default_backend()}", "settings": vars(args)}
    steps = program.iterations * program.collecting.environments * program.collecting.horizon_steps
    print_line("ours", args, steps, figures)


if __name__ == "__main__":
    main()
