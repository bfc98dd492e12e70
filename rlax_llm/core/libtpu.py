"""What is said to the compiler of TPUs before JAX is imported; nothing here imports it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager

_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
# On a machine without a TPU it would ask the network for one and complain, and let one process alone compile.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def only_compile() -> None:
    """Let libtpu, where it is installed, compile quietly, on a machine that has no TPU; with one nothing changes.

    What the environment says already stays.
    """
    if not any(map(glob.glob, _DEVICES)):
        for name, value in _WITHOUT_TPU.items():
            os.environ.setdefault(name, value)


@contextmanager
def flags_set_aside() -> Iterator[None]:
    """Within the block the environment has no XLA_FLAGS: libtpu ends the process, silently, at one that it lacks.

    Flags of CPU and GPU are such; what a compile for TPUs is to be told stands in LIBTPU_INIT_ARGS.
    """
    flags = os.environ.pop("XLA_FLAGS", None)
    try:
        yield
    finally:
        if flags is not None:
            os.environ["XLA_FLAGS"] = flags
