"""The command ``eval`` as a function of its settings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlax_llm.commands.eval.settings import EvalSettings, MeasuredSamplingSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.rollouts import Grades, Sampling, grade
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.setup import (
    build_model,
    build_sampler,
)
from rlax_llm.commands.tasks import arithmetic_for, build_measured
from rlax_llm.core.processes import is_first
from rlax_llm.data.tasks import Task
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.followed import shared
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import versions
from rlax_llm.models.loading import LanguageModel

_COMPLETIONS = 64  # at a time


@on_machine
def run_eval(settings: EvalSettings) -> dict[str, Any]:
    """Measure reward and accuracy on held-out prompts; print them, and write them where ``out`` says.

    Args:
        settings: of the command.

    Returns:
        What was printed.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    sampling = settings.sampling
    model = build_model("eval", settings.model, settings.run.seed, sampling)
    if settings.task.task is None:
        settings = settings.changed(task=arithmetic_for(model.tokenizer))
    task = build_measured(settings.task, sampling, settings.run.seed, model)
    with _directory(settings.run.out, as_dict(settings)) as directory:
        start = time.perf_counter()
        grades = _grades(sampling, settings.run.seed, model, task)
        summary = _summary(settings, task, grades)
        summary["wall_seconds"] = round(time.perf_counter() - start, 1)
        if directory is not None:
            directory.log_completions([{"step": 0, **record} for record in grades.records()])
            directory.write_summary(summary | {"versions": versions()})
    for name, value in summary.items() if is_first() else ():
        print(f"{name:<20} {value:.4f}" if isinstance(value, float) else f"{name:<20} {value}")
    if np.isnan(grades.totals()).all():
        raise RunFailed("eval: no completion had a score; look at what the reward needs of the data.")
    return summary


@contextmanager
def _directory(out: str | None, settings: Mapping[str, Any]) -> Iterator[RunDirectory | None]:
    """The directory for what is measured, if one is wanted; it is removed where measuring fails."""
    if out is None:
        yield None
        return
    directory = shared(out, lambda: RunDirectory.create(out, settings))
    try:
        yield directory
    except BaseException:
        directory.abandon()
        raise
    directory.release()


def _grades(settings: MeasuredSamplingSettings, seed: int, model: LanguageModel, task: Task) -> Grades:
    sampling = Sampling(model.config, model.tokenizer, settings.max_prompt_tokens)
    sampler = build_sampler(settings, model.config.vocab_size)
    request = sampling.request(sampler, settings.max_new_tokens, settings.samples, settings.min_new_tokens)
    batch = max(_COMPLETIONS // settings.samples, 1)
    return grade(sampling, model.params, task, Judge(task.rewards), request, batch, seed)


def _summary(settings: EvalSettings, task: Task, grades: Grades) -> dict[str, Any]:
    """What was measured, and on what."""
    samples = settings.sampling.samples
    heading = {"command": "eval", "model": settings.model.model, "task": task.name}
    counts = {"prompts": len(task.held_out), "samples": samples}
    return heading | counts | grades.metrics() | _passed(grades, samples)


def _passed(grades: Grades, samples: int) -> dict[str, float]:
    """The share of prompts of which one completion at least is right; nothing where there is one."""
    if samples == 1:
        return {}
    return {f"pass@{samples}": float(grades.solved().reshape(-1, samples).any(-1).mean())}
