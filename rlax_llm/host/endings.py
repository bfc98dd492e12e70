"""What a run of a language model says when it ends: its summary, and lines for a person."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rlax_llm.host.compiled import compiled
from rlax_llm.host.session import Session, first_and_last, median


def summary(session: Session, heading: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What came out: first and last values, and medians of the speeds.

    Args:
        session: of the run.
        heading: what stands first: command, model, task.
        steps: the last step that was asked for.
    """
    metrics = session.directory.metrics()
    found: dict[str, Any] = dict(heading)
    found |= {"steps": session.step, "finished": session.step >= steps and session.failed is None}
    if session.failed is not None:
        found["stopped"] = session.failed
    if session.best is not None and session.keeping.best is not None:
        found |= {"best_step": session.best.step, f"best_{session.keeping.best.name}": session.best.value}
    for key in ("reward", "held_out_accuracy", "held_out_reward", "held_out_loss", "loss"):
        first, last = first_and_last(metrics, key)
        if first is not None:
            found |= {f"first_{key}": first, f"last_{key}": last}
    for key in ("tokens_per_second", "rollout_tokens_per_second", "update_tokens_per_second"):
        value = median(metrics, key)
        if value is not None:
            found[key] = round(value, 1)
    return found


def profile_lines(session: Session) -> list[str]:
    """Where the trace is that was asked for, or that there is none; nothing where none was."""
    profile = session.profile
    if profile.missed():
        return [f"No step {profile.step} was begun, so there is no trace of it"]
    return [] if profile.step is None else [f"Trace of step {profile.step}: {profile.path}"]


def where_to_look(session: Session) -> list[str]:
    """What was compiled, where a trace is that was asked for, and how to look at the run in each of its trackers."""
    return compiled().since(session.compiled_before).lines() + profile_lines(session) + session.trackers.lines


def report(session: Session, steps: int) -> str:
    """What a person wants to know at the end of a run: what changed, where it is, how to go on.

    Args:
        session: of the run.
        steps: the last step that was asked for.
    """
    metrics, place = session.directory.metrics(), session.directory.path
    parts = []
    told = []
    for key in ("held_out_accuracy", "held_out_reward", "held_out_loss"):
        ends = first_and_last(metrics, key)
        # A reward of 0 and 1 is the accuracy.
        if None not in ends and ends not in told:
            told.append(ends)
            parts.append(f"{key.replace('held_out_', 'held-out ')} {ends[0]:.3f} → {ends[1]:.3f}")
    done = max(session.step, 0)
    parts.append(f"{done} {'step' if done == 1 else 'steps'} in {session.wall_seconds():.0f} s")
    parts.append(f"written to {place}")
    lines = [", ".join(parts)]
    if session.best is not None and session.keeping.best is not None:
        chosen = f"best {session.keeping.best.name}, {session.best.value:.4g}"
        lines.append(f"{session.directory.model_path} is the model after step {session.best.step}, of the {chosen}")
    return "\n".join([*lines, *where_to_look(session), *_next_command(session, steps)])


def _next_command(session: Session, steps: int) -> list[str]:
    """What goes on with a run that has not ended, or asks its model."""
    if session.step < steps:
        return [f"Go on with: rlax-llm {session.command} --resume {shlex.quote(str(session.directory.path))}"]
    if session.command == "reward":
        return []
    return [f"Try it: rlax-llm generate --model {shlex.quote(str(session.directory.model_path))} PROMPT"]
