"""The commands as functions of their settings: ``run_grpo``, ``run_sft``, ``run_eval`` and ``run_generate``."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.examples import of_file, of_task
from rlax_llm.commands.grpo.objective import check_recipe
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Failures, Judge, pooled
from rlax_llm.commands.learner import language_learner
from rlax_llm.commands.reinforced_run import run_reinforced
from rlax_llm.commands.rollouts import Sampling, evaluate
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.setup import (
    build_model,
    build_sampler,
    build_schedule,
    scalar_judge,
    with_defaults,
)
from rlax_llm.commands.sft.phase import SupervisedPhase, own_rows, run_steps, shared_rows
from rlax_llm.commands.sft.settings import EvalSettings, GenerateSettings, SftSettings
from rlax_llm.commands.tasks import build_measured, build_task, judged_task
from rlax_llm.credit.shaping import soft_overlong_punishment
from rlax_llm.generation.engine import Request, stream
from rlax_llm.generation.prompts import pad_prompts
from rlax_llm.generation.sampling import greedy
from rlax_llm.host.endings import farewell, summary
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.progress import say
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import Session, task_of, versions


def run_grpo(config: GrpoSettings) -> RunDirectory:
    """Train by reinforcement learning, after a supervised warm start if there is one, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        config: the settings; those left open are chosen for the model.

    Returns:
        The run directory.

    Raises:
        ValueError: for settings or input that cannot work, told in a sentence.
    """
    check_recipe(config)
    config = with_defaults(config)
    model = build_model(config)
    task, learner = judged_task(config, model), language_learner(config, model, config.seed)
    judge_model = None if config.reward_model is None else scalar_judge(config.reward_model, model, config)
    failures = Failures()
    with pooled(task.rewards, config.reward_workers, config.reward_timeout, failures) as rewards:
        judge = Judge(rewards, judge_model, _punishment(config), failures)
        return run_reinforced(learner, GroupPhase(config, learner, task, judge), learner.export)


def _punishment(config: GrpoSettings) -> tuple[str, Any] | None:
    if not config.overlong_buffer:
        return None
    limit, buffer = config.max_new_tokens or 1, config.overlong_buffer
    return "overlong", lambda lengths: soft_overlong_punishment(lengths, limit, buffer)


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
    session = Session(config, 0)
    sampling = Sampling(learner.sampled_shape, learner.tokenizer, config.max_prompt_tokens or 0)

    def held_out(params: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = phase.evaluate(params)
        if task is not None:
            request = sampling.request(greedy, config.max_new_tokens or 0)
            metrics |= evaluate(
                sampling, learner.sampled(params), task, Judge(task.rewards), request, batch_size
            ).metrics()
        return metrics

    with session.running(learner.export, lambda: summary(session)) as stop:
        session.begin(phase.init(learner.params))
        if session.position == 0:
            session.log(held_out(learner.params))
        run_steps(session, phase, steps, held_out, stop)
    say(farewell(session))
    return session.directory


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
    if config.task is None:
        form = "arithmetic-words" if model.tokenizer.has_chat_template else "arithmetic"
        config = dataclasses.replace(config, task=form)
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
    summary: dict[str, Any] = {"command": "eval", "model": config.model, "task": task_of(config)}
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


def run_generate(config: GenerateSettings) -> list[str]:
    """Print what a model answers, piece by piece as it is drawn; several answers are printed when all are there.

    Args:
        config: the settings.

    Returns:
        The answers.

    Raises:
        ValueError: for a prompt that is empty or too long for the model.
    """
    model = build_model(config)
    tokenizer, seed = model.tokenizer, jax.random.key(config.seed)
    ids = tokenizer.encode_prompt(config.prompt)
    # The longest prompt whose bucket still leaves room; an answer is no longer than the model's positions allow.
    prompts = pad_prompts([ids], tokenizer.pad_id, model.config.vocab_size, model.config.max_positions // 2)
    room = min(config.max_new_tokens, model.config.max_positions - prompts[0].shape[1])
    sampler = build_sampler(config, model.config.vocab_size)
    request = Request(sampler, tokenizer.eos_ids, room, config.samples, config.min_new_tokens)
    decoders, drawn = [tokenizer.stream_decoder() for _ in range(config.samples)], 0
    texts = [""] * config.samples
    for state in stream(model.config, model.params, prompts, seed, request, stride=1 if config.samples == 1 else None):
        tokens, lengths, drawn_before = jax.device_get(state.tokens), jax.device_get(state.lengths), drawn
        drawn = int(state.step)
        for row, decoder in enumerate(decoders):
            fresh = tokens[row, drawn_before : min(drawn, lengths[row])]
            piece = "".join(decoder.push(int(token)) for token in fresh)
            texts[row] += piece
            if config.samples == 1:
                print(piece, end="", flush=True)
    texts = [text + decoder.flush() for text, decoder in zip(texts, decoders, strict=True)]
    print(decoders[0].flush() if config.samples == 1 else "\n\n".join(texts))
    return texts
