"""Distillation as a phase: draw completions or take given ones, show them to the teacher, update."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.distill.teachers import (
    Teacher,
    check_positions,
    ending,
    stored_tokens,
    teacher_prompts,
)
from rlax_llm.commands.distill.update import DistillUpdate
from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.recording import Recorder
from rlax_llm.commands.rollout_metrics import describe
from rlax_llm.commands.rollouts import Rollout, grade
from rlax_llm.core.types import Completions, Groups
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.encoding import DemonstrationTokens
from rlax_llm.data.messages import Text
from rlax_llm.data.tasks import Row, Task
from rlax_llm.data.teacher_rows import TeacherRow
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.phase import Done, Evaluation, Phase, finite
from rlax_llm.host.progress import DISTILLATION_COLUMNS
from rlax_llm.loops.distillation import DistillationState
from rlax_llm.models.distilling import Reading
from rlax_llm.models.functional import Params
from rlax_llm.models.padding import bucket, longest, pad_left
from rlax_llm.policy.distillation import Attempt, Distillation, Prompting, own_feedback
from rlax_llm.rewards.calling import Scores

_ORDER, _WHOSE = 2**31 - 1, 2**31 - 2  # folded into a step's key; smaller numbers are those of sampled tokens
_OF_SAMPLES = ("kl_old", "clip_fraction", "clip_fraction_low", "clip_fraction_high", "frac_reward_zero_std")
"""Metrics that say nothing of completions which nobody drew, or of completions without a reward."""


class Lesson(NamedTuple):
    """The completions of a step.

    Attributes:
        batch: as the update reads them.
        layout: ``(group_size, prompt_width)``.
        rollout: as they were drawn; None where they were given.
        scores: of a rollout.
    """

    batch: Groups
    layout: tuple[int, int]
    rollout: Rollout | None = None
    scores: Scores | None = None


class Source(NamedTuple):
    """Where completions come from.

    Attributes:
        task: prompts, and held-out rows.
        judge: scores what is drawn; None without rewards.
        drawing: how completions are drawn.
        given: completions to learn from; or with what a teacher said of them.
    """

    task: Task
    judge: Judge | None
    drawing: Drawing
    given: Sequence[DemonstrationTokens | TeacherRow]


class DistillPhase(Phase):
    """Steps of distillation.

    Args:
        settings: of the command.
        distillation: the recipe.
        learner: the student.
        teacher: who is asked.
        source: where completions come from.
    """

    columns = DISTILLATION_COLUMNS

    def __init__(
        self,
        settings: DistillSettings,
        distillation: Distillation,
        learner: Learner,
        teacher: Teacher,
        source: Source,
    ):
        self.title, self.settings = settings.teacher.recipe, settings
        self.distillation, self.learner, self.teacher, self.source = distillation, learner, teacher, source
        self.update = DistillUpdate(settings, distillation, learner, teacher)
        self.key = jax.random.key(settings.run.seed)
        self.prompts = Batching(settings.rollout.batch_size, settings.run.seed)
        self.rows = Batching(settings.rollout.rows, settings.run.seed)
        graded = source.judge is not None and source.judge.graded
        self.solved = source.task.solved if graded else None
        self.record = Recorder(learner, settings.sampling, self.solved, settings.rollout.group_size)
        self.warned = False

    def init(self, params: Params) -> DistillationState:
        """State before the first step."""
        return self.update.init(params)

    def step(self, state: DistillationState, index: int) -> Done:
        """Step ``index`` (from 0), with records of some completions that the student drew."""
        start = time.perf_counter()
        key = jax.random.fold_in(self.key, index)
        lesson = self._lesson(state.params, index, key)
        begun = time.perf_counter()
        state, learned, advantages = self.update(state, lesson.batch, lesson.layout, jax.random.fold_in(key, _ORDER))
        seconds = {"rollout_seconds": begun - start, "update_seconds": time.perf_counter() - begun}
        metrics = self._told(finite(learned, f"step {index + 1}"), lesson) | seconds
        metrics["learning_rate"] = self.update.learning_rate(index)
        tokens = float(np.asarray(lesson.batch.completions.mask).sum())
        metrics["tokens_per_second"] = tokens / sum(seconds.values())
        if lesson.rollout is None or lesson.scores is None:
            return Done(state, metrics)
        records = self.source.drawing.sampling.records(lesson.rollout, lesson.scores, range(_shown(lesson)))
        details = self.record(index + 1, lesson.rollout, lesson.scores, state.params, advantages)
        return Done(state, metrics, records, details=details)

    def _lesson(self, params: Params, index: int, key: jax.Array) -> Lesson:
        """The student's completions in a share of the steps, else those of the data."""
        own = float(jax.random.uniform(jax.random.fold_in(key, _WHOSE))) < self.distillation.on_policy
        return self._drawn(params, index, key) if own else self._given(index)

    def _told(self, learned: dict[str, float], lesson: Lesson) -> dict[str, float]:
        """Metrics of a step, without those that its completions have none of."""
        left_out = _OF_SAMPLES if lesson.rollout is None else _OF_SAMPLES[-1:] if self.source.judge is None else ()
        told = {name: value for name, value in learned.items() if name not in left_out}
        told["on_policy"] = float(lesson.rollout is not None)
        reading = lesson.batch.completions.teacher
        if isinstance(reading, Reading):
            told["frac_hinted"] = float(np.asarray(reading.hinted).mean())
            self._warn(told["frac_hinted"])
        if lesson.rollout is None or lesson.scores is None:
            return told
        described = describe(lesson.rollout, lesson.scores, self.solved, lesson.layout[0])
        described |= self.source.drawing.tally.metrics()
        unknown = ("reward", "reward_std", "completions/unscored_ratio") if self.source.judge is None else ()
        return {name: value for name, value in described.items() if name not in unknown} | told

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where the teacher of a whole run knew no more than its student, and scores taught nothing either."""
        steps = [row for row in metrics if row["step"] > 0]
        if all(row.get("frac_hinted") == 0 and not row.get("grad_norm") for row in steps):
            raise RunFailed(
                f"distill: the teacher had nothing to read that the student had not, in any of the {len(steps)} steps "
                "(frac_hinted is 0), so nothing was learned; it reads right attempts, or what a reward says beside a "
                "score: look at what the reward needs of the data, or begin with a model that is sometimes right."
            )

    def _warn(self, hinted: float) -> None:
        """Say once that a teacher knew no more than its student."""
        if hinted or self.warned:
            return
        print(
            "warning: distill: the teacher had nothing to read that the student had not, of any completion of a step "
            "(frac_hinted is 0), so it taught nothing there. Further such steps are not reported.",
            file=sys.stderr,
        )
        self.warned = True

    def _drawn(self, params: Params, index: int, key: jax.Array) -> Lesson:
        """Completions of the student."""
        drawing, group_size = self.source.drawing, self.settings.rollout.group_size
        rows = self.prompts.rows(self.source.task.train, index)
        rollout = drawing.narrow.rollout(drawing.weights(params, index, False), rows, key, drawing.request)
        scores = self._scores(rollout)
        completions = rollout.completions
        if self.distillation.prompting is not None:
            reading = self._reading(rollout, scores, self.distillation.prompting)
            completions = completions._replace(teacher=reading)
        batch = Groups(completions, jnp.asarray(scores.total.reshape(len(rows), -1)))
        return Lesson(batch, (group_size, rollout.prompt_width), rollout, scores)

    def _scores(self, rollout: Rollout) -> Scores:
        if self.source.judge is not None:
            return self.source.judge(rollout, self.settings.rollout.group_size)
        count = len(rollout.rows)
        return Scores(np.full(count, np.nan, np.float32), {}, np.zeros(count, bool))

    def _reading(self, rollout: Rollout, scores: Scores, prompting: Prompting) -> Reading:
        """What the teacher reads: its own prompts, and the completions of the rollout."""
        tokenizer, width = self.learner.tokenizer, rollout.prompt_width
        shown = self._shown(rollout, scores, prompting)
        asked = [
            tokenizer.encode_prompt(row["prompt"] if prompt is None else prompt)
            for row, prompt in zip(rollout.rows, shown, strict=True)
        ]
        columns = bucket(longest(asked))
        check_positions(columns + rollout.completions.tokens.shape[1] - width, self.teacher.config)
        tokens, valid = pad_left(asked, columns, tokenizer.pad_id)
        own = (np.asarray(x)[:, width:] for x in (rollout.completions.tokens, rollout.completions.valid))
        read = (jnp.asarray(np.concatenate(pair, 1)) for pair in zip((tokens, valid), own, strict=True))
        return Reading(*read, hinted=jnp.asarray([prompt is not None for prompt in shown]))

    def _shown(self, rollout: Rollout, scores: Scores, prompting: Prompting) -> list[Text | None]:
        """What the teacher is asked for each completion; None where it would read what the student did."""
        solved = [None if self.solved is None or np.isnan(x) else self.solved(float(x)) for x in scores.first]
        said = self._feedback(rollout.rows, scores)
        attempts = [Attempt(*of) for of in zip(rollout.rows, rollout.texts, solved, said, strict=True)]
        size = self.settings.rollout.group_size
        groups = [attempts[start : start + size] for start in range(0, len(attempts), size)]
        return [prompt for group in groups for prompt in teacher_prompts(prompting, group)]

    def _feedback(self, rows: Sequence[Row], scores: Scores) -> list[str | None]:
        """What was said of each completion, by a reward or by its row; of a long text its end."""
        said = scores.feedback or (None,) * len(rows)
        attempts = [Attempt(row, "", feedback=text) for row, text in zip(rows, said, strict=True)]
        limit = self.settings.teacher.max_feedback_tokens
        return [
            None if text is None else ending(self.learner.tokenizer, text, limit) for text in own_feedback(attempts)
        ]

    def _given(self, index: int) -> Lesson:
        """Completions of the data."""
        rows = self.rows.rows(self.source.given, index)
        tokens = [row if isinstance(row, DemonstrationTokens) else _tokens(row) for row in rows]
        widths = None, self.settings.sampling.max_new_tokens
        batch = demonstration_rows(tokens, self.learner.tokenizer.pad_id, widths)
        completions: Completions = batch.completions
        stored = [row for row in rows if isinstance(row, TeacherRow)]
        if stored:
            said = stored_tokens(stored, batch.prompt_width, completions.tokens.shape[1])
            completions = completions._replace(teacher=said)
        return Lesson(Groups(completions, jnp.zeros((len(rows), 1))), (1, batch.prompt_width))

    def evaluate(self, state: DistillationState) -> Evaluation:
        """Greedy held-out reward and accuracy, and a record of each completion; nothing without rewards."""
        source, rollout = self.source, self.settings.rollout
        if source.judge is None:
            return Evaluation({})
        whole = source.drawing.weights(state.params, 0, True)
        grades = grade(source.drawing.sampling, whole, source.task, source.judge, source.drawing.greedy, rollout.rows)
        return Evaluation(grades.metrics(source.judge.graded), grades.records)

    def export(self, state: DistillationState, path: Path) -> None:
        """Write the student, and its adapters where there are any."""
        self.learner.export(state.params, path)


def _shown(lesson: Lesson) -> int:
    """Completions of a step that are kept as text."""
    return min(8, len(lesson.batch.completions.tokens))


def _tokens(row: TeacherRow) -> DemonstrationTokens:
    return DemonstrationTokens(row.prompt, row.completion)
