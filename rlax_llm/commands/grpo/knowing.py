"""What a recipe reads of groups beside their scores: baselines from elsewhere, prompts, roles, collisions, turns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.drawing import Drawing
from rlax_llm.commands.grpo.anchoring import anchors_of, numbers_of, returns_of
from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.commands.judging import Judge
from rlax_llm.commands.learner import Learner
from rlax_llm.commands.stepping import step_rewards_of
from rlax_llm.core.trees import join_trees
from rlax_llm.core.types import Completions, Known
from rlax_llm.data.rows import Row
from rlax_llm.data.tasks import Task
from rlax_llm.loops.parts import fixed_scores
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import group_collisions
from rlax_llm.recipes.registry import find

_ROLE = "role"  # the column that says whom a row's completion plays


def roles_of(rows: Sequence[Row]) -> dict[str, int]:
    """The roles that rows are of, and their numbers; rows without the column ``role`` are all of one.

    >>> roles_of([{"role": "proposer"}, {}, {"role": "solver"}])
    {'': 0, 'proposer': 1, 'solver': 2}
    """
    return {role: number for number, role in enumerate(sorted({_role(row) for row in rows}))}


def _role(row: Row) -> str:
    return str(row.get(_ROLE, ""))


def reads(settings: GrpoSettings) -> tuple[str, ...]:
    """The fields of ``Known`` that the recipe reads, with the rewards of steps where there are any.

    Args:
        settings: of the command.
    """
    named = find("grpo", settings.objective.recipe, "group").told().reads
    return (*named, "step_rewards") if settings.task.judges_steps else named


def _step_rewards(params: Params, taken: Taken, key: jax.Array) -> np.ndarray:
    """What the steps earned, ``[P, G, T]``."""
    del params, key
    found = step_rewards_of(taken.rollout, taken.scores)
    assert found is not None
    return found.reshape(len(taken.indices), taken.group_size, -1)


class Knowing:
    """What the recipe of a run reads of its groups.

    Args:
        settings: of the command.
        learner: what is trained.
        task: its rows have the roles.
        judge: scores greedy completions.
        drawing: draws them.
    """

    def __init__(self, settings: GrpoSettings, learner: Learner, task: Task, judge: Judge, drawing: Drawing):
        self.reads = reads(settings)
        self.settings, self.learner, self.task, self.judge, self.drawing = settings, learner, task, judge, drawing
        self.roles = roles_of(task.train)
        self.program = lru_cache(self._program)
        self.makers = {
            "baselines": self._baselines,
            "prompts": lambda params, taken, key: np.asarray(taken.indices, np.int32),
            "roles": self._roles,
            "collisions": self._collisions,
            "step_rewards": _step_rewards,
            "turns": lambda params, taken, key: numbers_of(taken),
            "anchors": lambda params, taken, key: anchors_of(taken),
            "turn_returns": lambda params, taken, key: returns_of(taken),
        }

    def __call__(self, params: Params, taken: Taken, key: jax.Array) -> Known:
        """What is known of the groups of a step.

        Args:
            params: what is trained, before the step.
            taken: the groups.
            key: randomness; a greedy draw reads none of it.
        """
        return Known(**{name: self.makers[name](params, taken, key) for name in self.reads})

    def _baselines(self, params: Params, taken: Taken, key: jax.Array) -> np.ndarray:
        """The scores of the policy's greedy completions of the prompts, ``[P]``."""
        rows = [self.task.train[i] for i in taken.indices]
        rollout = self.drawing.sampling.rollout(self.learner.sampled(params, None), rows, key, self.drawing.greedy)
        return np.asarray(self.judge(rollout, 1).total, np.float32)

    def _roles(self, params: Params, taken: Taken, key: jax.Array) -> np.ndarray:
        """Whom each completion plays, ``[P, G]``."""
        del params, key
        numbers = np.array([self.roles[_role(row)] for row in taken.rollout.rows], np.int32)
        return numbers.reshape(len(taken.indices), -1)

    def _collisions(self, params: Params, taken: Taken, key: jax.Array) -> jax.Array:
        """The probability of drawing each token twice, ``[P, G, T]``, of the policy before the step."""
        del key
        completions = taken.rollout.completions
        program = self.program((taken.group_size, taken.rollout.prompt_width))
        found = program(join_trees(params, self.learner.frozen), completions)
        return found.reshape(len(taken.indices), taken.group_size, -1)

    def _program(self, layout: tuple[int, int]) -> Any:
        sampling = self.settings.sampling
        read = (self.learner.config, layout, sampling.temperature, sampling.bias, sampling.penalties)
        parts = self.settings.learning.minibatches * self.settings.learning.micro_batches(self.settings.rollout)

        def collisions(params: Params, rows: Completions) -> jax.Array:
            return fixed_scores(group_collisions(*read), params, rows, parts)[0]

        return jax.jit(collisions)
