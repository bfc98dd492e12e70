"""From the settings of ``dpo`` and ``kto`` to their losses: the recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlax_llm.commands.preference.settings import LabelObjectiveSettings, PairObjectiveSettings
from rlax_llm.commands.preference.sums import is_of_dpo, read_sum, reward_of_its_own
from rlax_llm.loops.labels import (
    CarriedReference,
    ReferencePoint,
    reference_point_of_mismatched,
    running_mean_reward,
    zero_reference,
)
from rlax_llm.preference.implicit_rewards import Slope, alpha_slope, forward_kl_slope, jensen_shannon_slope
from rlax_llm.preference.links import Link, weighted_sum
from rlax_llm.preference.marks import is_pairwise
from rlax_llm.preference.pairs import Preference, desensitize_length, on_policy
from rlax_llm.preference.unpaired import Unpaired
from rlax_llm.recipes.building import build, check_given, parameters
from rlax_llm.recipes.preference import dpo, f_dpo
from rlax_llm.recipes.registry import Named, find, recipes

_LIKELIHOOD = {"cpo": 1.0}
"""The weight of the likelihood where the command's default is not the recipe's: as in cpo's paper."""

_REFERENCES: dict[str, ReferencePoint | CarriedReference] = {"bco": running_mean_reward, "apo_zero": zero_reference}
"""What a loss of labels compares rewards with, where it is not the mismatched completions' mean reward."""


def build_unpaired(settings: LabelObjectiveSettings) -> tuple[Unpaired, ReferencePoint | CarriedReference]:
    """The recipe of the settings and its reference point.

    Raises:
        ValueError: for an unknown recipe.

    >>> build_unpaired(LabelObjectiveSettings(recipe="bco"))[0].link.__name__
    'logistic'
    """
    named = find("kto", settings.recipe, "unpaired")
    loss = build("kto", named, {"beta": settings.beta}, {"an Unpaired": Unpaired})
    return loss, _REFERENCES.get(named.name, reference_point_of_mismatched)


class _Term(NamedTuple):
    """One recipe of a sum.

    Attributes:
        named: the recipe.
        loss: as the settings make it.
        weight: in the sum.
    """

    named: Named
    loss: Preference | Link
    weight: float


def build_preference(settings: PairObjectiveSettings) -> Preference:
    """The recipe of the settings, or the weighted sum of several.

    Raises:
        ValueError: for an unknown recipe, a setting that it does not have, or recipes that cannot be added up.

    >>> build_preference(PairObjectiveSettings(recipe="simpo", label_smoothing=0.1))
    Traceback (most recent call last):
    ValueError: dpo: recipe simpo has no label_smoothing; leave it out, or take one of cdpo, robust, exo.
    """
    weights = read_sum(settings.recipe)
    values = {"beta": settings.beta, "label_smoothing": settings.label_smoothing, "gamma": settings.gamma}
    named = [find("dpo", name, "preference", "link") for name in weights]
    for name, value in values.items():
        if value is not None and not any(_takes(one, name) for one in named):
            check_given("dpo", named[0], [name], recipes("preference").values())
    terms = [_Term(one, _made(one, values), weight) for one, weight in zip(named, weights.values(), strict=True)]
    made = _changed(settings, terms, _sum(terms, settings.beta) if len(terms) > 1 else _one(terms[0], settings.beta))
    nll_coef = _LIKELIHOOD.get(named[0].name) if settings.nll_coef is None else settings.nll_coef
    return made if nll_coef is None else made._replace(nll_coef=nll_coef)


def _changed(settings: PairObjectiveSettings, terms: Sequence[_Term], made: Preference) -> Preference:
    """With pairs weighed as the settings say, and with another reward in the place of dpo's."""
    if settings.wpo and not is_pairwise(made.link):
        raise ValueError(
            f"dpo: recipe {settings.recipe} reads the whole batch, and wpo weighs single pairs; leave one out."
        )
    weighed = made._replace(factors=on_policy) if settings.wpo else made
    if not settings.changed_reward:
        return weighed
    for term in terms:
        _check_of_dpo(term, f"with {settings.changed_reward}, or leave that out")
    slope = _slope(settings)
    rewards = made.rewards if slope is None else _with_beta(f_dpo, settings.beta, slope=slope).rewards
    return weighed._replace(rewards=desensitize_length(rewards, settings.tail_coef))


def _slope(settings: PairObjectiveSettings) -> Slope | None:
    """Of the divergence; None for the reverse KL, dpo's own."""
    if settings.divergence == "alpha":
        return alpha_slope(settings.divergence_alpha)
    return {"forward_kl": forward_kl_slope, "jensen_shannon": jensen_shannon_slope}.get(settings.divergence)


def _takes(named: Named, setting: str) -> bool:
    # A link takes the β of dpo's reward.
    return setting in parameters(named) or (named.family == "link" and setting == "beta")


def _made(named: Named, settings: Mapping[str, Any]) -> Preference | Link:
    if named.family == "link":
        return named.make
    return build("dpo", named, settings, {"a Preference": Preference, "a link": Callable})


def _one(term: _Term, beta: float | None) -> Preference:
    """A preference as it is; a link with the reward of dpo."""
    return term.loss if isinstance(term.loss, Preference) else _with_beta(dpo, beta)._replace(link=term.loss)


def _sum(terms: Sequence[_Term], beta: float | None) -> Preference:
    """Several links on one reward: the losses share β."""
    for term in terms:
        _check_of_dpo(term, "in a sum")
    links = [(term.weight, term.loss.link if isinstance(term.loss, Preference) else term.loss) for term in terms]
    return _with_beta(dpo, beta)._replace(link=weighted_sum(*links))


def _check_of_dpo(term: _Term, where: str) -> None:
    """Raise for a reward that is not dpo's; a user's own link has that too."""
    if isinstance(term.loss, Preference) and not is_of_dpo(term.named):
        raise ValueError(f"dpo: {reward_of_its_own(term.named.name, where)}")


def _with_beta(make: Callable[..., Preference], beta: float | None, **given: Any) -> Preference:
    return make(**given) if beta is None else make(**given, beta=beta)
