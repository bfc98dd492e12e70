"""What chips can do at most, by the kind that JAX calls their devices: the makers' figures, of one device."""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
    """A kind of accelerator.

    Attributes:
        flops: of dense products of bfloat16 matrices, per second.
        memory_bytes: that programs have.
        bytes_per_second: between memory and processors.
    """

    flops: float
    memory_bytes: float
    bytes_per_second: float


_GB = 1e9
_GIB = 2.0**30

CHIPS: dict[str, Chip] = {
    "TPU v4": Chip(275e12, 32 * _GIB, 1228 * _GB),
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 819 * _GB),
    "TPU v5": Chip(459e12, 95 * _GIB, 2765 * _GB),
    "TPU v6 lite": Chip(918e12, 32 * _GIB, 1640 * _GB),
    "NVIDIA L4": Chip(121e12, 24 * _GIB, 300 * _GB),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * _GIB, 1555 * _GB),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * _GIB, 2039 * _GB),
    "NVIDIA H100 PCIe": Chip(756e12, 80 * _GIB, 2000 * _GB),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * _GIB, 3350 * _GB),
    "NVIDIA H200": Chip(989e12, 141 * _GB, 4800 * _GB),
    "NVIDIA B200": Chip(2250e12, 180 * _GB, 8000 * _GB),
}
"""By ``jax.Device.device_kind``."""
