"""Where the files of a run are, in names that hold from any directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlax_llm.core.user_code import whole_path
from rlax_llm.recipes.registry import whole_places

_FILES = ("data", "eval_data", "model", "reward_model", "value_model")
_ENVIRONMENTS = ("brax", "probe")
_NAMES = ("char", "smollm2", "policy", "reward", "scratch")
"""What the commands themselves mean by a word, whatever file has it for its name."""


def _environment(name: str) -> str:
    return name if name.partition(":")[0] in _ENVIRONMENTS else whole_path(name)


def _task(spec: str) -> str:
    name, comma, settings = spec.partition(",")
    return f"{whole_path(name)}{comma}{settings}"


def _rewards(spec: str) -> str:
    from rlax_llm.rewards.loading import anchor_files  # here: rewards need numpy

    return anchor_files(spec)


_CODE = {"reward": _rewards, "optimizer": whole_path, "recipe": whole_places, "env": _environment, "task": _task}
"""How the settings that name code are written so that it is found from any directory."""


def whole_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings those that name a file or a directory that is there, with its whole path.

    A name that is no file here (of a model or a task) is left out; so is a module in a package.

    Args:
        settings: values by name.

    >>> whole_paths({"model": "char", "data": "no/such.jsonl", "seed": 3, "reward": None})
    {}
    """
    files = {name: settings[name] for name in _FILES if settings.get(name) is not None}
    found = {name: os.path.abspath(value) for name, value in files.items() if value not in _NAMES and _is_there(value)}
    code = {name: settings[name] for name in _CODE if settings.get(name) is not None}
    return found | {name: _CODE[name](spec) for name, spec in code.items()}


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False
