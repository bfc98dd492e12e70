"""Supervised training as a run: the command ``sft``, and the warm start of ``grpo``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlax_llm.data.tasks import Task, batch_indices
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.train.configs import GrpoConfig, SftConfig
from rlax_llm.train.learner import Learner
from rlax_llm.train.policy import TrainState, supervised_loop
from rlax_llm.train.ppo_settings import PpoConfig
from rlax_llm.train.preference_phase import PreferencePhase
from rlax_llm.train.progress import SUPERVISED_COLUMNS, Progress
from rlax_llm.train.rollouts import Sampling, demonstrations
from rlax_llm.train.session import Session, due
from rlax_llm.train.setup import build_optimizer
from rlax_llm.trees import joined


def check_demonstrations(task: Task) -> None:
    """Raise unless the task's rows hold answers to learn from."""
    if "completion" not in task.train[0]:
        raise ValueError(
            f"task {task.name} has no column 'completion' to learn from; give rows that have one, "
            "or set --warm-start-steps 0."
        )


class SupervisedPhase:
    """Steps of maximum likelihood inside a session.

    Args:
        config: of ``sft`` or ``grpo``.
        learner: what is trained.
        task: rows with completions.
        schedule: learning rate by step.
        batch_size: rows a step.
        micro_batches: parts that they are taken in.
    """

    def __init__(
        self,
        config: GrpoConfig | SftConfig | PpoConfig,
        learner: Learner,
        task: Task,
        schedule: Any,
        batch_size: int,
        micro_batches: int = 1,
    ):
        check_demonstrations(task)
        self.config, self.learner, self.task, self.batch_size = config, learner, task, batch_size
        self.columns = SUPERVISED_COLUMNS
        self.sampling = Sampling(learner.shape, learner.tokenizer, config.max_prompt_tokens or 0)
        optimizer = build_optimizer(config, schedule)
        self.log_probs = jax.jit(row_log_probs(learner.config, bool(config.remat)))
        self.init, step = supervised_loop(self.log_probs, optimizer, micro_batches)
        self.update = jax.jit(step, donate_argnums=0)

    def held_out_loss(self, params: Any) -> float:
        """Negative log-likelihood of the held-out completions, nats a token."""
        total, tokens, rows = 0.0, 0, list(self.task.held_out)
        for start in range(0, len(rows), self.batch_size):
            batch = demonstrations(
                self.sampling, rows[start : start + self.batch_size], self.config.max_new_tokens or 0
            )
            total -= float(self.log_probs(joined(params, self.learner.frozen), batch)[0].sum())
            tokens += int(batch.mask.sum())
        return total / max(tokens, 1)

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        """Optimizer step ``index`` (from 0)."""
        start = time.perf_counter()
        chosen = batch_indices(len(self.task.train), self.batch_size, self.config.seed, index)
        rows = [self.task.train[i] for i in chosen]
        batch = demonstrations(self.sampling, rows, self.config.max_new_tokens or 0)
        state, metrics = self.update(state, batch, self.learner.frozen)
        metrics = {name: float(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - start
        return state, metrics | {"tokens_per_second": float(np.sum(batch.valid)) / seconds}


def run_steps(
    session: Session,
    phase: SupervisedPhase | PreferencePhase,
    last: int,
    evaluate: Callable[[Any], dict[str, Any]],
    stop: Callable[[], bool],
) -> None:
    """Go on from the session's position to step ``last`` of the phase, or until ``stop``.

    A command's own phase is evaluated every so often, a warm start at its end.
    """
    warm = session.warm_start_steps > 0
    every = 0 if warm else phase.config.eval_every
    title = "warm start" if warm else session.config.command
    with Progress(last, title, phase.columns, session.position) as progress:
        while session.position < last and session.state is not None and not stop():
            state, metrics = phase.step(session.state, session.position)
            if due(session.position + 1, every, last):
                metrics |= evaluate(state.params)
            session.advance(state, metrics)
            progress.update(session.position, metrics)
