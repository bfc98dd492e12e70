"""Four-model PPO as a phase: roll out, score by functions and by a reward model, update both models."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.drawing import build_drawing
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learned import LearningWatch
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.padding import shares_of
from rlax_llm.commands.ppo.settings import PpoLearningSettings, PpoSettings, ShapingSettings
from rlax_llm.commands.recording import Recorder
from rlax_llm.commands.rollout_metrics import describe, speeds
from rlax_llm.commands.rollouts import Rollout, grade
from rlax_llm.commands.setup import build_schedule
from rlax_llm.commands.shared_settings import RolloutSettings
from rlax_llm.commands.stepping import StepJudge, step_rewards_of
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.kl import fixed_coef, k1, k2, k3, proportional_coef
from rlax_llm.core.masked import unit_variance
from rlax_llm.core.mesh import copied
from rlax_llm.core.types import ScoredCompletions
from rlax_llm.credit.shaping import missing_eos_penalty
from rlax_llm.credit.token_returns import length_adaptive_trace
from rlax_llm.credit.values import clipped_value_loss
from rlax_llm.data.tasks import Task
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite
from rlax_llm.host.progress import Column
from rlax_llm.loops.rlhf import RlhfLearning, RlhfState, rlhf_loop
from rlax_llm.loops.rlhf_credit import KlInReward, Shaping, Trace
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.loops.updates import no_normalization
from rlax_llm.models.functional import Params
from rlax_llm.models.loading import LanguageModel
from rlax_llm.models.scalar import token_values
from rlax_llm.models.scoring import by_tokens
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes.mixed import vapo
from rlax_llm.rewards.calling import Scores

COLUMNS = (
    Column("objective/scores", "score"),
    Column("held_out_reward", "held-out"),
    Column("objective/kl", "KL", "{:.3f}"),
    Column("loss/value_avg", "value loss"),
    Column("tokens_per_second", "tokens/s", "{:,.0f}"),
)
_NAMES = {
    "score": "objective/scores",
    "kl": "objective/kl",
    "non_score_reward": "objective/non_score_reward",
    "rlhf_reward": "objective/rlhf_reward",
    "entropy": "objective/entropy",
    "approx_kl": "policy/approxkl_avg",
    "clip_fraction": "policy/clipfrac_avg",
    "policy_loss": "loss/policy_avg",
    "value_loss": "loss/value_avg",
    "value_clip_fraction": "val/clipfrac_avg",
    "ratio": "val/ratio",
    "ratio_var": "val/ratio_var",
    "explained_variance": "val/explained_variance",
}
"""TRL's names, by the loop's."""
_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


class Models(NamedTuple):
    """What a run of PPO has.

    Attributes:
        policy: trained; at its start it is the reference.
        value: trained.
        reward: a reward model with the policy's vocabulary, or None.
        value_follows: the value model's body is the policy's where training begins, after a warm start.
        steps: scores steps of completions, or None.
    """

    policy: Learner
    value: Learner
    reward: LanguageModel | None
    value_follows: bool
    steps: StepJudge | None = None


class PpoPhase(Phase):
    """Steps of RLHF-PPO.

    Args:
        settings: of the command.
        models: policy, value model and reward model.
        task: prompts, and reward functions where there are any.
    """

    columns = COLUMNS

    def __init__(self, settings: PpoSettings, models: Models, task: Task):
        self.settings, self.models, self.task, self.title = settings, models, task, settings.objective.recipe
        self.group_size, self.updates = settings.rollout.group_size, settings.learning.updates
        self.drawing = build_drawing(settings.sampling, settings.rollout, models.policy)
        self.batching = Batching(settings.rollout.batch_size, settings.run.seed)
        self.key = jax.random.key(settings.run.seed)
        self.needs_reference = settings.objective.kl_coef > 0
        self.schedule = self._schedule(settings.optimizer.learning_rate, settings.learning.value_warmup_steps)
        frozen = {"policy": models.policy.frozen, "value": models.value.frozen}
        self.frozen = {name: params for name, params in frozen.items() if params is not None} or None
        self.update = lru_cache(self._update)
        self.judge = Judge(task.rewards, models.reward, steps=models.steps)
        self.watch = LearningWatch("ppo")
        solved = task.solved if self.judge.graded else None
        self.record = Recorder(models.policy, settings.sampling, solved, self.group_size)
        self.reference: Params | None = None

    def begin(self, state: RlhfState, references: References) -> None:
        """Remember where the reference is kept."""
        del state
        self.references = references

    def policy(self, state: RlhfState) -> Params:
        """What the policy's learner trains."""
        return state.params["policy"]

    def _schedule(self, peak: float, idle_steps: int = 0) -> optax.Schedule:
        """Learning rate by optimizer step, of a model that learns from all steps but the first ``idle_steps``."""
        optimizer = self.settings.optimizer
        optimizer = dataclasses.replace(optimizer, warmup_steps=optimizer.warmup_steps * self.updates)
        return build_schedule(optimizer, peak, (self.settings.run.steps - idle_steps) * self.updates)

    def _loop(self, layout: tuple[int, int], shares: tuple[float, ...] = ()) -> Any:
        settings, sampling = self.settings, self.settings.sampling
        remat, policy = settings.model.remat, self.models.policy.config
        sampled = (sampling.temperature, remat, sampling.bias, sampling.penalties)
        log_probs = by_tokens(policy, layout, shares, *sampled)
        values: Any = log_probs._replace(score=token_values(self.models.value.config, layout, remat))
        schedules = {"policy": self.schedule, "value": self._schedule(settings.learning.value_learning_rate)}
        optimizers = {name: build_optimizer(settings.optimizer, schedule) for name, schedule in schedules.items()}
        shaping, learning = shaping_of(settings.objective), learning_of(settings.learning, settings.rollout)
        return rlhf_loop(log_probs, values, objective_of(settings.objective), optimizers, shaping, learning)

    def init(self, params: Params) -> RlhfState:
        """State before the first step, from the policy that is trained.

        Args:
            params: like the policy's parameters.
        """
        value = self.models.value.params
        if self.models.value_follows:
            body = {name: leaf for name, leaf in params.items() if name != "head"}
            value = copied(body) | {"score": value["score"]}
        return placed(self._loop((1, 1))[0]({"policy": params, "value": value}))

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the completions' columns, which both models are computed in."""
        return shares_of(self.models.policy.config, self.settings)

    def _update(self, prompt_width: int, shares: tuple[float, ...] = ()) -> Any:
        layout = (self.group_size, prompt_width)
        return jax.jit(pinned(watch_finite(self._loop(layout, shares)[1])), donate_argnums=0)

    def step(self, state: RlhfState, index: int) -> Done:
        """Step ``index`` (from 0), with records of some completions."""
        if self.reference is None and self.needs_reference:
            self.reference = self.references(self.policy(state), 0)
        key = jax.random.fold_in(self.key, index)
        rollout = self._rollout(state, index, key)
        start = time.perf_counter()
        scores = self.judge(rollout, self.group_size)
        scoring = time.perf_counter() - start
        state, named, advantages = self._learn(state, rollout, scores, jax.random.fold_in(key, 1))
        learned = finite(named, f"step {index + 1}")
        seconds = {"rollout": rollout.seconds, "scoring": scoring, "update": time.perf_counter() - start - scoring}
        described = self._described(rollout, scores) | learned | self._speeds(rollout, seconds)
        described["learning_rate"] = self._learning_rate(index)
        self.watch.step(described, index + 1)
        rows = self.drawing.sampling.records(rollout, scores, range(min(8, len(rollout.rows))))
        details = self.record(index + 1, rollout, scores, self.policy(state), advantages)
        return Done(state, described, rows, details=details)

    def _rollout(self, state: RlhfState, index: int, key: jax.Array) -> Rollout:
        """The completions of step ``index``'s rows."""
        whole = self.models.policy.sampled(self.policy(state))
        rows = self.batching.rows(self.task.train, index)
        return self.drawing.narrow.rollout(whole, rows, key, self.drawing.request)

    def _learn(
        self, state: RlhfState, rollout: Rollout, scores: Scores, key: jax.Array
    ) -> tuple[RlhfState, dict[str, float], jax.Array]:
        """An update on a scored rollout, its metrics by the run's names, and the advantages of the tokens."""
        batch = ScoredCompletions(rollout.completions, jnp.asarray(scores.total))
        batch = batch._replace(step_rewards=step_rewards_of(rollout, scores))
        update = self.update(rollout.prompt_width, self.shares)
        state, metrics = update(state, batch, key=key, reference=self.reference, frozen=self.frozen)
        advantages = metrics.pop("advantages")
        return state, {str(_NAMES.get(name, name)): float(value) for name, value in metrics.items()}, advantages

    def _described(self, rollout: Rollout, scores: Scores) -> dict[str, float]:
        solved = self.task.solved if self.judge.graded else None
        return describe(rollout, scores, solved, self.group_size)

    def _speeds(self, rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
        """Of the parts of a step, and the share of the devices' peak that the updates of both models take."""
        shared = (self.group_size, rollout.prompt_width)
        both = (self.models.policy, self.models.value)
        once = sum(training_flops(each.config, each.params, rollout.completions, shared) for each in both)
        flops = self.settings.learning.epochs * once
        return speeds(rollout, seconds) | utilization(flops, seconds["update"]) | self.drawing.tally.metrics()

    def _learning_rate(self, index: int) -> float:
        """The policy's, whose schedule begins when the value model's warm-up has ended."""
        taken = max(index - self.settings.learning.value_warmup_steps, 0) * self.updates
        return float(np.asarray(self.schedule(taken)))

    def evaluate(self, state: RlhfState) -> Evaluation:
        """Greedy held-out score, share of solved prompts where functions say so, and a record of each completion."""
        whole = self.models.policy.sampled(self.policy(state))
        batch = self.batching.size * self.group_size
        grades = grade(self.drawing.sampling, whole, self.task, self.judge, self.drawing.greedy, batch)
        return Evaluation(grades.metrics(self.judge.graded), grades.records)

    def export(self, state: RlhfState, path: Path) -> None:
        """Write the policy, and the value model beside it."""
        self.models.policy.export(state.params["policy"], path)
        self.models.value.export(state.params["value"], path.with_name("value_model"))

    def check(self, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Raise where no completion of the whole run taught anything."""
        self.watch.check(metrics)


def objective_of(settings: ShapingSettings) -> Objective:
    """The policy's loss, as the settings say: PPO's, and the likelihood of what scores well where it has a weight."""
    objective = vapo(settings.nll_coef, settings.nll_threshold, settings.eps, settings.eps_high)
    return objective if settings.nll_coef else objective._replace(terms=())


def shaping_of(settings: ShapingSettings) -> Shaping:
    """From scores to advantages, as the settings say."""
    control = fixed_coef if settings.kl_target is None else proportional_coef(settings.kl_target)
    kl = KlInReward(settings.kl_coef, _ESTIMATORS[settings.kl_estimator], control)
    return Shaping(
        scores=partial(missing_eos_penalty, penalty=settings.missing_eos_penalty),
        kl=kl,
        rewards=unit_variance if settings.whiten_rewards else no_normalization,
        discount=settings.discount,
        trace=_policy_trace(settings),
        value_trace=settings.value_lambda,
    )


def _policy_trace(settings: ShapingSettings) -> Trace:
    """A number, or a function of a completion's length."""
    if settings.length_alpha is None:
        assert settings.policy_lambda is not None
        return settings.policy_lambda
    return partial(length_adaptive_trace, alpha=settings.length_alpha)


def learning_of(settings: PpoLearningSettings, rollout: RolloutSettings) -> RlhfLearning:
    """Epochs, minibatches and the value model's loss, as the settings say."""
    return RlhfLearning(
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        micro_batches=settings.micro_batches(rollout),
        group_size=rollout.group_size,
        value_loss=clipped_value_loss(settings.value_eps),
        value_coef=settings.value_coef,
        warmup_steps=settings.value_warmup_steps,
        telling=whole_advantages,
    )
