"""Memory of an update of adapters over a base of SmolLM2-135M's shape: float32, and matrices in int8 and NF4.

The programs are compiled and not run: what the compiler gives as arguments (of which ``base`` is the frozen part) and
beside them is what counts.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from common import parser, report

from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions
from rlax_llm.models.blocks import quantized_base
from rlax_llm.models.config import DecoderConfig, Lora
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.functional import Params
from rlax_llm.models.lora import init_adapter
from rlax_llm.models.scoring import group_log_probs

SMOLLM2 = DecoderConfig(49_152, 576, 1_536, 30, 9, 3, 64)
SIDES = ("float32", "int8", "nf4")


def size(tree: Params) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def update(config: DecoderConfig, base: Params, rows: int, lengths: tuple[int, int], remat: bool) -> int:
    """Bytes of a gradient of adapters: arguments, results and what is beside them."""
    adapter = jax.eval_shape(lambda: init_adapter(config, jax.random.key(0)))
    log_probs = group_log_probs(config, (rows, lengths[0]), remat=remat)
    shape = (rows, sum(lengths))
    flags, numbers = jax.ShapeDtypeStruct(shape, bool), jax.ShapeDtypeStruct(shape, jnp.float32)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Completions(tokens, flags, flags, numbers, jax.ShapeDtypeStruct(shape[:1], bool))

    def loss(adapter: Params, base: Params, batch: Completions) -> jax.Array:
        return log_probs(join_trees(adapter, base), batch)[0].sum()

    memory = jax.jit(jax.grad(loss)).lower(adapter, base, batch).compile().memory_analysis()
    assert memory is not None
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def main() -> None:
    made = parser(__doc__, repeats=0)
    made.add_argument("--rows", type=int, default=4, help="completions of one prompt")
    made.add_argument("--prompt", type=int, default=64)
    made.add_argument("--tokens", type=int, default=64, help="new tokens per row")
    made.add_argument("--rank", type=int, default=16)
    args = made.parse_args()
    config = replace(SMOLLM2, lora=Lora(args.rank, 2.0 * args.rank))
    wide = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))
    bases = {"float32": wide} | {
        name: jax.eval_shape(lambda params, name=name: quantized_base(params, name), wide) for name in SIDES[1:]
    }
    held = {name: size(base) for name, base in bases.items()}
    peak = {name: update(config, base, args.rows, (args.prompt, args.tokens), True) for name, base in bases.items()}
    report(
        "quantized_base",
        model="SmolLM2-135M's shape",
        rows=args.rows,
        prompt=args.prompt,
        new_tokens=args.tokens,
        rank=args.rank,
        base_mb={name: round(count / 1e6, 1) for name, count in held.items()},
        update_mb={name: round(count / 1e6, 1) for name, count in peak.items()},
        base_against_float32={name: round(count / held["float32"], 3) for name, count in held.items()},
        update_against_float32={name: round(count / peak["float32"], 3) for name, count in peak.items()},
    )


if __name__ == "__main__":
    main()
