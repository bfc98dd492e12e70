"""What a recipe of groups says of itself beside its objective: what it reads beside the scores, whether one completion
is enough.

The recipes of the package say it in their rows of the table (``registry.REGISTRY``), one of a user's own by decorators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rlax_llm.core.names import did_you_mean

F = TypeVar("F", bound=Callable[..., Any])

KNOWN = ("baselines", "prompts", "roles", "collisions", "turns", "anchors", "turn_returns")
"""Fields of ``Known`` that a command makes for a recipe that reads them; the rewards of steps come with their flag."""
_READS, _ALONE = "reads_known", "is_alone"


def reads(*names: str) -> Callable[[F], F]:
    """Say of a recipe which fields of ``Known`` its advantage reads, so that a command makes them; a decorator.

    Args:
        names: some of ``KNOWN``.

    Raises:
        ValueError: for another name, or none.

    >>> @reads("baselines")
    ... def mine():
    ...     return None
    >>> read_by(mine), read_by(len)
    (('baselines',), ())
    >>> reads("prompt")
    Traceback (most recent call last):
    ValueError: reads: there is no 'prompt' to read; did you mean 'prompts'? There are baselines, prompts, roles, ...
    """
    wrong = [name for name in names if name not in KNOWN]
    if wrong or not names:
        named = wrong[0] if wrong else ""
        raise ValueError(
            f"reads: there is no {named!r} to read{did_you_mean(named, KNOWN)} There are {', '.join(KNOWN)}."
        )

    def marked(recipe: F) -> F:
        setattr(recipe, _READS, names)
        return recipe

    return marked


def read_by(recipe: Callable[..., Any]) -> tuple[str, ...]:
    """The fields of ``Known`` that a recipe says that it reads.

    Args:
        recipe: any; one that says nothing reads the scores alone.
    """
    return getattr(recipe, _READS, ())


def alone(recipe: F) -> F:
    """Say of a recipe that one completion of a prompt is enough, since no other is compared with it; a decorator.

    Args:
        recipe: of groups.

    >>> @alone
    ... def mine():
    ...     return None
    >>> is_alone(mine), is_alone(len)
    (True, False)
    """
    setattr(recipe, _ALONE, True)
    return recipe


def is_alone(recipe: Callable[..., Any]) -> bool:
    """Whether one completion of a prompt is enough for a recipe.

    Args:
        recipe: any; one that says nothing compares completions.
    """
    return getattr(recipe, _ALONE, False)
