"""The processes that a command is computed by: found, or given, and begun together with the same settings."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.settings import as_dict, flat
from rlax_llm.core.processes import gathered, several
from rlax_llm.host.cluster import own_devices
from rlax_llm.host.failures import sentence
from rlax_llm.host.peers import PEERS, leave_when_aborted
from rlax_llm.host.progress import say

_COUNTED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_SECONDS_BEFORE_A_WORD = 10
_SECONDS_TO_JOIN = 300
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
    if settings.coordinator is not None and settings.process_id == 0:
        _check_port(command, settings.coordinator)
    # Of several processes on CPUs; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    join = functools.partial(
        jax.distributed.initialize,
        settings.coordinator,
        settings.processes,
        settings.process_id,
        own_devices(os.environ),
        initialization_timeout=2 * _SECONDS_TO_JOIN,  # at its end JAX would abort
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    try:
        as_before = leave_when_aborted(
            f"{command}: JAX's service refused this process, for what is said above; give all processes the same "
            "coordinator and processes, and each a process_id of its own."
        )
        _done_within(join, settings.coordinator)
        as_before()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{command}: the other processes cannot be joined ({sentence(error)}); give coordinator, process_id and "
            "processes, or processes 1 for this one alone."
        ) from error


def _done_within(join: Callable[[], object], coordinator: str | None) -> None:
    """Join the others beside this thread, which Ctrl-C reaches and time runs out for.

    Raises:
        ValueError: not all have come in time.
    """
    errors: list[Exception] = []

    def joined() -> None:
        try:
            join()
        except Exception as error:
            errors.append(error)

    joining = threading.Thread(target=joined, daemon=True)
    PEERS.alone = True  # until all are there: what ends now must not wait for JAX's service
    joining.start()
    joining.join(_SECONDS_BEFORE_A_WORD)
    where = "" if coordinator is None else f" at {coordinator}"
    if joining.is_alive():
        print(f"Waiting for the other processes{where}.", file=sys.stderr, flush=True)
        joining.join(_SECONDS_TO_JOIN - _SECONDS_BEFORE_A_WORD)
    if joining.is_alive():
        raise ValueError(f"not all have come{where} in {_SECONDS_TO_JOIN:.0f} seconds")
    for error in errors:
        raise error
    PEERS.alone = False


def _check_port(command: str, coordinator: str) -> None:
    """Raise where the first process cannot listen: JAX's service would crash, or share the port with another run."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(
            f"{command}: process 0 cannot listen at the port of coordinator {coordinator} ({reason}); choose a free "
            "one, the same on all processes."
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
