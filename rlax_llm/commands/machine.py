"""The devices that a command is computed on: a mesh of all accelerators, or the one that is asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.processes import processed
from rlax_llm.core.mesh import ROWS, devices_along, mesh
from rlax_llm.core.platform import platform
from rlax_llm.core.processes import several
from rlax_llm.host.progress import say

S = TypeVar("S", bound=OnMachine)
R = TypeVar("R")


def on_machine(run: Callable[[S], R]) -> Callable[[S], R]:
    """A command's function whose programs run on the mesh of its settings."""

    @functools.wraps(run)
    def there(settings: S) -> R:
        with processed(settings), meshed(settings.command, settings.machine, settings.rows_together()):
            return run(settings)

    return there


@contextmanager
def meshed(command: str, settings: MachineSettings, rows: tuple[int, ...]) -> Iterator[None]:
    """Make the mesh of the settings ambient.

    Where none is asked for it is all accelerators, as many as divide the rows; one device needs none.

    Args:
        command: that messages begin with.
        settings: of the machine.
        rows: that are learned from together; nothing where nothing is learned.

    Raises:
        ValueError: for sizes that are not the number of devices, or rows that they do not divide.
    """
    devices = jax.devices()
    try:
        grid = chosen_mesh(settings.mesh, devices, rows)
    except ValueError as error:
        raise ValueError(f"{command}: {error}") from None
    if grid.size < len(devices) and several():
        raise ValueError(
            f"{command}: {len(devices)} devices of {jax.process_count()} processes do not divide the "
            f"{_written(rows)} rows that are learned from together; take a multiple of the devices."
        )
    if grid.size < len(devices):
        say(
            f"{command}: {grid.size} of {len(devices)} devices are used, which divide the {_written(rows)} rows that "
            "are learned from together; take a multiple of the devices to use all."
        )
    if several():
        sizes = " · ".join(f"{name} {size}" for name, size in grid.shape.items())
        say(f"{command}: {jax.process_count()} processes with {grid.size} devices: {sizes}")
    if grid.size == 1:
        yield
        return
    with jax.set_mesh(grid):
        lanes = devices_along(*ROWS)
        if any(count % lanes for count in rows):
            raise ValueError(
                f"{command}: mesh {settings.mesh} has {lanes} devices along data and fsdp, which do not divide the "
                f"{_written(rows)} rows that are learned from together; change one of them."
            )
        yield


def chosen_mesh(asked: str | None, devices: Sequence[Any], rows: Sequence[int]) -> Mesh:
    """The mesh that is asked for; else as many devices as divide the rows, along ``fsdp``, and on a CPU along ``data``.

    Args:
        asked: sizes of its axes, or None.
        devices: that there are.
        rows: that are learned from together.

    Raises:
        ValueError: for sizes that are not the number of devices.
    """
    if asked is not None:
        return mesh(asked, devices)
    count = math.gcd(len(devices), *rows)
    return mesh({"data" if platform() == "cpu" else "fsdp": count}, devices[:count])


def _written(rows: tuple[int, ...]) -> str:
    return " and ".join(str(count) for count in dict.fromkeys(rows))
