"""Help with names that do not exist: the one "did you mean" of flags, keys, recipes, tasks, environments, columns."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def did_you_mean(name: str, known: Iterable[Any], otherwise: str = ".", written: Callable[[str], str] = repr) -> str:
    """End of a sentence about an unknown name: the most similar known one as a question, or ``otherwise``.

    Capitals do not count, and ``-`` is ``_``.

    Args:
        name: that was given, or is missing.
        known: those that there are.
        otherwise: the end of the sentence where none is similar.
        written: how the message writes the known one.

    >>> did_you_mean("max", ["min", "maximum"]), did_you_mean("x", ["min"])
    ("; did you mean 'maximum'?", '.')
    >>> did_you_mean("Cartpole-v0", ["CartPole-v1", "Pendulum-v1"])
    "; did you mean 'CartPole-v1'?"
    """
    plain = {_plain(str(one)): str(one) for one in known}
    matches = difflib.get_close_matches(_plain(name), plain, n=1)
    return f"; did you mean {written(plain[matches[0]])}?" if matches else otherwise


def likeness(name: str, known: Iterable[Any]) -> float:
    """How much the most similar of the known names is like ``name``: 1 is the same, 0 nothing in common.

    >>> likeness("chosen", ["choosen", "reject"]) > 0.9, likeness("chosen", [])
    (True, 0.0)
    """
    return max((difflib.SequenceMatcher(None, name, str(one)).ratio() for one in known), default=0.0)


def check_parameters(where: str, factory: Callable, parameters: dict[str, Any]) -> None:
    """Raise unless ``factory`` takes all of ``parameters``.

    Args:
        where: whose parameters they are, for the message.
        factory: the function.
        parameters: by name.

    Raises:
        ValueError: naming the first that it does not take, the nearest that it does, and all of those.

    >>> check_parameters("probe", lambda discount: None, {"discuont": 0.9})
    Traceback (most recent call last):
    ValueError: probe has no parameter 'discuont'; did you mean 'discount'? It takes discount.
    """
    known = list(inspect.signature(factory).parameters)
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(unknown_parameter(where, parameter, known))


def unknown_parameter(where: str, name: str, known: Iterable[str]) -> str:
    """The sentence on a parameter that a function or an environment does not take.

    >>> unknown_parameter("CartPole-v1", "gravty", ["gravity", "force_mag"])
    "CartPole-v1 has no parameter 'gravty'; did you mean 'gravity'? It takes gravity, force_mag."
    """
    names = list(known)
    return f"{where} has no parameter {name!r}{did_you_mean(name, names)} It takes {', '.join(names) or 'none'}."


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
