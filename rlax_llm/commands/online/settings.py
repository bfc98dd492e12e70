"""The settings of ``rlax-llm online``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlax_llm.commands.defaults import SUPERVISED_BATCH_SIZE, is_small, model_defaults
from rlax_llm.commands.fields import above_zero, at_least, check_countable, divides, option, resolved, within
from rlax_llm.commands.grpo.settings import GroupTaskSettings
from rlax_llm.commands.machine_settings import MachineSettings, OnMachine
from rlax_llm.commands.sampling_settings import SamplingSettings
from rlax_llm.commands.shared_settings import (
    AveragedOptimizerSettings,
    EpochSettings,
    ReferenceSettings,
    RolloutSettings,
    TrainedModelSettings,
    WarmStartedRunSettings,
    check_draws_all,
)
from rlax_llm.recipes.registry import find, recipes, with_papers

_RECIPE_HELP = (
    f"Named way to learn: {with_papers('online')}; or your own as MODULE:FUNCTION or FILE.py:FUNCTION, which returns "
    "an OnlinePairs or an OnlineGroups."
)
_SIZES = {"online_dpo": (2, 0), "xpo": (1, 1), "nash_md": (1, 1), "a_star_po": (1, 8), "raft": (8, 0)}
"""Completions of a prompt that the policy draws, and its rival, where nobody says how many."""
_PAIRED = {"online_dpo": False, "xpo": True}
"""Recipes of pairs, and whether each of the policy's completions is in one."""


@dataclass(frozen=True, kw_only=True)
class OnlineObjectiveSettings(ReferenceSettings):
    """A recipe, and what of it is set otherwise."""

    recipe: str = option("online_dpo", _RECIPE_HELP, metavar="RECIPE", values=tuple(recipes("online")))
    beta: float | None = option(None, "β of the implicit reward, reward per nat.", "the recipe's")
    alpha: float | None = option(None, "Weight of exploration in xpo, per nat.", "the recipe's")
    mixture: float | None = option(
        None, "Share of the reference in the mixture that nash_md's rivals are drawn from.", "the recipe's, 0.5"
    )
    kl_coef: float | None = option(None, "Weight of the KL in the score of nash_md, per nat.", "the recipe's")
    value_beta: float | None = option(None, "β of a_star_po's optimal value, score per nat.", "the recipe's")

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        above_zero(self, "beta", "value_beta")
        at_least(self, 0, "alpha", "kl_coef")
        within(self, 0, 1, "mixture")

    def given(self) -> dict[str, float]:
        """The recipe's own settings that are given, by name."""
        named = {name: getattr(self, name) for name in ("beta", "alpha", "mixture", "kl_coef", "value_beta")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class OnlineRolloutSettings(RolloutSettings):
    """The completions of a step."""

    group_size: int = resolved(
        "Completions of a prompt that the policy draws.", "2 of online_dpo, 8 of raft, 1 where there are rivals"
    )
    rivals: int = resolved(
        "Completions of a prompt that a rival draws: the reference (xpo, a_star_po) or a mixture with it (nash_md).",
        "group_size of xpo and nash_md, 8 of a_star_po, 0 of the others",
    )

    def check(self) -> None:
        """Check the ranges."""
        super().check()
        at_least(self, 0, "rivals")


@dataclass(frozen=True, kw_only=True)
class OnlineSettings(OnMachine):
    """Settings of ``rlax-llm online``: preferences among completions that are drawn on the way.

    Raises:
        ValueError: a value is out of its range, or two settings contradict each other.

    >>> OnlineSettings.of(group_size=1)
    Traceback (most recent call last):
    ValueError: online: group_size is 1, and recipe online_dpo compares completions; give at least 2.
    """

    command: ClassVar[str] = "online"

    model: TrainedModelSettings
    task: GroupTaskSettings
    objective: OnlineObjectiveSettings
    rollout: OnlineRolloutSettings
    sampling: SamplingSettings
    learning: EpochSettings
    optimizer: AveragedOptimizerSettings
    machine: MachineSettings
    run: WarmStartedRunSettings

    @property
    def learned_rows(self) -> int:
        """Completions that a step learns from: two for each pair, or the policy's own."""
        recipe, rollout = self.objective.recipe, self.rollout
        if recipe not in _PAIRED:
            return rollout.rows
        return 2 * (rollout.rows if _PAIRED[recipe] else rollout.batch_size)

    @property
    def micro_batches(self) -> int:
        """Parts that a minibatch is taken in."""
        rows = self.learned_rows // self.learning.minibatches
        return rows // (self.learning.micro_batch_size or rows)

    def rows_together(self) -> tuple[int, ...]:
        """Completions of a micro-batch, and rows of a step of the warm start."""
        rows = self.learned_rows // self.learning.minibatches // self.micro_batches
        return (rows, SUPERVISED_BATCH_SIZE[is_small(self.model.model)]) if self.run.warm_start_steps else (rows,)

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is chosen for the model, and as many completions as the recipe is described with."""
        own, rivals = _SIZES.get(given.get("recipe", "online_dpo"), (2, 0))
        own = given.get("group_size", own)
        rivals = own if rivals == 1 else rivals
        return {**model_defaults(cls.command, given), "group_size": own, "rivals": rivals}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe by its own name."""
        return {"recipe": find(cls.command, given["recipe"], "online").name} if "recipe" in given else {}

    def __post_init__(self) -> None:
        """Check the parts together."""
        check_draws_all(self.model)
        recipe, rollout = self.objective.recipe, self.rollout
        factors = {"batch_size": rollout.batch_size, "group_size and rivals": rollout.group_size + rollout.rivals}
        check_countable(self.sampling.row_tokens, factors)
        self._check_sizes(recipe, rollout)
        divides("minibatches", self.learning.minibatches, "batch_size", rollout.batch_size)
        size, rows = self.learning.micro_batch_size, self.learned_rows // self.learning.minibatches
        if size is not None and (rows % size or (recipe in _PAIRED and size % 2)):
            what = "an even divisor" if recipe in _PAIRED else "a divisor"
            raise ValueError(f"micro_batch_size is {size}, wanted {what} of the {rows} completions of a minibatch.")
        buffer, longest = self.task.overlong_buffer, self.sampling.max_new_tokens
        if buffer > longest:
            raise ValueError(f"overlong_buffer is {buffer}, wanted at most max_new_tokens, {longest}.")

    def _check_sizes(self, recipe: str, rollout: OnlineRolloutSettings) -> None:
        named = _SIZES.get(recipe)
        if named is None:
            return
        if named[1] == 0 and rollout.rivals:
            raise ValueError(f"recipe {recipe} has no rivals; leave rivals out.")
        if named[1] and not rollout.rivals:
            raise ValueError(f"rivals is 0, and recipe {recipe} compares with a rival's completions; give at least 1.")
        if named[1] == 0 and rollout.group_size < 2:
            raise ValueError(
                f"group_size is {rollout.group_size}, and recipe {recipe} compares completions; give at least 2."
            )
        if recipe == "xpo" and rollout.rivals != rollout.group_size:
            raise ValueError(
                f"rivals is {rollout.rivals}, and recipe xpo wants one for each of the {rollout.group_size} "
                "completions of group_size; leave rivals out."
            )
        if recipe == "nash_md" and rollout.slots is not None:
            raise ValueError("slots is given with recipe nash_md, whose rivals are drawn at once; leave it out.")
