"""Devices as a grid with three named axes, and where on it the parts of an array lie.

Programs read the *ambient* mesh, that of ``with jax.set_mesh(mesh):``. Without one every function here does nothing,
so that what is written for many devices is also what runs on one. Rows of a batch lie over ``data`` and ``fsdp``
together; parameters over ``fsdp`` and ``tensor`` (the table is ``models/sharding.py``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.core
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlax_llm.core.names import did_you_mean

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
TENSOR = "tensor"

Axis = str | tuple[str, ...] | None

_SPLIT: ContextVar[frozenset[str]] = ContextVar("axes over which per_device splits", default=frozenset())


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes of axes that ``text`` names, as ``data=2,fsdp=4,tensor=2``.

    Raises:
        ValueError: for another axis, one named twice, or a size that is no whole number of at least 1.

    >>> mesh_sizes("fsdp=4,tensor=2")
    {'fsdp': 4, 'tensor': 2}
    >>> mesh_sizes("tenser=2")
    Traceback (most recent call last):
    ValueError: mesh: axis 'tenser' is unknown; did you mean 'tensor'? There are data, fsdp and tensor.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise ValueError(
                f"mesh: axis {name!r} is unknown{did_you_mean(name, AXES)} There are data, fsdp and tensor."
            )
        if name in found:
            raise ValueError(f"mesh: axis {name} is given twice; give it once.")
        if not size.isdecimal() or int(size) < 1:
            raise ValueError(f"mesh: the size of {name} is {size!r}, wanted a whole number of at least 1.")
        found[name] = int(size)
    return found


def mesh(sizes: str | Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """A grid of devices with the axes ``data``, ``fsdp`` and ``tensor``, to be made ambient by ``jax.set_mesh``.

    Limiting case: of one device, programs are those without a mesh.

    Args:
        sizes: as ``"data=2,fsdp=4"`` or a mapping; what is left out has size 1. None puts all devices on ``fsdp``.
        devices: all of the machine if None; several processes each see all of all.

    Raises:
        ValueError: for sizes whose product is not the number of devices, or an unknown axis.

    >>> dict(mesh({"fsdp": 1}, jax.devices()[:1]).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    given = {"fsdp": len(devices)} if sizes is None else sizes
    given = mesh_sizes(given) if isinstance(given, str) else mesh_sizes(",".join(f"{k}={v}" for k, v in given.items()))
    shape = tuple(given.get(name, 1) for name in AXES)
    if math.prod(shape) != len(devices):
        written = " · ".join(f"{name} {size}" for name, size in given.items())
        raise ValueError(
            f"mesh: {written} is {math.prod(shape)} devices, and there are {len(devices)}; give sizes whose product "
            "is that."
        )
    kinds = (AxisType.Auto,) * len(AXES)
    if len(devices) == 1:
        return Mesh(np.array(devices).reshape(shape), AXES, axis_types=kinds)
    # An axis may take a part of a physical one, as 8 · 8 on a torus of 4 · 4 · 4, which `jax.make_mesh` refuses.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=kinds)


def fetch(tree: Any) -> Any:
    """Arrays as numpy's, whole, on every process.

    >>> fetch(jax.numpy.arange(2)).tolist()
    [0, 1]
    """
    if jax.process_count() > 1:
        tree = _gathering(jax.sharding.get_mesh())(tree)
    return jax.device_get(tree)


@functools.cache
def _gathering(mesh: Mesh) -> Callable[[Any], Any]:
    """One function for a mesh, so that each kind of tree is compiled once and not at every step."""
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def within_reach(x: Any) -> Any:
    """An array as NumPy's where the host's memory holds it, so that taking a part of it compiles nothing; else itself.

    >>> type(within_reach(jax.numpy.ones(2))).__name__
    'ndarray'
    """
    there = isinstance(x, jax.Array) and x.is_fully_addressable and len(x.devices()) == 1
    return np.asarray(x) if there and next(iter(x.devices())).platform == "cpu" else x


def copied(tree: Any) -> Any:
    """A copy of each array where it lies; by one program where other processes hold parts of them, else by none.

    >>> copied({"w": jax.numpy.ones(2)})["w"].tolist()
    [1.0, 1.0]
    """
    if all(lies_here(x) for x in jax.tree.leaves(tree)):
        return jax.device_put(tree, may_alias=False)
    return _copied_by_all(tree)


def lies_here(x: Any) -> bool:
    """Whether this process holds all of an array; of what is traced nobody knows.

    >>> lies_here(jax.numpy.ones(2)), jax.eval_shape(lambda x: print(lies_here(x)), jax.numpy.ones(2))
    False
    (True, None)
    """
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


@jax.jit
def _copied_by_all(tree: Any) -> Any:
    return jax.tree.map(jax.numpy.copy, tree)


def devices_along(*axes: str) -> int:
    """Devices of the ambient mesh along some of its axes together; 1 without a mesh, or where its parts are apart.

    >>> devices_along("data", "fsdp")
    1
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[name] for name in axes if name in mesh.shape and name not in mesh.manual_axes)


def spread(x: jax.Array, *axes: Axis) -> jax.Array:
    """``x`` with its dimensions over axes of the ambient mesh; those that do not divide a dimension are left out.

    Args:
        x: any array.
        axes: for each dimension an axis, several, or None; what is left out is None.

    >>> spread(jax.numpy.ones((4, 2)), ROWS).shape
    (4, 2)
    """
    if devices_along(*AXES) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, dividing(x.shape, axes))


def dividing(shape: Sequence[int], axes: Sequence[Axis]) -> PartitionSpec:
    """The specification of ``axes`` without those that do not divide their dimension of ``shape``.

    >>> tuple(dividing((4, 2), (ROWS, None)))
    (('data', 'fsdp'), None)
    """

    def kept(size: int, axis: Axis) -> Axis:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return axis if size % devices_along(*names) == 0 else None

    return PartitionSpec(*(kept(size, axis) for size, axis in zip(shape, axes, strict=False)))


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``function`` of each device's own parts, under the ambient mesh; without one, or inside another, ``function``.

    What loops over rows belongs in here: a loop over a dimension that lies over several devices would gather it.

    Args:
        function: of arrays; ``sum_over`` and ``max_over`` inside it reach the other devices.
        in_specs: a ``PartitionSpec`` for each argument, or a tree of them.
        out_specs: of its results.

    >>> per_device(lambda x: x + 1, PartitionSpec(ROWS), PartitionSpec(ROWS))(jax.numpy.zeros(2)).tolist()
    [1.0, 1.0]
    """

    def call(*arguments: Any) -> Any:
        if devices_along(*AXES) == 1:
            return function(*arguments)
        split = _mentioned(in_specs)

        def inside(*parts: Any) -> Any:
            token = _SPLIT.set(split)
            try:
                return function(*parts)
            finally:
                _SPLIT.reset(token)

        return jax.shard_map(inside, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)

    return call


def _mentioned(specs: Any) -> frozenset[str]:
    """The axes over which anything is split."""
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    axes = [axis for spec in leaves for axis in spec if axis is not None]
    names = [name for axis in axes for name in ((axis,) if isinstance(axis, str) else axis)]
    return frozenset(name for name in names if devices_along(name) > 1)


def is_split(axis: str) -> bool:
    """Whether this is inside ``per_device`` and something there is split along an axis.

    >>> is_split("tensor")
    False
    """
    return axis in _SPLIT.get()


def _reached(axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in axes if is_split(name))


def sum_over(x: Any, *axes: str) -> Any:
    """Sum of every device's ``x`` along those axes that ``per_device`` splits something over; elsewhere ``x``.

    >>> sum_over(2.0, "tensor")
    2.0
    """
    reached = _reached(axes)
    return jax.lax.psum(x, reached) if reached else x


def max_over(x: Any, *axes: str) -> Any:
    """Largest of every device's ``x`` along those axes that ``per_device`` splits something over; elsewhere ``x``.

    >>> max_over(2.0, "tensor")
    2.0
    """
    reached = _reached(axes)
    return jax.lax.pmax(x, reached) if reached else x


def place_along(axis: str) -> jax.Array | int:
    """This device's place along an axis that ``per_device`` splits something over; elsewhere 0.

    >>> place_along("tensor")
    0
    """
    return jax.lax.axis_index(axis) if is_split(axis) else 0


def parts_along(axis: str) -> int:
    """In how many parts along an axis ``per_device`` splits something; elsewhere 1.

    >>> parts_along("tensor")
    1
    """
    return jax.lax.axis_size(axis) if is_split(axis) else 1
