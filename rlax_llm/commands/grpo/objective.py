"""From the settings of ``grpo`` to its objective and how it learns: the recipes by name."""

from __future__ import annotations

from typing import NamedTuple

from rlax_llm.commands.grpo.settings import TRPO, GroupLearningSettings, ObjectiveSettings
from rlax_llm.commands.shared_settings import RolloutSettings
from rlax_llm.core.kl import fixed_coef, k3
from rlax_llm.credit.groups import kl_in_score
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.loops.group import GroupLearning, every_completion
from rlax_llm.loops.telling import whole_advantages
from rlax_llm.natural.trpo import NaturalStep
from rlax_llm.policy.corrections import (
    Correction,
    masked_importance,
    rejection,
    second_moment_mask,
    truncated_importance,
)
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes.building import build, check_given, parameters
from rlax_llm.recipes.group import penalty_or_none
from rlax_llm.recipes.registry import find, recipes

CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "token": truncated_importance(ceiling=2.0),
    "mask": masked_importance(ceiling=2.0, floor=0.5),
    "sequence": rejection(ceiling=1.02, floor=0.98),
    "moment": second_moment_mask(limit=0.04),
}
"""Weights for a sampler that differs from the learner: truncated, cut, whole completions dropped, or the tokens that
differ most."""


class Chosen(NamedTuple):
    """An objective as the settings name it.

    Attributes:
        objective: five functions.
        needs_reference: a KL to a frozen reference is in the loss or in the scores.
        several: the advantage takes the rewards one by one, ``[K, P, G]``.
    """

    objective: Objective
    needs_reference: bool
    several: bool = False


def build_objective(
    settings: ObjectiveSettings, max_new_tokens: int, reward_weights: tuple[float, ...] = (1.0,)
) -> Chosen:
    """The recipe with the settings given for it.

    Args:
        settings: of the recipe.
        max_new_tokens: the longest completion, for ``dr_grpo``.
        reward_weights: of the task's rewards, for ``gdpo``.

    Raises:
        ValueError: for an unknown recipe, a setting that the recipe does not have, or one that it misses.

    >>> build_objective(ObjectiveSettings(recipe="gspo", ceiling=2.0), 6)
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has no ceiling; leave it out, or take one of cispo, verl:grpo.
    """
    named = find("grpo", settings.recipe, "group")
    takes = parameters(named)
    region = {"eps": settings.eps, "eps_high": settings.eps_high, "ceiling": settings.ceiling}
    given = [name for name, value in region.items() if value is not None]
    check_given("grpo", named, given, recipes("group").values())
    several = "reward_weights" in takes
    if several and settings.kl_in == "reward":
        raise ValueError(
            f"grpo: recipe {settings.recipe} normalizes each reward by itself and has no score to take a KL from; give "
            "--kl-in loss."
        )
    # A recipe with a KL of its own has it as the paper does, unless --kl-in says where to put it.
    as_it_is = "kl_coef" in takes and settings.kl_in is None
    fixed = {"max_new_tokens": max_new_tokens, "reward_weights": reward_weights}
    values = region | fixed | {"kl_coef": settings.kl_coef if as_it_is else 0.0}
    objective = build("grpo", named, values, {"an Objective": Objective})
    if as_it_is:
        weight = takes["kl_coef"].default if settings.kl_coef is None else settings.kl_coef
        return Chosen(objective, weight > 0, several)
    weight = settings.kl_coef or 0.0
    return Chosen(_with_kl(objective, weight, settings.kl_in or "loss"), weight > 0, several)


def _with_kl(objective: Objective, weight: float, place: str) -> Objective:
    """A KL to the reference in the loss (k3), or in the scores (k1 of the completion)."""
    if place == "loss":
        return objective._replace(kl=penalty_or_none(k3, weight))
    return objective._replace(advantage=kl_in_score(objective.advantage, weight))


def build_learning(settings: GroupLearningSettings, rollout: RolloutSettings) -> GroupLearning:
    """Epochs, minibatches, the filter, the correction and the entropy bonus of the settings.

    Args:
        settings: of the learning.
        rollout: the completions of a step.
    """
    target = settings.entropy_target
    return GroupLearning(
        epochs=settings.epochs,
        minibatches=settings.minibatches,
        micro_batches=settings.micro_batches(rollout),
        teaching=overlong_filter if settings.overlong_filter else every_completion,
        correction=CORRECTIONS[settings.correction],
        entropy_coef=settings.entropy_coef,
        entropy_control=fixed_coef if target is None else stepped_coef(target),
        telling=whole_advantages,
    )


def build_step(kl_radius: float) -> NaturalStep:
    """TRPO's direction and search within a KL of ``kl_radius`` nats per token."""
    return build("grpo", find("grpo", TRPO, "group"), {"kl_radius": kl_radius}, {"a NaturalStep": NaturalStep})
