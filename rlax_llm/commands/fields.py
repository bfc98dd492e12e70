"""Fields of settings with what the command line says of them, and checks of their values.

Plain values, no imports beyond the standard library. A field's ``metadata`` holds its ``help`` line, where its default
depends on other settings or is ``None`` what happens ``then``, and perhaps the ``metavar`` that stands for its value.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LARGEST_SEED = 2**32 - 1
"""JAX reads the last 32 bits of a seed and no more, so a larger one would be another's run."""
LARGEST_COUNT = 2**31 - 1
"""Steps, rows and tokens are counted in 32 bits."""
_LARGEST_FLOAT = 3.4e38  # of float32
_SMALLEST_FLOAT = 1.2e-38


def option(default: Any, text: str, then: str | None = None, metavar: str | None = None, **limits: Any) -> Any:
    """A field of a part.

    Args:
        default: where it is not given.
        text: its help, a sentence.
        then: what the help says instead of a default that is None.
        metavar: what stands for its value in the help.
        limits: ``largest``, a count's bound where it is not ``LARGEST_COUNT``; ``infinite=True`` for a number that may
            be infinite; ``empty=True`` for text that may be empty; ``values``, some that a shell completes.
    """
    return dataclasses.field(default=default, metadata={"help": text, "then": then, "metavar": metavar} | limits)


def resolved(text: str, then: str, metavar: str | None = None, **limits: Any) -> Any:
    """A field without a default of its own: it follows from other settings where it is not given.

    Args:
        text: its help, a sentence.
        then: what the help says of its default.
        metavar: what stands for its value in the help.
        limits: as of ``option``.
    """
    return dataclasses.field(metadata={"help": text, "then": then, "metavar": metavar} | limits)


def word(text: str, metavar: str) -> Any:
    """A field that the command line takes as a word without a flag, and which must be given.

    One of type ``tuple[str, ...]`` takes all the words that there are.

    Args:
        text: its help, a sentence.
        metavar: what stands for it in the help.
    """
    return dataclasses.field(metadata={"help": text, "metavar": metavar, "word": True, "empty": True})


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a command's settings, checked when it is made; what takes it reads all of its fields.

    Raises:
        ValueError: naming the setting, which is of a wrong type or out of its range.
    """

    def __post_init__(self) -> None:
        """Check types, then ranges."""
        kinds = types_of(type(self))
        for field in dataclasses.fields(self):
            check_value(field, getattr(self, field.name), kinds[field.name])
        self.check()

    def check(self) -> None:
        """Check the ranges of these fields."""


@functools.cache
def types_of(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types, or the choices, that each field of a part takes."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        united = typing.get_origin(hint) in (types.UnionType, typing.Union)
        options = typing.get_args(hint) if united else (hint,)
        found[field.name] = tuple(choice for option in options for choice in _choices(option) or (option,))
    return found


def _choices(option: Any) -> tuple[Any, ...]:
    return typing.get_args(option) if typing.get_origin(option) is Literal else ()


def check_value(field: dataclasses.Field[Any], value: Any, kinds: tuple[Any, ...]) -> None:
    """Raise for a value that a field does not take: of another type, not finite, too large to count, empty text.

    What is traced is passed over, and so is None where the field may be left open.

    Args:
        field: of a part.
        value: to be its value.
        kinds: the types, or the choices, that it takes.

    Raises:
        ValueError: naming the setting.
    """
    if value is None and type(None) in kinds:
        return
    wanted = _wanted(field, value, kinds)
    if wanted is not None:
        raise ValueError(f"{field.name} is {value!r}, wanted {wanted}.")


def _wanted(field: dataclasses.Field[Any], value: Any, kinds: tuple[Any, ...]) -> str | None:
    """What a field takes instead of the value, or None where it takes it."""
    if value is None:
        return "a value"
    lists = [choice for choice in kinds if typing.get_origin(choice) is tuple]
    if lists:
        return _wanted_list(field, value, str in typing.get_args(lists[0]))
    if int in kinds:
        return _wanted_count(field, value)
    if float in kinds:
        return _wanted_number(field, value)
    if str in kinds:
        return _wanted_text(field, value)
    choices = [choice for choice in kinds if isinstance(choice, str)]
    return f"one of {', '.join(choices)}" if choices and value not in choices else None


def _wanted_list(field: dataclasses.Field[Any], value: Any, of_texts: bool) -> str | None:
    if not of_texts:
        return None if isinstance(value, tuple | list) else "a list of whole numbers"
    if not isinstance(value, tuple | list) or not value:
        return "a list of texts"
    return next((wanted for item in value if (wanted := _wanted_text(field, item))), None)


def _wanted_count(field: dataclasses.Field[Any], value: Any) -> str | None:
    if isinstance(value, bool | float | str):
        return "a whole number"
    if not isinstance(value, int):
        return None
    if field.name == "seed":
        return None if 0 <= value <= LARGEST_SEED else f"a whole number from 0 to {LARGEST_SEED}"
    largest = field.metadata.get("largest", LARGEST_COUNT)
    return None if value <= largest else f"a whole number of at most {largest}"


def _wanted_number(field: dataclasses.Field[Any], value: Any) -> str | None:
    if isinstance(value, bool | str):
        return "a number"
    if not isinstance(value, int | float):
        return None
    if value == float("inf") and field.metadata.get("infinite"):
        return None
    # NaN compares with nothing.
    return None if abs(value) <= _LARGEST_FLOAT else "a finite number"


def _wanted_text(field: dataclasses.Field[Any], value: Any) -> str | None:
    if not isinstance(value, str):
        return "text"
    if not value.strip() and not field.metadata.get("empty"):
        return "text that is not empty"
    return "text without a NUL character" if "\0" in value else None


def at_least(part: Any, bound: float, *names: str) -> None:
    """Raise for a number below the bound; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, (int, float)) and not value >= bound:
            raise ValueError(f"{name} is {value}, wanted at least {bound}.")


def above_zero(part: Any, *names: str) -> None:
    """Raise for a number that is not positive in float32; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, (int, float)) and not value >= _SMALLEST_FLOAT:
            raise ValueError(f"{name} is {value}, wanted a number greater than 0.")


def within(part: Any, low: float, high: float, *names: str) -> None:
    """Raise for a number outside ``[low, high]``; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(part, name)
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise ValueError(f"{name} is {value}, wanted a number from {low} to {high}.")


def divides(size_name: str, size: int | None, total_name: str, total: int) -> None:
    """Raise unless one setting divides another; None is passed over."""
    if size is not None and total % size:
        raise ValueError(f"{size_name} is {size}, wanted a divisor of {total_name}, which is {total}.")


def check_countable(row_tokens: int, factors: Mapping[str, int]) -> None:
    """Raise where the tokens of one step are more than 32 bits count.

    Args:
        row_tokens: the longest row.
        factors: settings that are multiplied with it, by name.

    Raises:
        ValueError: naming the settings that are multiplied.

    >>> check_countable(38, {"batch_size": 128, "group_size": 10_000_000})
    Traceback (most recent call last):
    ValueError: batch_size · group_size · tokens of a row is 48,640,000,000, wanted at most 2,147,483,647; lower ...
    """
    tokens = row_tokens * math.prod(factors.values())
    if tokens > LARGEST_COUNT:
        raise ValueError(
            f"{' · '.join([*factors, 'tokens of a row'])} is {tokens:,}, wanted at most {LARGEST_COUNT:,}; lower one "
            "of them."
        )


_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
_ESCAPED = re.compile(r"\\([nt\\])")


def unescaped(text: str) -> str:
    r"""A text as it is meant: ``\n`` is a new line, ``\t`` a tab, ``\\`` a backslash.

    >>> unescaped(r"a\n")
    'a\n'
    """
    return _ESCAPED.sub(lambda found: _ESCAPES[found[1]], text)
