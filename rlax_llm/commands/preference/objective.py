"""From the settings of ``dpo`` and ``kto`` to their losses: the recipes by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from rlax_llm.commands.preference.settings import DpoSettings, KtoSettings
from rlax_llm.core.names import did_you_mean
from rlax_llm.loops.labels import (
    CarriedReference,
    ReferencePoint,
    reference_point_of_mismatched,
    running_mean_reward,
    zero_reference,
)
from rlax_llm.preference.implicit_rewards import mean_log_ratio
from rlax_llm.preference.links import (
    Link,
    apo_down,
    chosen_drop,
    compare_with_zero,
    discopop,
    exo,
    hinge,
    logistic,
    misranking,
    nca,
    robust,
    smooth_labels,
    sorted_pairs,
    weighted_sum,
)
from rlax_llm.preference.pairs import Preference, per_response
from rlax_llm.preference.unpaired import Unpaired, bco, kto
from rlax_llm.recipes import preference as recipes

_LINKS: dict[str, Callable[..., Link]] = {
    "dpo": lambda: logistic,
    "cdpo": lambda label_smoothing=0.1: smooth_labels(logistic, label_smoothing),
    "robust": lambda label_smoothing=0.1: robust(logistic, label_smoothing),
    "exo": lambda label_smoothing=1e-3: exo(label_smoothing),
    "hinge": lambda: hinge,
    "nca": lambda: nca,
    "bco": lambda: compare_with_zero(logistic),
    "apo_zero": lambda: compare_with_zero(misranking),
    "apo_down": lambda: apo_down,
    "discopop": discopop,
    "dpop": lambda: chosen_drop(logistic, 5.0),
    "aot_unpaired": lambda: sorted_pairs(logistic),
}
"""Those that are ``dpo`` but for the link."""

_WHOLE: dict[str, Callable[..., Preference]] = {
    "ipo": lambda beta=0.1: recipes.ipo(beta),
    "dpo_norm": lambda beta=0.1: recipes.dpo()._replace(rewards=per_response(mean_log_ratio(beta))),
    "sppo": lambda beta=0.1: recipes.sppo(beta),
    "aot": lambda beta=0.1: recipes.aot(beta),
    "simpo": lambda beta=2.0, gamma=0.5: recipes.simpo(beta, gamma),
    "alpha_po": lambda beta=2.0, gamma=0.5: recipes.alpha_po(beta=beta, gamma=gamma),
    "cpo": lambda beta=0.1: recipes.cpo(beta, 1.0),
    "orpo": lambda beta=0.1: recipes.orpo(beta),
}


_UNPAIRED: dict[str, tuple[Callable[[float], Unpaired], ReferencePoint | CarriedReference]] = {
    "kto": (kto, reference_point_of_mismatched),
    "bco": (bco, running_mean_reward),
    "apo_zero": (kto, zero_reference),
}
"""The losses of labels, and what each compares rewards with."""


def build_unpaired(config: KtoSettings) -> tuple[Unpaired, ReferencePoint | CarriedReference]:
    """The recipe of the settings and its reference point.

    >>> build_unpaired(KtoSettings(recipe="bco"))[0].link.__name__
    'logistic'
    """
    make, reference = _UNPAIRED[config.recipe]
    return make(config.beta), reference


def _with_link(link: Callable[..., Link]) -> Callable[..., Preference]:
    def made(beta: float = 0.1, **settings: Any) -> Preference:
        return recipes.dpo(beta)._replace(link=link(**settings))

    return made


def _takes(name: str) -> list[str]:
    """The settings that a recipe has."""
    own = inspect.signature(_LINKS.get(name) or _WHOLE[name]).parameters
    known = {"beta", "label_smoothing", "gamma"} & set(own)
    return sorted(known | {"nll_coef"} | ({"beta"} if name in _LINKS else set()))


def build_preference(config: DpoSettings) -> Preference:
    """The recipe of the settings, or the weighted sum of several.

    Raises:
        ValueError: for an unknown recipe, a setting that it does not have, or recipes that cannot be added up.

    >>> build_preference(DpoSettings(recipe="simpo", label_smoothing=0.1))
    Traceback (most recent call last):
    ValueError: dpo: recipe simpo has no label_smoothing; leave it out, or take one of cdpo, robust, exo.
    """
    terms = _parsed(config.recipe)
    given = {name: getattr(config, name) for name in ("beta", "label_smoothing", "gamma", "nll_coef")}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if not any(name in _takes(term) for term in terms):
            others = ", ".join(other for other in (*_LINKS, *_WHOLE) if name in _takes(other))
            raise ValueError(f"dpo: recipe {config.recipe} has no {name}; leave it out, or take one of {others}.")
    nll_coef = given.pop("nll_coef", None)
    made = _sum(terms, given) if len(terms) > 1 else _one(next(iter(terms)), given)
    return made if nll_coef is None else made._replace(nll_coef=nll_coef)


def _one(name: str, given: Mapping[str, Any]) -> Preference:
    factory = _with_link(_LINKS[name]) if name in _LINKS else _WHOLE[name]
    return factory(**given)


def _sum(terms: Mapping[str, float], given: Mapping[str, Any]) -> Preference:
    """Several links on one reward: the losses share β."""
    others = [name for name in terms if name not in _LINKS]
    if others:
        raise ValueError(
            f"dpo: recipe {others[0]} has a reward of its own, wanted those of {', '.join(_LINKS)} in a sum."
        )
    beta = {name: value for name, value in given.items() if name == "beta"}
    links = [
        (weight, _LINKS[name](**{key: given[key] for key in _takes(name) if key in given and key != "beta"}))
        for name, weight in terms.items()
    ]
    return recipes.dpo(**beta)._replace(link=weighted_sum(*links))


def _parsed(text: str) -> dict[str, float]:
    """``name`` or ``name:weight,name:weight`` by name."""
    terms: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        if name not in _LINKS and name not in _WHOLE:
            known = (*_LINKS, *_WHOLE)
            raise ValueError(
                f"dpo: there is no recipe {name!r}{did_you_mean(name, known)} There are {', '.join(known)}."
            )
        if name in terms:
            raise ValueError(f"dpo: recipe {name} is there twice; give it once, with the sum of the weights.")
        terms[name] = _weight(name, weight)
    if len(terms) == 1 and ":" in text:
        raise ValueError(f"dpo: recipe {text!r} has a weight and nothing beside it; leave the weight out.")
    return terms


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text) if text else 1.0
    except ValueError:
        weight = math.nan
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"dpo: the weight of recipe {name} is {text!r}, wanted a number greater than 0.")
    return weight
