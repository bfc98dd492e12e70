"""What a run shows while it goes: a live line and its numbers on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlax_llm.core.processes import is_first


class Column(NamedTuple):
    """One number of the display: the key it has among the metrics, its label and its format."""

    key: str
    label: str
    format: str = "{:.3f}"

    def shown(self, number: float) -> str:
        """The number in the format; what is rounded to 0 has no sign.

        >>> Column("kl", "KL").shown(-1e-5), Column("kl", "KL").shown(-1.0)
        ('0.000', '-1.000')
        """
        text = self.format.format(number)
        return text if set(text) & set("123456789") else text.removeprefix("-")


GROUP_COLUMNS = (
    Column("reward", "reward"),
    Column("held_out_accuracy", "held-out accuracy"),
    Column("completions/mean_length", "length", "{:.1f}"),
    Column("kl", "KL", "{:.4f}"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}"),
)
SUPERVISED_COLUMNS = (
    Column("loss", "loss", "{:.4f}"),
    Column("held_out_accuracy", "held-out accuracy"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}"),
)
DISTILLATION_COLUMNS = (
    Column("divergence", "divergence", "{:.4f}"),
    Column("kl", "KL", "{:.4f}"),
    Column("held_out_accuracy", "held-out accuracy"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}"),
)

_SHORT_RUN_STEPS = 20
_SECONDS_BETWEEN_LINES = 2.0


def say(text: str) -> None:
    """Print a line on stdout; a terminal that was closed, or a full disk behind it, is no reason to end a run.

    Args:
        text: the line.

    >>> say("done")
    done
    """
    with _tolerant():
        if is_first():
            print(text, flush=True)


def show(table: RenderableType) -> None:
    """Print a table on stdout, as wide as a terminal is and without cuts elsewhere.

    Args:
        table: of rich.

    >>> show("a")
    a
    """
    with _tolerant():
        if is_first():
            _Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False).print(table)


class _Console(Console):
    """One that leaves it to the command how it ends where the reader of a pipe has gone; rich's calls sys.exit."""

    def on_broken_pipe(self) -> None:
        """Let the error on, which is being handled here."""
        raise


@contextlib.contextmanager
def _tolerant() -> Iterator[None]:
    """Pass over what cannot be shown; the reader of a pipe that has gone ends the run."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


class Progress:
    """Shows steps as they end; a context manager.

    A number that some steps do not have (a held-out accuracy) stays on show until its next. Without a terminal, a run
    of at most 20 steps prints one line per step, a longer one a line every two seconds, and any run its last step.
    Colors follow ``NO_COLOR``.

    Args:
        steps: the step that ends the run.
        title: what runs, before the bar.
        columns: the numbers to show, of those that :meth:`update` is given.
        first_step: the step a resumed run goes on from.
        stream: where to, ``sys.stdout`` if not given.
        clock: seconds; for tests.

    >>> ticks = iter(range(100))
    >>> with Progress(2, "grpo", clock=lambda: next(ticks)) as progress:
    ...     progress.update(1, {"reward": 0.25})
    ...     progress.update(2, {"reward": 0.5, "kl": 0.01})
    grpo 1/2  reward 0.250  elapsed 0:01
    grpo 2/2  reward 0.500  KL 0.0100  elapsed 0:02
    """

    def __init__(
        self,
        steps: int,
        title: str,
        columns: Sequence[Column] = GROUP_COLUMNS,
        first_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total = steps
        self._title = title
        self._columns = columns
        self._stream = stream or (sys.stdout if is_first() else io.StringIO())
        self._clock = clock
        self._step = first_step
        self._shown: dict[str, Any] = {}
        self._started = 0.0
        self._short = steps - first_step <= _SHORT_RUN_STEPS
        # Time left is shown from the second step on: the first holds the compilation.
        self._first_end: tuple[int, float] | None = None
        self._last_end = 0.0
        self._last_line: float | None = None
        self._pending = False
        self._live: Live | None = None
        self._bar_width = 0

    def __enter__(self) -> Progress:
        """Begin the display and the clock."""
        self._started = self._clock()
        if self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            console = _Console(file=self._stream)
            # What the title, two counts and two times leave of the line.
            self._bar_width = max(2, min(24, console.width - len(self._title) - 2 * len(str(self._total)) - 38))
            self._live = Live(console=console, get_renderable=self._rendered, refresh_per_second=5)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, with the last step on show."""
        if self._live is not None:
            with _tolerant():
                self._live.stop()
            self._live = None
        elif self._pending:
            self._print_line(self._clock())

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show that ``step`` has ended with these metrics; NaN and ``None`` are passed over."""
        now = self._clock()
        self._step = step
        self._last_end = now
        if self._first_end is None:
            self._first_end = (step, now)
        self._shown.update({key: value for key, value in metrics.items() if _is_number(value)})
        if self._live is None:
            self._pending = True
            due = self._last_line is None or now - self._last_line >= _SECONDS_BETWEEN_LINES
            if self._short or due or step >= self._total:
                self._print_line(now)

    @property
    def live(self) -> bool:
        """Whether the display is a terminal's."""
        return self._live is not None

    def note(self, text: str) -> None:
        """Print a line of text above the display."""
        with _tolerant():
            if self._live is not None:
                self._live.console.print(Text(text))
            else:
                print(text, file=self._stream, flush=True)

    def show(self, table: RenderableType) -> None:
        """Print a table above the display, or behind the last line."""
        with _tolerant():
            if self._live is not None:
                self._live.console.print(table)
                return
            if self._pending:
                self._print_line(self._clock())
            _Console(file=self._stream, width=120, color_system=None).print(table)

    def _print_line(self, now: float) -> None:
        numbers = "".join(f"  {label} {number}" for label, number in self._numbers())
        left = self._time_left(now)
        times = f"  elapsed {_duration(now - self._started)}" + (f"  left {_duration(left)}" if left else "")
        with _tolerant():
            print(f"{self._title} {self._step}/{self._total}{numbers}{times}", file=self._stream, flush=True)
        self._last_line = now
        self._pending = False
        # Cleared here and not at each step, so that a number of a step that was not printed is on the next line.
        self._shown = {}

    def _numbers(self) -> list[tuple[str, str]]:
        return [
            (column.label, column.shown(float(self._shown[column.key])))
            for column in self._columns
            if column.key in self._shown
        ]

    def _time_left(self, now: float) -> float | None:
        if self._first_end is None or self._step <= self._first_end[0]:
            return None
        seconds_per_step = (self._last_end - self._first_end[1]) / (self._step - self._first_end[0])
        return max(0.0, seconds_per_step * (self._total - self._step) - (now - self._last_end))

    def _rendered(self) -> RenderableType:
        now = self._clock()
        left = self._time_left(now)
        line = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(5):
            line.add_column(no_wrap=True)
        line.add_row(
            Text(self._title, style="bold"),
            Text(f"{self._step}/{self._total}"),
            ProgressBar(total=max(self._total, 1), completed=self._step, width=self._bar_width),
            Text(f"elapsed {_duration(now - self._started)}", style="dim"),
            Text("compiling" if self._first_end is None else f"left {_duration(left)}", style="dim"),
        )
        numbers = Text("  ").join(Text.assemble((f"{label} ", "dim"), number) for label, number in self._numbers())
        return Group(line, numbers) if self._shown else line


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
