"""TensorBoard: event files in the run's directory, written with its own package; TensorFlow is not needed."""

from __future__ import annotations

import shlex
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlax_llm.host.tracking.tracker import Ended, TrackedRun, as_markdown, as_table

_PNG_SIZE = slice(16, 24)  # width and height of a PNG, 4 bytes each
_STRING = 7  # DT_STRING of tensorboard's types


class TensorBoard:
    """Scalars, texts and images of a run under ``RUN_DIR/tensorboard``.

    Args:
        run: to be tracked.
    """

    identity = "tensorboard"

    def __init__(self, run: TrackedRun):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Messages are made when their module is imported, so a type checker sees none.
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        self._path = run.path / "tensorboard"
        self._writer = EventFileWriter(str(self._path))
        self.where = f"tensorboard --logdir {shlex.quote(str(self._path))}"
        self._last = 0
        if run.identity is None:
            rows = [[name, str(value)] for name, value in run.settings.items()]
            self._text("settings", as_markdown(["setting", "value"], rows), 0)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event of all numbers."""
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """A text, which TensorBoard shows as a table."""
        self._text("completions", as_markdown(*as_table(rows)), step)

    def end(self, ended: Ended) -> None:
        """The figure, the summary and the card, and the file's end."""
        if ended.curves is not None:
            self._image("curves", ended.curves)
        if ended.card is not None:
            self._text("model_card", ended.card.read_text(encoding="utf-8"), self._last)
        rows = [[name, str(value)] for name, value in ended.summary.items()]
        self._text("summary", as_markdown(["result", "value"], rows), self._last)
        self._writer.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        value = self._summary.Value(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = _STRING
        value.tensor.string_val.append(text.encode())
        value.tensor.tensor_shape.dim.add().size = 1
        self._add(step, [value])

    def _image(self, tag: str, path: Path) -> None:
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[_PNG_SIZE])
        image = self._summary.Image(height=height, width=width, colorspace=4, encoded_image_string=data)
        self._add(self._last, [self._summary.Value(tag=tag, image=image)])

    def _add(self, step: int, values: Sequence[Any]) -> None:
        self._last = max(self._last, step)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()
