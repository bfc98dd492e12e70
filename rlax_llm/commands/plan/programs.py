"""A program to be compiled from shapes, and what its compiler says of it: memory, and what is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlax_llm.commands.plan.collectives import Sends, collectives
from rlax_llm.commands.plan.work import Grid, Work, bytes_of
from rlax_llm.core.chips import GIB, Chip
from rlax_llm.core.mesh import ROWS, TENSOR
from rlax_llm.core.platform import targeting
from rlax_llm.models.sharding import shardings

UPDATE = "update"
"""What the names of programs that learn begin with."""

_USED = re.compile(r"Used ([\d.]+)([KMGT]?) of ")
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": GIB, "T": 2.0**40}


class Machine(NamedTuple):
    """Devices that programs are compiled for.

    Attributes:
        name: as it was asked for.
        mesh: of the devices.
        platform: cpu, gpu or tpu.
        chip: what each of them is, or None where its figures are not known.
        room: bytes of each.
    """

    name: str
    mesh: Mesh
    platform: str
    chip: Chip | None
    room: float

    @property
    def grid(self) -> Grid:
        """The devices as work is shared."""
        lanes = self.mesh.shape[ROWS[0]] * self.mesh.shape[ROWS[1]]
        return Grid(lanes, self.mesh.shape[TENSOR])

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Trace for these devices."""
        with targeting(self.platform):
            if self.mesh.size == 1:
                yield
                return
            with jax.set_mesh(self.mesh):
                yield

    def put(self, tree: Any, rules: Any = None) -> Any:
        """Abstract arrays where the rules of parameters lay them."""
        if tree is None:
            return None
        return jax.tree.map(lying, tree, shardings(self.mesh, tree, rules))

    def whole(self, tree: Any) -> Any:
        """Abstract arrays, whole on every device, as what comes from the host is."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: lying(leaf, everywhere), tree)


def lying(leaf: Any, sharding: Any) -> Any:
    """An abstract array where a sharding lays it."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


class Program(NamedTuple):
    """A program of a run.

    Attributes:
        name: that the plan calls it.
        lower: ``earlier → lowered``, given the programs compiled before it by name.
        parts: what it takes, by what that is.
        beside: what lies on the devices meanwhile, likewise.
        work: of a device in one run of it; None where it is not counted.
        turns: of a loop that ends by its data.
        least: bytes that are taken beside its arguments in any case.
        times: that a step runs it.
    """

    name: str
    lower: Callable[[Mapping[str, Any]], Any]
    parts: Mapping[str, Any]
    beside: Mapping[str, Any]
    work: Work | None
    turns: int = 1
    least: float = 0.0
    times: int = 1


class Measured(NamedTuple):
    """What is known of a program, in bytes on each device.

    Attributes:
        name: of the program.
        held: what lies on the device by what it is: its arguments, and what is beside them.
        taken: temporaries and what the program gives back.
        total: of all; where the compiler ran out of memory, what it would have taken.
        room: of the device.
        sends: in a step, by kind of collective.
        work: of a device in a step.
    """

    name: str
    held: Mapping[str, float]
    taken: float | None
    total: float
    room: float
    sends: Sends
    work: Work | None

    @property
    def fits(self) -> bool:
        """Whether the device has room for it."""
        return self.taken is not None and self.total <= self.room

    def seconds(self, chip: Chip) -> tuple[float, float, float] | None:
        """At the chip's rates: of products, of its memory, of its links. The longest is the floor of them."""
        if self.work is None:
            return None
        sent = sum(sent.bytes for sent in self.sends.values())
        products, memory = self.work.flops / chip.flops, self.work.bytes / chip.bytes_per_second
        return products, memory, sent / chip.network_bytes_per_second


def measure(program: Program, machine: Machine, earlier: dict[str, Any]) -> Measured:
    """Compile a program and read what it takes.

    Args:
        program: to be compiled.
        machine: for which.
        earlier: programs compiled before it; it is put among them.
    """
    beside = {name: bytes_of(tree) for name, tree in program.beside.items()}
    held = {name: bytes_of(tree) for name, tree in program.parts.items()}
    work = None if program.work is None else program.work.times(program.times)
    try:
        with machine.entered():
            compiled = program.lower(earlier).compile()
    except jax.errors.JaxRuntimeError as error:
        total = _used(error) + sum(beside.values())
        return Measured(program.name, _joined(held, beside), None, total, machine.room, {}, work)
    earlier[program.name] = compiled
    memory = compiled.memory_analysis()
    held["rows"] = max(memory.argument_size_in_bytes - sum(held.values()), 0.0)
    held = _joined(held, beside)
    taken = max(_taken(memory), program.least)
    sends = _sent(program, compiled, machine)
    return Measured(program.name, held, taken, sum(held.values()) + taken, machine.room, sends, work)


def _used(error: Exception) -> float:
    """Bytes that a program would have taken for which there is no room; any other error is raised."""
    used = _USED.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or used is None:
        raise error
    return float(used[1]) * _UNITS[used[2]]


def _sent(program: Program, compiled: Any, machine: Machine) -> Sends:
    """What a device sends in a step, by kind of collective."""
    once = collectives(compiled.as_text(), machine.mesh.size, program.turns)
    return {kind: sent.times(program.times) for kind, sent in once.items()}


def _taken(memory: Any) -> float:
    """Bytes beside a program's arguments: temporaries, results that take no argument's place, its code."""
    given = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + given + memory.generated_code_size_in_bytes


def _joined(held: Mapping[str, float], beside: Mapping[str, float]) -> dict[str, float]:
    return {name: held.get(name, 0.0) + beside.get(name, 0.0) for name in {**beside, **held}}
