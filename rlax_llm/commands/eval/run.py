"""The command ``eval`` as a function of its settings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.rollouts import Grades, Sampling, grade
from rlax_llm.commands.sessions import task_of
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.setup import (
    build_model,
    build_sampler,
)
from rlax_llm.commands.tasks import build_measured
from rlax_llm.data.tasks import Task
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import versions
from rlax_llm.models.loading import LanguageModel

_COMPLETIONS = 64  # at a time


def run_eval(config: EvalSettings) -> dict[str, Any]:
    """Measure reward and accuracy on held-out prompts; print them, and write them where ``config.out`` says.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        What was printed.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    model = build_model(config)
    if config.task.task is None:
        form = "arithmetic-words" if model.tokenizer.has_chat_template else "arithmetic"
        config = config.changed(task=form)
    task = build_measured(config, model)
    with _directory(config.out, as_dict(config)) as directory:
        start = time.perf_counter()
        grades = _grades(config, model, task)
        summary: dict[str, Any] = {"command": "eval", "model": config.model.model, "task": task_of(config)}
        summary |= {"prompts": len(task.held_out), "samples": config.samples}
        summary |= grades.metrics() | _passed(grades, config.samples)
        summary["wall_seconds"] = round(time.perf_counter() - start, 1)
        if directory is not None:
            directory.log_completions([{"step": 0, **record} for record in grades.records()])
            directory.write_summary(summary | {"versions": versions()})
    for name, value in summary.items():
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
    directory = RunDirectory.create(out, settings)
    try:
        yield directory
    except BaseException:
        directory.abandon()
        raise
    directory.release()


def _grades(config: EvalSettings, model: LanguageModel, task: Task) -> Grades:
    sampling = Sampling(model.config, model.tokenizer, config.sampling.max_prompt_tokens)
    sampler = build_sampler(config.sampling, model.config.vocab_size)
    request = sampling.request(sampler, config.sampling.max_new_tokens, config.samples, config.min_new_tokens)
    batch = max(_COMPLETIONS // config.samples, 1)
    return grade(sampling, model.params, task, Judge(task.rewards), request, batch, config.seed)


def _passed(grades: Grades, samples: int) -> dict[str, float]:
    """The share of prompts of which one completion at least is right; nothing where there is one."""
    if samples == 1:
        return {}
    return {f"pass@{samples}": float(grades.solved().reshape(-1, samples).any(-1).mean())}
