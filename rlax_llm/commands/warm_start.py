"""Supervised steps on a task's own answers, before reinforcement learning."""

from __future__ import annotations

import optax

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.defaults import SUPERVISED_BATCH_SIZE, WARM_START_LEARNING_RATE, is_small
from rlax_llm.commands.examples import of_task
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.sft.phase import WarmStart, own_rows
from rlax_llm.data.tasks import Task


def build_warm_start(
    settings: GrpoSettings | PpoSettings | OnlineSettings, learner: Learner, task: Task
) -> WarmStart | None:
    """The warm start of the settings; None where they have none.

    Args:
        settings: of the command.
        learner: the policy.
        task: with answers to learn from.

    Raises:
        ValueError: for a task without answers.
    """
    steps, name = settings.run.warm_start_steps, settings.model.model
    if not steps:
        return None
    peak = WARM_START_LEARNING_RATE if name == "char" else settings.optimizer.learning_rate
    examples = of_task(task, settings.sampling, learner, ", or begin without a warm start: --warm-start-steps 0")
    optimizer = build_optimizer(settings.optimizer, optax.constant_schedule(peak))
    form = own_rows(learner, settings.sampling.max_new_tokens, settings.model.remat)
    batching = Batching(SUPERVISED_BATCH_SIZE[is_small(name)], settings.run.seed)
    return WarmStart(steps, learner, examples, form, optimizer, batching)
