"""What a control run says when it ends: its summary, and lines for a person."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.control.chunks import spread_of
from rlax_llm.commands.control.phase import ControlPhase
from rlax_llm.host.endings import where_to_look
from rlax_llm.host.session import Session

_FINAL_SHARE = 0.1
_SOME_SEEDS = 4  # from here on an interval of their mean says something


def summary(
    session: Session, phase: ControlPhase, heading: Mapping[str, Any], greedy: Mapping[str, Any]
) -> dict[str, Any]:
    """What came out.

    Args:
        session: of the run.
        phase: of the run.
        heading: what stands first: command, environment, recipe.
        greedy: returns of the greedy evaluation, empty where there was none.
    """
    steps = session.position * phase.steps_per_iteration
    found: dict[str, Any] = dict(heading)
    found |= {"seeds": phase.run.seeds, "iterations": session.position, "environment_steps": steps}
    found["finished"] = session.position >= phase.program.iterations and session.failed is None
    found["stopped"] = session.failed
    found |= _final_returns(session.directory.metrics(), steps)
    found |= greedy
    if phase.seconds:
        rate = phase.iterations * phase.steps_per_iteration * phase.run.seeds / phase.seconds
        found["steps_per_second"] = round(rate, 1)
    devices = jax.devices()
    found["compile_seconds"] = round(phase.compile_seconds, 2)
    found["devices"] = f"{len(devices)} {devices[0].platform}"
    return found


def report(session: Session, summary: Mapping[str, Any]) -> str:
    """What a person wants to know at the end of a run.

    Args:
        session: of the run.
        summary: what came out.
    """
    parts = []
    for key, name in (("final_return", "return of the last episodes"), ("greedy_return", "greedy return")):
        if key in summary:
            parts.append(f"{name} {summary[key]:.1f}{_around(summary, key)}")
    seconds = session.wall_seconds()
    parts.append(f"{session.position} iterations of {summary['seeds']} seeds in {seconds:.0f} s")
    lines = [", ".join(parts), f"written to {session.directory.path}"]
    lines += where_to_look(session)
    if not summary["finished"]:
        lines.append(f"Go on with: rlax-llm control --resume {shlex.quote(str(session.directory.path))}")
    return "\n".join(lines)


def _around(summary: Mapping[str, Any], key: str) -> str:
    """The interval of a mean over seeds; of two or three, where it says nothing, the least and the greatest."""
    seeds = [x for x in summary[f"{key}_seeds"] if x is not None and not math.isnan(x)]
    if len(seeds) < 2:
        return ""
    if len(seeds) < _SOME_SEEDS:
        return f" (seeds from {min(seeds):.1f} to {max(seeds):.1f})"
    low, high = summary[f"{key}_interval"]
    return f" (95 % {low:.1f} to {high:.1f})"


def _final_returns(metrics: Iterable[Mapping[str, Any]], steps: int) -> dict[str, Any]:
    """Returns of the episodes in the last tenth of ``steps``, over seeds; nothing where no row is of that part."""
    rows = [row for row in metrics if row["environment_steps"] > (1 - _FINAL_SHARE) * steps]
    if not rows:
        return {}
    seeds = [[math.nan if x is None else x for x in row["episode_return_seeds"]] for row in rows]
    final = _mean_of_known(np.array(seeds))
    return spread_of("final_return", final) | {"final_return_seeds": final}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over axis 0 of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
