"""The command ``eval`` as a function of its settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlax_llm.commands.eval.against import (
    Comparison,
    Solved,
    check_common,
    compare,
    is_eval,
    other_settings,
    solved_by_prompt,
    solved_in,
    verdict,
)
from rlax_llm.commands.eval.measured import Measured, entry, measured_of, parts_by
from rlax_llm.commands.eval.sets import Source, check_column, read_source, sources
from rlax_llm.commands.eval.settings import EvalSettings
from rlax_llm.commands.eval.tables import comparison_grid, mean_row, results_grid
from rlax_llm.commands.grids import Grid, in_markdown, near, on_screen
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.machine import on_machine
from rlax_llm.commands.rollouts import Grades, Rollout, Sampling, grade
from rlax_llm.commands.settings import as_dict
from rlax_llm.commands.setup import build_model, build_request
from rlax_llm.commands.tasks import tell
from rlax_llm.core.processes import told_to_all
from rlax_llm.data.rows import DataError
from rlax_llm.data.tasks import Task
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.followed import shared
from rlax_llm.host.progress import Column, Progress, say, show
from rlax_llm.host.run_directory import RunDirectory
from rlax_llm.host.session import versions
from rlax_llm.models.loading import LanguageModel, load_tokenizer
from rlax_llm.rewards.calling import Scores

_COMPLETIONS = 64  # at a time
_NOTE = "in brackets the 95 % interval"
_COLUMNS = (Column("accuracy", "accuracy"),)
Keep = Callable[[Measured, Grades], None]


@on_machine
def run_eval(settings: EvalSettings) -> dict[str, Any]:
    """Measure what a model solves of each set of prompts; print it, and write it where ``out`` says.

    Args:
        settings: of the command.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ValueError: for settings or input that cannot work.
    """
    other = _earlier(settings)  # first: nothing is made where it cannot be read
    with _directory(settings.run.out, as_dict(settings)) as directory:
        start = time.perf_counter()
        found, named = _measured(settings, _keeping(directory), other)
        compared = _compared(settings, named, found, other)
        summary = _summary(settings, found, compared) | {"wall_seconds": round(time.perf_counter() - start, 1)}
        grids = _grids(settings, found, compared, all_measures=False)
        for grid in grids:
            show(on_screen(grid))
        if compared:
            say(verdict(compared[-1]))
        if directory is not None:
            directory.write_summary(summary | {"versions": versions()})
            directory.write_text("summary.md", _page(settings, found, compared))
            say(f"Written: {directory.path}/summary.json, summary.md, completions.jsonl")
    if all(np.isnan(one.rewards).all() for one in found):
        raise RunFailed("eval: no completion had a score; look at what the reward needs of the data.")
    return summary


@contextmanager
def _directory(out: str | None, settings: Mapping[str, Any]) -> Iterator[RunDirectory | None]:
    """The directory for what is measured, if one is wanted.

    Where measuring fails, the completions of the sets that were measured stay, and a directory without any goes.
    """
    if out is None:
        yield None
        return
    directory = shared(out, lambda: RunDirectory.create(out, settings))
    try:
        yield directory
    except BaseException:
        if directory.completions_path.is_file():
            say(f"Not finished; what was measured is in {directory.completions_path}")
            directory.release()
        else:
            directory.abandon()
        raise
    directory.release()


def _keeping(directory: RunDirectory | None) -> Keep:
    """Writes the completions of a set, each with what became of it."""

    def keep(found: Measured, grades: Grades) -> None:
        if directory is None:
            return
        solved = found.solved.ravel().tolist()
        records = enumerate(zip(grades.records(), solved, strict=True))
        directory.log_completions(
            [
                {"step": 0, "task": found.name, "row": place // found.samples, **record, "solved": right}
                for place, (record, right) in records
            ]
        )

    return keep


def _measured(settings: EvalSettings, keep: Keep, other: Solved | None = None) -> tuple[list[Measured], list[Source]]:
    """What the model did with each set, and the sets; what was measured earlier must have one of them."""
    model = build_model("eval", settings.model, settings.run.seed, settings.sampling)
    named = sources(settings.task, settings.sampling, settings.run.seed, model)
    names = [source.name for source in named]
    if other is not None:
        check_common(names, other, names)
    # All before the first is measured, so that no mistake in the last shows after hours.
    tasks = {source.name: read_source(source, model) for source in named if not source.member}
    check_column(settings.task.by, {one.name: task for one in named if one.is_file and (task := tasks[one.name])})
    found = []
    for source in named:
        task = read_source(source, model) if source.member else tasks[source.name]
        if task is not None:
            grades = _grades(settings, model, task, source.name)
            found.append(measured_of(source.name, task, grades, settings.sampling.samples))
            keep(found[-1], grades)
    if not found:
        raise DataError("eval: no task of those can be made; the lines above say why.")
    return found, named


def _grades(settings: EvalSettings, model: LanguageModel, task: Task, name: str) -> Grades:
    drawn = settings.sampling
    sampling = Sampling(model.config, model.tokenizer, drawn.max_prompt_tokens, stops=drawn.stops)
    request = build_request(drawn, model.tokenizer, model.config.vocab_size, drawn.max_new_tokens, drawn.samples)
    batch = max(_COMPLETIONS // drawn.samples, 1)
    judge, count = Judge(task.rewards), -(-len(task.held_out) // batch)
    right: list[bool] = []
    with Progress(count, name, _COLUMNS) as progress:

        def judged(rollout: Rollout, group_size: int) -> Scores:
            scores = judge(rollout, group_size)
            right.extend(task.solved(float(score)) for score in scores.first)
            done = len(right) // len(rollout.rows)
            if progress.live or done == count:
                # What fills the last batch up comes last, and does not count.
                progress.update(done, {"accuracy": float(np.mean(right[: len(task.held_out) * drawn.samples]))})
            return scores

        return grade(sampling, model.params, task, judged, request, batch, settings.run.seed)


def _earlier(settings: EvalSettings) -> Solved | None:
    """What an earlier eval measured, read before anything is computed; None where a model is to be measured.

    Raises:
        ValueError: it cannot be read, or there is no such model.
    """
    against = settings.run.against
    if against is None:
        return None
    if not is_eval(against):
        if against != "char":
            told_to_all(lambda: _check_model(against))
        return None
    found = solved_in(against)
    tell(other_settings(against, as_dict(settings)))
    return found


def _check_model(against: str) -> None:
    try:
        load_tokenizer(against)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"eval: --against is {against}, wanted a model or the directory of an eval. {error}"
        ) from error


def _compared(
    settings: EvalSettings, named: Sequence[Source], found: Sequence[Measured], other: Solved | None
) -> list[Comparison]:
    if settings.run.against is None:
        return []
    if other is None:
        names = [source.name for source in named if not source.is_file]
        again = settings.changed(model=settings.run.against, against=None, task=names or None)
        other = solved_by_prompt(_measured(again, lambda *_: None)[0])
    return compare(solved_by_prompt(found), other)


def _summary(settings: EvalSettings, found: Sequence[Measured], compared: Sequence[Comparison]) -> dict[str, Any]:
    """What was measured, and on what; over several sets the plain mean of each."""
    entries = [entry(one) for one in found]
    column = settings.task.by
    for one, own in zip(found, entries, strict=True):
        own |= {"by": [entry(part) for part in parts_by(one, column)]} if column else {}
    rewards = [own["reward"]["mean"] for own in entries if own["reward"] is not None]
    return {
        "command": "eval",
        "finished": True,
        "model": settings.model.model,
        "drawn": _drawn(settings),
        "held_out_accuracy": float(np.mean([one.solved.mean() for one in found])),
        "held_out_reward": float(np.mean(rewards)) if rewards else float("nan"),
        "tasks": entries,
        "against": {"other": settings.run.against, "tasks": [_told(one) for one in compared]} if compared else None,
    }


def _told(found: Comparison) -> dict[str, Any]:
    return found._asdict() | {"difference": found.difference._asdict()}


def _drawn(settings: EvalSettings) -> str:
    """How completions were drawn, in words."""
    drawn = settings.sampling
    if drawn.temperature == 0:
        return f"greedy, up to {drawn.max_new_tokens} tokens"
    return f"{drawn.samples} of each prompt at temperature {drawn.temperature:g}, up to {drawn.max_new_tokens} tokens"


def _grids(
    settings: EvalSettings, found: Sequence[Measured], compared: Sequence[Comparison], all_measures: bool
) -> list[Grid]:
    title = f"{near(settings.model.model)}: {_drawn(settings)}"
    shown = list(found)
    if settings.task.by is not None:
        shown = [part for one in found for part in (one, *parts_by(one, settings.task.by))]
    grid = results_grid(title, shown, all_measures)._replace(note=_NOTE)
    if len(found) > 1:
        grid = grid._replace(rows=[*grid.rows, mean_row(found, grid.header)])
    against = f"against {near(str(settings.run.against))}: share solved, paired by prompt; p of an exact sign-flip test"
    return [grid, comparison_grid(against, compared)._replace(note=_NOTE)] if compared else [grid]


def _page(settings: EvalSettings, found: Sequence[Measured], compared: Sequence[Comparison]) -> str:
    grids = _grids(settings, found, compared, all_measures=True)
    said = [verdict(compared[-1])] if compared else []
    return "\n\n".join([*map(in_markdown, grids), *said]) + "\n"
