"""Supervised steps on a task's own answers, before reinforcement learning."""

from __future__ import annotations

import optax

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.defaults import WARM_START_LEARNING_RATE
from rlax_llm.commands.examples import of_task
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.setup import build_optimizer
from rlax_llm.commands.sft.phase import WarmStart, own_rows
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.data.tasks import Task


def build_warm_start(config: GrpoSettings | PpoSettings, learner: Learner, task: Task) -> WarmStart | None:
    """The warm start of the settings; None where they have none.

    Args:
        config: in full.
        learner: the policy.
        task: with answers to learn from.

    Raises:
        ValueError: for a task without answers.
    """
    if not config.run.warm_start_steps:
        return None
    peak = WARM_START_LEARNING_RATE if config.model.model == "char" else config.optimizer.learning_rate
    batch_size = SftSettings.of(model=config.model.model).batch.batch_size
    examples = of_task(task, learner, config)
    optimizer = build_optimizer(config.optimizer, optax.constant_schedule(peak))
    form = own_rows(learner, config.sampling.max_new_tokens, config.model.remat)
    return WarmStart(learner, examples, form, optimizer, Batching(batch_size, config.run.seed))
