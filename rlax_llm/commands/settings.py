"""What the commands' settings share: fields with their help, checks of ranges, and the groups of fields in common.

Plain values, checked when made, no imports beyond the standard library. A field's ``metadata`` holds its ``help`` line,
the ``group`` it is listed under, where the default is ``None`` what happens ``then``, and perhaps the ``metavar`` that
stands for its value; ``rlax_llm.cli`` makes the command line and the checks of YAML files from them.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, Literal

from rlax_llm.commands import resolving
from rlax_llm.commands.parts import bias_pairs

# Where a run is and which file began it are no part of what the run computes, so they stay out of its config.yaml.
_PLACES = ("out", "resume", "config")

LARGEST_SEED = 2**32 - 1
"""JAX reads the last 32 bits of a seed and no more, so a larger one would be another's run."""
LARGEST_COUNT = 2**31 - 1
"""Steps, rows and tokens are counted in 32 bits."""
_LARGEST_FLOAT, _SMALLEST_FLOAT = 3.4e38, 1.2e-38  # of float32
_MAY_BE_INFINITE = ("max_grad_norm",)
_MAY_BE_EMPTY = ("prompt",)
_MAY_BE_LARGE = (("control", "steps"),)  # counted on the host


def option(default: Any, group: str, text: str, then: str | None = None, metavar: str | None = None) -> Any:
    """A field with what the command line says of it: group, help, what happens where it is None, its metavar."""
    metadata = {"group": group, "help": text, "then": then, "metavar": metavar}
    return dataclasses.field(default=default, metadata=metadata)


def as_dict(config: Any) -> dict[str, Any]:
    """What a run's ``config.yaml`` holds: its command and every setting but where it is kept."""
    if isinstance(config, resolving.Settings):
        return resolving.as_dict(config)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _PLACES}
    return {"command": config.command, **settings}


def check_values(config: Any) -> None:
    """Raise for a value that no setting takes: of another type, not finite, beyond what can be counted, empty text.

    What is traced is passed over, and so is ``None`` where a setting may be left open. Every command's settings begin
    their checks here.

    Raises:
        ValueError: naming the command and the setting.

    """
    for name, types in _types(type(config)).items():
        value = getattr(config, name)
        wanted = None if value is None and type(None) in types else _wanted(config.command, name, value, types)
        if wanted is not None:
            raise ValueError(f"{config.command}: {name} is {value!r}, wanted {wanted}.")


@functools.cache
def _types(kind: type[Any]) -> dict[str, tuple[Any, ...]]:
    """The types, or the choices, that each setting takes."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        options = typing.get_args(hints[field.name]) or (hints[field.name],)
        found[field.name] = tuple(choice for option in options for choice in _choices(option) or (option,))
    return found


def _choices(option: Any) -> tuple[Any, ...]:
    return typing.get_args(option) if typing.get_origin(option) is Literal else ()


def _wanted(command: str, name: str, value: Any, types: tuple[Any, ...]) -> str | None:
    """What a setting takes instead of the value, or None where it takes it."""
    if value is None:
        return "a value"
    if int in types:
        return _wanted_count(command, name, value)
    if float in types:
        return _wanted_number(name, value)
    if str in types:
        return _wanted_text(name, value)
    choices = [choice for choice in types if isinstance(choice, str)]
    return f"one of {', '.join(choices)}" if choices and value not in choices else None


def _wanted_count(command: str, name: str, value: Any) -> str | None:
    if isinstance(value, bool | float | str):
        return "a whole number"
    if not isinstance(value, int):
        return None
    if name == "seed":
        return None if 0 <= value <= LARGEST_SEED else f"a whole number from 0 to {LARGEST_SEED}"
    largest = LARGEST_COUNT**2 if (command, name) in _MAY_BE_LARGE else LARGEST_COUNT
    return None if value <= largest else f"a whole number of at most {largest}"


def _wanted_number(name: str, value: Any) -> str | None:
    if isinstance(value, bool | str):
        return "a number"
    if not isinstance(value, int | float) or (value == float("inf") and name in _MAY_BE_INFINITE):
        return None
    # NaN compares with nothing.
    return None if abs(value) <= _LARGEST_FLOAT else "a finite number"


def _wanted_text(name: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return "text"
    if not value.strip() and name not in _MAY_BE_EMPTY:
        return "text that is not empty"
    return "text without a NUL character" if "\0" in value else None


def at_least(config: Any, bound: int, *names: str) -> None:
    """Raise for a number below the bound; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= bound:
            raise ValueError(f"{config.command}: {name} is {value}, wanted at least {bound}.")


def above_zero(config: Any, *names: str) -> None:
    """Raise for a number that is not positive in float32; ``None`` and traced values are passed over."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= _SMALLEST_FLOAT:
            raise ValueError(f"{config.command}: {name} is {value}, wanted a number greater than 0.")


def logit_bias_of(config: Any) -> tuple[tuple[int, float], ...]:
    """The pairs of token id and bias that ``logit_bias`` names."""
    return bias_pairs(config.logit_bias)
