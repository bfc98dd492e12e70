"""A session of the host for a command's settings."""

from __future__ import annotations

from typing import Any

from rlax_llm.commands.settings import as_dict
from rlax_llm.host.session import Session


def open_session(config: Any, warm_start_steps: int = 0) -> Session:
    """A new run's session, or that of the run to go on with.

    Args:
        config: settings of a command that trains, in full.
        warm_start_steps: of a phase before the run's own.
    """
    return Session(
        config.command,
        as_dict(config),
        out=config.run.out,
        resume=config.run.resume,
        save_every=config.run.save_every,
        warm_start_steps=warm_start_steps,
    )


def heading(config: Any) -> dict[str, str]:
    """What a run is called: its command, its model, what it learns from, and its recipe where there are several."""
    found = {"command": config.command, "model": config.model.model, "task": task_of(config)}
    recipe = getattr(config, "recipe", None)
    return found if recipe is None else found | {"recipe": recipe}


def title(config: Any) -> str:
    """Of a run's figure."""
    return f"{config.command} · {config.model.model} · {task_of(config)}"


def task_of(config: Any) -> str:
    """What a run learns from, in a word: its file, its task, or the built-in one."""
    return config.data or getattr(config.task, "task", "arithmetic")
