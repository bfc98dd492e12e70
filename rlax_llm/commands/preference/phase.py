"""Learning from preferences as a phase: rows of tokens in, optimizer steps and held-out numbers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rlax_llm.commands.batching import Batching
from rlax_llm.commands.examples import Split
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import measured
from rlax_llm.commands.utilization import training_flops, utilization
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import LabeledCompletions, PairedCompletions, SteppedCompletions
from rlax_llm.host.phase import Done, Evaluation, Phase, References, finite, no_rows
from rlax_llm.host.progress import Column
from rlax_llm.loops.labels import LabelState
from rlax_llm.loops.policy import Loop, TrainState
from rlax_llm.loops.references import FollowingState
from rlax_llm.models.functional import Params
from rlax_llm.models.sharding import pinned, placed

Samples = Callable[[Params], Sequence[Mapping[str, Any]]]
"""``params → records``: completions for a person to read."""


class Rows(NamedTuple):
    """A batch, and what its compiled program depends on.

    Attributes:
        batch: as the loop's ``step`` takes it.
        prompt_width: the columns that hold prompts.
        together: rows of one prompt.
    """

    batch: PairedCompletions | LabeledCompletions | SteppedCompletions
    prompt_width: int
    together: int = 1


_OF_GRADIENTS = ("grad_norm", "lost_updates")


class Method(NamedTuple):
    """What distinguishes the commands.

    Attributes:
        loop: ``(optimizer, prompt_width, micro_batches) → (init, step)``.
        collate: ``rows → Rows``.
        names: the metrics' names in a run, by the loop's.
        columns: of the progress display.
        reads_reference: whether ``step`` takes the reference's parameters.
        prepare: ``rows → rows``, what is computed of all rows once, before the first step.
        samples: completions to log at the beginning and the end, or None.
    """

    loop: Callable[[optax.GradientTransformation, int, int], Loop[Any, Any]]
    collate: Callable[[Sequence[Any]], Rows]
    names: Mapping[str, str]
    columns: tuple[Column, ...]
    reads_reference: bool = False
    prepare: Callable[[Sequence[Any]], list[Any]] = list
    samples: Samples | None = None


class PreferencePhase(Phase):
    """Steps of one method.

    Args:
        title: the command's name.
        learner: what is trained.
        method: how.
        rows: encoded rows to learn from and to measure on.
        optimizer: any Optax transformation.
        batching: how rows are drawn.
    """

    def __init__(
        self,
        title: str,
        learner: Learner,
        method: Method,
        rows: Split,
        optimizer: optax.GradientTransformation,
        batching: Batching,
    ):
        self.title, self.columns = title, method.columns
        self.learner, self.method, self.rows = learner, method, rows
        self.optimizer, self.batching = optimizer, batching
        self.fixed: dict[str, Any] = {"frozen": learner.frozen}
        self.update = lru_cache(self._update)
        self.measure = lru_cache(self._measure)
        # What the loop refuses it refuses before there is a directory.
        method.loop(optimizer, 1, batching.micro_batches)

    def init(self, params: Params) -> TrainState | LabelState:
        """State before the first step."""
        return placed(self.method.loop(self.optimizer, 1, 1)[0](params))

    def begin(self, state: TrainState | LabelState, references: References) -> None:
        """Fetch the reference where steps read it, or compute what they read of it once and for all."""
        del state
        self.rows = Split(*map(self.method.prepare, self.rows))
        if self.method.reads_reference:
            self.fixed["reference"] = references(self.learner.params, 0)

    def _update(self, prompt_width: int) -> Callable[..., Any]:
        step = self.method.loop(self.optimizer, prompt_width, self.batching.micro_batches)[1]
        return jax.jit(pinned(watch_finite(step)), donate_argnums=0)

    def _measure(self, prompt_width: int) -> Callable[..., Any]:
        step = self.method.loop(optax.identity(), prompt_width, 1)[1]
        # Without the numbers that need the gradient the compiler drops it too.

        def measured(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return {name: x for name, x in step(*args, **kwargs)[1].items() if name not in _OF_GRADIENTS}

        return jax.jit(measured)

    def step(self, state: Any, index: int) -> Done:
        """Optimizer step ``index`` (from 0)."""
        start = time.perf_counter()
        rows = self.method.collate(self.batching.rows(self.rows.train, index))
        key = self.learner.dropout_key(self.batching.seed, index)
        state, metrics = self.update(rows.prompt_width)(state, rows.batch, key=key, **self.fixed)
        named = {self.method.names.get(name, name): float(value) for name, value in metrics.items()}
        numbers = finite(named, f"step {index + 1}")
        seconds = time.perf_counter() - start
        completions = rows.batch.completions
        shared = (rows.together, rows.prompt_width)
        flops = training_flops(self.learner.config, self.learner.params, completions, shared)
        numbers |= utilization(flops, seconds)
        return Done(state, numbers | {"tokens_per_second": float(np.sum(completions.valid)) / seconds})

    def evaluate(self, state: Any) -> Evaluation:
        """Held-out loss, and where there are any accuracy and margin; and completions for a person to read."""
        samples = self.method.samples
        if samples is None:
            return Evaluation(self._held_out(state))
        params = measured(state)
        return Evaluation(self._held_out(state), (lambda: samples(params)) if self.rows.held_out else no_rows)

    def _held_out(self, state: Any) -> dict[str, float]:
        """Means over the rows; nothing of no rows."""
        held_out = self.rows.held_out
        if not held_out:
            return {}
        measured = self._without_moments(state)
        found: list[dict[str, jax.Array]] = []
        sizes: list[int] = []
        for start in range(0, len(held_out), self.batching.size):
            taken = held_out[start : start + self.batching.size]
            rows = self.method.collate(taken)
            found.append(self.measure(rows.prompt_width)(measured, rows.batch, **self.fixed))
            sizes.append(len(taken))
        means = {name: np.average([batch[name] for batch in found], weights=sizes) for name in found[0]}
        if "desirable" in found[0]:  # a batch may lack a label: each label's mean is over its own count
            means["margin"] = _label_mean(found, "desirable") - _label_mean(found, "undesirable")
        return {f"held_out_{name}": float(means[name]) for name in ("loss", "accuracy", "margin") if name in means}

    def _without_moments(self, state: Any) -> Any:
        """The state as an optimizer without a memory has it: the reference point's stays."""
        fresh = self.method.loop(optax.identity(), 1, 1)[0](measured(state))
        if isinstance(state, FollowingState):
            return fresh._replace(reference=state.reference)
        return fresh._replace(memory=state.memory) if isinstance(fresh, LabelState) else fresh

    def export(self, state: Any, path: Path) -> None:
        """Write the model, and its adapters where there are any."""
        self.learner.export(measured(state), path)


def _label_mean(found: Sequence[Mapping[str, jax.Array]], label: str) -> np.ndarray:
    counts = np.array([batch[label] for batch in found], float)
    rewards = np.nan_to_num(np.array([batch[f"{label}_reward"] for batch in found], float))
    return (counts * rewards).sum() / counts.sum() if counts.any() else np.array(np.nan)
