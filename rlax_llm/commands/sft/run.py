"""The command ``sft`` as a function of its settings."""

from __future__ import annotations

from typing import Any

from rlax_llm.commands.examples import of_file, of_task
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.rollouts import Sampling, evaluate
from rlax_llm.commands.sessions import heading, open_session, title
from rlax_llm.commands.setup import (
    build_model,
    build_schedule,
    with_defaults,
)
from rlax_llm.commands.sft.phase import SupervisedPhase, own_rows, run_steps, shared_rows
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.commands.tasks import build_task
from rlax_llm.generation.sampling import greedy
from rlax_llm.host.endings import report, summary
from rlax_llm.host.progress import say
from rlax_llm.host.run_directory import RunDirectory


def run_sft(config: SftSettings) -> RunDirectory:
    """Train by maximum likelihood of given completions, and leave a run directory.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    config = with_defaults(config)
    model = build_model(config)
    learner = language_learner(config, model, config.seed)
    task = None if config.data is not None else build_task(config, model)
    examples = of_file(config, learner) if task is None else of_task(task, learner, config)
    steps, batch_size = config.steps or 0, config.batch_size or 1
    schedule = build_schedule(config, config.learning_rate or 0.0, steps)
    micro_batches = batch_size // (config.micro_batch_size or batch_size)
    form = (shared_rows if config.packed_tokens else own_rows)(config, learner)
    phase = SupervisedPhase(config, learner, examples, form, schedule, batch_size, micro_batches)
    session = open_session(config)
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, config.max_prompt_tokens or 0)

    def held_out(params: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = phase.evaluate(params)
        if task is not None:
            request = sampling.request(greedy, config.max_new_tokens or 0)
            metrics |= evaluate(
                sampling, learner.sampled(params), task, Judge(task.rewards), request, batch_size
            ).metrics()
        return metrics

    with session.running(learner.export, lambda: summary(session, heading(config), steps), title(config)) as stop:
        session.begin(phase.init(learner.params))
        if session.position == 0:
            session.log(held_out(learner.params))
        run_steps(session, phase, steps, held_out, stop)
    say(report(session, steps))
    return session.directory
