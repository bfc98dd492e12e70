"""What a plan reads from the text of a program is what the program, as it was written, sends."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlax_llm.commands.plan.collectives import Sent, collectives
from rlax_llm.core.mesh import mesh

LAYERS, WIDTH = 5, 16


def layer(x, own):
    whole = jax.lax.all_gather(own, "fsdp", axis=0, tiled=True)
    return jnp.tanh(x @ whole), None


def through(x, layers):
    x, _ = jax.lax.scan(layer, x, layers)
    return jax.lax.psum(x, "data")


def test_gathers_of_a_loop_and_a_sum_are_read_from_the_compiled_text():
    grid = mesh("data=2,fsdp=4")
    specs = (PartitionSpec("data"), PartitionSpec(None, "fsdp"))
    program = jax.shard_map(through, mesh=grid, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    zeros = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    compiled = jax.jit(program).lower(zeros((6, WIDTH)), zeros((LAYERS, WIDTH, WIDTH))).compile()
    gathered = WIDTH * WIDTH * 4 * 3 / 4
    summed = 2 * 3 * WIDTH * 4 / 2
    assert collectives(compiled.as_text(), grid.size) == {
        "all-gather": Sent(LAYERS, LAYERS * gathered),
        "all-reduce": Sent(1, summed),
    }
