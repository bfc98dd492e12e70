"""From a named algorithm and a command's settings to what it makes: settings by the names of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from rlax_llm.core.user_code import call_checked
from rlax_llm.recipes.registry import Named


def parameters(named: Named) -> Mapping[str, inspect.Parameter]:
    """The settings that an algorithm takes, by name; a link takes none.

    >>> from rlax_llm.recipes.registry import recipes
    >>> list(parameters(recipes("group")["dapo"]))
    ['eps', 'eps_high']
    """
    return {} if named.family == "link" else inspect.signature(named.make).parameters


def check_given(command: str, named: Named, given: Iterable[str], family: Iterable[Named]) -> None:
    """Raise for a setting that the algorithm does not have.

    Args:
        command: whose settings they are, for the message.
        named: the algorithm.
        given: names of settings that the user gave.
        family: the others, among them those that have it.

    Raises:
        ValueError: naming the setting, and the algorithms that have it.

    >>> from rlax_llm.recipes.registry import recipes
    >>> group = recipes("group")
    >>> check_given("grpo", group["gspo"], ["ceiling"], group.values())
    Traceback (most recent call last):
    ValueError: grpo: recipe gspo has no ceiling; leave it out, or take one of cispo, verl:grpo, ...
    """
    takes = parameters(named)
    for name in given:
        if name not in takes:
            having = [other.name for other in family if name in parameters(other)]
            raise ValueError(
                f"{command}: recipe {named.name} has no {name}; leave it out, or take one of {', '.join(having)}."
            )


def build(command: str, named: Named, settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
    """What the algorithm makes of those settings that it has a parameter for.

    Args:
        command: whose settings they are, for the messages.
        named: the algorithm.
        settings: by name; None is left to the algorithm.
        wanted: the classes that it may make, by what the message calls one.

    Raises:
        ValueError: it needs what was not given; or a user's own function raises, or returns something else.

    >>> from rlax_llm.policy.objectives import Objective
    >>> from rlax_llm.recipes.registry import recipes
    >>> build("grpo", recipes("group")["cispo"], {"ceiling": None}, {"an Objective": Objective})
    Traceback (most recent call last):
    ValueError: grpo: recipe cispo needs ceiling; give --ceiling.
    """
    takes = parameters(named)
    given = {name: value for name, value in settings.items() if value is not None and name in takes}
    for name, taken in takes.items():
        optional = taken.default is not taken.empty or taken.kind in (taken.VAR_POSITIONAL, taken.VAR_KEYWORD)
        if not optional and name not in given:
            raise ValueError(f"{command}: recipe {named.name} needs {name}; {_how(name, settings)}.")
    if not named.is_own:
        return named.make(**given)
    return call_checked(f"{command}: recipe {named.name}", named.make, wanted, **given)


def _how(name: str, settings: Mapping[str, Any]) -> str:
    if name in settings:
        return f"give --{name.replace('_', '-')}"
    return f"wanted a function of some of the settings {', '.join(settings)}"
