"""What chips can do at most, by the kind that JAX calls their devices: the makers' figures, of one device."""

from __future__ import annotations

from typing import NamedTuple

from rlax_llm.core.names import did_you_mean


class Chip(NamedTuple):
    """A kind of accelerator.

    Attributes:
        name: that people call it.
        flops: of dense products of bfloat16 matrices, per second.
        memory_bytes: that programs have.
        bytes_per_second: between memory and processors.
        network_bytes_per_second: that a device sends to its neighbors over all links; as many arrive meanwhile.
    """

    name: str
    flops: float
    memory_bytes: float
    bytes_per_second: float
    network_bytes_per_second: float


_GB = 1e9
GIB = 2.0**30

# Data sheets: https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x, whose networks' figures are both
# directions together; NVIDIA's of each GPU, with NVLink or else PCIe, likewise. A compiler keeps a little of a v5e's
# and v6e's memory for itself, as it says where it runs out. A chip of TPU7x is two devices.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 32 * GIB, 1228 * _GB, 150 * _GB),
    "TPU v5 lite": Chip("v5e", 197e12, 15.75 * GIB, 819 * _GB, 200 * _GB),
    "TPU v5": Chip("v5p", 459e12, 95 * GIB, 2765 * _GB, 600 * _GB),
    "TPU v6 lite": Chip("v6e", 918e12, 31.25 * GIB, 1640 * _GB, 400 * _GB),
    "TPU7x": Chip("tpu7x", 1153.5e12, 96 * GIB, 3690 * _GB, 300 * _GB),
    "NVIDIA L4": Chip("l4", 121e12, 24 * GIB, 300 * _GB, 32 * _GB),
    "NVIDIA A100-SXM4-40GB": Chip("a100-40gb", 312e12, 40 * GIB, 1555 * _GB, 300 * _GB),
    "NVIDIA A100-SXM4-80GB": Chip("a100-80gb", 312e12, 80 * GIB, 2039 * _GB, 300 * _GB),
    "NVIDIA H100 PCIe": Chip("h100-pcie", 756e12, 80 * GIB, 2000 * _GB, 64 * _GB),
    "NVIDIA H100 80GB HBM3": Chip("h100", 989e12, 80 * GIB, 3350 * _GB, 450 * _GB),
    "NVIDIA H200": Chip("h200", 989e12, 141 * _GB, 4800 * _GB, 450 * _GB),
    "NVIDIA B200": Chip("b200", 2250e12, 180 * _GB, 8000 * _GB, 900 * _GB),
}
"""By ``jax.Device.device_kind``."""


def chip_named(name: str) -> Chip:
    """The chip of a name.

    Raises:
        ValueError: there is none of that name.

    >>> chip_named("v5e").flops
    197000000000000.0
    >>> chip_named("v5x")
    Traceback (most recent call last):
    ValueError: chip 'v5x' is unknown; did you mean 'v5p'? There are v4, v5e, v5p, v6e, tpu7x, l4, a100-40gb, ...
    """
    found = {chip.name: chip for chip in CHIPS.values()}
    if name not in found:
        raise ValueError(f"chip {name!r} is unknown{did_you_mean(name, found)} There are {', '.join(found)}.")
    return found[name]
