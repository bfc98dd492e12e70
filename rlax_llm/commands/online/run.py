"""The command ``online`` as a function of its settings."""

from __future__ import annotations

from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.grpo.run import punishment
from rlax_llm.commands.judging import Failures, Judge, pooled
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.online.phase import OnlinePhase
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.online.update import build_online
from rlax_llm.commands.setup import build_model, scalar_judge
from rlax_llm.commands.tasks import judged_task
from rlax_llm.commands.warm_start import build_warm_start
from rlax_llm.host.run_directory import RunDirectory


@on_machine
def run_online(settings: OnlineSettings) -> RunDirectory:
    """Train on preferences among completions that are drawn on the way, and leave a run directory.

    Args:
        settings: of the command.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    seed, sampling, path = settings.run.seed, settings.sampling, settings.task.reward_model
    online = build_online(settings)
    model = build_model("online", settings.model, seed, sampling)
    task = judged_task(settings.task, sampling, seed, model)
    learner = language_learner(settings.model, model, seed)
    judge_model = None if path is None else scalar_judge(path, model, settings.model)
    failures = Failures()
    with pooled(task.rewards, settings.task.reward_workers, settings.task.reward_timeout, failures) as rewards:
        less = punishment(settings.task.overlong_buffer, sampling.max_new_tokens)
        judge = Judge(rewards, judge_model, less, failures)
        drawing = build_drawing(sampling, settings.rollout, learner)
        phase = OnlinePhase(settings, online, learner, task, judge, drawing)
        warm_start = build_warm_start(settings, learner, task)
        return run_language(settings, phase, learner.params, warm_start, settings.objective.recipe)
