"""A trace of one step, for TensorBoard and Perfetto."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


class Profile:
    """Traces one step of a run: the first that begins at a number or behind it.

    Args:
        path: of the directory that the trace is written to.
        step: the number, from 1; None traces nothing.

    Attributes:
        written: a trace is there, by this process or one before.
    """

    def __init__(self, path: Path, step: int | None):
        self.path, self.step = path, step
        self.written = path.exists()

    @contextlib.contextmanager
    def of(self, number: int) -> Iterator[None]:
        """A block that does the step (or, where many are one program, the steps from) ``number``.

        The trace is ``plugins/profile/DATE/`` in the directory: what TensorBoard reads (``*.xplane.pb``) and, for
        https://ui.perfetto.dev, ``perfetto_trace.json.gz``.
        """
        if self.step is None or self.written or number < self.step:
            yield
            return
        with jax.profiler.trace(str(self.path), create_perfetto_trace=True):
            yield
        self.written = True

    def missed(self) -> bool:
        """Whether a trace was asked for and there is none."""
        return self.step is not None and not self.written
