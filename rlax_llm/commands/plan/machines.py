"""The devices that are planned for: a slice of TPUs, which need not be here, or those of this machine."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from rlax_llm.commands.machine import chosen_mesh
from rlax_llm.commands.plan.programs import Machine
from rlax_llm.commands.plan.settings import HERE
from rlax_llm.core.chips import CHIPS, chip_named
from rlax_llm.core.libtpu import flags_set_aside, only_compile
from rlax_llm.core.platform import targeting

_FLAT = ("v5e", "v6e")  # chips that lie in a plane
_LARGEST_FLAT = 16  # beyond it libtpu aborts, after minutes
_SLICE = re.compile(r"([\w-]+):(\d+(?:x\d+){1,2})")


def machine_of(on: str, mesh: str | None, rows: Sequence[int]) -> Machine:
    """The devices that a plan is for.

    Args:
        on: ``here``, or a chip and a topology.
        mesh: sizes of its axes; None is what a run would choose.
        rows: that are learned from together.

    Raises:
        ValueError: an unknown chip or topology, no libtpu, or a mesh that is not of these devices.
    """
    try:
        devices = jax.devices() if on == HERE else _slice(on)
        with targeting(jax.default_backend() if on == HERE else "tpu"):
            made = chosen_mesh(mesh, devices, rows)
        if on != HERE and made.size < len(devices):
            _refuse_a_part(on, len(devices), rows)
    except ValueError as error:
        raise ValueError(f"plan: {error}") from None
    except (AssertionError, NotImplementedError):  # of JAX, where chips are not one device each, or lie in no grid
        raise ValueError(f"plan: the devices of {on} make no mesh; give another topology, of powers of 2.") from None
    if on != HERE:
        chip = chip_named(on.partition(":")[0])
        return Machine(on, made, "tpu", chip, chip.memory_bytes)
    chip = CHIPS.get(devices[0].device_kind)
    return Machine("this machine", made, jax.default_backend(), chip, _memory_here(devices))


def _refuse_a_part(on: str, count: int, rows: Sequence[int]) -> None:
    """A slice of several hosts runs nothing on a part of it, and libtpu ends the process that compiles for one."""
    written = " and ".join(str(number) for number in dict.fromkeys(rows))
    raise ValueError(
        f"the {count} devices of {on} do not divide the {written} rows that are learned from together; take a multiple "
        "of the devices, or give a smaller slice."
    )


@contextmanager
def compiling_for(on: str) -> Iterator[None]:
    """What surrounds all that is compiled for these devices."""
    if on == HERE:
        yield
        return
    with flags_set_aside(), _without_cache():
        yield


@contextmanager
def _without_cache() -> Iterator[None]:
    """Within the block compiled programs are not kept on disk: one for a chip that is not here cannot be read again."""
    kept = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # JAX decides once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
        reset_cache()


def _memory_here(devices: Sequence[Any]) -> float:
    """Bytes of a device: what it says that it has, or its share of the machine's."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return float(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)


def _slice(on: str) -> list[Any]:
    """The devices of a slice of TPUs, without a TPU."""
    found = _SLICE.fullmatch(on)
    chip = chip_named(on.partition(":")[0])
    tpus = [chip.name for kind, chip in CHIPS.items() if kind.startswith("TPU")]
    if chip.name not in tpus:
        raise ValueError(
            f"{chip.name} has no compiler that works without one; give --on {HERE} on a machine that has it, or "
            f"a slice of {', '.join(tpus)}."
        )
    if found is None:
        raise ValueError(f"--on is {on!r}, wanted CHIP:TOPOLOGY, as v5e:2x4 or v5p:2x2x1.")
    sizes = [int(size) for size in found[2].split("x")]
    if chip.name in _FLAT and max(sizes) > _LARGEST_FLAT:
        raise ValueError(f"--on is {on!r}, and a slice of {chip.name} is at most {_LARGEST_FLAT}x{_LARGEST_FLAT}.")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"the compiler of TPUs, libtpu, is not installed; run `pip install 'rlax-llm[plan]'`, or give --on {HERE}."
        )
    return _topology(on, sizes)


def _topology(on: str, sizes: Sequence[int]) -> list[Any]:
    from jax.experimental import topologies

    only_compile()
    flat = [*sizes, 1][:3]
    bounds = [math.gcd(flat[0], 2), math.gcd(flat[1], 2), 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=on, chips_per_host_bounds=bounds)
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"libtpu has no topology {on} ({reason}); give another.") from None
    return list(found.devices)
