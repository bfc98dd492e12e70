"""Help with names that do not exist."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def nearest(name: str, known: Iterable[str]) -> str:
    """Part of a sentence about an unknown name: the most similar known ones, or nothing.

    >>> nearest("Cartpole-v0", ["CartPole-v1", "Pendulum-v1"])
    ", the nearest is 'CartPole-v1'"
    """
    lowered = {candidate.lower(): candidate for candidate in known}
    matches = [repr(lowered[match]) for match in difflib.get_close_matches(name.lower(), lowered, n=3)]
    if not matches:
        return ""
    return f", the nearest {'is' if len(matches) == 1 else 'are'} {', '.join(matches)}"


def accepted(where: str, factory: Callable, parameters: dict[str, Any]) -> None:
    """Raise unless ``factory`` takes all of ``parameters``.

    Args:
        where: whose parameters they are, for the message.
        factory: the function.
        parameters: by name.

    Raises:
        ValueError: naming the first that it does not take, the nearest that it does, and all of those.

    >>> accepted("probe", lambda discount: None, {"discuont": 0.9})
    Traceback (most recent call last):
    ValueError: probe has no parameter 'discuont', the nearest is 'discount'; give one of ['discount'].
    """
    known = list(inspect.signature(factory).parameters)
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(f"{where} has no parameter {parameter!r}{nearest(parameter, known)}; give one of {known}.")
