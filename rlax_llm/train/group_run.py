"""The group loop as a run: roll out, score in Python, update, and keep all of it on disk."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.data.tasks import Task, batch_indices
from rlax_llm.generation.sampling import greedy
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import group_log_probs
from rlax_llm.rewards.calling import Scores, score
from rlax_llm.train.configs import GrpoConfig
from rlax_llm.train.learner import Learner
from rlax_llm.train.policy import TrainState, group_loop
from rlax_llm.train.progress import GROUP_COLUMNS
from rlax_llm.train.rollouts import Rollout, Sampling, evaluate
from rlax_llm.train.setup import build_objective, build_optimizer, build_sampler, build_schedule


class GroupPhase:
    """Steps of group policy optimisation.

    Args:
        config: with every default filled in.
        learner: what is trained.
        task: prompts, rewards and what counts as solved.
    """

    columns = GROUP_COLUMNS

    def __init__(self, config: GrpoConfig, learner: Learner, task: Task):
        self.title = config.recipe
        self.config, self.learner, self.task = config, learner, task
        self.groups, self.group_size = config.groups or 0, config.group_size or 0
        self.objective, self.needs_reference = build_objective(config)
        self.schedule = build_schedule(config, config.learning_rate or 0.0, config.steps or 0)
        self.optimizer = build_optimizer(config, self.schedule)
        self.sampling = Sampling(learner.shape, learner.tokenizer, config.max_prompt_tokens or 0)
        sampler = build_sampler(config.temperature, config.top_k, config.top_p)
        self.request = self.sampling.request(sampler, config.max_new_tokens or 0, self.group_size)
        self.greedy = self.sampling.request(greedy, config.max_new_tokens or 0)
        self.key = jax.random.key(config.seed)
        self.update = lru_cache(self._update)

    def policy(self, state: TrainState) -> Params:
        """What the policy's learner trains."""
        return state.params

    def init(self, params: Params) -> TrainState:
        """State before the first step."""
        return group_loop(group_log_probs(self.learner.config, (1, 1)), self.objective, self.optimizer)[0](params)

    def _update(self, prompt_width: int) -> Any:
        layout = (self.group_size, prompt_width)
        log_probs = group_log_probs(self.learner.config, layout, self.config.temperature, bool(self.config.remat))
        micro_batches = self.groups // (self.config.micro_batch_groups or self.groups)
        return jax.jit(group_loop(log_probs, self.objective, self.optimizer, micro_batches)[1], donate_argnums=0)

    def rollout(self, params: Params, index: int) -> Rollout:
        """Completions of the prompts of step ``index`` (from 0): a function of parameters, seed and index."""
        chosen = batch_indices(len(self.task.train), self.groups, self.config.seed, index)
        rows = [self.task.train[i] for i in chosen]
        return self.sampling.rollout(
            self.learner.whole(params), rows, jax.random.fold_in(self.key, index), self.request
        )

    def step(
        self, state: TrainState, index: int, ref_params: Params | None
    ) -> tuple[TrainState, dict[str, Any], list[dict[str, Any]]]:
        """Step ``index`` (from 0): the new state, its metrics, and records of one group's completions."""
        rollout = self.rollout(state.params, index)
        start = time.perf_counter()
        scores = score(self.task.rewards, rollout.rows, rollout.texts)
        scoring = time.perf_counter() - start
        by_group = jnp.asarray(scores.total.reshape(self.groups, self.group_size))
        state, metrics = self.update(rollout.prompt_width)(
            state, rollout.completions, by_group, ref_params, self.learner.frozen
        )
        metrics = {name: float(value) for name, value in metrics.items()}
        seconds = {"rollout": rollout.seconds, "scoring": scoring, "update": time.perf_counter() - start - scoring}
        described = describe(rollout, scores, self.task) | metrics | speeds(rollout, seconds)
        described["learning_rate"] = float(np.asarray(self.schedule(index)))
        return state, described, records(rollout, scores, range(self.group_size))

    def evaluate(self, params: Params) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Greedy held-out reward and accuracy, and a record of each completion."""
        batch = min(len(self.task.held_out), self.groups * self.group_size)
        result = evaluate(self.sampling, self.learner.whole(params), self.task, self.greedy, batch)
        rows = [
            {"prompt": row["prompt"], "completion": text, "reward": float(value), "held_out": True}
            for row, text, value in zip(self.task.held_out, result.texts, result.scores.total, strict=True)
        ]
        return {"held_out_accuracy": result.accuracy, "held_out_reward": result.reward}, rows


def describe(rollout: Rollout, scores: Scores, task: Task) -> dict[str, float]:
    """Metrics of a rollout: reward and its parts, accuracy of the samples, lengths in tokens, truncated share."""
    known = scores.total[~np.isnan(scores.total)]
    lengths = rollout.lengths()
    metrics = {
        "reward": float(known.mean()) if known.size else float("nan"),
        "reward_std": float(known.std()) if known.size else float("nan"),
        "accuracy": float(np.mean([task.solved(float(s)) for s in known])) if known.size else float("nan"),
        "completion_length": float(lengths.mean()),
        "completion_length_max": float(lengths.max()),
        "truncated_fraction": float(np.mean(rollout.completions.truncated)),
    }
    if len(scores.by_name) > 1:
        metrics |= {f"rewards/{name}": float(np.nanmean(values)) for name, values in scores.by_name.items()}
    return metrics


def speeds(rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of each part of a step, and tokens a second: sampled ones of the rollout, all that the learner reads."""
    sampled = float(rollout.lengths().sum())
    read = float(np.asarray(rollout.completions.valid).sum())
    return {
        "rollout_tokens_per_second": sampled / seconds["rollout"],
        "update_tokens_per_second": read / seconds["update"],
        "tokens_per_second": sampled / sum(seconds.values()),
    } | {f"{name}_seconds": value for name, value in seconds.items()}


def records(rollout: Rollout, scores: Scores, chosen: range) -> list[dict[str, Any]]:
    """What ``completions.jsonl`` holds of some completions."""
    lengths = rollout.lengths()
    return [
        {
            "prompt": rollout.rows[i]["prompt"],
            "completion": rollout.texts[i],
            "reward": float(scores.total[i]),
            "length": int(lengths[i]),
            "truncated": bool(rollout.completions.truncated[i]),
        }
        for i in chosen
    ]
