"""Supervised training as a phase: the command ``sft``, and the warm start of ``grpo`` and ``ppo``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import Split
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.core.divergences import reverse_kl
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.trees import join_trees
from rlax_llm.data.batches import demonstration_rows
from rlax_llm.data.packing import best_fit, length_of, packed_rows
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite
from rlax_llm.host.progress import SUPERVISED_COLUMNS
from rlax_llm.loops.policy import Anchor, TrainState, supervised_loop
from rlax_llm.models.distilling import Distilled, compared_rows
from rlax_llm.models.functional import Params
from rlax_llm.models.packing import packed_log_probs
from rlax_llm.models.scoring import row_log_probs
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.trust_regions import TrustRegion, score_function


class Paid(NamedTuple):
    """What is minimized.

    Attributes:
        trust_region: of a token's log-probability, the negative of which it is as a rule.
        kl_coef: weight of the reverse KL from the model before training, per nat; of 0 nothing reads that model.
    """

    trust_region: TrustRegion = score_function
    kl_coef: float = 0.0


NLL = Paid()


class Form(NamedTuple):
    """How examples become rows.

    Attributes:
        items: ``examples → items``; a batch is some of them.
        collate: ``items → Completions``.
        log_probs: ``(params, Completions) → (log_probs, entropy)``.
        compared: ``(params, another's params, Completions) → (log_probs, entropy, their reverse KL)``.
    """

    items: Callable[[list[Any]], list[Any]]
    collate: Callable[[list[Any]], Any]
    log_probs: Callable[..., Any]
    compared: Distilled


def own_rows(learner: Learner, max_new_tokens: int | None, remat: bool) -> Form:
    """Each example in a row of its own.

    Args:
        learner: what is trained.
        max_new_tokens: the longest completion.
        remat: recompute activations in the backward pass.
    """

    def collate(rows: list[Any]) -> Any:
        return demonstration_rows(rows, learner.tokenizer.pad_id, (None, max_new_tokens)).completions

    compared = compared_rows(learner.config, reverse_kl, remat)
    return Form(list, collate, row_log_probs(learner.config, remat), compared)


def shared_rows(learner: Learner, width: int, remat: bool) -> Form:
    """As many examples to a row as fit; a batch counts rows.

    Args:
        learner: what is trained.
        width: tokens of a row.
        remat: recompute activations in the backward pass.
    """
    pad_id = learner.tokenizer.pad_id

    def items(rows: list[Any]) -> list[Any]:
        lengths = [length_of(row) for row in rows]
        longest = max(lengths, default=0)
        if longest > width:
            raise ValueError(f"sft: packed_tokens is {width}, the longest example has {longest}; give more.")
        return [[rows[index] for index in members] for members in best_fit(lengths, width)]

    compared = compared_rows(learner.config, reverse_kl, remat, lambda packed: packed.segments)
    log_probs = packed_log_probs(learner.config, remat)
    return Form(items, lambda bins: packed_rows(bins, pad_id, width), log_probs, compared)


def no_metrics(params: Params) -> dict[str, float]:
    """Nothing besides the held-out loss."""
    del params
    return {}


class SupervisedPhase(Phase):
    """Steps of maximum likelihood.

    Args:
        learner: what is trained.
        examples: encoded demonstrations.
        form: how they become rows.
        optimizer: any Optax transformation.
        batching: how rows are drawn.
        measure: ``params → metrics`` of an evaluation, besides the held-out loss.
        paid: what is minimized.
    """

    columns = SUPERVISED_COLUMNS
    title = "sft"
    step_name = "step"

    def __init__(
        self,
        learner: Learner,
        examples: Split,
        form: Form,
        optimizer: optax.GradientTransformation,
        batching: Batching,
        measure: Callable[[Params], Mapping[str, float]] = no_metrics,
        paid: Paid = NLL,
    ):
        self.learner, self.form, self.batching = learner, form, batching
        self.train = form.items(examples.train)
        self.held_out = form.items(examples.held_out)
        self.measure = measure
        self.log_probs = jax.jit(form.log_probs)
        self.fixed: dict[str, Any] = {"frozen": learner.frozen}
        self.anchor = Anchor(form.compared, paid.kl_coef) if paid.kl_coef else None
        loop = supervised_loop(self.log_probs, optimizer, batching.micro_batches, paid.trust_region, self.anchor)
        self._init, step = loop
        self.update = jax.jit(pinned(watch_finite(step)), donate_argnums=0)

    def init(self, params: Params) -> TrainState:
        """State before the first step."""
        return placed(self._init(params))

    def begin(self, state: TrainState, references: References) -> None:
        """Fetch the model before training where steps read it."""
        del state
        if self.anchor is not None:
            self.fixed["reference"] = references(self.learner.params, 0)

    def evaluate(self, state: TrainState) -> Evaluation:
        """Negative log-likelihood of the held-out completions, nats per token, and what else is measured."""
        return Evaluation({**self._held_out_loss(state.params), **self.measure(state.params)})

    def _held_out_loss(self, params: Params) -> dict[str, float]:
        """Nothing of no rows."""
        if not self.held_out:
            return {}
        total = 0.0
        tokens = 0
        for start in range(0, len(self.held_out), self.batching.size):
            batch = self.form.collate(self.held_out[start : start + self.batching.size])
            total -= float(self.log_probs(join_trees(params, self.learner.frozen), batch)[0].sum())
            tokens += int(batch.mask.sum())
        return {"held_out_loss": total / max(tokens, 1)}

    def step(self, state: TrainState, index: int) -> Done:
        """Optimizer step ``index`` (from 0)."""
        start = time.perf_counter()
        batch = self.form.collate(self.batching.rows(self.train, index))
        key = self.learner.dropout_key(self.batching.seed, index)
        state, metrics = self.update(state, batch, key=key, **self.fixed)
        numbers = finite({name: float(value) for name, value in metrics.items()}, f"{self.step_name} {index + 1}")
        seconds = time.perf_counter() - start
        numbers |= utilization(training_flops(self.learner.config, self.learner.params, batch), seconds)
        return Done(state, numbers | {"tokens_per_second": float(np.sum(batch.valid)) / seconds})

    def export(self, state: TrainState, path: Path) -> None:
        """Write the model, and its adapters where there are any."""
        self.learner.export(state.params, path)


class WarmStart(SupervisedPhase):
    """Steps of maximum likelihood before those of another phase, which begins with the policy.

    Args:
        steps: that it takes.
        learner: what is trained.
        examples: encoded demonstrations.
        form: how they become rows.
        optimizer: any Optax transformation.
        batching: how rows are drawn.
    """

    title = "warm start"
    step_name = "warm-start step"

    def __init__(
        self,
        steps: int,
        learner: Learner,
        examples: Split,
        form: Form,
        optimizer: optax.GradientTransformation,
        batching: Batching,
    ):
        super().__init__(learner, examples, form, optimizer, batching)
        self.steps = steps
