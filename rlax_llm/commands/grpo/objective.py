"""From the settings of ``grpo`` to its objective and how it learns: the recipes by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from rlax_llm.commands.grpo.settings import GrpoSettings
from rlax_llm.core.kl import fixed_coef, k3
from rlax_llm.core.names import did_you_mean
from rlax_llm.credit.groups import kl_in_score
from rlax_llm.credit.shaping import overlong_filter
from rlax_llm.loops.group import GroupLearning, every_completion
from rlax_llm.natural.fisher import natural_direction
from rlax_llm.natural.trpo import backtracking_search, improves_within
from rlax_llm.policy.corrections import Correction, masked_importance, rejection, truncated_importance
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.policy.objectives import Objective
from rlax_llm.recipes import group as recipes
from rlax_llm.recipes import openrlhf, trl, verl
from rlax_llm.recipes.group import penalty_or_none

TRPO = "trpo"
_PRESETS = {"trl": trl, "verl": verl, "openrlhf": openrlhf}


def _objectives(module: ModuleType) -> dict[str, Callable[..., Objective]]:
    """The functions of a module that make an objective, in its order."""
    made = {name: f for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    return {name: f for name, f in made.items() if inspect.signature(f).return_annotation == "Objective"}


RECIPES: dict[str, Callable[..., Objective]] = _objectives(recipes) | {
    f"{peer}:{name}": recipe for peer, module in _PRESETS.items() for name, recipe in _objectives(module).items()
}
"""Recipes of this library by name, and other trainers' variants as ``TRAINER:NAME``."""

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


def check_recipe(config: GrpoSettings) -> None:
    """Raise for a recipe that does not exist.

    >>> check_recipe(GrpoSettings(recipe="gmppo"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: grpo: there is no recipe 'gmppo'; did you mean 'gmpo'? rlax-llm grpo --help ...
    """
    if config.recipe not in RECIPES and config.recipe != TRPO:
        hint = did_you_mean(config.recipe, [*RECIPES, TRPO])
        raise ValueError(f"grpo: there is no recipe {config.recipe!r}{hint} rlax-llm grpo --help lists them.")


def build_objective(config: GrpoSettings, reward_weights: tuple[float, ...] = (1.0,)) -> Chosen:
    """The recipe with the settings given for it.

    Args:
        config: with ``max_new_tokens`` filled in.
        reward_weights: of the task's rewards, for ``gdpo``.

    Raises:
        ValueError: for an unknown recipe, a setting that the recipe does not have, or one that it misses.

    >>> build_objective(GrpoSettings(recipe="gspo", ceiling=2.0))
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has no ceiling; leave it out, or choose another recipe (cispo, verl:grpo).
    """
    recipe = RECIPES[config.recipe]
    takes = inspect.signature(recipe).parameters
    given = _given(config, takes)
    own_kl = "kl_coef" in takes
    if own_kl and config.kl_in is None:
        given |= {} if config.kl_coef is None else {"kl_coef": config.kl_coef}
        weight = given.get("kl_coef", takes["kl_coef"].default)
    else:
        given |= {"kl_coef": 0.0} if own_kl else {}
        weight = config.kl_coef or 0.0
    fixed = {"max_new_tokens": config.max_new_tokens, "reward_weights": reward_weights}
    given |= {name: value for name, value in fixed.items() if name in takes}
    missing = [name for name, taken in takes.items() if taken.default is taken.empty and name not in given]
    if missing:
        raise ValueError(f"grpo: recipe {config.recipe} needs {missing[0]}; give --{missing[0].replace('_', '-')}.")
    several = "reward_weights" in takes
    if several and config.kl_in == "reward":
        raise ValueError(
            f"grpo: recipe {config.recipe} normalizes each reward by itself and has no score to take a KL from; give "
            "--kl-in loss."
        )
    objective = recipe(**given)
    if not own_kl or config.kl_in is not None:
        objective = _with_kl(objective, weight, config.kl_in or "loss")
    return Chosen(objective, weight > 0, several)


def _given(config: GrpoSettings, takes: Any) -> dict[str, Any]:
    """The settings of the trust region that were given, by the recipe's own names."""
    lower = "eps_low" if "eps_low" in takes else "eps"
    given = {lower: config.eps, "eps_high": config.eps_high, "ceiling": config.ceiling}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in takes:
            having = [known for known, other in RECIPES.items() if name in inspect.signature(other).parameters]
            raise ValueError(
                f"grpo: recipe {config.recipe} has no {name}; leave it out, or choose another recipe "
                f"({', '.join(having)})."
            )
    return given


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


def trust_region_step(kl_radius: float) -> tuple[Any, Any]:
    """TRPO's direction and search within a KL of ``kl_radius`` nats a token."""
    direction = natural_direction(kl_radius, damping=0.1)
    return direction, backtracking_search(improves_within(kl_radius))
