"""Orbax without its tracebacks: what goes wrong is told in one sentence, by who asked."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rlax_llm.host.run_directory import DISK_FULL


@contextlib.contextmanager
def quiet_checkpointer(make: Callable[[Any], Any]) -> Iterator[Any]:
    """Orbax's checkpointer, without the traceback that it logs; the error it raises becomes one sentence elsewhere.

    Uncompressed: weights hardly compress, and trying took two thirds of the time (800 MB: 6.1 s with, 2.2 s without).

    Args:
        make: ``handler → checkpointer``.
    """
    import orbax.checkpoint as ocp

    handler = ocp.CompositeCheckpointHandler(leaves=ocp.PyTreeCheckpointHandler(use_compression=False))
    logger = logging.getLogger("absl")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with _without_late_reports(), make(handler) as checkpointer:
            yield checkpointer
    finally:
        logger.disabled = was_disabled


@contextlib.contextmanager
def _without_late_reports() -> Iterator[None]:
    """Pass over what TensorStore's threads report to an event loop that an error has closed, a traceback a leaf.

    After an error that goes on, for some of them have not reported yet.
    """
    earlier = sys.unraisablehook

    def hook(found: Any) -> None:
        if not (isinstance(found.exc_value, RuntimeError) and str(found.exc_value) == "Event loop is closed"):
            earlier(found)

    sys.unraisablehook = hook
    yield
    if sys.unraisablehook is hook:
        sys.unraisablehook = earlier


def is_of_a_full_disk(error: Exception) -> bool:
    """Whether an error of the writing means that the disk is full."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    # TensorStore reports a full disk as a ValueError that only its text tells from others.
    return any(os.strerror(number) in str(error) for number in DISK_FULL)
