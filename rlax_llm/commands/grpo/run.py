"""The command ``grpo`` as a function of its settings."""

from __future__ import annotations

from typing import Any

from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge, pooled
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.reinforced_run import run_reinforced
from rlax_llm.commands.setup import (
    build_model,
    scalar_judge,
    with_defaults,
)
from rlax_llm.commands.tasks import judged_task
from rlax_llm.credit.shaping import soft_overlong_punishment
from rlax_llm.host.run_directory import RunDirectory


def run_grpo(config: GrpoSettings) -> RunDirectory:
    """Train by reinforcement learning, after a supervised warm start if there is one, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    config = with_defaults(config)
    model = build_model(config)
    task, learner = judged_task(config, model), language_learner(config, model, config.seed)
    judge_model = None if config.reward_model is None else scalar_judge(config.reward_model, model, config)
    failures = Failures()
    with pooled(task.rewards, config.reward_workers, config.reward_timeout, failures) as rewards:
        judge = Judge(rewards, judge_model, _punishment(config), failures)
        return run_reinforced(learner, GroupPhase(config, learner, task, judge), learner.export)


def _punishment(config: GrpoSettings) -> tuple[str, Any] | None:
    if not config.overlong_buffer:
        return None
    limit, buffer = config.max_new_tokens or 1, config.overlong_buffer
    return "overlong", lambda lengths: soft_overlong_punishment(lengths, limit, buffer)
