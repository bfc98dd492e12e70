"""The command ``grpo`` as a function of its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.drawing import Drawing, build_drawing
from rlax_llm.commands.grpo.anchoring import TURNS
from rlax_llm.commands.grpo.giving import build_giving
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge, Punishment, pooled
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.rollouts import Sampling
from rlax_llm.commands.serving import served_by
from rlax_llm.commands.setup import build_model, scalar_judge
from rlax_llm.commands.stepping import build_step_judge
from rlax_llm.commands.tasks import judged_task
from rlax_llm.commands.warm_start import build_warm_start
from rlax_llm.credit.shaping import soft_overlong_punishment
from rlax_llm.generation.rollout import generate
from rlax_llm.generation.served import sampling_fields
from rlax_llm.generation.turns import calculator, with_tools
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models.loading import LanguageModel
from rlax_llm.rewards.calling import Reward

_TOOLS = {"calculator": calculator}


@on_machine
def run_grpo(settings: GrpoSettings) -> RunDirectory:
    """Train by reinforcement learning, after a supervised warm start if there is one, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        settings: of the command.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    seed, sampling = settings.run.seed, settings.sampling
    model = build_model("grpo", settings.model, seed, sampling)
    task = judged_task(settings.task, sampling, seed, model)
    learner = language_learner(settings.model, model, seed)
    if settings.server.sampler_url is not None:
        _check_served(build_drawing(sampling, settings.rollout, learner))
    failures = Failures()
    judging = _judging(settings, model, failures)
    with (
        pooled(task.rewards, settings.task.reward_workers, settings.task.reward_timeout, failures) as rewards,
        served_by(settings.server, learner.write_whole) as hand_over,
    ):
        judge = judging(rewards)
        task, giving = build_giving(settings, task, learner, judge)
        complete = generate if hand_over is None else hand_over.served
        drawing = build_drawing(sampling, settings.rollout, learner, complete, hand_over)
        drawing = _answered(drawing, settings.rollout.tool)
        phase = GroupPhase(settings, learner, task, judge, drawing, giving)
        warm_start = build_warm_start(settings, learner, task)
        return run_language(settings, phase, learner.params, warm_start, settings.objective.recipe)


def _check_served(drawing: Drawing) -> None:
    """Raise for what a server cannot be asked for, before it is."""
    for request in (drawing.request, drawing.greedy):
        sampling_fields(request)


def _judging(settings: GrpoSettings, model: LanguageModel, failures: Failures) -> Callable[[Sequence[Reward]], Judge]:
    """What makes a judge of reward functions; models are read now, before workers and servers start."""
    task, path = settings.task, settings.task.reward_model
    judge_model = None if path is None else scalar_judge(path, model, settings.model)
    steps = build_step_judge(task, settings.model, model.tokenizer, failures)
    punished = punishment(task.overlong_buffer, settings.sampling.max_new_tokens)
    return lambda rewards: Judge(rewards, judge_model, punished, failures, steps)


def _answered(drawing: Drawing, tool: str | None) -> Drawing:
    """Completions are made by the model alone, or with the answers of a tool."""
    if tool is None:
        return drawing

    def answered(sampling: Sampling) -> Sampling:
        try:
            generate = with_tools(sampling.tokenizer, [_TOOLS[tool]], TURNS, complete=sampling.generate)
        except ValueError as error:
            raise ValueError(
                f"tool is {tool}, which this model cannot call; take another model, or leave tool out. {error}"
            ) from None
        return sampling._replace(generate=generate)

    return drawing._replace(sampling=answered(drawing.sampling), narrow=answered(drawing.narrow))


def punishment(buffer: int, limit: int) -> tuple[str, Punishment] | None:
    """What completions near the limit of tokens lose, if anything.

    Args:
        buffer: tokens before the limit.
        limit: the longest completion, tokens.
    """
    if not buffer:
        return None
    return "overlong", lambda lengths: np.asarray(soft_overlong_punishment(jnp.asarray(lengths), limit, buffer))
