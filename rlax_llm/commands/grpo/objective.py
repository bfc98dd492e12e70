"""From the settings of ``grpo`` to its objective and how it learns: the recipes by name."""

from __future__ import annotations

from typing import NamedTuple

from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.core.kl import fixed_coef, k3
from rlax_llm.credit.groups import kl_in_score
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.loops.group import GroupLearning, every_completion
from rlax_llm.natural.trpo import NaturalStep
from rlax_llm.policy.corrections import Correction, masked_importance, rejection, truncated_importance
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes.building import build, check_given, parameters
from rlax_llm.recipes.group import penalty_or_none
from rlax_llm.recipes.registry import find, recipes

TRPO = "trpo"

CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "token": truncated_importance(ceiling=2.0),
    "mask": masked_importance(ceiling=2.0, floor=0.5),
    "sequence": rejection(ceiling=1.02, floor=0.98),
}
"""Weights for a sampler that differs from the learner: truncated, cut, or whole completions dropped."""


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


def build_objective(config: GrpoSettings, reward_weights: tuple[float, ...] = (1.0,)) -> Chosen:
    """The recipe with the settings given for it.

    Args:
        config: with ``max_new_tokens`` filled in.
        reward_weights: of the task's rewards, for ``gdpo``.

    Raises:
        ValueError: for an unknown recipe, a setting that the recipe does not have, or one that it misses.

    >>> build_objective(GrpoSettings.of(recipe="gspo", ceiling=2.0))
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has no ceiling; leave it out, or take one of cispo, verl:grpo.
    """
    named = find("grpo", config.recipe, "group")
    takes = parameters(named)
    region = {"eps": config.eps, "eps_high": config.eps_high, "ceiling": config.ceiling}
    given = [name for name, value in region.items() if value is not None]
    check_given("grpo", named, given, recipes("group").values())
    several = "reward_weights" in takes
    if several and config.kl_in == "reward":
        raise ValueError(
            f"grpo: recipe {config.recipe} normalizes each reward by itself and has no score to take a KL from; give "
            "--kl-in loss."
        )
    # A recipe with a KL of its own has it as the paper does, unless told where to put it.
    as_it_is = "kl_coef" in takes and config.kl_in is None
    fixed = {"max_new_tokens": config.max_new_tokens, "reward_weights": reward_weights}
    settings = region | fixed | {"kl_coef": config.kl_coef if as_it_is else 0.0}
    objective = build("grpo", named, settings, {"an Objective": Objective})
    if as_it_is:
        weight = takes["kl_coef"].default if config.kl_coef is None else config.kl_coef
        return Chosen(objective, weight > 0, several)
    weight = config.kl_coef or 0.0
    return Chosen(_with_kl(objective, weight, config.kl_in or "loss"), weight > 0, several)


def _with_kl(objective: Objective, weight: float, place: str) -> Objective:
    """A KL to the reference in the loss (k3), or in the scores (k1 of the completion)."""
    if place == "loss":
        return objective._replace(kl=penalty_or_none(k3, weight))
    return objective._replace(advantage=kl_in_score(objective.advantage, weight))


def build_learning(config: GrpoSettings) -> GroupLearning:
    """Epochs, minibatches, the filter, the correction and the entropy bonus of the settings."""
    groups = (config.batch_size or 1) // config.minibatches
    steered = config.entropy_target is not None
    return GroupLearning(
        epochs=config.epochs,
        minibatches=config.minibatches,
        micro_batches=groups // (config.micro_batch_size or groups),
        teaching=overlong_filter if config.overlong_filter else every_completion,
        correction=CORRECTIONS[config.correction],
        entropy_coef=config.entropy_coef,
        entropy_control=stepped_coef(config.entropy_target or 0.0) if steered else fixed_coef,
    )


def build_step(kl_radius: float) -> NaturalStep:
    """TRPO's direction and search within a KL of ``kl_radius`` nats per token."""
    return build("grpo", find("grpo", TRPO, "group"), {"kl_radius": kl_radius}, {"a NaturalStep": NaturalStep})
