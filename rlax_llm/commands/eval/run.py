"""The command ``eval`` as a function of its settings."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.rollouts import Sampling, evaluate
from rlax_llm.commands.sessions import task_of
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.setup import (
    build_model,
    build_sampler,
    with_defaults,
)
from rlax_llm.commands.tasks import build_measured
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import versions


def run_eval(config: EvalSettings) -> dict[str, Any]:
    """Measure reward and accuracy on held-out prompts; print them, and write them where ``config.out`` says.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        What was printed.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    config = with_defaults(config)
    model = build_model(config)
    if config.task.task is None:
        form = "arithmetic-words" if model.tokenizer.has_chat_template else "arithmetic"
        config = config.changed(task=form)
    task = build_measured(config, model)
    sampling = Sampling(model.config, model.tokenizer, config.max_prompt_tokens or 0)
    sampler = build_sampler(config, model.config.vocab_size)
    request = sampling.request(sampler, config.max_new_tokens or 0, config.samples, config.min_new_tokens)
    directory = None if config.out is None else RunDirectory.create(config.out, as_dict(config))
    start = time.perf_counter()
    batch, judge = max(64 // config.samples, 1), Judge(task.rewards)
    try:
        result = evaluate(sampling, model.params, task, judge, request, batch, config.seed)
    except BaseException:
        if directory is not None:
            directory.abandon()
        raise
    summary: dict[str, Any] = {"command": "eval", "model": config.model.model, "task": task_of(config)}
    summary |= {"prompts": len(task.held_out), "samples": config.samples} | result.metrics()
    passed = result.solved.reshape(-1, config.samples).any(-1).mean()
    summary |= {f"pass@{config.samples}": float(passed)} if config.samples > 1 else {}
    summary |= {"wall_seconds": round(time.perf_counter() - start, 1)}
    if directory is not None:
        directory.log_completions([{"step": 0, **record} for record in result.records])
        directory.write_summary(summary | {"versions": versions()})
        directory.release()
    for name, value in summary.items():
        print(f"{name:<20} {value:.4f}" if isinstance(value, float) else f"{name:<20} {value}")
    if np.isnan(result.totals).all():
        raise RunFailed("eval: no completion had a score; look at what the reward needs of the data.")
    return summary
