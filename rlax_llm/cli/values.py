"""Text to values: what a flag or a line of a file says, as a setting's type wants it."""

from __future__ import annotations

import reprlib
import types
import typing
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from rlax_llm.core.names import did_you_mean

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MOST_DIGITS = 30
_SHOWN = 200


def converted(where: str, value: Any, hint: Any) -> Any:
    """The value of a setting of the type ``hint``.

    A whole number may be written as ``1e5``, ``100_000`` or ``1.0``; a flag that is on as ``true``, ``yes`` or ``on``.

    Args:
        where: what the message begins with.
        value: text, or what a file holds: a number, a truth value, a list, None.
        hint: the type that the setting is annotated with.

    Raises:
        ValueError: naming ``where``, the value and what was wanted.

    >>> converted("--steps", "1e5", int), converted("--rate", "1e-5", float), converted("--remat", "off", bool)
    (100000, 1e-05, False)
    >>> converted("--data", ["a.jsonl", "b.jsonl"], tuple[str, ...]), converted("data", "a, b", tuple[str, ...])
    (('a.jsonl', 'b.jsonl'), ('a, b',))
    >>> converted("--steps", "1.5", int)
    Traceback (most recent call last):
    ValueError: --steps is '1.5', wanted a whole number.
    """
    options = _options(hint)
    if value is None and type(None) in options:
        return None
    wanted = next(option for option in options if option is not type(None))
    if typing.get_origin(wanted) is Literal:
        choices = typing.get_args(wanted)
        known = [str(choice) for choice in choices]
        end = did_you_mean(value, known) if isinstance(value, str) else "."
        return _taken(where, value, _chosen(value, choices), f"one of {', '.join(known)}", end)
    if is_list_of_texts(wanted):
        return _taken(where, value, _texts(value), "one text or several")
    if typing.get_origin(wanted) is tuple:
        example = "64 64" if where.startswith("--") else "[64, 64]"
        return _taken(where, value, _whole_numbers(value), f"a list of whole numbers, such as {example}")
    read, kind = _READERS[wanted]
    return _taken(where, value, read(value), kind)


def is_truth(hint: Any) -> bool:
    """Whether a setting of this type is on or off.

    >>> is_truth(bool), is_truth(bool | None), is_truth(int)
    (True, True, False)
    """
    return bool in _options(hint)


def is_list(hint: Any) -> bool:
    """Whether a setting of this type takes several values.

    >>> is_list(tuple[int, ...] | None), is_list(str)
    (True, False)
    """
    return any(typing.get_origin(option) is tuple for option in _options(hint))


def is_list_of_texts(hint: Any) -> bool:
    """Whether a setting of this type takes several texts.

    >>> is_list_of_texts(tuple[str, ...] | None), is_list_of_texts(tuple[int, ...])
    (True, False)
    """
    return any(typing.get_origin(option) is tuple and str in typing.get_args(option) for option in _options(hint))


def shortened(value: Any) -> str:
    """A value as a message shows it: ``repr``, cut where it is long or nested.

    >>> shortened("a"), len(shortened("a" * 1000))
    ("'a'", 200)
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _SHOWN
    short.maxlevel = 2
    return short.repr(value)


def _options(hint: Any) -> tuple[Any, ...]:
    # `Literal[…] | None` is a Union of typing's, `int | None` one of types'.
    united = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if united else (hint,)


def _taken(where: str, value: Any, found: Any, wanted: str, end: str = ".") -> Any:
    if found is None:
        raise ValueError(f"{where} is {shortened(value)}, wanted {wanted}{end}")
    return found


def _chosen(value: Any, choices: tuple[Any, ...]) -> Any:
    return value if isinstance(value, str) and value in choices else None


def _whole_numbers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    found = [_whole(item) for item in value]
    return None if None in found else tuple(number for number in found if number is not None)


def _texts(value: Any) -> tuple[str, ...] | None:
    """Several texts, or one alone; each is taken as it is, commas and blanks too, which names may hold."""
    items = (value,) if isinstance(value, str) else value
    found = isinstance(items, list | tuple) and bool(items) and all(isinstance(item, str) for item in items)
    return tuple(items) if found else None


def _whole(value: Any) -> int | None:
    """An integer as people write it: also 1e5 and 1.0, but no number with a fraction and none that has no end."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    if not number.is_finite() or number.adjusted() >= _MOST_DIGITS:
        return None
    return int(number) if number == number.to_integral_value() else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    # YAML writes .inf and .nan.
    text = str(value).lower().replace(".inf", "inf").replace(".nan", "nan")
    try:
        return float(text)
    except ValueError:
        return None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _TRUTH.get(value.lower()) if isinstance(value, str) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_truth, "true or false"),
    str: (_text, "text"),
}
