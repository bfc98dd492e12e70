"""The figure of a run: one panel a quantity, over its steps."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlax_llm.host.run_directory import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1f4e79", "#9dbbd8"
_GRID, _TEXT = "#e4e7eb", "#30363d"
_MANY_POINTS = 12


class Panel(NamedTuple):
    """One quantity: its key among the metrics, the panel's title, the unit of its axis and its bounds, if any."""

    key: str
    title: str
    unit: str
    bounds: tuple[float, float] | None = None


PANELS = (
    Panel("reward", "Reward", "mean per completion"),
    Panel("held_out_accuracy", "Held-out accuracy", "fraction of prompts", (0.0, 1.0)),
    Panel("loss", "Loss", "nats per token"),
    Panel("completions/mean_length", "Completion length", "tokens"),
    Panel("kl", "KL to the reference", "nats per token"),
    Panel("entropy", "Entropy", "nats per token"),
)
_PAIRS = (
    Panel("loss", "Loss", "mean over the batch"),
    Panel("held_out_loss", "Held-out loss", "mean over rows"),
    Panel("held_out_accuracy", "Held-out pairs ranked right", "fraction", (0.0, 1.0)),
)
_IMPLICIT = (
    Panel("rewards/margins", "Margin of implicit rewards", "reward"),
    Panel("logps/chosen", "Log-likelihood of chosen completions", "nats"),
    Panel("logps/rejected", "Log-likelihood of rejected completions", "nats"),
    Panel("kl", "KL by mismatched pairs", "nats per completion"),
)
_PPO = (
    Panel("objective/scores", "Score", "mean per completion"),
    Panel("held_out_reward", "Held-out score, greedy", "mean per completion"),
    Panel("held_out_accuracy", "Held-out accuracy", "fraction of prompts", (0.0, 1.0)),
    Panel("objective/kl", "KL to the reference", "nats per completion"),
    Panel("loss/value_avg", "Value loss", "score²"),
    Panel("val/explained_variance", "Values' explained variance", "fraction", (-1.0, 1.0)),
    Panel("completions/mean_length", "Completion length", "tokens"),
    Panel("objective/entropy", "Entropy", "nats per token"),
)
_DEMONSTRATIONS = (
    Panel("loss", "Cross-entropy", "nats per token"),
    Panel("held_out_loss", "Held-out cross-entropy", "nats per token"),
    Panel("entropy", "Entropy", "nats per token"),
)
_DISTILLATION = (
    Panel("divergence", "Divergence from the teacher", "nats per token"),
    Panel("kl", "KL to the teacher, sampled", "nats per token"),
    Panel("held_out_accuracy", "Held-out accuracy", "fraction of prompts", (0.0, 1.0)),
    Panel("reward", "Reward", "mean per completion"),
    Panel("completions/mean_length", "Completion length", "tokens"),
    Panel("entropy", "Entropy", "nats per token"),
)
_ONLINE = (
    Panel("reward", "Reward", "mean per completion"),
    Panel("rivals/reward", "Reward of rivals", "mean per completion"),
    Panel("held_out_accuracy", "Held-out accuracy", "fraction of prompts", (0.0, 1.0)),
    Panel("rewards/margins", "Margin of implicit rewards", "reward"),
    Panel("completions/mean_length", "Completion length", "tokens"),
    Panel("kl", "KL to the reference", "nats per token"),
    Panel("entropy", "Entropy", "nats per token"),
)
BY_COMMAND = {
    "distill": _DISTILLATION,
    "online": _ONLINE,
    "sft": _DEMONSTRATIONS,
    "reward": (*_PAIRS, Panel("margin", "Margin of scores", "score"), Panel("mean_reward", "Mean score", "score")),
    "dpo": _PAIRS + _IMPLICIT,
    "kto": _PAIRS + _IMPLICIT,
    "ppo": _PPO,
}
"""What the figures of some commands show; ``PANELS`` are the others'."""


def draw_curves(
    path: str | os.PathLike[str],
    metrics: Sequence[Mapping[str, Any]],
    title: str,
    panels: Sequence[Panel] = PANELS,
) -> None:
    """Write a PNG of the quantities in ``panels`` that occur in ``metrics``: each value faint, their trend over it.

    Args:
        path: of the PNG.
        metrics: rows with a ``step`` and numbers, as ``RunDirectory.metrics`` gives them; ``None`` and NaN are gaps.
        title: above the panels.
        panels: what to draw, in order.

    Raises:
        OSError: the disk is full.
    """
    drawn = [(panel, points) for panel in panels if (points := _points(metrics, panel.key))]
    figure, axes = panels_figure(title, len(drawn))
    for place, (panel, points) in zip(axes, drawn, strict=True):
        _draw_panel(place, panel, points)
    save_figure(figure, path)


def panels_figure(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """An empty figure of ``count`` panels, at most three in a row.

    Args:
        title: above the panels.
        count: of none, the figure says so.
    """
    # No pyplot: it keeps figures and a backend in global state, which a library has no business to touch.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(3, max(1, count))
    rows = max(1, math.ceil(count / columns))
    size = (max(4.0 * columns, 5.0), 2.9 * rows + 0.5)
    figure = Figure(size, dpi=130, facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, color=_TEXT, fontweight="bold", x=0.012, ha="left")
    if not count:
        figure.text(0.5, 0.45, "no steps yet", ha="center", va="center", color=_TEXT)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure as a PNG.

    Raises:
        OSError: the disk is full.
    """
    beside = Path(f"{os.fspath(path)}.part")
    with writing(path):
        try:
            figure.savefig(beside, format="png")
            os.replace(beside, path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    rows = ((_finite(row.get("step")), _finite(row.get(key))) for row in metrics)
    return [(step, value) for step, value in rows if step is not None and value is not None]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean over a centered window of a twelfth of the values, of which both ends have one side."""
    half = max(1, len(values) // 24)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _draw_panel(axes: Axes, panel: Panel, points: Sequence[tuple[float, float]]) -> None:
    steps, values = zip(*points, strict=True)
    if len(points) >= _MANY_POINTS:
        axes.plot(steps, values, color=FAINT, linewidth=0.9)
        axes.plot(steps, _smoothed(values), color=INK, linewidth=1.9)
    else:
        axes.plot(steps, values, color=INK, linewidth=1.6, marker="o", markersize=4)
    dress(axes, panel, "step")


def dress(axes: Axes, panel: Panel, horizontal: str) -> None:
    """Title, labels, bounds and grid of a panel that has been drawn.

    Args:
        axes: the panel's.
        panel: what it shows.
        horizontal: label of the horizontal axis.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title(panel.title, fontsize=10.5, color=_TEXT, loc="left")
    axes.set_xlabel(horizontal, fontsize=9, color=_TEXT)
    axes.set_ylabel(panel.unit, fontsize=9, color=_TEXT)
    if panel.bounds is not None:
        low, high = panel.bounds
        margin = 0.04 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, colors=_TEXT, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
