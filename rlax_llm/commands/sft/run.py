"""The command ``sft`` as a function of its settings."""

from __future__ import annotations

from collections.abc import Callable

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import of_file, of_task
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.language_run import run_language
from rlax_llm.commands.learner import Learner, language_learner
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.rollouts import Sampling, grade
from rlax_llm.commands.setup import build_model, build_schedule
from rlax_llm.commands.sft.phase import NLL, Form, Paid, SupervisedPhase, no_metrics, own_rows, shared_rows
from rlax_llm.commands.sft.settings import PackedBatchSettings, SftSettings, SupervisedOptimizerSettings
from rlax_llm.commands.tasks import built_in_task, prompts_of
from rlax_llm.data.tasks import Task
from rlax_llm.generation.sampling import greedy
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.models.functional import Params
from rlax_llm.policy.trust_regions import cispo

DFT = Paid(cispo(ceiling=1.0))
"""A ratio to a policy of probability 1 is the probability."""


@on_machine
def run_sft(settings: SftSettings) -> RunDirectory:
    """Train by maximum likelihood of given completions, and leave a run directory.

    Args:
        settings: of the command.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    batch, seed = settings.batch, settings.run.seed
    model = build_model("sft", settings.model, seed, batch)
    learner = language_learner(settings.model, model, seed)
    if settings.task.data is None:
        task = built_in_task(settings.task.task, settings.task.split_size, seed, prompts_of(batch, model))
        examples = of_task(task, batch, learner)
        measure = _accuracy(batch, learner, task)
    else:
        examples = of_file(settings.task, batch, seed, learner)
        measure = no_metrics
    peak = settings.optimizer.learning_rate
    optimizer = build_optimizer(settings.optimizer, build_schedule(settings.optimizer, peak, settings.run.steps))
    batching = Batching(batch.batch_size, seed, batch.micro_batches)
    form = form_of(batch, learner, settings.model.remat)
    phase = SupervisedPhase(learner, examples, form, optimizer, batching, measure, paid_by(settings.optimizer))
    return run_language(settings, phase, learner.params)


def paid_by(settings: SupervisedOptimizerSettings) -> Paid:
    """What the settings minimize: ``asft`` is ``dft`` with a KL from the model before training.

    Args:
        settings: of the command.
    """
    return NLL if settings.loss == "nll" else DFT._replace(kl_coef=settings.kl_coef)


def form_of(batch: PackedBatchSettings, learner: Learner, remat: bool) -> Form:
    """How examples become rows: as many to a row as fit where rows are shared, else each in its own.

    Args:
        batch: of the settings.
        learner: what is trained.
        remat: recompute activations in the backward pass.
    """
    if batch.packed_tokens:
        return shared_rows(learner, batch.packed_tokens, remat)
    return own_rows(learner, batch.max_new_tokens, remat)


def _accuracy(batch: PackedBatchSettings, learner: Learner, task: Task) -> Callable[[Params], dict[str, float]]:
    """Reward and accuracy of greedy completions of the task's held-out prompts."""
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, batch.max_prompt_tokens)
    request = sampling.request(greedy, batch.max_new_tokens)
    judge = Judge(task.rewards)

    def measure(params: Params) -> dict[str, float]:
        return grade(sampling, learner.sampled(params), task, judge, request, batch.batch_size).metrics()

    return measure
