"""Fields of a JSON object, each of the type that it must have, with errors that name the file and the field."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

_LARGEST = 2**31 - 1  # what a 32-bit integer of a compiled program holds
_AGAIN = "download or export the model again"
_SHOWN = 100  # characters of a value in a sentence


@dataclass(frozen=True)
class Fields:
    """A JSON object that is asked for its fields one by one.

    Attributes:
        path: of the file.
        raw: the object.
        inside: where in the file it is, such as ``rope_scaling.``; empty for the whole file.
        asked: the names of the fields that were asked for.

    >>> fields = Fields(Path("config.json"), {"hidden_size": "x"})
    >>> fields.size("hidden_size")
    Traceback (most recent call last):
    ValueError: config.json: hidden_size is 'x', wanted a positive integer; download or export the model again.
    """

    path: Path
    raw: Mapping[str, Any]
    inside: str = ""
    asked: set[str] = field(default_factory=set, compare=False)

    def replaced(self, **fields: Any) -> Fields:
        """The object with other fields."""
        return replace(self, raw={**self.raw, **fields})

    def refused(self, name: str, wanted: str, do: str = _AGAIN) -> ValueError:
        """The error for a field that is not what it must be."""
        got = repr(self.raw.get(name))
        got = got if len(got) <= _SHOWN else f"{got[:_SHOWN]}…"
        return ValueError(f"{self.path}: {self.inside}{name} is {got}, wanted {wanted}; {do}.")

    def given(self, name: str) -> bool:
        """Whether the field is there and not null."""
        self.asked.add(name)
        return self.raw.get(name) is not None

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; ``default`` where there is none.

        Raises:
            ValueError: it is something else, or there is neither the field nor a default.
        """
        value = self.raw[name] if self.given(name) else default
        if not _whole(value) or value < 1:
            raise self.refused(name, "a positive integer")
        if value > _LARGEST:
            raise self.refused(name, f"a positive integer up to {_LARGEST}")
        return value

    def count(self, name: str, default: int) -> int:
        """A whole number of at least 0; ``default`` where there is none.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else default
        if not _whole(value) or not 0 <= value <= _LARGEST:
            raise self.refused(name, "a whole number of at least 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0; ``default`` where the field is absent, though not where it is null.

        Raises:
            ValueError: it is something else.
        """
        self.asked.add(name)
        value = self.raw.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refused(name, "a finite number above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        """True or False; False where there is none.

        Raises:
            ValueError: it is something else.
        """
        if self.given(name) and not isinstance(self.raw[name], bool):
            raise self.refused(name, "true or false")
        return bool(self.raw.get(name))

    def among(self, name: str, allowed: Collection[str], do: str) -> str:
        """One of some words.

        Raises:
            ValueError: it is something else.
        """
        self.asked.add(name)
        value = self.raw.get(name)
        if not isinstance(value, str) or value not in allowed:
            raise self.refused(name, " or ".join(allowed), do)
        return value

    def words(self, name: str) -> list[str]:
        """A list of strings; empty where there is none.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else []
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.refused(name, "a list of strings")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0; empty where there is none.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else []
        good = isinstance(value, list) and all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < math.inf for one in value
        )
        if not good:
            raise self.refused(name, "a list of finite numbers above 0")
        return tuple(float(one) for one in value)

    def switches(self, name: str) -> tuple[bool, ...]:
        """A list of flags, each 0 or 1, or false or true; empty where there is none.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else []
        if not isinstance(value, list) or not all(isinstance(one, int) and one in (0, 1) for one in value):
            raise self.refused(name, "a list of 0 and 1")
        return tuple(bool(one) for one in value)

    def nested(self, name: str) -> Fields:
        """The object in a field; an empty one where there is none.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else {}
        if not isinstance(value, dict):
            raise self.refused(name, "an object")
        return Fields(self.path, value, f"{self.inside}{name}.")

    def ids(self, name: str, below: int) -> list[int]:
        """A token id or a list of them; empty where there is none.

        Args:
            name: of the field.
            below: the vocabulary's size.

        Raises:
            ValueError: it is something else.
        """
        value = self.raw[name] if self.given(name) else []
        listed = value if isinstance(value, list) else [value]
        if not all(_whole(one) and 0 <= one < below for one in listed):
            raise self.refused(name, f"token ids from 0 to {below - 1}")
        return listed


def told(raw: Mapping[str, Any]) -> Fields:
    """Fields of a config.json that no file holds.

    >>> told({"hidden_size": 8}).size("hidden_size")
    8
    """
    return Fields(Path("config.json"), raw)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
