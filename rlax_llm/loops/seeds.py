"""Independent runs side by side: shared out over devices, and on a CPU as many at a time as fit its cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlax_llm.core import checks
from rlax_llm.core.mapping import CACHE
from rlax_llm.core.platform import platform

_AXIS = "seeds"
# What a run touches between two looks at its state: the state, its gradient and a minibatch's activations.
_TOUCHED = 4


def _divisor(seeds: int, most: int) -> int:
    return next(n for n in range(min(seeds, most), 0, -1) if seeds % n == 0)


def cores_as_devices(seeds: int) -> int:
    """Make as many of a CPU's cores devices as divide the seeds; to be called before JAX is first used.

    Small programs leave all but one core idle, and seeds on devices of their own do not. Where JAX is in use already,
    or the flag ``--xla_force_host_platform_device_count`` decides, nothing changes.

    Args:
        seeds: that will run side by side.

    Returns:
        The number of devices that there are then.

    >>> cores_as_devices(1) >= 1
    True
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # the only way to learn that it is too late
            jax.config.update("jax_num_cpu_devices", _divisor(seeds, os.cpu_count() or 1))
    return len(jax.devices())


def _mesh(seeds: int) -> Mesh | None:
    """As many devices as divide the seeds; None for one."""
    devices = jax.devices()
    count = _divisor(seeds, len(devices))
    return None if count == 1 else Mesh(np.array(devices[:count]), (_AXIS,))


def _together(count: int, numbers: int) -> int:
    """How many seeds run at once: a divisor of their number, since a remainder would be compiled as well."""
    if numbers == 0 or platform() != "cpu":
        return count
    return _divisor(count, max(CACHE // (_TOUCHED * numbers), 1))


def over_seeds(function: Callable[..., Any], seeds: int, numbers: int = 0) -> Callable[..., Any]:
    """``vmap(function)`` over the leading axis of all arguments, on all devices that divide it.

    Every device runs its part as a program of its own: a loop that ends when every seed's has does not wait for other
    devices. Limiting case: ``jax.vmap`` on one device that is no CPU.

    Args:
        function: of one seed; its arguments are arrays, or pytrees of them.
        seeds: length of the leading axes, ≥ 1.
        numbers: float32 numbers in one seed's state, from which a CPU sees how many fit its cache; 0 takes all.

    Returns:
        The function of all seeds.

    Raises:
        ValueError: for fewer than one seed.

    >>> over_seeds(lambda x: 2 * x, 3)(np.arange(3)).tolist()
    [0, 2, 4]
    """
    checks.at_least_one("over_seeds", seeds=seeds)

    def some(*arguments: Any) -> Any:
        count = jax.tree.leaves(arguments)[0].shape[0]
        together = _together(count, numbers)
        if together == count:
            return jax.vmap(function)(*arguments)
        return jax.lax.map(lambda seed: function(*seed), arguments, batch_size=together)

    mesh = _mesh(seeds)
    if mesh is None:
        return some
    along = PartitionSpec(_AXIS)
    return jax.shard_map(some, mesh=mesh, in_specs=along, out_specs=along, check_vma=False)


def on_devices(tree: Any, seeds: int) -> Any:
    """Arrays ``[seeds, …]`` put where ``over_seeds`` reads them.

    Args:
        tree: arrays with the seeds on axis 0.
        seeds: their number.

    >>> on_devices(np.arange(3), 3).tolist()
    [0, 1, 2]
    """
    mesh = _mesh(seeds)
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec(_AXIS)))


def state_numbers(state: Any) -> int:
    """How many numbers a state holds, for ``over_seeds``.

    Args:
        state: a pytree of arrays or their shapes.

    >>> state_numbers({"a": np.ones((2, 3)), "b": np.ones(4)})
    10
    """
    return sum(int(np.prod(leaf.shape, dtype=int)) for leaf in jax.tree.leaves(state))
