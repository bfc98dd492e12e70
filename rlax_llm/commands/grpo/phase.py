"""Group policy optimization as a phase: roll out, score in Python, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.anchoring import call_metrics
from rlax_llm.commands.grpo.carrying import Asked, Left, PartialRollouts
from rlax_llm.commands.grpo.clock import Clock
from rlax_llm.commands.grpo.gathering import Gatherer, Kept, Taken
from rlax_llm.commands.grpo.giving import Giving, nothing_given, of_drawn
from rlax_llm.commands.grpo.knowing import Knowing, roles_of
from rlax_llm.commands.grpo.objective import Counts
from rlax_llm.commands.grpo.prompting import Curriculum
from rlax_llm.commands.grpo.replaying import build_replay
from rlax_llm.commands.grpo.settings import GroupRolloutSettings, GrpoSettings
from rlax_llm.commands.grpo.update import GroupUpdate
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learned import LearningWatch
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import measured
from rlax_llm.commands.recording import Recorder, Records
from rlax_llm.commands.rollout_metrics import describe, speeds
from rlax_llm.commands.rollouts import Rollout, grade
from rlax_llm.commands.serving import staleness
from rlax_llm.commands.stepping import step_rewards_of
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.core.keys import folded, seeded
from rlax_llm.core.mesh import copied
from rlax_llm.core.types import Groups, Known
from rlax_llm.data.tasks import Task, batch_indices
from rlax_llm.generation.sampling import chosen_keys, row_keys
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite
from rlax_llm.host.progress import GROUP_COLUMNS
from rlax_llm.loops.group import GroupState, compared
from rlax_llm.models.functional import Params

_ORDER = 2**31 - 1  # folded into a step's key for its minibatches; smaller numbers are those of sampled tokens
_CHOICE = 2**31  # folded into a rollout's key for its prompts
_REPLAY = 2**32 - 1  # folded into the run's key for what is replayed; smaller numbers are those of rollouts


Roll = Callable[[Params, int, Any, int], tuple[np.ndarray, Rollout, Left | None]]
"""``(params, number of the rollout, what the one before left, version) → prompts, completions, what they leave``."""


class GroupPhase(Phase):
    """Steps of group policy optimization.

    Args:
        settings: of the command.
        learner: what is trained.
        task: prompts, rewards and what counts as solved.
        judge: scores rollouts of the task.
        drawing: how completions are drawn.
        giving: puts into groups what the policy did not choose and the recipe learns from.
    """

    columns = GROUP_COLUMNS

    def __init__(
        self,
        settings: GrpoSettings,
        learner: Learner,
        task: Task,
        judge: Judge,
        drawing: Drawing,
        giving: Giving = nothing_given,
    ):
        self.title, self.settings = settings.objective.recipe, settings.rollout
        self.seed, self.reference_every = settings.run.seed, settings.objective.reference_every
        self.learner, self.task, self.judge, self.drawing, self.giving = learner, task, judge, drawing, giving
        self.groups, self.group_size = settings.rollout.batch_size, settings.rollout.drawn_size
        self.epochs = settings.learning.epochs
        self._learning(settings)
        self._check_reference()
        self._check_replay(settings)
        self.key = seeded(self.seed)
        self.gatherer = self._gathering(settings.rollout)
        self.watch = LearningWatch("grpo", settings.learning.overlong_filter)
        solved = task.solved if judge.graded else None
        self.record = Recorder(learner, settings.sampling, solved, self.group_size)
        self.reference: Params | None = None
        self.taken = 0  # steps, of the policy that is drawn from
        self.elsewhere = settings.server.sampler_url is not None
        self.meanwhile: Callable[[], Any] = nothing  # called when a rollout is there, and is yet to be scored
        self.failed: Exception | None = None  # in what the next step would have learned from

    def _learning(self, settings: GrpoSettings) -> None:
        """How is learned, and what is known for it."""
        counts = Counts(self.group_size, len(self.task.train), len(roles_of(self.task.train)))
        self.update = GroupUpdate(settings, self.learner, self.judge.weights(), counts)
        self.know = Knowing(settings, self.learner, self.task, self.judge, self.drawing)

    def _check_replay(self, settings: GrpoSettings) -> None:
        if settings.rollout.replay and self.update.remembers:
            raise ValueError(
                f"grpo: recipe {settings.objective.recipe} remembers scores, and replay would count them twice; leave "
                "one out."
            )

    def _check_reference(self) -> None:
        if self.reference_every and not self.update.reads_reference:
            raise ValueError(
                f"grpo: reference_every is {self.reference_every} and nothing reads a reference; give kl_coef, or "
                "leave it out."
            )

    def _gathering(self, settings: GroupRolloutSettings) -> Gatherer:
        """How rollouts are made, and what becomes of their groups."""
        further = settings.partial_rollouts
        partly = PartialRollouts(self.drawing, self._asked, self.groups, further)
        self.roll: Roll = partly if further else self._whole
        self.curriculum = None
        if settings.curriculum is not None:
            self._check_graded()
            self.curriculum = Curriculum(settings, len(self.task.train), self.task.solved)
        columns = self.drawing.sampling.width, self.drawing.request.max_new_tokens
        replay = build_replay(settings.replay, settings.replay_share, self._key(_REPLAY), self._telling, columns)
        hands_on = further > 0 or settings.ahead > 0 or self.curriculum is not None
        return Gatherer(self.draw, self.groups, settings.dynamic_rounds, self._telling, hands_on, replay)

    def _check_graded(self) -> None:
        if not self.judge.graded:
            raise ValueError(
                "grpo: curriculum counts the completions that are right, and a reward model alone tells none; give "
                "reward too, or leave it out."
            )

    def _key(self, number: int) -> jax.Array:
        """Of a number of the run's."""
        return folded(self.key, number)

    def init(self, params: Params) -> Any:
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
        if self.update.reads_reference and due and not self.update.follows:
            self.reference = self.references(state.params, every)

    def draw(self, params: Params, number: int, carried: Left | None) -> tuple[Taken, Left | None]:
        """Scored completions of rollout ``number`` (from 0), and what they leave to the next: a function of number,
        parameters, seed and what was left before.
        """
        whole = self.drawing.weights(params, self.taken, False)
        if self.elsewhere:
            self.meanwhile()
        chosen, rollout, carried = self.roll(whole, number, carried, self.taken)
        self.meanwhile()
        taken = Taken(chosen, self._dated(rollout), self.judge(rollout, self.group_size))
        return taken, carried if self.curriculum is None else self.curriculum.after(carried, taken)

    def _dated(self, rollout: Rollout) -> Rollout:
        """With the age of the policy, where that is not always the newest."""
        completions = rollout.completions
        if not (self.settings.ahead or self.settings.replay) or completions.versions is not None:
            return rollout
        versions: Any = np.full(len(rollout.rows), self.taken, np.int32)
        return rollout._replace(completions=completions._replace(versions=versions))

    def _whole(
        self, params: Params, number: int, carried: Left | None, version: int
    ) -> tuple[np.ndarray, Rollout, Left | None]:
        """The groups of a rollout, all of them whole."""
        del version
        key = self._key(number)
        chosen = self._chosen(number, key, carried)
        rows = [self.task.train[i] for i in chosen]
        rollout = self.drawing.narrow.rollout(params, rows, key, self.drawing.request)
        return np.asarray(chosen), rollout, carried

    def _chosen(self, number: int, key: jax.Array, carried: Left | None) -> np.ndarray:
        """The prompts of a rollout by their numbers: the next of the epoch, or those of the curriculum."""
        if self.curriculum is None:
            return batch_indices(len(self.task.train), self.groups, self.seed, number)
        return self.curriculum(carried, folded(key, _CHOICE))

    def _asked(self, groups: np.ndarray) -> Asked:
        """Prompts and keys of groups by their numbers: those that they would have in rollouts of whole groups."""
        indices, keys = [], []
        for number in np.unique(groups // self.groups):
            places = groups[groups // self.groups == number] % self.groups
            indices.append(np.asarray(batch_indices(len(self.task.train), self.groups, self.seed, int(number)))[places])
            of_rollout = row_keys(self._key(int(number)), self.groups * self.group_size)
            rows = (places[:, None] * self.group_size + np.arange(self.group_size)).ravel()
            keys.append(np.asarray(jax.random.key_data(chosen_keys(of_rollout, rows))))
        chosen = np.concatenate(indices)
        numbers: Any = np.concatenate(keys)
        drawn_by = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(self.key))
        return Asked(chosen, [self.task.train[i] for i in chosen], drawn_by)

    def step(self, state: GroupState, index: int) -> Done:
        """Step ``index`` (from 0), with records of one group's completions."""
        self._refer(state, index)
        clock = Clock()
        taken, counts, kept = self._groups(state.params, index)
        clock.gathered(taken)
        order = folded(self._key(index), _ORDER)
        learn = cache(lambda: self._learned(clock, state, taken, order))
        if self.settings.ahead:
            kept = self._ahead(state.params, index + 1, kept, learn)
            clock.ahead(kept.ahead)
        after, learned, advantages = learn()
        learned = finite(self.update.numbers(learned), f"step {index + 1}", self.update.lower)
        metrics = self._described(taken) | learned | counts
        metrics |= self._speeds(taken.rollout, clock)
        self.watch.step(metrics, index + 1)
        self.gatherer.kept = kept  # now that the step cannot fail any more
        self.taken = index + 1
        rows, details = self._kept(index + 1, taken, after.params, advantages)
        return Done(after, metrics, rows, details=details)

    def _groups(self, params: Params, index: int) -> tuple[Taken, dict[str, float], Kept]:
        """What step ``index`` learns from, unless that could not be made ahead."""
        if self.failed is not None:
            raise self.failed
        return self.gatherer(params, index)

    def _learned(
        self, clock: Clock, state: GroupState, taken: Taken, order: jax.Array
    ) -> tuple[GroupState, dict[str, jax.Array], jax.Array]:
        """The update, under way."""
        known = self.know(state.params, taken, order)
        clock.learning()
        given = self.giving(taken, self.taken)
        state, metrics, advantages = self.update(state, given, self.reference, order, known, self.taken)
        return state, metrics, of_drawn(advantages, taken)

    def _ahead(self, params: Params, index: int, kept: Kept, learn: Callable[[], Any]) -> Kept:
        """With the groups of step ``index``, drawn before ``learn`` and scored behind it; where that fails step
        ``index`` does.
        """
        if self.settings.dynamic_rounds:  # further rounds are drawn when the update has taken the parameters over
            params = copied(params)
        self.meanwhile = learn
        try:
            return self.gatherer.ahead(params, index, kept)
        except Exception as error:
            self.failed = error
            return kept
        finally:
            self.meanwhile = nothing

    def _kept(
        self, number: int, taken: Taken, params: Params, advantages: jax.Array
    ) -> tuple[list[dict[str, Any]], Records]:
        """What is kept of the completions of step ``number``."""
        rows = self.drawing.sampling.records(taken.rollout, taken.scores, range(self.group_size))
        return rows, self.record(number, taken.rollout, taken.scores, params, advantages)

    def _speeds(self, rollout: Rollout, clock: Clock) -> dict[str, float]:
        """Of the parts of a step, and how much of the machine the update used in the seconds that it was under way."""
        busy, seconds = clock.update, clock.seconds()
        shared = (self.group_size, rollout.prompt_width)
        once = training_flops(self.learner.config, self.learner.params, rollout.completions, shared)
        return speeds(rollout, seconds) | utilization(self.epochs * once, busy) | self.drawing.tally.metrics()

    def _described(self, taken: Taken) -> dict[str, float]:
        solved = self.task.solved if self.judge.graded else None
        described = describe(taken.rollout, taken.scores, solved, self.group_size)
        if self.settings.tool is not None:
            described |= call_metrics(taken.rollout)
        return described | staleness(taken.rollout.completions, self.taken)

    def _telling(self, taken: Taken) -> np.ndarray:
        """What must differ in a group that teaches: scores as the recipe takes them, or the rewards of their steps,
        before length is punished.
        """
        groups, size = len(taken.indices), taken.group_size
        scores = self.judge.unpunished(taken.scores, self.update.several).reshape(-1, groups, size)
        steps = step_rewards_of(taken.rollout, taken.scores)
        if steps is None:
            return scores
        known = Known(step_rewards=jnp.asarray(steps.reshape(groups, size, -1)))
        return np.asarray(compared(Groups(taken.rollout.completions, jnp.asarray(scores[0]), known=known)))

    def evaluate(self, state: GroupState) -> Evaluation:
        """Greedy held-out reward and accuracy, and a record of each completion."""
        whole, batch = self.drawing.weights(measured(state), self.taken, True), self.groups * self.group_size
        grades = grade(self.drawing.sampling, whole, self.task, self.judge, self.drawing.greedy, batch)
        return Evaluation(grades.metrics(self.judge.graded), grades.records)

    def export(self, state: GroupState, path: Path) -> None:
        """Write the model, and its adapters where there are any."""
        self.learner.export(measured(state), path)

    def keep(self, place: Path, position: int) -> None:
        """Write what is handed on to the next step."""
        self.gatherer.keep(place, position)

    def load(self, place: Path, position: int) -> None:
        """Read them."""
        self.gatherer.load(place, position, self.task.train, self.drawing.sampling.texts)

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where no completion of the whole run taught anything."""
        self.watch.check(metrics)


def nothing() -> None:
    """Do nothing."""
