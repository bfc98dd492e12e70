"""Tests of programs over eight devices; ``make test`` runs them in a process that has so many."""

from __future__ import annotations

import os

import jax
import pytest

DEVICES = 8
FLAG = f"--xla_force_host_platform_device_count={DEVICES}"

# The number of devices is fixed when JAX is first used, and other tests want one.
collect_ignore_glob = [] if FLAG in os.environ.get("XLA_FLAGS", "") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def eight_devices() -> None:
    assert len(jax.devices()) == DEVICES
