"""The processes that a command is computed by: found, or given, and begun together with the same settings."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.settings import as_dict, flat
from rlax_llm.core.processes import gathered, several
from rlax_llm.host.failures import sentence
from rlax_llm.host.peers import PEERS
from rlax_llm.host.progress import say

_COUNTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_HEARTBEAT_SECONDS = 40
_SHUTDOWN_SECONDS = 60


@contextmanager
def processed(settings: OnMachine) -> Iterator[None]:
    """Begin JAX's service between the processes of the settings, or of the cluster; a process alone needs none.

    Args:
        settings: of the command; they must be the same on all processes.

    Raises:
        ValueError: other processes cannot be reached, or have other settings.
    """
    if not jax.distributed.is_initialized():
        _initialize(settings.command, settings.machine)
    if not several():
        yield
        return
    if not _connected():
        say("warning: processes cannot watch each other; one that dies ends the others by JAX's own heartbeat.")
    PEERS.forget()
    try:
        _check_same(settings)
        yield
        gathered("the end")  # what one writes last the others wait for
    except KeyboardInterrupt:
        PEERS.alone = True
        raise
    except BaseException as error:
        PEERS.all_fail(sentence(error))
        raise


@functools.cache
def _connected() -> bool:
    return all(gathered(PEERS.connect()))


def _initialize(command: str, settings: MachineSettings) -> None:
    """``jax.distributed.initialize``, where there are others."""
    if settings.coordinator is None and (settings.processes == 1 or not _in_a_cluster()):
        return
    # Of several processes on CPUs; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            settings.coordinator,
            settings.processes,
            settings.process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{command}: the other processes cannot be joined ({sentence(error)}); give coordinator, process_id and "
            "processes, or processes 1 for this one alone."
        ) from error


def _in_a_cluster() -> bool:
    """Whether there may be other processes, which JAX finds then."""
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return True
    if any(int(os.environ.get(name) or 1) > 1 for name in _COUNTED):
        return True
    # On GKE and Cloud TPU the service is begun on one machine too: it alone knows how many there are.
    return importlib.util.find_spec("libtpu") is not None and any(Path(device).exists() for device in _TPU_DEVICES)


def _check_same(settings: OnMachine) -> None:
    """Raise, on all processes, where they have different settings."""
    where = {name: value for name, value in flat(settings).items() if name in ("out", "resume")}
    own = json.loads(json.dumps(as_dict(settings) | where, default=str))
    given = gathered(own)
    for index, other in enumerate(given):
        for name in given[0].keys() | other.keys():
            first, here = given[0].get(name), other.get(name)
            if first != here:
                raise ValueError(
                    f"{settings.command}: {name} is {first!r} on process 0 and {here!r} on process {index}; give all "
                    "processes the same settings."
                )
