"""The loop of every run: steps of a phase, or of a warm start and then a phase, with all that is written and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlax_llm.host.completions_table import completions_table
from rlax_llm.host.failures import NotFinite, RunFailed
from rlax_llm.host.phase import NOTHING, Done, Evaluation, Phase
from rlax_llm.host.progress import Progress
from rlax_llm.host.session import Session, reached


class Plan(NamedTuple):
    """How far a run goes.

    Attributes:
        steps: the last step.
        eval_every: steps between evaluations; 0 is only at the beginning and the end, None is never.
    """

    steps: int
    eval_every: int | None = 0


class _Stretch(NamedTuple):
    """Steps of one phase.

    Attributes:
        phase: does them.
        first: the session's position before its step 0.
        last: the number of its last step.
        evaluate: ``(state, number before a step, number after it) → Evaluation``.
    """

    phase: Phase
    first: int
    last: int
    evaluate: Callable[[Any, int, int], Evaluation]


def run_phases(
    session: Session,
    phase: Phase,
    plan: Plan,
    params: Any,
    stop: Callable[[], bool],
    warm_start: Phase | None = None,
) -> None:
    """Go from where the session is to the last step, or until ``stop``.

    Args:
        session: of the run.
        phase: the main one.
        plan: how far it goes.
        params: what the first phase begins with.
        stop: asked before each step.
        warm_start: goes before, for the session's ``warm_start_steps``.

    Raises:
        RunFailed: a number is not finite, or nothing was learned.
    """
    if warm_start is None or session.step > 0:
        _go_on(session, phase, params)
        state = session.state
    else:
        _go_on(session, warm_start, params)
        state = _warmed_up(session, warm_start, phase, stop)
        if state is None or stop():
            return
    if session.position == 0 and plan.eval_every is not None:
        _measure_the_beginning(session, phase.evaluate(state))

    def evaluate(state: Any, before: int, after: int) -> Evaluation:
        every = plan.eval_every
        if every is None or not (after == plan.steps or reached(before, after, every)):
            return NOTHING
        return phase.evaluate(state)

    _walk(session, _Stretch(phase, session.warm_start_steps, plan.steps, evaluate), state, stop)
    if session.step >= plan.steps:
        phase.check(session.directory.metrics())


def _go_on(session: Session, phase: Phase, params: Any) -> None:
    """Begin a phase, or take it up where the last checkpoint left it."""
    session.begin(phase, params)
    phase.begin(session.state, session.reference)
    if session.position:
        phase.load(session.directory.checkpoints_path, session.position)


def _warmed_up(session: Session, warm_start: Phase, phase: Phase, stop: Callable[[], bool]) -> Any:
    """The main phase's first state after a warm start; None where that was stopped before its end.

    What the main phase says of it belongs to the warm start's last step, whose number is 0. The session keeps the warm
    start's state until a step of the main phase is done: until then it is what can be resumed.
    """
    entered: list[Any] = []

    def enter(state: Any) -> Any:
        entered.append(phase.init(warm_start.policy(state)))
        phase.begin(entered[0], session.reference)
        return entered[0]

    def evaluate(state: Any, before: int, after: int) -> Evaluation:
        del before
        return phase.evaluate(enter(state)) if after == session.warm_start_steps else NOTHING

    if session.step == 0:
        return enter(session.state)
    _walk(session, _Stretch(warm_start, 0, session.warm_start_steps, evaluate), session.state, stop)
    return entered[0] if session.step == 0 else None


def _measure_the_beginning(session: Session, evaluation: Evaluation) -> None:
    session.log_beginning(evaluation.metrics)
    session.log_completions(evaluation.rows(), session.step)


def _walk(session: Session, stretch: _Stretch, state: Any, stop: Callable[[], bool]) -> None:
    """Steps of one phase, each evaluated where that is due, logged, checkpointed where that is due, and shown."""
    phase, last = stretch.phase, stretch.last
    index = session.position - stretch.first
    with Progress(last, phase.title, phase.columns, index) as progress:
        while index < last and not stop():
            done = _step(session, phase, state, index)
            state = done.state
            evaluation = stretch.evaluate(state, index, index + done.steps)
            index += done.steps
            rows = _rows(done, evaluation, index == last)
            session.log_completions(rows, session.step + done.steps)
            session.log_details(done.details, session.step + done.steps)
            metrics = {**done.metrics, **evaluation.metrics}
            session.advance(phase, state, metrics, done.steps)
            progress.update(index, metrics)
            if done.rows and (index == last or (progress.live and evaluation.metrics)):
                progress.show(completions_table(rows, f"step {index}"))


def _step(session: Session, phase: Phase, state: Any, index: int) -> Done:
    try:
        with session.profile.of(session.step + 1):
            return phase.step(state, index)
    except NotFinite as error:
        raise RunFailed(f"{session.command}: {error} {session.left()}") from error


def _rows(done: Done, evaluation: Evaluation, at_the_end: bool) -> Sequence[Mapping[str, Any]]:
    return [*done.rows, *evaluation.rows()] if at_the_end else done.rows
