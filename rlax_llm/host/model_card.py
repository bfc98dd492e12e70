"""The card of a model: what it was made of, by what, and what came out, as ``README.md`` in its directory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlax_llm.host.run_directory import RunDirectory, plain, writing

CARD = "README.md"
_TITLES = {
    "command": "Method",
    "recipe": "Recipe",
    "model": "Trained from",
    "task": "On",
}
_ELSEWHERE = ("finished", "stopped")


def write_card(directory: RunDirectory, summary: Mapping[str, Any]) -> None:
    """Write the card of a run's model.

    Args:
        directory: of the run.
        summary: what came out.

    Raises:
        OSError: the disk is full.
    """
    path = directory.model_path / CARD
    with writing(path):
        path.write_text(card(directory.path.resolve().name, summary, directory.config()), encoding="utf-8")


def card(name: str, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The text of a card. Of a path only its last part is there, since a card is shown to others.

    Args:
        name: of the run.
        summary: what came out.
        settings: of the run.

    >>> text = card("a", {"command": "grpo", "last_reward": 0.5}, {"command": "grpo", "data": "/data/a.jsonl"})
    >>> print(text)  # doctest: +ELLIPSIS
    ---
    library_name: transformers
    tags:
    - rlax-llm
    - grpo
    ---
    <BLANKLINE>
    # a
    <BLANKLINE>
    Method: grpo
    <BLANKLINE>
    | result | value |
    |---|---|
    | last_reward | 0.5 |
    ...
    data: a.jsonl
    ...
    """
    head = {"library_name": "transformers"} | _base(summary) | {"tags": ["rlax-llm", str(summary.get("command"))]}
    made_of = [f"{title}: {_short(summary[key])}" for key, title in _TITLES.items() if key in summary]
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {name}", "", "  \n".join(made_of)]
    lines += _not_whole(summary)
    results = {key: x for key, x in summary.items() if key not in (*_TITLES, *_ELSEWHERE)}
    lines += ["", "| result | value |", "|---|---|"]
    lines += [f"| {key} | {_number(value)} |" for key, value in results.items() if isinstance(value, (int, float))]
    written = yaml.safe_dump({key: _short(x) for key, x in plain(settings).items()}, sort_keys=False)
    lines += ["", "## Settings", "", "```yaml", written.strip(), "```", ""]
    lines += ["Made with `rlax-llm`. `rlax-llm generate --model DIR PROMPT` and transformers read this directory.", ""]
    return "\n".join(lines)


def _base(summary: Mapping[str, Any]) -> dict[str, str]:
    """The base, where it is one of the hub."""
    name = str(summary.get("model", ""))
    on_hub = name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).exists()
    return {"base_model": name} if on_hub else {}


def _not_whole(summary: Mapping[str, Any]) -> list[str]:
    if summary.get("stopped"):
        return ["", f"The run failed: {summary['stopped']}"]
    return [] if summary.get("finished", True) else ["", "The run ended before its last step."]


def _short(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
