"""A curriculum on the host: prompts by how often the policy has lately solved them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.grpo.carrying import Left, Visits
from rlax_llm.commands.grpo.gathering import Taken
from rlax_llm.commands.grpo.settings import GroupRolloutSettings
from rlax_llm.loops.curriculum import Rule, by_pass_rate, kept_all, near_rate, settled, solved

RETIRED: dict[str, Rule] = {"solved": solved, "settled": settled, "none": kept_all}


class Curriculum:
    """Chooses prompts, and remembers which were solved.

    Args:
        settings: ``curriculum`` is the pass rate that is sought.
        prompts: that there are to train on.
        solves: ``score → bool``, of the first reward.
    """

    def __init__(self, settings: GroupRolloutSettings, prompts: int, solves: Callable[[float], bool]):
        assert settings.curriculum is not None
        weight, window = near_rate(settings.curriculum), settings.curriculum_window
        self.choosing = by_pass_rate(prompts, weight, RETIRED[settings.retire], window)
        self.choose = jax.jit(self.choosing.choose, static_argnums=2)
        self.learn = jax.jit(self.choosing.learn)
        self.solves, self.groups = solves, settings.batch_size

    def __call__(self, visits: Left | None, key: jax.Array) -> np.ndarray:
        """Numbers of the prompts of a rollout.

        Args:
            visits: of the prompts so far; None before the first.
            key: randomness.
        """
        return np.asarray(self.choose(self._rates(visits), key, self.groups))

    def _rates(self, visits: Left | None) -> Any:
        return visits.rates if isinstance(visits, Visits) else self.choosing.init()

    def after(self, visits: Left | None, taken: Taken) -> Visits:
        """What is known of the prompts when a rollout is scored.

        Args:
            visits: before.
            taken: the scored groups.
        """
        scores = taken.scores.first
        passed = np.array([np.nan if np.isnan(score) else float(self.solves(score)) for score in scores], np.float32)
        rates, told = self.learn(self._rates(visits), taken.indices, passed.reshape(len(taken.indices), -1))
        return Visits(np.asarray(rates), {name: float(value) for name, value in told.items()})
