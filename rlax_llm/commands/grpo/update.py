"""The learner's part of a step of ``grpo``: optimizer steps on scored completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.grpo.objective import (
    NOTHING_COUNTED,
    TRPO,
    Chosen,
    Counts,
    between_policies,
    build_learning,
    build_objective,
    build_step,
    check_older,
    check_shown,
    check_told,
    of_completions,
    of_steps,
)
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import build_averaging
from rlax_llm.commands.padding import shares_of
from rlax_llm.commands.setup import build_schedule
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import NOTHING_KNOWN, Completions, Groups, Known
from rlax_llm.credit.running import Remembering
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.loops.group import (
    GroupState,
    every_completion,
    group_loop,
    group_trpo_loop,
)
from rlax_llm.loops.policy import Loop
from rlax_llm.loops.references import FollowingState, following_reference
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import by_tokens, group_logits
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.objectives import reads_whole_batches
from rlax_llm.policy.weightings import token_mean

_NAMES = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
}
"""TRL's names, by the loop's."""


class GroupUpdate:
    """Optimizer steps of a recipe, compiled once for each width of prompts.

    Args:
        settings: of the command.
        learner: what is trained.
        weights: of each reward.
        counts: of the run, which a recipe may have to know.

    Raises:
        ValueError: for settings that the recipe has no use for.

    Attributes:
        reads_reference: whether the objective does.
        follows: whether the reference is an average, and so part of the state.
        several: whether the recipe takes each reward by itself, and adds up what it makes of them.
        lower: the setting to lower where numbers turn.
        remembers: whether the advantage goes on from step to step.
        whole: whether rows cannot be taken in parts.
        dated: whether it reads how old each token's policy is.
    """

    def __init__(
        self, settings: GrpoSettings, learner: Learner, weights: tuple[float, ...], counts: Counts = NOTHING_COUNTED
    ):
        self.settings, self.learner = settings, learner
        natural = settings.objective.recipe == TRPO
        self.chosen = None if natural else self._chosen(weights, counts)
        self.whole = self.chosen is not None and reads_whole_batches(self.chosen.objective)
        self.dated = settings.learning.correction == "log_linear"
        self._check_parts()
        self.reads_reference = self.chosen is not None and self.chosen.needs_reference
        self.several = self.chosen is not None and self.chosen.several
        self.follows = settings.objective.reference_mix != 1
        self.remembers = self.chosen is not None and isinstance(self.chosen.objective.advantage, Remembering)
        self.lower = "kl_radius" if natural else "learning_rate"
        self.updates, optimizer = settings.learning.updates, settings.optimizer
        self.schedule = build_schedule(optimizer, optimizer.learning_rate, settings.run.steps * self.updates)
        self.optimizer = build_averaging(optimizer, self.schedule)
        self.program = lru_cache(self._program)

    def _chosen(self, weights: tuple[float, ...], counts: Counts) -> Chosen:
        named, longest = self.settings.objective, self.settings.sampling.max_new_tokens
        credited = of_steps if self.settings.task.judges_steps else of_completions
        chosen = build_objective(named, longest, weights, counts, credited)
        between = named.off_policy_mask, self.settings.learning.correction
        check_older(self.settings, chosen.objective)
        check_told(self.settings)
        check_shown(self.settings, chosen.objective)
        objective = between_policies(named.recipe, chosen.objective, *between)
        return chosen._replace(objective=objective)

    def _check_parts(self) -> None:
        if self.whole and self.settings.learning.micro_batches(self.settings.rollout) > 1:
            raise ValueError(
                f"grpo: recipe {self.settings.objective.recipe} reads several completions at once, and "
                "micro_batch_size takes them in parts; leave it out."
            )

    def init(self, params: Params) -> GroupState | FollowingState:
        """State before the first step."""
        return placed(jax.jit(self._loop((1, 1))[0])(params))

    def _program(self, layout: tuple[int, int], shares: tuple[float, ...] = ()) -> Any:
        step = watch_finite(self._loop(layout, shares)[1])
        return jax.jit(pinned(step if self.chosen is None else telling_rate(step, self.schedule)), donate_argnums=0)

    def _loop(self, layout: tuple[int, int], shares: tuple[float, ...] = ()) -> Loop[Any, Groups]:
        sampling, learning = self.settings.sampling, self.settings.learning
        drawn, remat, config = (sampling.bias, sampling.penalties), self.settings.model.remat, self.learner.config
        if self.chosen is None:
            logits = group_logits(config, layout, sampling.temperature, remat, *drawn)
            step = build_step(self.settings.objective.kl_radius)
            teaching = overlong_filter if learning.overlong_filter else every_completion
            natural = (logits, step.advantage, token_mean, step.direction, step.search)
            return group_trpo_loop(*natural, teaching=teaching, telling=whole_advantages)
        taught = build_learning(learning, self.settings.rollout)
        log_probs = by_tokens(config, layout, shares, sampling.temperature, remat, *drawn)
        loop = group_loop(log_probs, self.chosen.objective, self.optimizer, taught)
        objective = self.settings.objective
        return following_reference(loop, objective.reference_every, objective.reference_mix) if self.follows else loop

    def __call__(
        self,
        state: GroupState,
        taken: Taken,
        reference: Params | None,
        key: jax.Array,
        known: Known = NOTHING_KNOWN,
        step: int = 0,
    ) -> tuple[GroupState, dict[str, jax.Array], jax.Array]:
        """Learn from scored groups: the state after it, metrics, and the advantages of the tokens ``[B, T]``.

        All of it may still be on its way; ``numbers`` waits for the metrics.

        Args:
            state: given away.
            taken: the groups.
            reference: its parameters, where the objective reads them.
            key: shuffles minibatches.
            known: what else there is to know of the groups.
            step: steps that the policy has taken.
        """
        rollout = taken.rollout
        layout = (taken.group_size, rollout.prompt_width)
        program = self.program(layout, shares_of(self.learner.config, self.settings))
        batch = Groups(rollout.completions, self._scores(taken), known=known)
        batch = batch._replace(staleness=self._staleness(rollout.completions, step))
        state, metrics = program(state, batch, key=key, reference=reference, frozen=self.learner.frozen)
        advantages = metrics.pop("advantages")
        return state, metrics, advantages

    @staticmethod
    def numbers(metrics: Mapping[str, jax.Array]) -> dict[str, float]:
        """Metrics by TRL's names."""
        return {str(_NAMES.get(name, name)): float(value) for name, value in metrics.items()}

    def _staleness(self, completions: Completions, step: int) -> Any:
        """Steps since each token was drawn, ``[B, T]``, where that is read."""
        if not self.dated:
            return None
        shape = completions.tokens.shape
        versions = np.full(shape[0], step) if completions.versions is None else np.asarray(completions.versions)
        versions = versions[:, None] if versions.ndim == 1 else versions
        return np.broadcast_to(np.maximum(step - versions, 0), shape).astype(np.float32)

    def _scores(self, taken: Taken) -> Any:
        """Totals ``[P, G]``, or each reward by itself for a recipe that adds them up."""
        if not self.several:
            return taken.by_group()
        return np.stack([x.reshape(len(taken.indices), -1) for x in taken.scores.by_name.values()])


def telling_rate(
    step: Callable[..., tuple[Any, dict[str, jax.Array]]], schedule: optax.Schedule
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """A loop's ``step`` that tells the learning rate of its first optimizer step too.

    Args:
        step: ``(state, …) → (state, metrics)``; a state counts optimizer steps in ``step``.
        schedule: learning rate by optimizer step.
    """

    def update(state: Any, *given: Any, **named: Any) -> tuple[Any, dict[str, jax.Array]]:
        after, metrics = step(state, *given, **named)
        return after, metrics | {"learning_rate": jnp.asarray(schedule(state.step), jnp.float32)}

    return update
