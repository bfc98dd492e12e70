"""A run's directory as the data of the page: thinned where it is long, rounded, and nothing but what JSON has."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlax_llm.core.wording import counted
from rlax_llm.host.run_directory import RunDirectory, understanding
from rlax_llm.host.tracking.tracker import not_finite, scalars

_POINTS = 1000  # of a curve
_SPREADS = 200  # steps whose distribution is drawn
_HISTOGRAMS = 40  # steps whose histogram can be looked at
_FEW = 6  # scores that are shown one by one
_PROMPTS = 200
_LOOKS = 40  # steps whose completions are shown
_ROWS = 40  # completions of a run without tokens
_TEXT = 4000  # characters of a completion
_DECILES = np.linspace(0, 1, 11)
_AXES = ("step", "environment_steps", "wall_seconds")
_SEEDS = "episode_return_seeds"
_INTERVAL = "_interval"
_SOME_SEEDS = 4  # from here on an interval of their mean says something
_ABOUT = ("command", "model", "recipe", "env", "task")
_LEAD = ("reward", "objective/scores", "episode_return", "loss")

Rows = Sequence[Mapping[str, Any]]


def read_run(run: RunDirectory, name: str) -> dict[str, Any]:
    """What the page shows of a run.

    Args:
        run: its directory.
        name: what the page calls it.

    Raises:
        ValueError: a file is damaged.
    """
    metrics, rollouts = run.metrics(), run.details("rollouts")
    config, summary = run.config(), run.summary()
    with understanding(run.metrics_path):
        curves = _curves(metrics, config.get("seeds"))
        about = summary or _begun(run, metrics)
    with understanding(run.details_path("rollouts") if rollouts else run.metrics_path):
        groups = {
            "spreads": _spreads(metrics, rollouts),
            "groups": _groups(rollouts),
            "prompts": _prompts(rollouts),
        }
    return {
        "name": name,
        "settings": {key: _text(value) for key, value in config.items()},
        "summary": {k: x for k, x in about.items() if not isinstance(x, (dict, list))},
        "state": "" if summary else _state(run, metrics),
        **curves,
        **groups,
        "completions": _completions(run),
    }


def _state(run: RunDirectory, metrics: Rows) -> str:
    """Where a run stands that has not ended, and how it goes on."""
    command = run.config().get("command")
    place = shlex.quote(str(run.path))
    on = f" If it does no more, rlax-llm {command} --resume {place} goes on with it." if metrics else ""
    return f"Not ended: it still runs, or was killed.{on}"


def _begun(run: RunDirectory, metrics: Rows) -> dict[str, Any]:
    """What is known of a run without a summary: what it does, how far it is, the last of its numbers that lead."""
    config = run.config()
    about = {name: config[name] for name in _ABOUT if config.get(name) is not None}
    data = config.get("data")
    files = {"data": ", ".join(map(str, data))} if isinstance(data, list) else {}
    lead = next((name for name in _LEAD if any(name in row for row in metrics)), None)
    last = {lead: next(row[lead] for row in reversed(metrics) if lead in row)} if lead else {}
    done = metrics[-1]["step"] if metrics else 0
    return about | files | {"steps so far": done} | ({"of": config["steps"]} if "steps" in config else {}) | last


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _number(value: Any) -> float | None:
    """With 5 digits that count."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.5g}")


def _thinned(count: int, most: int) -> list[int]:
    """At most so many places of a list, evenly spaced, the first and the last among them."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, most))})


def _curves(metrics: Rows, seeds: int | None) -> dict[str, Any]:
    """The numbers of steps: of a long run the means of so many steps each, so that no peak is picked by chance."""
    rows = [{"step": row["step"], **scalars(_without_intervals(row))} for row in metrics]
    together = max(-(-len(rows) // _POINTS), 1)
    parts = [rows[start : start + together] for start in range(0, len(rows), together)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    found = {name: [_mean(part, name) for part in parts] for name in names}
    bands = _bands(metrics, together, seeds)
    ends = {f"{name}_{end}": band[end] for name, band in bands.items() for end in ("low", "high") if name in found}
    axes = {name: [part[-1].get(name) for part in parts] for name in _AXES if name in found}
    return {
        "together": together,
        "axes": axes,
        "curves": {k: x for k, x in found.items() if k not in _AXES},
        "bands": bands,
        "gaps": _gaps(metrics, found | ends, together),
    }


def _without_intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith(_INTERVAL)}


def _bands(metrics: Rows, together: int, seeds: int | None) -> dict[str, Any]:
    """Around the mean over seeds its interval; of a few seeds, whose interval is wide as a barn, their deviation."""
    names = dict.fromkeys(name.removesuffix(_INTERVAL) for row in metrics for name in row if name.endswith(_INTERVAL))
    few = seeds is not None and seeds < _SOME_SEEDS
    of = "the seeds" if seeds is None else counted(seeds, "seed")
    what = f"one standard deviation of {of} to each side" if few else f"95 % interval of the mean of {of}"
    found = {}
    for name in names:
        rows = [_ends(row, name, few) for row in metrics]
        parts = [rows[start : start + together] for start in range(0, len(rows), together)]
        band = {end: [_mean(part, end) for part in parts] for end in ("low", "high")}
        if any(value is not None for value in band["low"]):
            found[name] = band | {"what": what}
    return found


def _ends(row: Mapping[str, Any], name: str, few: bool) -> dict[str, float]:
    """The two ends of a band at a step; nothing where one of them is not known."""
    ends = row.get(f"{name}{_INTERVAL}")
    if few:
        middle, deviation = row.get(name), row.get(f"{name}_std")
        ends = None if middle is None or deviation is None else (middle - deviation, middle + deviation)
    if ends is None or not all(x is not None and math.isfinite(x) for x in ends):
        return {}
    return dict(zip(("low", "high"), ends, strict=True))


def _gaps(metrics: Rows, curves: Mapping[str, Sequence[float | None]], together: int) -> dict[str, Any]:
    """Of each metric with values that are not finite how many those are, and the points of its curve that lack one."""
    without, known = [not_finite(row) for row in metrics], [scalars(row) for row in metrics]
    found = {}
    for name in dict.fromkeys(name for names in without for name in names):
        drawn = curves.get(name, ())
        points = dict.fromkeys(place // together for place, names in enumerate(without) if name in names)
        found[name] = {
            "count": sum(name in names for names in without),
            "of": sum(name in names for places in (without, known) for names in places),
            "at": [point for point in points if drawn and drawn[point] is None],
        }
    return found


def _mean(rows: Rows, name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return _number(sum(values) / len(values)) if values else None


def _spreads(metrics: Rows, rollouts: Rows) -> list[dict[str, Any]]:
    """Distributions over completions, or over the seeds of control, by step."""
    found = [
        ("Score", "of a completion", [(row["step"], _flat(row["rewards"])) for row in rollouts]),
        ("Length", "tokens of a completion", [(row["step"], _flat(row["lengths"])) for row in rollouts]),
        ("Return", "of a seed's episodes", [(row["step"], _flat([row[_SEEDS]])) for row in metrics if row.get(_SEEDS)]),
    ]
    return [_spread(*one) for one in found if any(values for _, values in one[2])]


def _flat(groups: Any) -> list[float]:
    return [value for group in groups for value in group if value is not None]


def _spread(title: str, unit: str, steps: list[tuple[int, list[float]]]) -> dict[str, Any]:
    known = [(step, values) for step, values in steps if values]
    shown = [known[place] for place in _thinned(len(known), _SPREADS)]
    looks = [known[place] for place in _thinned(len(known), _HISTOGRAMS)]
    return {
        "title": title,
        "unit": unit,
        "shares": _shares([values for _, values in shown]) if title == "Score" else None,
        "steps": [step for step, _ in shown],
        "deciles": [[_number(x) for x in np.quantile(values, _DECILES)] for _, values in shown],
        "looks": [[step, [_number(x) for x in values]] for step, values in looks],
    }


def _shares(steps: list[list[float]]) -> dict[str, Any] | None:
    """Of a few different values, the share that each has of a step's; None where there are more."""
    values = sorted({x for step in steps for x in step})
    if len(values) > _FEW:
        return None
    return {"values": values, "rows": [[_number(step.count(x) / len(step)) for x in values] for step in steps]}


def _groups(rollouts: Rows) -> dict[str, Any] | None:
    """By step, the shares of prompts of which no completion, or every one, is right; None without right and wrong."""
    rows = [row for row in rollouts if row.get("solved")]
    if not rows:
        return None
    rows = [rows[place] for place in _thinned(len(rows), _SPREADS)]
    sizes = [[len(group) for group in row["rewards"]] for row in rows]
    pairs = [list(zip(row["solved"], size, strict=True)) for row, size in zip(rows, sizes, strict=True)]
    return {
        "steps": [row["step"] for row in rows],
        "none": [_number(sum(right == 0 for right, _ in row) / len(row)) for row in pairs],
        "all": [_number(sum(right == size for right, size in row) / len(row)) for row in pairs],
    }


def _prompts(rollouts: Rows) -> dict[str, Any]:
    """Each prompt's share of right completions, or its mean score, at every visit; the hardest first."""
    solved = any(row.get("solved") for row in rollouts)
    texts = {name: text for row in rollouts for name, text in row["texts"].items()}
    seen: dict[str, list[tuple[int, float, int]]] = {}
    for row in rollouts:
        for place, name in enumerate(row["prompts"]):
            value = _worth(row, place, solved)
            if value is not None:
                seen.setdefault(name, []).append((row["step"], value, len(row["rewards"][place])))
    lines = [{"name": name, "text": texts.get(name), **_prompt(visits)} for name, visits in seen.items()]
    # Those that were seen more than once say more.
    lines.sort(key=lambda line: (-min(len(line["visits"]), 2), line["mean"]))
    return {"of": len(lines), "solved": solved, "lines": lines[:_PROMPTS], "steps": len(rollouts)}


def _worth(row: Mapping[str, Any], place: int, solved: bool) -> float | None:
    """The share of a prompt's completions that are right, or the mean of their scores, or None where none has any."""
    if solved:
        return row["solved"][place] / len(row["rewards"][place])
    scores = [x for x in row["rewards"][place] if x is not None]
    return sum(scores) / len(scores) if scores else None


def _prompt(visits: list[tuple[int, float, int]]) -> dict[str, Any]:
    completions = sum(size for _, _, size in visits)
    return {
        "completions": completions,
        "mean": _number(sum(value * size for _, value, size in visits) / completions),
        "visits": [[step, _number(value)] for step, value, _ in visits],
    }


def _completions(run: RunDirectory) -> list[dict[str, Any]]:
    """Completions token by token where a run has kept them, else the texts of its last steps."""
    rows, path = run.details("tokens"), run.details_path("tokens")
    if not rows:
        rows, path = [_untold(row) for row in run.completions()[-_ROWS:]], run.completions_path
    by_step: dict[int, list[dict[str, Any]]] = {}
    with understanding(path):
        for row in rows:
            by_step.setdefault(row["step"], []).append(_shown(row))
    steps = sorted(by_step)
    return [{"step": steps[place], "rows": by_step[steps[place]]} for place in _thinned(len(steps), _LOOKS)]


def _untold(row: Mapping[str, Any]) -> dict[str, Any]:
    """A completion of which nothing is kept by token."""
    text = str(row.get("transcript", row.get("completion", "")))[:_TEXT]
    return {"step": row["step"], "prompt": row.get("prompt", ""), "reward": row.get("reward"), "pieces": [text]}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("reward", "pieces", "log_probs", "ratios", "advantages", "left_out")
    prompt = row["prompt"]
    asked = prompt if isinstance(prompt, str) else "\n".join(f"{x.get('role')}: {x.get('content')}" for x in prompt)
    return {"prompt": asked[:_TEXT]} | {name: row[name] for name in kept if name in row}
