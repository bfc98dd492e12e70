"""The learner's part of a step of ``online``: optimizer steps on completions that scores compare."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import numpy as np

from rlax_llm.commands.learner import Learner
from rlax_llm.commands.online.settings import OnlineSettings
from rlax_llm.commands.optimizers import build_averaging
from rlax_llm.commands.padding import shares_of
from rlax_llm.commands.preference.run import PAIR_NAMES
from rlax_llm.commands.setup import build_schedule
from rlax_llm.core.checks import NoReference
from rlax_llm.core.finite import watch_finite
from rlax_llm.core.types import Groups, Scored
from rlax_llm.loops.group import GroupLearning
from rlax_llm.loops.online import Online, online_loop
from rlax_llm.loops.policy import Loop
from rlax_llm.loops.references import following_reference
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.models.functional import Params
from rlax_llm.models.scoring import by_tokens
from rlax_llm.models.sharding import pinned, placed
from rlax_llm.policy.rivals import OnlineGroups
from rlax_llm.preference.marks import reads_reference
from rlax_llm.preference.ordering import OnlinePairs
from rlax_llm.recipes.building import build, check_given
from rlax_llm.recipes.registry import find, recipes


def build_online(settings: OnlineSettings) -> Online:
    """The recipe with the settings given for it.

    Args:
        settings: of the command.

    Raises:
        ValueError: for a setting that the recipe does not have, or rivals that it does not have or needs.
    """
    objective, rivals = settings.objective, settings.rollout.rivals
    named, given = find("online", objective.recipe, "online"), objective.given()
    check_given("online", named, given, recipes("online").values())
    wanted = {"an OnlinePairs": OnlinePairs, "an OnlineGroups": OnlineGroups}
    made: Online = build("online", named, given, wanted)
    if made.rivals is None and rivals:
        raise ValueError(f"online: recipe {named.name} has no rivals; leave rivals out.")
    if made.rivals is not None and not rivals:
        raise ValueError(f"online: recipe {named.name} compares with a rival's completions; give rivals.")
    return made


def needs_reference(online: Online) -> bool:
    """Whether a reference is read, by the loss or by who draws the rivals.

    >>> from rlax_llm.recipes import online
    >>> needs_reference(online.online_dpo()), needs_reference(online.best_of_n())
    (True, False)
    """
    if online.rivals:
        return True
    if isinstance(online, OnlinePairs):
        return reads_reference(online.preference.rewards)
    scores, tokens = np.zeros((1, 2), np.float32), np.zeros((1, 2, 1), np.float32)
    try:
        jax.eval_shape(online.objective.advantage, Scored(scores, tokens, tokens > 0))  # pyright: ignore[reportArgumentType]
    except NoReference:
        return True
    return online.objective.kl is not None


class OnlineUpdate:
    """Optimizer steps of a recipe, compiled once for each width of prompts.

    Args:
        settings: of the command.
        online: the recipe.
        learner: what is trained.

    Attributes:
        reads_reference: whether a reference is read.
        follows: whether it moves, and so is part of the state.
    """

    def __init__(self, settings: OnlineSettings, online: Online, learner: Learner):
        self.settings, self.online, self.learner = settings, online, learner
        self.reads_reference = needs_reference(online)
        self.follows = settings.objective.reference_every > 0
        if self.follows and not self.reads_reference:
            raise ValueError(
                f"online: reference_every is {settings.objective.reference_every} and nothing reads a reference; leave "
                "it out."
            )
        optimizer = settings.optimizer
        self.updates = settings.learning.updates
        self.schedule = build_schedule(optimizer, optimizer.learning_rate, settings.run.steps * self.updates)
        self.optimizer = build_averaging(optimizer, self.schedule)
        self.program = lru_cache(self._program)

    def init(self, params: Params) -> Any:
        """State before the first step."""
        return placed(self._loop(1)[0](params))

    def _program(self, prompt_width: int, shares: tuple[float, ...] = ()) -> Any:
        return jax.jit(pinned(watch_finite(self._loop(prompt_width, shares)[1])), donate_argnums=0)

    def _loop(self, prompt_width: int, shares: tuple[float, ...] = ()) -> Loop[Any, Groups]:
        sampling, learning, rollout = self.settings.sampling, self.settings.learning, self.settings.rollout
        rows = 2 if isinstance(self.online, OnlinePairs) else rollout.group_size
        drawn = (sampling.temperature, self.settings.model.remat, sampling.bias, sampling.penalties)
        taught = GroupLearning(
            epochs=learning.epochs,
            minibatches=learning.minibatches,
            micro_batches=self.settings.micro_batches,
            telling=whole_advantages,
        )
        log_probs = by_tokens(self.learner.config, (rows, prompt_width), shares, *drawn)
        loop = online_loop(log_probs, self.online, self.optimizer, taught, rollout.rivals)
        objective = self.settings.objective
        return following_reference(loop, objective.reference_every, objective.reference_mix) if self.follows else loop

    def __call__(
        self, state: Any, batch: Groups, prompt_width: int, reference: Params | None, key: jax.Array
    ) -> tuple[Any, dict[str, float], np.ndarray]:
        """Learn from scored completions: the state after it, metrics, and the advantages of the policy's own tokens
        ``[P · G, T]``.

        Args:
            state: given away.
            batch: completions and scores, a prompt's own before its rivals'.
            prompt_width: the columns that hold prompts.
            reference: where one is read and stays what it is.
            key: shuffles minibatches.
        """
        given = None if self.follows or not self.reads_reference else reference
        learn = self.program(prompt_width, shares_of(self.learner.config, self.settings))
        state, metrics = learn(state, batch, key=key, reference=given, frozen=self.learner.frozen)
        advantages = np.asarray(metrics.pop("advantages"))
        if isinstance(self.online, OnlinePairs):
            groups, size = len(batch.scores), self.settings.rollout.group_size
            own = advantages.reshape(groups, -1, advantages.shape[-1])[:, :size]
            advantages = own.reshape(-1, advantages.shape[-1])
        return state, {str(PAIR_NAMES.get(name, name)): float(value) for name, value in metrics.items()}, advantages

    def learning_rate(self, index: int) -> float:
        """That of step ``index`` (from 0)."""
        return float(np.asarray(self.schedule(index * self.updates)))
