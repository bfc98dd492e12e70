"""Supervised training as a run: the command ``sft``, and the warm start of ``grpo`` and ``ppo``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from rlax_llm.commands.examples import Split
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.ppo.settings import PpoSettings
from rlax_llm.commands.preference.phase import PreferencePhase
from rlax_llm.commands.setup import build_optimizer
from rlax_llm.commands.sft.settings import SftSettings
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.trees import join_trees
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.packing import best_fit, length_of, packed_rows
from rlax_llm.data.rows import batch_indices
from rlax_llm.host.progress import SUPERVISED_COLUMNS, Progress
from rlax_llm.host.session import Session, due
from rlax_llm.loops.policy import TrainState, supervised_loop
from rlax_llm.models.packing import packed_log_probs
from rlax_llm.models.scoring import row_log_probs


class Form(NamedTuple):
    """How examples become rows.

    Attributes:
        items: ``examples → items``; a batch is some of them.
        collate: ``items → Completions``.
        log_probs: ``(params, Completions) → (log_probs, entropy)``.
    """

    items: Callable[[list[Any]], list[Any]]
    collate: Callable[[list[Any]], Any]
    log_probs: Callable[..., Any]


def own_rows(config: Any, learner: Learner) -> Form:
    """Each example in a row of its own."""

    def collate(rows: list[Any]) -> Any:
        return demonstration_rows(rows, learner.tokenizer.pad_id, (None, config.max_new_tokens)).completions

    return Form(list, collate, row_log_probs(learner.config, bool(config.remat)))


def shared_rows(config: SftSettings, learner: Learner) -> Form:
    """As many examples to a row of ``config.packed_tokens`` as fit; a batch counts rows."""
    width, pad_id = config.packed_tokens, learner.tokenizer.pad_id

    def items(rows: list[Any]) -> list[Any]:
        lengths = [length_of(row) for row in rows]
        longest = max(lengths, default=0)
        if longest > width:
            raise ValueError(f"sft: packed_tokens is {width}, the longest example has {longest}; give more.")
        return [[rows[index] for index in members] for members in best_fit(lengths, width)]

    log_probs = packed_log_probs(learner.config, bool(config.remat))
    return Form(items, lambda bins: packed_rows(bins, pad_id, width), log_probs)


class SupervisedPhase:
    """Steps of maximum likelihood inside a session.

    Args:
        config: of ``sft``, ``grpo`` or ``ppo``.
        learner: what is trained.
        examples: encoded demonstrations.
        form: how they become rows.
        schedule: learning rate by step.
        batch_size: rows a step.
        micro_batches: parts that they are taken in.
    """

    columns = SUPERVISED_COLUMNS

    def __init__(
        self,
        config: GrpoSettings | SftSettings | PpoSettings,
        learner: Learner,
        examples: Split,
        form: Form,
        schedule: Any,
        batch_size: int,
        micro_batches: int = 1,
    ):
        self.config, self.learner, self.form, self.batch_size = config, learner, form, batch_size
        self.train, self.held_out = (form.items(part) for part in examples)
        optimizer = build_optimizer(config, schedule)
        self.log_probs = jax.jit(form.log_probs)
        self.init, step = supervised_loop(self.log_probs, optimizer, micro_batches)
        self.update = jax.jit(watch_finite(step), donate_argnums=0)

    def evaluate(self, params: Any) -> dict[str, float]:
        """Negative log-likelihood of the held-out completions, nats a token; nothing of no rows."""
        if not self.held_out:
            return {}
        total, tokens = 0.0, 0
        for start in range(0, len(self.held_out), self.batch_size):
            batch = self.form.collate(self.held_out[start : start + self.batch_size])
            total -= float(self.log_probs(join_trees(params, self.learner.frozen), batch)[0].sum())
            tokens += int(batch.mask.sum())
        return {"held_out_loss": total / max(tokens, 1)}

    def step(self, state: TrainState, index: int) -> tuple[TrainState, dict[str, Any]]:
        """Optimizer step ``index`` (from 0)."""
        start = time.perf_counter()
        chosen = batch_indices(len(self.train), self.batch_size, self.config.seed, index)
        batch = self.form.collate([self.train[i] for i in chosen])
        state, metrics = self.update(state, batch, frozen=self.learner.frozen)
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
    title = "warm start" if warm else session.command
    with Progress(last, title, phase.columns, session.position) as progress:
        while session.position < last and session.state is not None and not stop():
            state, metrics = phase.step(session.state, session.position)
            metrics = session.accept(metrics)
            if due(session.position + 1, every, last):
                metrics |= evaluate(state.params)
            session.advance(state, metrics)
            progress.update(session.position, metrics)
