"""Checkpoints of arrays that lie over eight devices, restored to the same mesh and to others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlax_llm.core import mesh as meshes
from rlax_llm.host import checkpoints

MESHES = ("fsdp=8", "fsdp=4,tensor=2", "data=2,fsdp=2,tensor=2")


def state(mesh):
    made = meshes.mesh(mesh)
    weights = np.arange(64.0 * 24, dtype=np.float32).reshape(64, 24)
    return {
        "w": jax.device_put(weights, NamedSharding(made, PartitionSpec("fsdp", "tensor"))),
        "norm": jax.device_put(weights[0], NamedSharding(made, PartitionSpec())),
        "key": jax.random.key(3),
        "count": jnp.int32(5),
    }


def shapes(tree):
    def shape(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None)

    return jax.tree.map(shape, tree)


@pytest.mark.parametrize("form", [lambda tree: tree, shapes])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("mesh", MESHES)
def test_what_one_mesh_wrote_another_reads(tmp_path, monkeypatch, platform, mesh, form):
    """From the host's copies, and from the devices, each with its own parts: the same sums, the same bits."""
    checkpoints.save(tmp_path, 1, state(MESHES[1]))
    monkeypatch.setattr(checkpoints, "platform", lambda: platform)
    checkpoints.save(tmp_path, 2, state(MESHES[1]))
    assert checkpoints.read_manifest(tmp_path / "1") == checkpoints.read_manifest(tmp_path / "2")
    wanted = state(mesh)
    for step in (1, 2):
        found = checkpoints.restore(tmp_path, step, form(wanted))
        for name in ("w", "norm"):
            np.testing.assert_array_equal(found[name], wanted[name])
            assert found[name].sharding == wanted[name].sharding
        assert (
            int(found["count"]) == 5 and (jax.random.key_data(found["key"]) == jax.random.key_data(wanted["key"])).all()
        )
