"""From settings to a task: its rows, those that the model can read, and which of them are held out."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.data.integers import with_integer_answers
from rlax_llm.data.limits import Limits, keep_prompts_within
from rlax_llm.data.rows import DataError
from rlax_llm.data.tasks import Held, Task, Use, file_task, load_task, measured_task
from rlax_llm.models.loading import LanguageModel
from rlax_llm.rewards.loading import unread_answers

_ANSWERS_READ = 1000  # rows whose answers are looked at before a run; a formula takes a hundredth of a second


def tell(report: str) -> None:
    """Say on standard error what was left out of a table, if anything was."""
    if report:
        print(report, file=sys.stderr)


def build_task(config: GrpoSettings | SftSettings | PpoSettings, model: LanguageModel | Learner) -> Task:
    """The task or data file, split by ``config.seed``; rows that the model cannot read are left out, and told of."""
    reward, use = getattr(config, "reward", None), _use(config, model)
    if config.data is None:
        task = load_task(
            config.task.task, reward=reward, held_out_size=config.eval_size or 0, seed=config.seed, use=use
        )
    else:
        task = file_task(config.data, reward, Held(config.eval_size, config.eval_data, config.seed), use)
    return _told(task)


def build_measured(config: EvalSettings, model: LanguageModel) -> Task:
    """The task to measure on: held-out rows of a built-in one, all rows of a file or as many as were asked for."""
    use = _use(config, model)
    if config.data is not None:
        return _told(measured_task(config.data, config.reward, Held(config.size, None, config.seed), use))
    assert config.task.task is not None and config.task.size is not None  # chosen with the model
    size = config.task.size
    return _told(load_task(config.task.task, reward=config.reward, held_out_size=size, seed=config.seed, use=use))


def _use(config: Any, model: LanguageModel | Learner) -> Use:
    """What a run makes of rows: questions for integers where they are wanted, and only prompts within the limits."""
    check = keep_prompts_within(model.tokenizer, Limits(config.max_prompt_tokens, None, model.config.vocab_size))
    if not getattr(config, "integer_answers", False):
        return check
    return lambda rows: check(with_integer_answers(rows))


def _told(task: Task) -> Task:
    for report in task.reports:
        tell(report)
    return _told_of_answers(task)


def _told_of_answers(task: Task) -> Task:
    """The task, after a sentence for each reward that cannot read some of the first right answers.

    Raises:
        DataError: a reward that counts can read none.
    """
    answers = [row.get("answer") for row in [*task.held_out, *task.train][:_ANSWERS_READ]]
    for reward in task.rewards:
        unread = unread_answers(reward, answers)
        if len(unread) == len(answers) and reward.weight:
            raise DataError(
                f"{task.name}: {reward.name} can read none of the {len(answers)} answers, wanted what it documents; "
                f"the first is {unread[0]!r}. Correct the column 'answer', or give another reward."
            )
        if unread:
            tell(
                f"{task.name}: {reward.name} cannot read the answer of {len(unread)} of {len(answers)} rows; it gives "
                f"them no score. The first is {unread[0]!r}."
            )
    return task


def judged_task(config: GrpoSettings | PpoSettings, model: LanguageModel | Learner) -> Task:
    """The task or data file; beside a reward model only with the Python rewards that were asked for."""
    task = build_task(config, model)
    return task if config.reward_model is None or config.reward is not None else dataclasses.replace(task, rewards=())
