"""The command ``grpo`` as a function of its settings."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.drawing import Drawing, build_drawing
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge, Punishment, pooled
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.setup import build_model, scalar_judge
from rlax_llm.commands.tasks import judged_task
from rlax_llm.commands.warm_start import build_warm_start
from rlax_llm.credit.shaping import soft_overlong_punishment
from rlax_llm.generation.turns import calculator, with_tools
from rlax_llm.host.run_directory import RunDirectory

_TURNS = 4
_TOOLS = {"calculator": calculator}


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
    model = build_model(config)
    task, learner = judged_task(config, model), language_learner(config.model, model, config.run.seed)
    judge_model = None if config.reward_model is None else scalar_judge(config.reward_model, model, config.model)
    failures = Failures()
    with pooled(task.rewards, config.reward_workers, config.reward_timeout, failures) as rewards:
        judge = Judge(rewards, judge_model, _punishment(config), failures)
        phase = GroupPhase(config, learner, task, judge, _drawing(config, learner))
        return run_language(config, phase, learner.params, build_warm_start(config, learner, task))


def _drawing(config: GrpoSettings, learner: Learner) -> Drawing:
    if config.tool is None:
        return build_drawing(config.sampling, config.rollout.group_size, learner)
    generate = with_tools(learner.tokenizer, [_TOOLS[config.tool]], _TURNS)
    return build_drawing(config.sampling, config.rollout.group_size, learner, generate)


def _punishment(config: GrpoSettings) -> tuple[str, Punishment] | None:
    if not config.overlong_buffer:
        return None
    limit, buffer = config.sampling.max_new_tokens, config.task.overlong_buffer
    return "overlong", lambda lengths: np.asarray(soft_overlong_punishment(jnp.asarray(lengths), limit, buffer))
