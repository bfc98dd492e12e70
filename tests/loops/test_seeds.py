"""Runs side by side give the numbers of runs one by one, wherever they are put."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlax_llm.core.mapping import CACHE
from rlax_llm.host.compiling import compile_with_effort
from rlax_llm.loops.seeds import over_seeds, state_numbers


def halvings(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A loop whose length differs between seeds."""
    end, count = jax.lax.while_loop(lambda now: now[0] > 1, lambda now: (now[0] / 2, now[1] + 1), (x, jnp.int32(0)))
    return end, count


STARTS = np.array([1.0, 3.0, 9.0, 100.0, 7.0, 2.0])
ENDS, COUNTS = [1.0, 0.75, 0.5625, 0.78125, 0.875, 1.0], [0, 2, 4, 7, 3, 1]


@pytest.mark.parametrize("numbers", [0, 1, CACHE // 8, CACHE // 16, CACHE])
def test_however_many_fit_the_cache(numbers):
    ends, counts = jax.jit(over_seeds(halvings, 6, numbers))(STARTS)
    np.testing.assert_array_equal(ends, ENDS)
    np.testing.assert_array_equal(counts, COUNTS)


def test_seeds_are_taken_in_parts_without_a_remainder():
    text = jax.jit(over_seeds(halvings, 6, CACHE // 16)).lower(STARTS).as_text()  # 4 fit, 3 divide
    assert "tensor<3xf32>" in text
    assert "tensor<4xf32>" not in text
    assert "tensor<2xf32>" not in text


PROGRAM = """
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from rlax_llm.loops.seeds import on_devices, over_seeds
for seeds, used in ((6, 3), (8, 4), (5, 1), (1, 1)):
    keys = jax.random.split(jax.random.key(0), seeds)
    draw = lambda key, scale: {"x": scale * jax.random.normal(key, (3,))}
    scales = np.arange(seeds, dtype=np.float32)
    found = jax.jit(over_seeds(draw, seeds))(on_devices(keys, seeds), on_devices(scales, seeds))["x"]
    wanted = np.stack([draw(key, scale)["x"] for key, scale in zip(keys, scales)])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len(found.sharding.device_set) == used, (seeds, found.sharding)
print("same")
"""


def test_on_several_devices():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr


def test_state_numbers():
    assert state_numbers({"a": np.ones((2, 3)), "b": jax.ShapeDtypeStruct((4,), jnp.float32), "c": np.float32(1)}) == 11


def test_no_seed():
    with pytest.raises(ValueError, match="over_seeds: seeds is 0"):
        over_seeds(halvings, 0)


@pytest.mark.parametrize("effort", [0, 1, 3])
def test_effort_changes_no_number(effort):
    found = compile_with_effort(jax.jit(halvings).lower(100.0), effort)(100.0)
    assert [float(x) for x in found] == [ENDS[3], COUNTS[3]]
