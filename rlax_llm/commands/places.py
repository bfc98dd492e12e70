"""Where the files of a run are, in names that hold from any directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlax_llm.core.user_code import whole_path
from rlax_llm.recipes.registry import whole_places

_FILES = ("data", "eval_data", "model", "teacher", "reward_model", "value_model", "against", "sampler_directory")
_FILES += ("step_reward_model",)
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
_CODE |= {"step_reward": whole_path}
"""How the settings that name code are written so that it is found from any directory."""


def whole_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings those that name a file or a directory that is there, with its whole path.

    A name that is no file here (of a model or a task) is left out; so is a module in a package.

    Args:
        settings: values by name.

    >>> whole_paths({"model": "char", "data": "no/such.jsonl", "seed": 3, "reward": None})
    {}
    """
    written = dict.fromkeys(_FILES, _whole) | _CODE
    given = {name: settings[name] for name in written if settings.get(name) is not None}
    found = {name: _each(written[name], value) for name, value in given.items()}
    return {name: value for name, value in found.items() if name in _CODE or value != given[name]}


def _each(written: Callable[[str], str], value: Any) -> Any:
    return tuple(map(written, value)) if isinstance(value, tuple | list) else written(value)


def _whole(name: str) -> str:
    return os.path.abspath(name) if name not in _NAMES and _is_there(name) else name


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name, or a NUL in it
        return False
