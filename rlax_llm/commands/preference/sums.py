"""Recipes of ``dpo`` and their weights as the text of a setting; without JAX, as settings are read without it."""

from __future__ import annotations

import math

from rlax_llm.recipes.registry import Named, find, recipes, spelled


def is_of_dpo(named: Named) -> bool:
    """Whether an algorithm of this table has the reward of dpo, so that its link can be added to others.

    Args:
        named: of the families ``preference`` and ``link``.

    >>> [is_of_dpo(recipes("preference", "link")[name]) for name in ("robust", "hinge", "simpo")]
    [True, True, False]
    """
    return named.family == "link" or named.like == "dpo"


def reward_of_its_own(name: str, where: str) -> str:
    """What to say of a recipe where the reward of dpo is wanted.

    Args:
        name: of the recipe.
        where: it is wanted.
    """
    alike = [other for other, named in recipes("preference", "link").items() if is_of_dpo(named)]
    return f"recipe {name} has a reward of its own, wanted those of {', '.join(alike)} {where}."


def check_rewards(text: str, where: str) -> None:
    """Raise for a recipe of this table whose reward is not dpo's; what a user's own has is not known yet.

    Args:
        text: as ``read_sum`` takes it.
        where: dpo's is wanted, for the message.

    Raises:
        ValueError: naming it.

    >>> check_rewards("dpo,simpo", "with tail_coef")
    Traceback (most recent call last):
    ValueError: recipe simpo has a reward of its own, wanted those of dpo, cdpo, ... with tail_coef.
    """
    for name in read_sum(text):
        named = find("dpo", name, "preference", "link")
        if not named.is_own and not is_of_dpo(named):
            raise ValueError(reward_of_its_own(name, where))


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
