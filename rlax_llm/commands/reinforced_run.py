"""Reinforcement learning as a run, whatever the phase: a warm start if there is one, then rollouts and updates."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from rlax_llm.commands.defaults import WARM_START_LEARNING_RATE
from rlax_llm.commands.examples import of_task
from rlax_llm.commands.grpo.phase import GroupPhase
from rlax_llm.commands.learner import Export, Learner
from rlax_llm.commands.ppo.phase import PpoPhase
from rlax_llm.commands.sessions import heading, open_session, title
from rlax_llm.commands.sft.phase import SupervisedPhase, own_rows, run_steps
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.host.completions_table import completions_table
from rlax_llm.host.endings import report, summary
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.progress import Progress, say
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import Session, due

Phase = GroupPhase | PpoPhase


def run_reinforced(learner: Learner, phase: Phase, export: Export) -> RunDirectory:
    """Run a phase in a session of its own, and leave a run directory.

    A signal ends the run after its step; an error ends it too. What was done so far is written in either case.

    Args:
        learner: the policy.
        phase: of group policy optimization or of PPO.
        export: ``(params, path)``, writes the models.
    """
    config = phase.config
    warm_up = _warm_start(learner, phase) if config.warm_start_steps else None
    session = open_session(config, config.warm_start_steps or 0)
    with session.running(export, lambda: summary(session, heading(config), config.steps or 0), title(config)) as stop:
        first = warm_up if warm_up is not None and session.step <= 0 else phase
        session.begin(first.init(learner.params))
        session.beside = phase.keep
        phase.take_up(session.directory.checkpoints_path, session.position)
        if warm_up is not None and session.step < 0:
            run_steps(session, warm_up, session.warm_start_steps, lambda params: phase.evaluate(params)[0], stop)
        if not stop() and session.step >= 0:
            _steps(session, phase, stop)
    say(report(session, config.steps or 0))
    return session.directory


def _warm_start(learner: Learner, phase: Phase) -> SupervisedPhase:
    config, task = phase.config, phase.task
    peak = WARM_START_LEARNING_RATE if config.model.model == "char" else config.learning_rate or 0.0
    batch_size = SftSettings.of(model=config.model.model).batch_size
    examples, form = of_task(task, learner, config), own_rows(config, learner)
    return SupervisedPhase(config, learner, examples, form, optax.constant_schedule(peak), batch_size)


def _steps(session: Session, phase: Phase, stop: Callable[[], bool]) -> None:
    """Go on from the session's position to the last step, or until ``stop``."""
    config, steps = phase.config, phase.config.steps or 0
    state: Any = session.state  # of the phase's own kind, or the warm start's
    if session.step == 0:
        # The warm start's optimizer state has done its work. It stays the session's until a step is done: until then
        # it is what can be resumed.
        state = phase.init(state.params) if session.warm_start_steps else state
        metrics, rows = phase.evaluate(phase.policy(state))
        if session.warm_start_steps == 0:
            session.log(metrics)
        session.directory.log_completions([{"step": 0, **row} for row in rows])
    every = getattr(config, "reference_every", 0)
    reference = session.reference(phase.policy(state), every) if phase.needs_reference else None
    told = False
    with Progress(steps, phase.title, phase.columns, session.step) as progress:
        while session.step < steps and not stop():
            if every and phase.needs_reference and session.step % every == 0:
                reference = session.reference(phase.policy(state), every)
            state, metrics, rows = phase.step(state, session.step, reference)
            metrics, number = session.accept(metrics, phase.lower), session.step + 1
            nothing = _nothing_learned(config, metrics)
            if nothing and not told:
                warning = f"{config.command}: {nothing.format(number)}, and none is learned from."
                print(f"warning: {warning} Further such steps are not told of.", file=sys.stderr)
                told = True
            if due(number, config.eval_every, steps):
                held_out, held_out_rows = phase.evaluate(phase.policy(state))
                metrics, rows = metrics | held_out, rows + (held_out_rows if number == steps else [])
            session.directory.log_completions([{"step": number, **row} for row in rows])
            session.advance(state, metrics)
            progress.update(number, metrics)
            if number == steps or (progress.live and "held_out_reward" in metrics):
                progress.show(completions_table(rows, f"step {number}"))
    if session.step >= steps:
        _check_learned(config, session.directory.metrics())


def _nothing_learned(config: Any, metrics: Mapping[str, Any]) -> str | None:
    """Why no completion of a step teaches, its number left open; None where one does."""
    if _unscored(metrics):
        return "no completion of step {} has a score"
    if getattr(config, "overlong_filter", False) and metrics["completions/clipped_ratio"] == 1:
        return "every completion of step {} was cut, which overlong_filter leaves out"
    return None


def _unscored(metrics: Mapping[str, Any]) -> bool:
    return metrics.get("reward") is None or math.isnan(metrics["reward"])


def _check_learned(config: Any, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Raise where no completion of the whole run taught anything.

    Raises:
        RunFailed: none had a score, or all were left out.
    """
    rows = [row for row in metrics if row["step"] > 0]
    if all(map(_unscored, rows)):
        raise RunFailed(
            f"{config.command}: no completion had a score in any of the {len(rows)} steps, so none was "
            "learned from; look at what the reward needs of the data (an answer that it cannot read is no score)."
        )
    if all(_nothing_learned(config, row) for row in rows):
        raise RunFailed(
            f"{config.command}: every completion of all {len(rows)} steps was cut or had no score, and "
            "overlong_filter leaves cut ones out, so none was learned from; give more max_new_tokens, or leave "
            "overlong_filter out."
        )
