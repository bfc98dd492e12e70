"""A session of the host for a command's settings."""

from __future__ import annotations

from rlax_llm.commands.control.settings import ControlRunSettings, ControlSettings
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.host.best import Measure
from rlax_llm.host.session import Keeping, Session
from rlax_llm.host.tracking.registry import tracker_names

TrainingSettings = (
    GrpoSettings
    | PpoSettings
    | SftSettings
    | RewardSettings
    | DpoSettings
    | KtoSettings
    | DistillSettings
    | OnlineSettings
)
"""Of a command that trains a language model."""


def open_session(settings: TrainingSettings | ControlSettings, warm_start_steps: int = 0) -> Session:
    """A new run's session, or that of the run to go on with.

    Args:
        settings: of the command.
        warm_start_steps: of a phase before the run's own.
    """
    run = settings.run
    best = None if isinstance(run, ControlRunSettings) or run.best is None else Measure.of(run.best)
    return Session(
        settings.command,
        as_dict(settings),
        out=run.out,
        resume=run.resume,
        save_every=run.save_every,
        warm_start_steps=warm_start_steps,
        keeping=Keeping(run.keep_checkpoints, best, run.max_hours, run.profile, tracker_names(run.track)),
    )


def heading(settings: TrainingSettings) -> dict[str, str]:
    """What a run is called: its command, its model, and what it learns from."""
    return {"command": settings.command, "model": settings.model.model, "task": _source(settings)}


def _source(settings: TrainingSettings) -> str:
    """What is learned from, in a word."""
    if isinstance(settings, DistillSettings) and settings.teacher.is_stored:
        return str(settings.teacher.teacher)
    return settings.task.source
