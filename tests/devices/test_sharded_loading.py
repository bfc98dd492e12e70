"""Models are read from their files straight to where they lie, each device's parts alone."""

from __future__ import annotations

from dataclasses import replace

import chex
import jax
import numpy as np
import pytest

from rlax_llm.core.mesh import mesh
from rlax_llm.models.config import Clamped, Experts
from rlax_llm.models.decoder import init_decoder
from rlax_llm.models.huggingface import read_parameters, write_model
from rlax_llm.models.sharding import shardings
from rlax_llm.models.tensors import Tensor
from tests.devices.sharded import CONFIG, MESHES


@pytest.mark.parametrize("sizes", MESHES)
def test_parameters_are_read_in_parts_to_their_devices(sizes, tmp_path, monkeypatch):
    params = init_decoder(CONFIG, jax.random.key(0))
    write_model(tmp_path / "model", CONFIG, params)
    read: list[int] = []
    part = Tensor.part

    def counted(tensor, bounds):
        found = part(tensor, bounds)
        read.append(np.asarray(found).nbytes)
        return found

    monkeypatch.setattr(Tensor, "part", counted)
    with jax.set_mesh(mesh(sizes)):
        loaded = read_parameters(tmp_path / "model", CONFIG)
        wanted = shardings(mesh(sizes), loaded)
    chex.assert_trees_all_equal(jax.device_get(loaded), jax.device_get(params))
    for leaf, place in zip(jax.tree.leaves(loaded), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    # All parts are on this host: together they are the model, and none of a matrix is the whole.
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(read) <= max(leaf.nbytes for leaf in jax.tree.leaves(params)) / 4


def test_experts_that_share_a_tensor_are_read_in_parts(tmp_path):
    config = replace(CONFIG, sinks=True, experts=Experts(4, 2, 64, biased=True, clamped=Clamped()))
    params = init_decoder(config, jax.random.key(0))
    write_model(tmp_path / "model", config, params)
    with jax.set_mesh(mesh(MESHES[1])):
        loaded = read_parameters(tmp_path / "model", config)
    assert not loaded["layers"]["expert_up"].sharding.is_fully_replicated
    chex.assert_trees_all_equal(jax.device_get(loaded), jax.device_get(params))
