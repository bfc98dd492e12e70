"""The learner's part of a step of ``grpo``: optimizer steps on scored completions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.grpo.objective import TRPO, build_learning, build_objective, build_step
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.grpo.tiles import Tiles, tiles
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.setup import build_schedule
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import Completions, Groups
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.loops.group import (
    GroupLoop,
    GroupState,
    every_completion,
    group_loop,
    group_trpo_loop,
)
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import by_length, group_log_probs, group_logits
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.weightings import token_mean

_NAMES = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
}
"""TRL's names, by the loop's."""


class GroupUpdate:
    """Optimizer steps of a recipe, compiled once for each width of prompts, or of rows where these go by length.

    Args:
        settings: of the command.
        learner: what is trained.
        weights: of each reward.

    Attributes:
        reads_reference: whether the objective does.
        several: whether the recipe takes each reward by itself, and adds up what it makes of them.
        lower: the setting to lower where numbers turn.
    """

    def __init__(self, settings: GrpoSettings, learner: Learner, weights: tuple[float, ...]):
        self.settings, self.learner = settings, learner
        natural, longest = settings.objective.recipe == TRPO, settings.sampling.max_new_tokens
        self.chosen = None if natural else build_objective(settings.objective, longest, weights)
        self.reads_reference = self.chosen is not None and self.chosen.needs_reference
        self.several = self.chosen is not None and self.chosen.several
        self.lower = "kl_radius" if natural else "learning_rate"
        self.updates, optimizer = settings.learning.updates, settings.optimizer
        self.schedule = build_schedule(optimizer, optimizer.learning_rate, settings.run.steps * self.updates)
        self.optimizer = build_optimizer(optimizer, self.schedule)
        self.program = lru_cache(self._program)

    def init(self, params: Params) -> GroupState:
        """State before the first step."""
        return placed(self._loop((1, 1))[0](params))

    def _program(self, layout: tuple[int, int], by: Tiles | None = None) -> Any:
        return jax.jit(pinned(watch_finite(self._loop(layout, by)[1])), donate_argnums=0)

    def _loop(self, layout: tuple[int, int], by: Tiles | None = None) -> GroupLoop:
        sampling, learning = self.settings.sampling, self.settings.learning
        drawn, remat, config = (sampling.bias, sampling.penalties), self.settings.model.remat, self.learner.config
        read = (config, layout, sampling.temperature, remat, *drawn)
        if self.chosen is None:
            logits = group_logits(*read)
            step = build_step(self.settings.objective.kl_radius)
            teaching = overlong_filter if learning.overlong_filter else every_completion
            natural = (logits, step.advantage, token_mean, step.direction, step.search)
            return group_trpo_loop(*natural, teaching=teaching, telling=whole_advantages)
        taught = build_learning(learning, self.settings.rollout)
        log_probs = group_log_probs(*read)
        if by is not None:
            taught = taught._replace(micro_batches=by.parts)
            log_probs = by_length(config, by.widths, remat, sampling.temperature, *drawn)
        return group_loop(log_probs, self.chosen.objective, self.optimizer, taught)

    def __call__(
        self, state: GroupState, taken: Taken, reference: Params | None, key: jax.Array
    ) -> tuple[GroupState, dict[str, jax.Array], jax.Array]:
        """Learn from scored groups: the state after it, metrics, and the advantages of the tokens ``[B, T]``.

        All of it may still be on its way; ``numbers`` waits for the metrics.

        Args:
            state: given away.
            taken: the groups.
            reference: its parameters, where the objective reads them.
            key: shuffles minibatches.
        """
        rollout = taken.rollout
        layout = (taken.group_size, rollout.prompt_width)
        by = self._tiles(rollout.completions, layout)
        # Of rows by length the columns of prompts are no part of the program.
        program = self.program(layout) if by is None else self.program((1, 1), by)
        batch = Groups(rollout.completions, self._scores(taken))
        state, metrics = program(state, batch, key=key, reference=reference, frozen=self.learner.frozen)
        advantages = metrics.pop("advantages")
        return state, metrics, advantages

    @staticmethod
    def numbers(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Metrics by TRL's names."""
        return {str(_NAMES.get(name, name)): float(value) for name, value in metrics.items()}

    def _tiles(self, completions: Completions, layout: tuple[int, int]) -> Tiles | None:
        if self.chosen is None:
            return None
        learning = self.settings.learning
        taken = learning.minibatches, learning.micro_batches(self.settings.rollout)
        return tiles(self.learner.config, completions, layout, taken)

    def _scores(self, taken: Taken) -> jax.Array:
        """Totals ``[P, G]``, or each reward by itself for a recipe that adds them up."""
        if not self.several:
            return jnp.asarray(taken.by_group())
        return jnp.stack([x.reshape(len(taken.indices), -1) for x in taken.scores.by_name.values()])

    def learning_rate(self, index: int) -> dict[str, float]:
        """That of step ``index`` (from 0), as a metric; TRPO has none."""
        if self.chosen is None:
            return {}
        return {"learning_rate": float(np.asarray(self.schedule(index * self.updates)))}
