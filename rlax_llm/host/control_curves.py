"""The figure of a control run: the mean over seeds, its 95 % interval, and where there are few seeds each of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlax_llm.host.curves import FAINT, INK, Panel, dress, panels_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    Panel("episode_return", "Return of training episodes", "rewards, undiscounted"),
    Panel("entropy", "Entropy of the policy", "nats"),
    Panel("kl", "KL to the old policy", "nats"),
    Panel("kl_old", "KL to the old policy", "nats"),
    Panel("clip_fraction", "Steps beyond the clip", "fraction", (0.0, 1.0)),
    Panel("explained_variance", "Critic's explained variance", "fraction", (-1.0, 1.0)),
    Panel("value_loss", "Critic's loss", "rewards²"),
)
_FEW_SEEDS = 32


def draw_control_curves(path: str | os.PathLike[str], metrics: Sequence[Mapping[str, Any]], title: str) -> None:
    """Write a PNG of the quantities in ``PANELS`` that occur in the metrics.

    Args:
        path: of the PNG.
        metrics: rows of ``metrics.jsonl``.
        title: above the panels.

    Raises:
        OSError: the disk is full.
    """
    panels = [panel for panel in PANELS if any(_known(row.get(panel.key)) for row in metrics)]
    if any(panel.key == "kl" for panel in panels):
        panels = [panel for panel in panels if panel.key != "kl_old"]
    figure, axes = panels_figure(title, len(panels))
    for place, panel in zip(axes, panels, strict=True):
        _draw(place, panel, [row for row in metrics if _known(row.get(panel.key))])
    save_figure(figure, path)


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _draw(axes: Axes, panel: Panel, rows: Sequence[Mapping[str, Any]]) -> None:
    steps = [row["environment_steps"] for row in rows]
    seeds = [row.get(panel.key + "_seeds") or [] for row in rows]
    if seeds and 1 < len(seeds[0]) <= _FEW_SEEDS:
        numbers = [[math.nan if value is None else value for value in row] for row in seeds]
        axes.plot(steps, numbers, color=FAINT, linewidth=0.7, alpha=0.8)
    bands = [(step, *row[panel.key + "_interval"]) for step, row in zip(steps, rows, strict=True)]
    bands = [band for band in bands if all(map(_known, band))]
    if bands:
        places, lows, highs = zip(*bands, strict=True)
        axes.fill_between(places, lows, highs, color=INK, alpha=0.22, linewidth=0)
    marker = "o" if len(rows) == 1 else None
    axes.plot(steps, [row[panel.key] for row in rows], color=INK, linewidth=1.9, marker=marker)
    dress(axes, panel, "environment steps of a seed")
