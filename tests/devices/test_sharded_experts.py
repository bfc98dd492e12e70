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
from rlax_llm.models import experts, sorted_products
from rlax_llm.models.blocks import nf4
from rlax_llm.models.config import Experts
from rlax_llm.models.experts import Weights, gated_by, mixture
from rlax_llm.models.routers import route
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


def value(layers, x):
    own = jax.tree.map(lambda leaf: leaf[0], layers)
    routed = route(x @ own["router"], Experts(COUNT, 3, HIDDEN))
    weights = Weights(own["expert_gate"], own["expert_up"], own["expert_down"])
    return jnp.sin(mixture(x, routed, weights, gated_by(jax.nn.silu))).mean()


def slopes(layers, x):
    return jax.value_and_grad(value, (0, 1))(layers, x)


def slopes_of_what_is_trained(layers, x):
    frozen = {name: leaf for name, leaf in layers.items() if name != "router"}
    return jax.value_and_grad(lambda router, x: value(frozen | {"router": router}, x), (0, 1))(layers["router"], x)


def in_codes():
    return {name: leaf if name == "router" else nf4(jnp.asarray(leaf)) for name, leaf in LAYERS.items()}


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
@pytest.mark.parametrize(("read", "layers"), [(slopes, lambda: LAYERS), (slopes_of_what_is_trained, in_codes)])
def test_each_device_computes_its_own_experts_and_holds_no_others(machine, read, layers, monkeypatch):
    for module in (experts, sorted_products):
        monkeypatch.setattr(module, "platform", lambda: machine)
    x, layers = 4 * drawn(8, 5, WIDTH), layers()
    run = partial(read)  # a function of its own, lest the other machine's program is taken again
    check_same_everywhere(MESHES, run, layers, x)
    grid = mesh(MESHES[0])
    with jax.set_mesh(grid):
        text = jax.jit(run).lower(jax.device_put(layers, shardings(grid, layers)), x).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"\w\d+\[(\d+(?:,\d+)*)\]", text)}
    sides = {WIDTH, HIDDEN, WIDTH // 2, HIDDEN // 2}  # two codes of 4 bits lie in a byte
    of_experts = {shape[-3] for shape in shapes if len(shape) > 2 and set(shape[-2:]) <= sides}
    assert COUNT // 2 in of_experts
    assert COUNT not in of_experts
