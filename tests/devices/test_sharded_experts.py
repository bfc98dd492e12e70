"""Experts over devices: each computes its own, by blocks as on a CPU and by products as on accelerators."""

import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.mesh import mesh
from rlax_llm.models import experts
from rlax_llm.models.config import Experts
from rlax_llm.models.experts import Weights, gated_by, mixture, route
from rlax_llm.models.sharding import shardings

sys.path.insert(0, str(Path(__file__).parent))
from sharded import check_same_everywhere

COUNT, WIDTH, HIDDEN = 8, 16, 12
MESHES = ("data=2,fsdp=2,tensor=2", "fsdp=2,tensor=4")


def drawn(*shape: int) -> np.ndarray:
    """Of numbers of the size that layers have, so that sums are rounded by little."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32) / 4


LAYERS = {
    "expert_gate": drawn(1, COUNT, WIDTH, HIDDEN),
    "expert_up": -drawn(1, COUNT, WIDTH, HIDDEN),
    "expert_down": drawn(1, COUNT, HIDDEN, WIDTH),
    "router": drawn(1, WIDTH, COUNT),
}


def slopes(layers, x):
    def total(layers, x):
        own = {name: leaf[0] for name, leaf in layers.items()}
        routed = route(x @ own["router"], Experts(COUNT, 3, HIDDEN))
        weights = Weights(own["expert_gate"], own["expert_up"], own["expert_down"])
        return jnp.sin(mixture(x, routed, weights, gated_by(jax.nn.silu))).mean()

    return jax.value_and_grad(total, (0, 1))(layers, x)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_each_device_computes_its_own_experts_and_holds_no_others(machine, monkeypatch):
    monkeypatch.setattr(experts, "platform", lambda: machine)
    x = 4 * drawn(8, 5, WIDTH)
    run = partial(slopes)  # a function of its own, lest the other machine's program is taken again
    check_same_everywhere(MESHES, run, LAYERS, x)
    grid = mesh(MESHES[0])
    with jax.set_mesh(grid):
        text = jax.jit(run).lower(jax.device_put(LAYERS, shardings(grid, LAYERS)), x).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[(\d+(?:,\d+)*)\]", text)}
    own = {(COUNT // 2, WIDTH, HIDDEN), (COUNT // 2, HIDDEN, WIDTH)}
    assert own <= shapes
    assert not {shape for shape in shapes if COUNT in shape and {WIDTH, HIDDEN} <= set(shape)}
