"""The command ``sft`` as a function of its settings."""

from __future__ import annotations

from collections.abc import Callable

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import of_file, of_task
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.parts import BatchSettings
from rlax_llm.commands.rollouts import Sampling, grade
from rlax_llm.commands.setup import build_model, build_optimizer, build_schedule
from rlax_llm.commands.sft.phase import Form, SupervisedPhase, no_metrics, own_rows, shared_rows
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.tasks import build_task
from rlax_llm.data.tasks import Task
from rlax_llm.generation.sampling import greedy
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models.functional import Params


def run_sft(config: SftSettings) -> RunDirectory:
    """Train by maximum likelihood of given completions, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    model = build_model(config)
    learner = language_learner(config.model, model, config.run.seed)
    if config.data is None:
        task = build_task(config, model)
        examples = of_task(task, learner, config)
        measure = _accuracy(config.batch, learner, task)
    else:
        examples = of_file(config, learner)
        measure = no_metrics
    batching = Batching(config.batch.batch_size, config.run.seed, config.batch.micro_batches)
    optimizer = build_optimizer(
        config.optimizer, build_schedule(config.optimizer, config.optimizer.learning_rate, config.run.steps)
    )
    phase = SupervisedPhase(learner, examples, _form(config, learner), optimizer, batching, measure)
    return run_language(config, phase, learner.params)


def _form(config: SftSettings, learner: Learner) -> Form:
    if config.batch.packed_tokens:
        return shared_rows(learner, config.batch.packed_tokens, config.model.remat)
    return own_rows(learner, config.batch.max_new_tokens, config.model.remat)


def _accuracy(limits: BatchSettings, learner: Learner, task: Task) -> Callable[[Params], dict[str, float]]:
    """Reward and accuracy of greedy completions of the task's held-out prompts."""
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, limits.max_prompt_tokens)
    request = sampling.request(greedy, limits.max_new_tokens)
    judge = Judge(task.rewards)

    def measure(params: Params) -> dict[str, float]:
        return grade(sampling, learner.sampled(params), task, judge, request, limits.batch_size).metrics()

    return measure
