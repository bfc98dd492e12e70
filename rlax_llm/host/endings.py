"""What a run says when it ends: its summary, and a line for a person."""

from __future__ import annotations

from typing import Any

from rlax_llm.host.session import Session, first_and_last, median, task_of


def summary(session: Session) -> dict[str, Any]:
    """What came out: first and last values, and medians of the speeds."""
    metrics, config = session.directory.metrics(), session.config
    told: dict[str, Any] = {"command": config.command, "model": config.model, "task": task_of(config)}
    told |= {"recipe": recipe} if (recipe := getattr(config, "recipe", None)) else {}
    told |= {"steps": session.step, "finished": session.step >= (config.steps or 0) and session.failed is None}
    told |= {"stopped": session.failed} if session.failed is not None else {}
    for key in ("reward", "held_out_accuracy", "held_out_reward", "held_out_loss", "loss"):
        first, last = first_and_last(metrics, key)
        told |= {f"first_{key}": first, f"last_{key}": last} if first is not None else {}
    for key in ("tokens_per_second", "rollout_tokens_per_second", "update_tokens_per_second"):
        value = median(metrics, key)
        told |= {key: round(value, 1)} if value is not None else {}
    return told


def farewell(session: Session) -> str:
    """What a person wants to know at the end of a run: what changed, where it is, how to go on."""
    metrics, place = session.directory.metrics(), session.directory.path
    told = []
    for key, name in (("held_out_accuracy", "held-out accuracy"), ("held_out_loss", "held-out loss")):
        first, last = first_and_last(metrics, key)
        told += [f"{name} {first:.3f} → {last:.3f}"] if first is not None and last is not None else []
    told += [f"{max(session.step, 0)} steps in {session.wall_seconds():.0f} s", f"written to {place}"]
    lines = [", ".join(told)]
    if session.step < (session.config.steps or 0):
        lines += [f"Go on with: rlax-llm {session.config.command} --resume {place}"]
    elif session.config.command != "reward":
        lines += [f"Try it: rlax-llm generate --model {session.directory.model_path} PROMPT"]
    return "\n".join(lines)
