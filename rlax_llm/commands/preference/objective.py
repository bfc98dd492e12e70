"""From the settings of ``dpo`` and ``kto`` to their losses: the recipes by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rlax_llm.commands.preference.settings import LabelObjectiveSettings, PairObjectiveSettings
from rlax_llm.loops.labels import (
    CarriedReference,
    ReferencePoint,
    reference_point_of_mismatched,
    running_mean_reward,
    zero_reference,
)
from rlax_llm.preference.links import Link, weighted_sum
from rlax_llm.preference.pairs import Preference
from rlax_llm.preference.unpaired import Unpaired
from rlax_llm.recipes.building import build, check_given, parameters
from rlax_llm.recipes.preference import dpo
from rlax_llm.recipes.registry import Named, find, recipes, spelled

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
    made = _sum(terms, settings.beta) if len(terms) > 1 else _one(terms[0], settings.beta)
    nll_coef = _LIKELIHOOD.get(named[0].name) if settings.nll_coef is None else settings.nll_coef
    return made if nll_coef is None else made._replace(nll_coef=nll_coef)


def _takes(named: Named, setting: str) -> bool:
    # A link takes the β of dpo's reward.
    return setting in parameters(named) or (named.family == "link" and setting == "beta")


def _made(named: Named, settings: Mapping[str, Any]) -> Preference | Link:
    if named.family == "link":
        return named.make
    return build("dpo", named, settings, {"a Preference": Preference, "a link": Callable})


def _one(term: _Term, beta: float | None) -> Preference:
    """A preference as it is; a link with the reward of dpo."""
    return term.loss if isinstance(term.loss, Preference) else _dpo(beta)._replace(link=term.loss)


def _sum(terms: Sequence[_Term], beta: float | None) -> Preference:
    """Several links on one reward: the losses share β."""
    for term in terms:
        if isinstance(term.loss, Preference) and term.named.like != "dpo":
            alike = [name for name, other in recipes("preference", "link").items() if _is_of_dpo(other)]
            raise ValueError(
                f"dpo: recipe {term.named.name} has a reward of its own, wanted those of {', '.join(alike)} in a sum."
            )
    links = [(term.weight, term.loss.link if isinstance(term.loss, Preference) else term.loss) for term in terms]
    return _dpo(beta)._replace(link=weighted_sum(*links))


def _is_of_dpo(named: Named) -> bool:
    return named.family == "link" or named.like == "dpo"


def _dpo(beta: float | None) -> Preference:
    return dpo() if beta is None else dpo(beta)


def read_sum(text: str) -> dict[str, float]:
    """``name`` or ``name:weight,name:weight`` by name.

    Raises:
        ValueError: an unknown recipe, one that is there twice, or a weight that is no number above 0.

    >>> read_sum("dpo:0.8,bco:0.2")
    {'dpo': 0.8, 'bco': 0.2}
    """
    terms: dict[str, float] = {}
    weighted = False
    for part in text.split(","):
        name, weight = _parted(part.strip())
        weighted = weighted or weight is not None
        name = find("dpo", name, "preference", "link").name
        if name in terms:
            raise ValueError(f"dpo: recipe {name} is there twice; give it once, with the sum of the weights.")
        terms[name] = 1.0 if weight is None else _weight(name, weight)
    if len(terms) == 1 and weighted:
        raise ValueError(f"dpo: recipe {text!r} has a weight and nothing beside it; leave the weight out.")
    return terms


def _parted(text: str) -> tuple[str, str | None]:
    """A recipe and the text of its weight; MODULE:FUNCTION and TRAINER:NAME have a colon of their own."""
    name, colon, weight = (piece.strip() for piece in text.rpartition(":"))
    plain = colon and spelled(name) in recipes("preference", "link")
    if plain or (colon and not weight.isidentifier()):
        return name, weight
    return text, None


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text) if text else 1.0
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"dpo: the weight of recipe {name} is {text!r}, wanted a number greater than 0.")
    return weight
