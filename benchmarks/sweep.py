"""A sweep of whole runs of language-model RL, vmapped into one program, against the same runs one after another.

Seeds and learning rates differ from run to run. In ``ratio`` the runs in turn share one compiled program, and both
sides are compiled already; in ``ratio_cold`` nothing is, and the runs in turn compile each its own program, as a
command for each of them does.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from common import interleaved, parser, report, seconds

from rlax_llm import recipes
from rlax_llm.generation.engine import Request
from rlax_llm.generation.sampling import Categorical
from rlax_llm.models import decoder
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.train.group import group_loop
from rlax_llm.train.language import Prompts, language_loop, sampled

SIZES = {"width": 32, "layers": 1, "vocab": 16, "prompts": 4, "group_size": 4, "tokens": 8, "steps": 100}


def program(args):
    """``(key, learning rate) → rewards [steps]``: a run from initial parameters of its own."""
    config = DecoderConfig(args.vocab, args.width, 4 * args.width, args.layers, 4, 4, args.width // 4)
    prompts = Prompts(jnp.arange(args.vocab)[:, None], jnp.ones((args.vocab, 1), bool), jnp.arange(args.vocab))

    def reward(completions, wanted):
        return (completions.tokens[:, 1:] == wanted[:, None]).mean(-1)

    def run(key, rate):
        collector = sampled(
            config, prompts, reward, Request(Categorical(), (), args.tokens, args.group_size), args.prompts
        )
        update = group_loop(group_log_probs(config, (args.group_size, 1)), recipes.dapo(), optax.adam(rate))
        init, step = language_loop(collector, update)
        first, order = jax.random.split(key)
        state = init(decoder.init(config, first))
        return jax.lax.scan(step, state, jax.random.split(order, args.steps))[1]["reward"]

    return run


def in_turn(alone, keys, rates):
    """Every run by itself."""
    return [alone(key, rate) for key, rate in zip(keys, rates, strict=True)]


def main() -> None:
    """Print one JSON line for each number of runs."""
    wanted = parser(__doc__, repeats=5)
    for name, default in SIZES.items():
        wanted.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    wanted.add_argument("--runs", type=int, nargs="+", default=[16])
    args = wanted.parse_args()
    run = program(args)
    alone, many = jax.jit(run), jax.jit(jax.vmap(run))
    for count in args.runs:
        keys, rates = jax.random.split(jax.random.key(0), count), jnp.geomspace(1e-3, 1e-2, count)
        sides = {"together": partial(many, keys, rates), "in_turn": partial(in_turn, alone, keys, rates)}
        compiling = {"together": seconds(sides["together"]), "in_turn": seconds(partial(alone, keys[0], rates[0]))}
        taken = interleaved(sides, args.repeats)
        best = float(many(keys, rates)[:, -10:].mean(1).max())
        sizes = {name: getattr(args, name) for name in SIZES}
        ratio, cold = taken["in_turn"] / taken["together"], count * compiling["in_turn"] / compiling["together"]
        report(
            "sweep",
            runs=count,
            **sizes,
            seconds=taken,
            ratio=ratio,
            first_call=compiling,
            ratio_cold=cold,
            best_reward=best,
        )


if __name__ == "__main__":
    main()
