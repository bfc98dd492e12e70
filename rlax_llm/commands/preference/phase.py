"""Learning from preferences as a phase of a session: rows of tokens in, optimizer steps and held-out numbers out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings, RewardSettings
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import LabeledCompletions, PairedCompletions
from rlax_llm.data.rows import batch_indices
from rlax_llm.host.progress import Column
from rlax_llm.loops.labels import LabelState
from rlax_llm.loops.policy import Loop, TrainState
from rlax_llm.models.functional import Params


class Rows(NamedTuple):
    """A batch, and what its compiled program depends on.

    Attributes:
        batch: as the loop's ``step`` takes it.
        prompt_width: the columns that hold prompts.
    """

    batch: PairedCompletions | LabeledCompletions
    prompt_width: int


class Method(NamedTuple):
    """What distinguishes the commands.

    Attributes:
        loop: ``(optimizer, prompt_width, micro_batches) → (init, step)``.
        collate: ``rows → Rows``.
        names: the metrics' names in a run, by the loop's.
        columns: of the progress display.
    """

    loop: Callable[[optax.GradientTransformation, int, int], Loop[Any, Any]]
    collate: Callable[[Sequence[Any]], Rows]
    names: Mapping[str, str]
    columns: tuple[Column, ...]


class PreferencePhase:
    """Steps of one method.

    Args:
        config: with every default filled in.
        method: how.
        train: encoded rows to learn from.
        held_out: encoded rows to measure on.
        optimizer: any Optax transformation.
        fixed: arguments of every ``step``: the reference, and what is frozen.
    """

    def __init__(
        self,
        config: RewardSettings | DpoSettings | KtoSettings,
        method: Method,
        train: Sequence[Any],
        held_out: Sequence[Any],
        optimizer: optax.GradientTransformation,
        fixed: Mapping[str, Any],
    ):
        self.config, self.method, self.optimizer = config, method, optimizer
        self.train, self.held_out, self.fixed = train, held_out, fixed
        self.columns, self.memory = method.columns, None
        self.batch_size = config.batch_size or 1
        self.micro_batches = self.batch_size // (config.micro_batch_size or self.batch_size)
        self.update = lru_cache(self._update)
        self.measure = lru_cache(self._measure)

    def init(self, params: Params) -> TrainState | LabelState:
        """State before the first step."""
        return self.method.loop(self.optimizer, 1, 1)[0](params)

    def _update(self, prompt_width: int) -> Callable[..., Any]:
        step = self.method.loop(self.optimizer, prompt_width, self.micro_batches)[1]
        return jax.jit(watch_finite(step), donate_argnums=0)

    def _measure(self, prompt_width: int) -> Callable[..., Any]:
        step = self.method.loop(optax.identity(), prompt_width, 1)[1]
        # The gradient's norm is the one number that needs the gradient: without it the compiler drops both.
        return jax.jit(lambda *a, **k: {name: x for name, x in step(*a, **k)[1].items() if name != "grad_norm"})

    def step(self, state: Any, index: int) -> tuple[Any, dict[str, Any]]:
        """Optimizer step ``index`` (from 0)."""
        start = time.perf_counter()
        places = batch_indices(len(self.train), self.batch_size, self.config.seed, index)
        rows = self.method.collate([self.train[i] for i in places])
        state, metrics = self.update(rows.prompt_width)(state, rows.batch, **self.fixed)
        self.memory = getattr(state, "memory", None)
        named = {self.method.names.get(name, name): float(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - start
        return state, named | {"tokens_per_second": float(np.sum(rows.batch.completions.valid)) / seconds}

    def evaluate(self, params: Params) -> dict[str, float]:
        """Held-out loss, and where there are any accuracy and margin: means over the rows; nothing of no rows."""
        if not self.held_out:
            return {}
        state = self.method.loop(optax.identity(), 1, 1)[0](params)
        if isinstance(state, LabelState) and self.memory is not None:
            state = state._replace(memory=self.memory)
        found: list[dict[str, jax.Array]] = []
        sizes: list[int] = []
        for start in range(0, len(self.held_out), self.batch_size):
            taken = self.held_out[start : start + self.batch_size]
            rows = self.method.collate(taken)
            found.append(self.measure(rows.prompt_width)(state, rows.batch, **self.fixed))
            sizes.append(len(taken))
        means = {name: np.average([batch[name] for batch in found], weights=sizes) for name in found[0]}
        if "desirable" in found[0]:  # a batch may lack a label: each label's mean is over its own count
            means["margin"] = _label_mean(found, "desirable") - _label_mean(found, "undesirable")
        return {f"held_out_{name}": float(means[name]) for name in ("loss", "accuracy", "margin") if name in means}


def _label_mean(found: Sequence[Mapping[str, jax.Array]], label: str) -> np.ndarray:
    counts = np.array([batch[label] for batch in found], float)
    rewards = np.nan_to_num(np.array([batch[f"{label}_reward"] for batch in found], float))
    return (counts * rewards).sum() / counts.sum() if counts.any() else np.array(np.nan)
