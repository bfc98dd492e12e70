"""Online preference as a phase: the policy and its rival draw completions, scores compare them, update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.gathering import widened
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learned import LearningWatch
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.online.update import OnlineUpdate
from rlax_llm.commands.optimizers import measured
from rlax_llm.commands.recording import Recorder
from rlax_llm.commands.rollout_metrics import describe, speeds
from rlax_llm.commands.rollouts import Rollout, grade
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.core.types import Completions, Groups
from rlax_llm.data.tasks import Task
from rlax_llm.generation.mixture import Two, generate_mixed
from rlax_llm.generation.request import Request
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite
from rlax_llm.host.progress import GROUP_COLUMNS
from rlax_llm.loops.online import Online, beside
from rlax_llm.loops.references import FollowingState
from rlax_llm.models.config import DecoderConfig
from rlax_llm.models.functional import Params
from rlax_llm.rewards.calling import Scores

_ORDER, _RIVAL = 2**31 - 1, 2**31 - 2  # folded into a step's key; smaller numbers are those of sampled tokens


class Drawn(NamedTuple):
    """Completions that somebody drew, and their scores."""

    rollout: Rollout
    scores: Scores


def _mixed(
    share: float,
    config: DecoderConfig,
    models: Two,
    prompts: tuple[jax.Array, jax.Array],
    key: jax.Array,
    request: Request,
    **unused: Any,
) -> Completions:
    """``generate_mixed`` where a ``Generate`` stands."""
    del unused
    return generate_mixed(config, models, prompts, key, request, share)


class OnlinePhase(Phase):
    """Steps of online preference.

    Args:
        settings: of the command.
        online: the recipe.
        learner: what is trained.
        task: prompts, rewards and what counts as solved.
        judge: scores completions.
        drawing: how completions are drawn.
    """

    columns = GROUP_COLUMNS

    def __init__(
        self, settings: OnlineSettings, online: Online, learner: Learner, task: Task, judge: Judge, drawing: Drawing
    ):
        self.title, self.rollout = settings.objective.recipe, settings.rollout
        self.online, self.learner, self.task, self.judge, self.drawing = online, learner, task, judge, drawing
        self.update = OnlineUpdate(settings, online, learner)
        self.epochs, self.learned_rows = settings.learning.epochs, settings.learned_rows
        self.key = jax.random.key(settings.run.seed)
        self.batching = Batching(settings.rollout.batch_size, settings.run.seed)
        self.watch = LearningWatch("online")
        self.solved = task.solved if judge.graded else None
        self.record = Recorder(learner, settings.sampling, self.solved, settings.rollout.group_size)
        self.reference: Params | None = None

    def init(self, params: Params) -> Any:
        """State before the first step."""
        return self.update.init(params)

    def begin(self, state: Any, references: References) -> None:
        """Remember where the reference is kept."""
        del state
        self.references = references

    def step(self, state: Any, index: int) -> Done:
        """Step ``index`` (from 0), with records of one prompt's completions."""
        self._refer(state)
        key, start = jax.random.fold_in(self.key, index), time.perf_counter()
        own, rival = self._drawn(state, index, key)
        begun = time.perf_counter()
        batch, width = self._batch(own, rival)
        reference = self.reference
        state, learned, advantages = self.update(state, batch, width, reference, jax.random.fold_in(key, _ORDER))
        metrics = self._described(own, rival) | finite(learned, f"step {index + 1}")
        drawing = own.rollout.seconds + (rival.rollout.seconds if rival else 0.0)
        seconds = {"rollout": drawing, "scoring": begun - start - drawing, "update": time.perf_counter() - begun}
        metrics |= self._speeds(own.rollout, batch, seconds)
        metrics["learning_rate"] = self.update.learning_rate(index)
        self.watch.step(metrics, index + 1)
        return self._done(state, metrics, own, (index + 1, advantages))

    def _refer(self, state: Any) -> None:
        """Take the reference, where it stays what it is."""
        if self.reference is None and self.update.reads_reference and not self.update.follows:
            self.reference = self.references(state.params, 0)

    def _done(self, state: Any, metrics: dict[str, float], own: Drawn, learned: tuple[int, np.ndarray]) -> Done:
        """A step with its records, of its number and the advantages of the policy's tokens."""
        number, advantages = learned
        records = self.drawing.sampling.records(own.rollout, own.scores, range(self.rollout.group_size))
        credit = advantages[:, : own.rollout.completions.tokens.shape[1]]
        details = self.record(number, own.rollout, own.scores, state.params, credit)
        return Done(state, metrics, records, details=details)

    def _drawn(self, state: Any, index: int, key: jax.Array) -> tuple[Drawn, Drawn | None]:
        """The policy's completions of the prompts of step ``index``, and its rival's."""
        rows = self.batching.rows(self.task.train, index)
        whole = self.drawing.weights(state.params, 0, False)
        own = self._judged(self.drawing.narrow.rollout(whole, rows, key, self.drawing.request))
        return own, self._rival(state, rows, jax.random.fold_in(key, _RIVAL))

    def _rival(self, state: Any, rows: Sequence[Any], key: jax.Array) -> Drawn | None:
        """The rival's completions, where there is one."""
        share = self.online.rivals
        if share is None:
            return None
        request = self.drawing.request._replace(group_size=self.rollout.rivals)
        sampling, weights = self.drawing.sampling, partial(self.drawing.weights, state.params, 0, True)
        if share in (0, 1):
            whole = weights() if share == 0 else self.drawing.weights(self._reference(state), 0, True)
            return self._judged(sampling.rollout(whole, rows, key, request))
        models = Two(weights(), self.drawing.weights(self._reference(state), 0, True))
        mixing = sampling._replace(generate=partial(_mixed, share))
        return self._judged(mixing.rollout(models, rows, key, request))

    def _reference(self, state: Any) -> Params:
        return state.reference if isinstance(state, FollowingState) else self.reference

    def _judged(self, rollout: Rollout) -> Drawn:
        count = len(rollout.rows) // self.batching.size
        return Drawn(rollout, self.judge(rollout, count))

    def _batch(self, own: Drawn, rival: Drawn | None) -> tuple[Groups, int]:
        """Completions and scores as the update reads them, and the columns of their prompts."""
        prompts = self.batching.size
        drawn = [own] if rival is None else [own, rival]
        scores = jnp.concatenate([jnp.asarray(each.scores.total).reshape(prompts, -1) for each in drawn], 1)
        if rival is None:
            return Groups(own.rollout.completions, scores), own.rollout.prompt_width
        rollouts = [each.rollout for each in drawn]
        width = max(rollout.prompt_width for rollout in rollouts)
        longest = max(rollout.completions.tokens.shape[1] - rollout.prompt_width for rollout in rollouts)
        ours, theirs = (widened(rollout, width, longest) for rollout in rollouts)
        return Groups(beside(ours, theirs, prompts), scores), width

    def _described(self, own: Drawn, rival: Drawn | None) -> dict[str, float]:
        """What the policy's completions are like, and what its rival's score."""
        described = describe(own.rollout, own.scores, self.solved, self.rollout.group_size)
        described["reward_failures"] = float(own.scores.failed.sum())
        described |= self.drawing.tally.metrics()
        if rival is None:
            return described
        known = rival.scores.total[~np.isnan(rival.scores.total)]
        return described | {"rivals/reward": float(known.mean()) if known.size else float("nan")}

    def _speeds(self, rollout: Rollout, batch: Groups, seconds: dict[str, float]) -> dict[str, float]:
        """Of the parts of a step, and how much of the machine the update used."""
        taken = batch.completions
        shared = (len(taken.tokens) // self.batching.size, rollout.prompt_width)
        once = training_flops(self.learner.config, self.learner.params, taken, shared)
        flops = self.epochs * once * self.learned_rows / len(taken.tokens)
        return speeds(rollout, seconds) | utilization(flops, seconds["update"])

    def evaluate(self, state: Any) -> Evaluation:
        """Greedy held-out reward and accuracy, and a record of each completion."""
        whole, batch = self.drawing.weights(measured(state), 0, True), self.rollout.rows
        grades = grade(self.drawing.sampling, whole, self.task, self.judge, self.drawing.greedy, batch)
        return Evaluation(grades.metrics(self.judge.graded), grades.records)

    def export(self, state: Any, path: Path) -> None:
        """Write the model, and its adapters where there are any."""
        self.learner.export(measured(state), path)

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where no completion of the whole run taught anything."""
        self.watch.check(metrics)
