"""Group policy optimization as a phase: roll out, score in Python, update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.carrying import Asked, Carried, PartialRollouts
from rlax_llm.commands.grpo.gathering import Gatherer, Taken
from rlax_llm.commands.grpo.settings import GroupRolloutSettings, GrpoSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learned import LearningWatch
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.recording import Recorder, Records
from rlax_llm.commands.rollout_metrics import describe, speeds
from rlax_llm.commands.rollouts import Rollout, grade
from rlax_llm.commands.serving import staleness
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.data.tasks import Task, batch_indices
from rlax_llm.generation.sampling import row_keys
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite
from rlax_llm.host.progress import GROUP_COLUMNS
from rlax_llm.loops.group import GroupState
from rlax_llm.models.functional import Params

_ORDER = 2**31 - 1  # folded into a step's key for its minibatches; smaller numbers are those of sampled tokens


class GroupPhase(Phase):
    """Steps of group policy optimization.

    Args:
        settings: of the command.
        learner: what is trained.
        task: prompts, rewards and what counts as solved.
        judge: scores rollouts of the task.
        drawing: how completions are drawn.
    """

    columns = GROUP_COLUMNS

    def __init__(self, settings: GrpoSettings, learner: Learner, task: Task, judge: Judge, drawing: Drawing):
        self.title, self.settings = settings.objective.recipe, settings.rollout
        self.seed, self.reference_every = settings.run.seed, settings.objective.reference_every
        self.learner, self.task, self.judge, self.drawing = learner, task, judge, drawing
        self.groups, self.group_size = settings.rollout.batch_size, settings.rollout.group_size
        self.epochs = settings.learning.epochs
        self.update = GroupUpdate(settings, learner, judge.weights())
        if self.reference_every and not self.update.reads_reference:
            raise ValueError(
                f"grpo: reference_every is {self.reference_every} and nothing reads a reference; give kl_coef, or "
                "leave it out."
            )
        self.key = jax.random.key(self.seed)
        self.gatherer = self._gathering(settings.rollout)
        self.watch = LearningWatch("grpo", settings.learning.overlong_filter)
        solved = task.solved if judge.graded else None
        self.record = Recorder(learner, settings.sampling, solved, self.group_size)
        self.reference: Params | None = None
        self.taken = 0  # steps, of the policy that is drawn from

    def _gathering(self, settings: GroupRolloutSettings) -> Gatherer:
        """How rollouts are made, and what becomes of their groups."""
        further = settings.partial_rollouts
        self.roll = PartialRollouts(self.drawing, self._asked, self.groups, further) if further else self._whole
        return Gatherer(self.draw, self.groups, settings.dynamic_rounds, self._telling, further > 0)

    def init(self, params: Params) -> GroupState:
        """State before the first step."""
        return self.update.init(params)

    def begin(self, state: GroupState, references: References) -> None:
        """Remember where the reference is kept."""
        del state
        self.references = references

    def _refer(self, state: GroupState, index: int) -> None:
        """Count the steps before this one, and take its reference: the first, or the policy of the last multiple of
        ``reference_every``.
        """
        self.taken = index
        every = self.reference_every
        due = self.reference is None or (every and index % every == 0)
        if self.update.reads_reference and due:
            self.reference = self.references(state.params, every)

    def draw(self, params: Params, number: int, carried: Carried | None) -> tuple[Taken, Carried | None]:
        """Scored completions of rollout ``number`` (from 0), and what they leave to the next: a function of number,
        parameters, seed and what was left before.
        """
        whole = self.drawing.weights(params, self.taken, False)
        chosen, rollout, carried = self.roll(whole, number, carried, self.taken)
        return Taken(chosen, rollout, self.judge(rollout, self.group_size)), carried

    def _whole(
        self, params: Params, number: int, carried: Carried | None, version: int
    ) -> tuple[np.ndarray, Rollout, Carried | None]:
        """The groups of a rollout, all of them whole."""
        del version
        chosen = batch_indices(len(self.task.train), self.groups, self.seed, number)
        rows = [self.task.train[i] for i in chosen]
        key = jax.random.fold_in(self.key, number)
        rollout = self.drawing.narrow.rollout(params, rows, key, self.drawing.request)
        return np.asarray(chosen), rollout, carried

    def _asked(self, groups: np.ndarray) -> Asked:
        """Prompts and keys of groups by their numbers: those that they would have in rollouts of whole groups."""
        indices, keys = [], []
        for number in np.unique(groups // self.groups):
            places = groups[groups // self.groups == number] % self.groups
            indices.append(np.asarray(batch_indices(len(self.task.train), self.groups, self.seed, int(number)))[places])
            of_rollout = row_keys(jax.random.fold_in(self.key, int(number)), self.groups * self.group_size)
            keys.append(of_rollout.reshape(self.groups, self.group_size)[places].reshape(-1))
        chosen = np.concatenate(indices)
        return Asked(chosen, [self.task.train[i] for i in chosen], jnp.concatenate(keys))

    def step(self, state: GroupState, index: int) -> Done:
        """Step ``index`` (from 0), with records of one group's completions."""
        self._refer(state, index)
        start = time.perf_counter()
        taken, counts, kept = self.gatherer(state.params, index)
        gathering = time.perf_counter() - start
        order = jax.random.fold_in(jax.random.fold_in(self.key, index), _ORDER)
        state, learned, advantages = self.update(state, taken, self.reference, order)
        learned = finite(learned, f"step {index + 1}", self.update.lower)
        rollout = taken.rollout
        seconds = {"rollout": rollout.seconds, "scoring": gathering - rollout.seconds}
        seconds["update"] = time.perf_counter() - start - gathering
        metrics = self._described(taken) | learned | counts | speeds(rollout, seconds)
        metrics |= self.update.learning_rate(index) | self._utilization(rollout, seconds["update"])
        self.watch.step(metrics, index + 1)
        self.gatherer.kept = kept  # now that the step cannot fail any more
        self.taken = index + 1
        rows, details = self._kept(index + 1, taken, state.params, advantages)
        return Done(state, metrics, rows, details=details)

    def _kept(
        self, number: int, taken: Taken, params: Params, advantages: jax.Array
    ) -> tuple[list[dict[str, Any]], Records]:
        """What is kept of the completions of step ``number``."""
        rows = self.drawing.sampling.records(taken.rollout, taken.scores, range(self.group_size))
        return rows, self.record(number, taken.rollout, taken.scores, params, advantages)

    def _utilization(self, rollout: Rollout, seconds: float) -> dict[str, float]:
        once = training_flops(self.learner.config, rollout.completions, (self.group_size, rollout.prompt_width))
        return utilization(self.epochs * once, seconds)

    def _described(self, taken: Taken) -> dict[str, float]:
        solved = self.task.solved if self.judge.graded else None
        described = describe(taken.rollout, taken.scores, solved, self.group_size)
        return described | staleness(taken.rollout.completions, self.taken)

    def _telling(self, taken: Taken) -> np.ndarray:
        """What must differ in a group that teaches: scores as the recipe takes them, before length is punished."""
        scores = self.judge.unpunished(taken.scores, self.update.several)
        return scores.reshape(-1, len(taken.indices), taken.group_size)

    def evaluate(self, state: GroupState) -> Evaluation:
        """Greedy held-out reward and accuracy, and a record of each completion."""
        whole, batch = self.drawing.weights(state.params, self.taken, True), self.groups * self.group_size
        grades = grade(self.drawing.sampling, whole, self.task, self.judge, self.drawing.greedy, batch)
        return Evaluation(grades.metrics(self.judge.graded), grades.records)

    def export(self, state: GroupState, path: Path) -> None:
        """Write the model, and its adapters where there are any."""
        self.learner.export(state.params, path)

    def keep(self, place: Path, position: int) -> None:
        """Write what is handed on to the next step."""
        self.gatherer.keep(place, position)

    def load(self, place: Path, position: int) -> None:
        """Read them."""
        self.gatherer.load(place, position, self.task.train, self.drawing.sampling.texts)

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where no completion of the whole run taught anything."""
        self.watch.check(metrics)
