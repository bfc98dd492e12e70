"""The learner's part of a step of ``distill``: optimizer steps on completions that a teacher judges."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.distill.settings import DistillSettings
from rlax_llm.commands.distill.teachers import Teacher
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.optimizers import build_optimizer
from rlax_llm.commands.padding import shares_of
from rlax_llm.commands.setup import build_schedule
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import Groups
from rlax_llm.loops.distillation import DistillationState, Views, distillation_loop
from rlax_llm.loops.group import GroupLearning
from rlax_llm.loops.policy import Loop
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.models.distilling import Sampled, distilled_log_probs, teacher_log_probs
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import by_tokens
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.distillation import Distillation
from rlax_llm.recipes.building import build, check_given
from rlax_llm.recipes.registry import find, recipes


def build_distillation(settings: DistillSettings) -> Distillation:
    """The recipe with the settings given for it.

    Args:
        settings: of the command.

    Raises:
        ValueError: for a setting that the recipe does not have; a recipe that the teacher cannot serve.
    """
    teacher = settings.teacher
    named, given = find("distill", teacher.recipe, "distillation"), teacher.given()
    check_given("distill", named, given, recipes("distillation").values())
    made = build("distill", named, given, {"a Distillation": Distillation})
    if teacher.is_stored and made.on_policy:
        raise ValueError(
            f"distill: recipe {named.name} asks the teacher of the student's completions, and {teacher.teacher} holds "
            "what it said of given ones; take forward_kl or reverse_kl, or gkd with on_policy 0."
        )
    if teacher.teacher is None and made.follows is None:
        raise ValueError("distill: there is no teacher; give teacher.")
    if teacher.teacher is not None and made.follows is not None:
        raise ValueError(f"distill: recipe {named.name} has no teacher but the student; leave teacher out.")
    if settings.rollout.routed and not made.on_policy:
        raise ValueError(
            f"distill: router_replay is given, and recipe {named.name} draws no completions, whose experts a learner "
            "could take over; leave it out."
        )
    _check_top_tokens(settings, made, named.name)
    return made


def _check_top_tokens(settings: DistillSettings, made: Distillation, name: str) -> None:
    """Raise where nothing would read how many of a teacher's tokens are to be compared."""
    k = settings.teacher.teacher_top_k
    if k and made.divergence is None:
        raise ValueError(
            f"distill: teacher_top_k is {k}, and recipe {name} reads the tokens that were drawn alone; leave it out."
        )


class DistillUpdate:
    """Optimizer steps of a recipe, compiled once for each layout of rows.

    Args:
        settings: of the command.
        distillation: the recipe.
        learner: the student.
        teacher: who is asked.
    """

    def __init__(self, settings: DistillSettings, distillation: Distillation, learner: Learner, teacher: Teacher):
        self.settings, self.distillation = settings, distillation
        self.learner, self.teacher = learner, teacher
        optimizer = settings.optimizer
        self.updates = settings.learning.updates
        self.schedule = build_schedule(optimizer, optimizer.learning_rate, settings.run.steps * self.updates)
        self.optimizer = build_optimizer(optimizer, self.schedule)
        self.program = lru_cache(self._program)

    def init(self, params: Params) -> DistillationState:
        """State before the first step."""
        return placed(self._loop((1, 1))[0](params))

    def _program(self, layout: tuple[int, int], shares: tuple[float, ...] = ()) -> Any:
        return jax.jit(pinned(watch_finite(self._loop(layout, shares)[1])), donate_argnums=0)

    def _loop(self, layout: tuple[int, int], shares: tuple[float, ...] = ()) -> Loop[DistillationState, Groups]:
        learning = self.settings.learning
        taught = GroupLearning(
            epochs=learning.epochs,
            minibatches=learning.minibatches,
            micro_batches=learning.micro_batches(self.settings.rollout),
            telling=whole_advantages,
        )
        return distillation_loop(self._views(layout, shares), self.distillation, self.optimizer, taught)

    def _views(self, layout: tuple[int, int], shares: tuple[float, ...]) -> Views:
        sampling, remat, divergence = self.settings.sampling, self.settings.model.remat, self.distillation.divergence
        sampled = Sampled(sampling.temperature, sampling.bias, sampling.penalties)
        configs = self.learner.config, self.teacher.config
        compared = None
        if divergence is not None:
            top_k = self.settings.teacher.teacher_top_k
            compared = distilled_log_probs(configs, layout, divergence, sampled, top_k, remat)
        reads = self.distillation.reads_log_probs
        return Views(
            student=by_tokens(configs[0], layout, shares, sampled.temperature, remat, *sampled[1:]),
            teacher=teacher_log_probs(configs[1], layout, sampled) if reads else None,
            compared=compared,
            joined=self.teacher.joined,
        )

    def __call__(
        self, state: DistillationState, batch: Groups, layout: tuple[int, int], key: jax.Array
    ) -> tuple[DistillationState, dict[str, float], jax.Array]:
        """Learn from completions: the state after it, metrics, and the advantages of the tokens ``[B, T]``.

        Args:
            state: given away.
            batch: completions, with scores.
            layout: ``(group_size, prompt_width)``.
            key: shuffles minibatches.
        """
        learn, frozen = self.program(layout, shares_of(self.learner.config, self.settings)), self.learner.frozen
        state, metrics = learn(state, batch, key=key, reference=self.teacher.params, frozen=frozen)
        advantages = metrics.pop("advantages")
        return state, {name: float(value) for name, value in metrics.items()}, advantages

    def learning_rate(self, index: int) -> float:
        """That of step ``index`` (from 0)."""
        return float(np.asarray(self.schedule(index * self.updates)))
