"""From the settings of ``grpo`` to its objective and how it learns: the recipes by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rlax_llm.commands.grpo.settings import TRPO, GroupLearningSettings, GrpoSettings, ObjectiveSettings
from rlax_llm.commands.shared_settings import RolloutSettings
from rlax_llm.core.kl import fixed_coef, k3
from rlax_llm.credit.group_tokens import by_step
from rlax_llm.credit.groups import kl_in_score
from rlax_llm.credit.running import Remembering
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
from rlax_llm.policy.coupled import mask_off_policy
from rlax_llm.policy.entropy import stepped_coef
from rlax_llm.policy.objectives import Objective, shown_as
from rlax_llm.policy.proximal import log_linear
from rlax_llm.policy.ratios import sequence_ratio, summed_ratio, token_ratio
from rlax_llm.policy.trust_regions import score_function
from rlax_llm.recipes.building import build, check_given, parameters
from rlax_llm.recipes.group import penalty_or_none
from rlax_llm.recipes.registry import find, recipes

CORRECTIONS: dict[str, Correction | None] = {
    "none": None,
    "token": truncated_importance(ceiling=2.0),
    "mask": masked_importance(ceiling=2.0, floor=0.5),
    "sequence": rejection(ceiling=1.02, floor=0.98),
    "moment": second_moment_mask(limit=0.04),
    "log_linear": None,
}
"""Weights for a sampler that differs from the learner: truncated, cut, whole completions dropped, or the tokens that
differ most. What is log-linear is a trust region."""


_OF_RECIPES = ("eps", "eps_high", "ceiling", "beta", "mu", "gamma", "nll_coef", "step_coef")
"""Settings that a recipe has or has not."""


class Counts(NamedTuple):
    """What a recipe may have to know of a run, besides its settings.

    Attributes:
        group_size: completions of a prompt.
        prompts: rows of the task.
        roles: whom they play.
    """

    group_size: int = 2
    prompts: int = 1
    roles: int = 1


NOTHING_COUNTED = Counts()


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


def of_completions(recipe: str, objective: Objective) -> Objective:
    """The objective as it is, whose advantage compares scores of completions; ``of_steps`` is the other choice.

    Args:
        recipe: not read.
        objective: five functions.
    """
    del recipe
    return objective


def build_objective(
    settings: ObjectiveSettings,
    max_new_tokens: int,
    reward_weights: tuple[float, ...] = (1.0,),
    counts: Counts = NOTHING_COUNTED,
    credited: Callable[[str, Objective], Objective] = of_completions,
) -> Chosen:
    """The recipe with the settings given for it.

    Args:
        settings: of the recipe.
        max_new_tokens: the longest completion, for ``dr_grpo``.
        reward_weights: of the task's rewards, for ``gdpo``.
        counts: of the run, for ``real``, ``spo`` and ``rae``.
        credited: ``(recipe, objective) → objective``, such as ``of_steps``.

    Raises:
        ValueError: for an unknown recipe, a setting that the recipe does not have, or one that it misses.

    >>> build_objective(ObjectiveSettings(recipe="gspo", ceiling=2.0), 6)
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has no ceiling; leave it out, or take one of cispo, verl:grpo, ...
    """
    named = find("grpo", settings.recipe, "group")
    takes = parameters(named)
    region = {name: getattr(settings, name) for name in _OF_RECIPES}
    given = [name for name, value in region.items() if value is not None]
    check_given("grpo", named, given, recipes("group").values())
    several = "reward_weights" in takes
    _check_place_of_kl(settings, several)
    # A recipe with a KL of its own has it as the paper does, unless --kl-in says where to put it.
    as_it_is = "kl_coef" in takes and settings.kl_in is None
    fixed = {"max_new_tokens": max_new_tokens, "reward_weights": reward_weights} | counts._asdict()
    values = region | fixed | {"kl_coef": settings.kl_coef if as_it_is else 0.0}
    objective = credited(settings.recipe, build("grpo", named, values, {"an Objective": Objective}))
    if as_it_is:
        weight = takes["kl_coef"].default if settings.kl_coef is None else settings.kl_coef
        return Chosen(objective, weight > 0, several)
    weight = settings.kl_coef or 0.0
    return Chosen(_with_kl(objective, weight, settings.kl_in or "loss"), weight > 0, several)


def _check_place_of_kl(settings: ObjectiveSettings, several: bool) -> None:
    if several and settings.kl_in == "reward":
        raise ValueError(
            f"grpo: recipe {settings.recipe} normalizes each reward by itself and has no score to take a KL from; give "
            "--kl-in loss."
        )


def _with_kl(objective: Objective, weight: float, place: str) -> Objective:
    """A KL to the reference in the loss (k3), or in the scores (k1 of the completion)."""
    if place == "loss":
        return objective._replace(kl=penalty_or_none(k3, weight))
    if isinstance(objective.advantage, Remembering):
        raise ValueError("grpo: the recipe remembers scores and has none to take a KL from; give --kl-in loss.")
    return objective._replace(advantage=kl_in_score(objective.advantage, weight))


def of_steps(recipe: str, objective: Objective) -> Objective:
    """The objective whose advantage compares the rewards of steps in place of scores.

    Args:
        recipe: its name, for the message.
        objective: five functions.

    Raises:
        ValueError: for a ratio or an advantage that is of whole completions by its nature.

    >>> from rlax_llm.recipes import group as recipes
    >>> of_steps("gspo", recipes.gspo())
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has one ratio for each completion, which mixes what its steps earned; take another...
    """
    if objective.ratio in (sequence_ratio, summed_ratio):
        raise ValueError(
            f"grpo: recipe {recipe} has one ratio for each completion, which mixes what its steps earned; take "
            "another, such as gspo_token, or leave step_reward and step_reward_model out."
        )
    try:
        return objective._replace(advantage=by_step(objective.advantage))
    except ValueError:
        raise ValueError(
            f"grpo: recipe {recipe} takes no rewards of steps, as its advantage is not per_group(estimator) of scores "
            "that are compared with one another; take another, such as grpo, dr_grpo or dapo, or leave step_reward and "
            "step_reward_model out."
        ) from None


def between_policies(recipe: str, objective: Objective, threshold: float | None, correction: str) -> Objective:
    """The objective whose trust region also knows how far the sampler is from the learner.

    Args:
        recipe: its name, for the message.
        objective: five functions.
        threshold: of ``mask_off_policy``, nats per token, or None.
        correction: of the settings; ``log_linear`` is one that is a trust region.

    Raises:
        ValueError: for a ratio that is not of tokens, or none, of which ``log_linear`` is.

    >>> from rlax_llm.recipes import group as recipes
    >>> between_policies("gspo", recipes.gspo(), None, "log_linear")
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has a ratio of its own, and correction log_linear takes that of tokens; take another.
    >>> between_policies("rloo", recipes.rloo(), None, "log_linear")
    Traceback (most recent call last):
    ValueError: grpo: recipe rloo has no ratio, of which correction log_linear is a trust region; take another.
    """
    if threshold is not None:
        return objective._replace(trust_region=mask_off_policy(objective.trust_region, threshold))
    if correction != "log_linear":
        return objective
    if objective.trust_region is score_function:
        raise ValueError(
            f"grpo: recipe {recipe} has no ratio, of which correction log_linear is a trust region; take another."
        )
    if objective.ratio is not token_ratio:
        raise ValueError(
            f"grpo: recipe {recipe} has a ratio of its own, and correction log_linear takes that of tokens; take "
            "another."
        )
    return objective._replace(trust_region=log_linear(objective.trust_region))


def check_older(settings: GrpoSettings, objective: Objective) -> None:
    """Raise where tokens that older policies drew would be learned from as if the newest had drawn them.

    A trust region of the ratio reads it from the policy that drew each token. The score function reads none, and
    nothing makes up for it but a correction, or a term that says that it corrects (``dro``).

    Args:
        settings: of the command.
        objective: that is learned by, but for ``between_policies``.

    Raises:
        ValueError: they would.

    >>> from rlax_llm.recipes import group as recipes
    >>> check_older(GrpoSettings.of(recipe="grpo", replay=8, correction="none"), recipes.grpo())
    >>> check_older(GrpoSettings.of(recipe="rloo", replay=8, correction="none"), recipes.rloo())
    Traceback (most recent call last):
    ValueError: grpo: replay gives tokens that older policies drew, recipe rloo has no ratio to them, nor a term ...
    >>> server = {"sampler_url": "http://localhost:1", "sampler_every": 2}
    >>> check_older(GrpoSettings.of(recipe="rloo", correction="none", **server), recipes.rloo())
    Traceback (most recent call last):
    ValueError: grpo: sampler_every gives tokens that older policies drew, recipe rloo has no ratio to them, nor ...
    """
    reads_ratio = objective.trust_region is not score_function or any(term.corrects for term in objective.terms)
    if settings.learning.correction != "none" or reads_ratio:
        return
    older = {name: getattr(settings.rollout, name) for name in ("partial_rollouts", "ahead", "replay")}
    older["sampler_every"] = settings.server.sampler_url is not None and settings.server.sampler_every > 1
    for name, asked in older.items():
        if asked:
            raise ValueError(
                f"grpo: {name} gives tokens that older policies drew, recipe {settings.objective.recipe} has no ratio "
                "to them, nor a term that corrects, and correction is none; leave correction out, or take another "
                "recipe."
            )


def check_told(settings: GrpoSettings) -> None:
    """Raise where there is nothing that a user's own recipe could compare, by what it says of itself.

    Args:
        settings: of the command.

    Raises:
        ValueError: as said, or the user's own file cannot be imported.
    """
    named = find("grpo", settings.objective.recipe, "group")
    if not named.is_own:
        return
    try:
        settings.check_compared(named.told())
    except ValueError as error:
        raise ValueError(f"grpo: {error}") from None


def check_shown(settings: GrpoSettings, objective: Objective) -> None:
    """Raise for demonstrations that a user's own recipe does not read, or not so; and where it has nothing to read.

    Args:
        settings: of the command.
        objective: of the recipe.

    Raises:
        ValueError: as said.

    >>> from rlax_llm.recipes import group as recipes
    >>> check_shown(GrpoSettings.of(recipe="mine.py:made", demonstrations="solution", group_size=4), recipes.dapo())
    Traceback (most recent call last):
    ValueError: grpo: demonstrations is given and no term of recipe mine.py:made reads given tokens; leave it out, ...
    """
    recipe, rollout = settings.objective.recipe, settings.rollout
    if not find("grpo", recipe, "group").is_own:
        return
    given = shown_as(objective)
    if rollout.demonstrations is not None and not given:
        raise ValueError(
            f"grpo: demonstrations is given and no term of recipe {recipe} reads given tokens; leave it out, give the "
            "recipe one, as Term(name, likelihood(), coef, given), or make them members of their groups, by a trust "
            "region Coupled(loss, members=True)."
        )
    if given == "members" and rollout.demonstrations is None:
        raise ValueError(
            f"grpo: recipe {recipe} learns from demonstrations that are members of their groups; give demonstrations, "
            "their column."
        )
    if given and rollout.demonstrations is None and rollout.tool is None:
        raise ValueError(
            f"grpo: a term of recipe {recipe} reads given tokens, and there are none; give demonstrations, their "
            "column, or tool, whose answers are given."
        )
    if rollout.demonstrations is not None:
        try:
            settings.check_shown_as(given)
        except ValueError as error:
            raise ValueError(f"grpo: {error}") from None


def given_by(settings: GrpoSettings) -> str:
    """What a recipe learns from that the policy did not choose, as ``Named.given`` says; of a user's own, its objective
    says it.

    Args:
        settings: of the command.

    Raises:
        ValueError: the user's own function fails.

    >>> given_by(GrpoSettings.of(recipe="luffy", demonstrations="solution", group_size=4))
    'members'
    """
    named, rollout = find("grpo", settings.objective.recipe, "group"), settings.rollout
    if not named.is_own:
        return named.given
    if rollout.demonstrations is None:
        return "answers" if rollout.tool is not None else ""
    return shown_as(build_objective(settings.objective, settings.sampling.max_new_tokens).objective)


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
        credited=settings.top_entropy,
    )


def build_step(kl_radius: float) -> NaturalStep:
    """TRPO's direction and search within a KL of ``kl_radius`` nats per token."""
    return build("grpo", find("grpo", TRPO, "group"), {"kl_radius": kl_radius}, {"a NaturalStep": NaturalStep})
