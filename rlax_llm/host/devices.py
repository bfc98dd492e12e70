"""What a step's line says of the devices: tokens per second of each, and the most memory that one has taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from rlax_llm.core.chips import GIB
from rlax_llm.core.mesh import AXES, devices_along


def device_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of the devices that belong to a step's metrics.

    ``device_tokens_per_second`` where there is ``tokens_per_second``, over the devices of the ambient mesh;
    ``peak_memory_gib``, the most bytes in use at a time since the process began, on the device that took most, in
    2³⁰ bytes, where the devices count them (accelerators do, a CPU does not).

    Args:
        metrics: of the step.

    >>> device_metrics({"tokens_per_second": 8.0})["device_tokens_per_second"]
    8.0
    """
    found: dict[str, float] = {}
    if metrics.get("tokens_per_second") is not None:
        found["device_tokens_per_second"] = metrics["tokens_per_second"] / devices_along(*AXES)
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return found | ({"peak_memory_gib": max(known) / GIB} if known else {})
