"""The group loop as a run: roll out, score in Python, update, and keep all of it on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.grpo.gathering import Gatherer, Taken
from rlax_llm.commands.grpo.objective import TRPO, build_learning, build_objective, build_step
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.rollouts import Rollout, Sampling, evaluate
from rlax_llm.commands.settings import logit_bias_of
from rlax_llm.commands.setup import build_greedy, build_optimizer, build_sampler, build_schedule
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import Groups
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.data.tasks import Task, batch_indices
from rlax_llm.generation.engine import generate
from rlax_llm.generation.turns import calculator, with_tools
from rlax_llm.host import checkpoints
from rlax_llm.host.progress import GROUP_COLUMNS
from rlax_llm.loops.group import GroupLoop, GroupState, every_completion, group_loop, group_trpo_loop
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import group_log_probs, group_logits
from rlax_llm.policy.weightings import token_mean
from rlax_llm.rewards.calling import Scores

_TURNS = 4
_ORDER = 2**31 - 1  # folded into a step's key for its minibatches; smaller numbers are those of sampled tokens
_TOOLS = {"calculator": calculator}
_NAMES = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
}
"""TRL's names, by the loop's."""


class GroupPhase:
    """Steps of group policy optimization.

    Args:
        config: with every default filled in.
        learner: what is trained.
        task: prompts, rewards and what counts as solved.
        judge: scores rollouts of the task.
    """

    columns = GROUP_COLUMNS

    def __init__(self, config: GrpoSettings, learner: Learner, task: Task, judge: Judge):
        self.title = config.recipe
        self.lower = "kl_radius" if config.recipe == TRPO else "learning_rate"
        self.config, self.learner, self.task, self.judge = config, learner, task, judge
        self.groups, self.group_size = config.batch_size or 0, config.group_size or 0
        self.updates = config.epochs * config.minibatches
        self.chosen = None if config.recipe == TRPO else build_objective(config, judge.weights())
        self.needs_reference = self.chosen is not None and self.chosen.needs_reference
        if config.reference_every and not self.needs_reference:
            raise ValueError(
                f"grpo: reference_every is {config.reference_every} and nothing reads a reference; give kl_coef, or "
                "leave it out."
            )
        self.schedule = build_schedule(config, config.learning_rate or 0.0, (config.steps or 0) * self.updates)
        self.optimizer = build_optimizer(config, self.schedule)
        tool = None if config.tool is None else with_tools(learner.tokenizer, [_TOOLS[config.tool]], _TURNS)
        limit = config.max_prompt_tokens or 0
        self.sampling = Sampling(learner.sampled_shape, learner.tokenizer, limit, generate if tool is None else tool)
        sampler, likeliest = (build(config, learner.config.vocab_size) for build in (build_sampler, build_greedy))
        longest, shortest = config.max_new_tokens or 0, config.min_new_tokens
        self.request = self.sampling.request(sampler, longest, self.group_size, shortest)
        self.greedy = self.sampling.request(likeliest, longest, min_new_tokens=shortest)
        self.key = jax.random.key(config.seed)
        self.gatherer = Gatherer(self.draw, self.groups, config.dynamic_rounds, self._telling)
        self.update = lru_cache(self._update)

    def policy(self, state: GroupState) -> Params:
        """What the policy's learner trains."""
        return state.params

    def init(self, params: Params) -> GroupState:
        """State before the first step."""
        return self._loop((1, 1))[0](params)

    def _loop(self, layout: tuple[int, int]) -> GroupLoop:
        shape, temperature, remat = self.learner.config, self.config.temperature, bool(self.config.remat)
        bias = logit_bias_of(self.config)
        if self.chosen is None:
            logits = group_logits(shape, layout, temperature, remat, bias)
            step = build_step(self.config.kl_radius)
            teaching = overlong_filter if self.config.overlong_filter else every_completion
            return group_trpo_loop(logits, step.advantage, token_mean, step.direction, step.search, teaching)
        log_probs = group_log_probs(shape, layout, temperature, remat, bias)
        return group_loop(log_probs, self.chosen.objective, self.optimizer, build_learning(self.config))

    def _update(self, prompt_width: int) -> Any:
        return jax.jit(watch_finite(self._loop((self.group_size, prompt_width))[1]), donate_argnums=0)

    def draw(self, params: Params, number: int) -> Taken:
        """Scored completions of the prompts of rollout ``number`` (from 0), a function of it, parameters and seed."""
        chosen = batch_indices(len(self.task.train), self.groups, self.config.seed, number)
        rows = [self.task.train[i] for i in chosen]
        whole = self.learner.sampled(params)
        if self.config.sampler_dtype is not None:
            whole = _rounded(whole, self.config.sampler_dtype)
        rollout = self.sampling.rollout(whole, rows, jax.random.fold_in(self.key, number), self.request)
        return Taken(np.asarray(chosen), rollout, self.judge(rollout, self.group_size))

    def step(
        self, state: GroupState, index: int, reference: Params | None
    ) -> tuple[GroupState, dict[str, Any], list[dict[str, Any]]]:
        """Step ``index`` (from 0): the new state, its metrics, and records of one group's completions."""
        start = time.perf_counter()
        taken, told, kept = self.gatherer(state.params, index)
        rollout, gathering = taken.rollout, time.perf_counter() - start
        state, metrics = self.update(rollout.prompt_width)(
            state,
            Groups(rollout.completions, self._scores(taken)),
            key=jax.random.fold_in(jax.random.fold_in(self.key, index), _ORDER),
            reference=reference,
            frozen=self.learner.frozen,
        )
        metrics = {str(_NAMES.get(name, name)): float(value) for name, value in metrics.items()}
        seconds = {"rollout": rollout.seconds, "scoring": gathering - rollout.seconds}
        seconds["update"] = time.perf_counter() - start - gathering
        described = describe(rollout, taken.scores, self.task.solved if self.judge.graded else None, self.group_size)
        described |= metrics | told | speeds(rollout, seconds)
        if self.chosen is not None:
            described["learning_rate"] = float(np.asarray(self.schedule(index * self.updates)))
        self.gatherer.kept = kept  # now that the step cannot fail any more
        return state, described, self.sampling.records(rollout, taken.scores, range(self.group_size))

    def _scores(self, taken: Taken) -> jax.Array:
        """What the update takes: totals ``[P, G]``, or each reward by itself for a recipe that adds them up."""
        if not self._several:
            return jnp.asarray(taken.by_group())
        return jnp.stack([x.reshape(self.groups, -1) for x in taken.scores.by_name.values()])

    def _telling(self, taken: Taken) -> np.ndarray:
        """What must differ in a group that teaches: scores as the recipe takes them, before length is punished."""
        return self.judge.unpunished(taken.scores, self._several).reshape(-1, len(taken.indices), taken.group_size)

    @property
    def _several(self) -> bool:
        return self.chosen is not None and self.chosen.several

    def evaluate(self, params: Params) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Greedy held-out reward and accuracy, and a record of each completion."""
        whole, batch = self.learner.sampled(params), self.groups * self.group_size
        found = evaluate(self.sampling, whole, self.task, self.judge, self.greedy, batch)
        return found.metrics(self.judge.graded), found.records

    def keep(self, place: Path, position: int) -> None:
        """Write what a resumed run needs beside the checkpoint of a position."""
        if self.config.dynamic_rounds:
            place.mkdir(parents=True, exist_ok=True)
            self.gatherer.save(_surplus(place, position))
            needed = {_surplus(place, step) for step in (*checkpoints.steps(place), position)}
            for old in set(place.glob("surplus-*.npz")) - needed:
                old.unlink()

    def take_up(self, place: Path, position: int) -> None:
        """Read it.

        Raises:
            ValueError: it is not there; without it the same prompts would be drawn again.
        """
        if not self.config.dynamic_rounds or position <= (self.config.warm_start_steps or 0):
            return
        path = _surplus(place, position)
        if not path.exists():
            raise ValueError(f"grpo: {path} is missing, which belongs to its checkpoint; begin a new run.")
        self.gatherer.load(path, self.task.train, self.sampling.texts)


def _surplus(place: Path, position: int) -> Path:
    return place / f"surplus-{position}.npz"


@partial(jax.jit, static_argnums=1)
def _rounded(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda x: x.astype(dtype).astype(x.dtype), params)


def describe(
    rollout: Rollout, scores: Scores, solved: Callable[[float], bool] | None, group_size: int = 1
) -> dict[str, float]:
    """Metrics of a rollout by TRL's names: rewards, lengths in tokens, truncated share; and the samples' accuracy.

    Accuracy is the share of completions that are ``solved`` by their first reward; None has no right and wrong.
    Rows without a chosen token, which fill a batch up, do not count.
    """
    there = rollout.lengths() > 0
    totals = np.where(there, scores.total, np.nan)
    known, (lengths, cut) = totals[~np.isnan(totals)], (x[there] for x in _lengths(rollout))
    spread = _spread(totals.reshape(-1, group_size)) if group_size > 1 else known.std() if known.size else np.nan
    metrics = {
        "reward": float(known.mean()) if known.size else float("nan"),
        "reward_std": float(spread),
        "completions/clipped_ratio": float(cut.mean()),
    }
    if solved is not None:
        graded = scores.first[there & ~np.isnan(scores.first)]
        metrics["accuracy"] = float(np.mean([solved(float(x)) for x in graded])) if graded.size else float("nan")
    for name, chosen in (("", lengths), ("terminated_", lengths[~cut])):
        for kind, statistic in (("mean", np.mean), ("min", np.min), ("max", np.max)):
            metrics[f"completions/{kind}_{name}length"] = float(statistic(chosen)) if chosen.size else 0.0
    if len(scores.by_name) > 1:
        for name, values in scores.by_name.items():
            present = values[there & ~np.isnan(values)]
            metrics[f"rewards/{name}/mean"] = float(present.mean()) if present.size else float("nan")
            metrics[f"rewards/{name}/std"] = float(present.std(ddof=1)) if present.size > 1 else float("nan")
    return metrics


def _lengths(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    return rollout.lengths(), np.asarray(rollout.completions.truncated)


def _spread(groups: np.ndarray) -> float:
    """Mean over groups of the standard deviation of their scores."""
    several = [group[~np.isnan(group)] for group in groups]
    stds = [group.std(ddof=1) for group in several if group.size > 1]
    return float(np.mean(stds)) if stds else float("nan")


def speeds(rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each part of a step, and tokens a second: sampled ones of the rollout, all that the learner reads."""
    sampled = float(rollout.lengths().sum())
    read = float(np.asarray(rollout.completions.valid).sum())
    return {
        "rollout_tokens_per_second": sampled / seconds["rollout"],
        "update_tokens_per_second": read / seconds["update"],
        "tokens_per_second": sampled / sum(seconds.values()),
    } | {f"{name}_seconds": value for name, value in seconds.items()}
