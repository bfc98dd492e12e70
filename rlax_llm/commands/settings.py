"""A command's settings: a record of parts, made once, whole, from what is given.

On the command line and in files settings are flat (``--learning-rate``, ``learning_rate:``): a field's name is that of
one part only. In a program ``GrpoSettings.of(steps=3, model="char")`` makes them, and ``settings.changed(steps=4)``
makes others of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

from rlax_llm.commands.descriptions import PROCESSES
from rlax_llm.commands.fields import check_value, types_of
from rlax_llm.commands.places import whole_paths
from rlax_llm.core.names import did_you_mean

# Where a run is, which file began it and which processes do it are no part of what it computes, so they stay out of its
# config.yaml.
_PLACES = ("out", "resume", "config", *PROCESSES)
_GIVEN = "_given"

_EARLIER_NAMES = {
    "groups": "batch_size",
    "micro_batch_groups": "micro_batch_size",
    "micro_batches": "micro_batch_size",
    "clip_norm": "max_grad_norm",
    "radius": "kl_radius",
    "clip_eps": "eps",
    "value_clip_eps": "value_eps",
    "total_steps": "steps",
    "anneal_learning_rate": "schedule",
    "no_anneal_learning_rate": "schedule",
}
"""Settings by a name they had, where likeness of letters would find none, or one of another meaning."""


class Settings:
    """The settings of a command: a frozen dataclass of parts, with checks between them in ``__post_init__``.

    Attributes:
        command: its name.
    """

    command: ClassVar[str]

    @classmethod
    def words(cls) -> str:
        """What the command line says for it."""
        return cls.command

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Values that follow from what is given, by name; they are for what is not given.

        Args:
            given: by name, of the right types, perhaps out of their ranges.
        """
        del given
        return {}

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What of the given is kept in other words, by name, as a recipe by its own name.

        Args:
            given: by name, of the right types.
        """
        del given
        return {}

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The settings in full: what is given, and for all else the defaults, which may follow from what is given.

        Args:
            given: by name, in whatever part they are.

        Raises:
            ValueError: no such setting, or a value that it does not take.

        >>> from rlax_llm.commands.sft.settings import SftSettings
        >>> settings = SftSettings.of(model="smollm2", seed=3)
        >>> settings.run.seed, settings.optimizer.learning_rate
        (3, 2e-05)
        >>> SftSettings.of(learning_rte=1e-3)
        Traceback (most recent call last):
        ValueError: sft has no setting 'learning_rte'; did you mean 'learning_rate'?
        """
        return resolve(cls, given)

    def changed(self, **new: Any) -> Self:
        """The settings that what was given makes, with some of it replaced; what follows from it follows anew.

        Args:
            new: by name, in whatever part they are.

        Raises:
            ValueError: no such setting, or a value that it does not take.

        >>> from rlax_llm.commands.sft.settings import SftSettings
        >>> SftSettings.of(steps=7).changed(model="smollm2").optimizer.learning_rate
        2e-05
        """
        return resolve(type(self), vars(self).get(_GIVEN, flat(self)) | new)


S = TypeVar("S", bound=Settings)


class Key(NamedTuple):
    """A setting as the command line and files know it, by its name alone.

    Attributes:
        part: name of the part.
        field: of the part.
        hint: its type.
        types: the types, or the choices, that it takes.
    """

    part: str
    field: dataclasses.Field[Any]
    hint: Any
    types: tuple[Any, ...]


@functools.cache
def keys(kind: type[Settings]) -> dict[str, Key]:
    """Every setting of a command by its name, in the order of the parts.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> keys(SftSettings)["learning_rate"].part
    'optimizer'
    """
    found: dict[str, Key] = {}
    for part, part_kind in typing.get_type_hints(kind).items():
        if not dataclasses.is_dataclass(part_kind):
            continue
        hints, types = typing.get_type_hints(part_kind), types_of(part_kind)
        for field in dataclasses.fields(part_kind):
            assert field.name not in found, f"{kind.__name__} has two settings {field.name}"
            found[field.name] = Key(part, field, hints[field.name], types[field.name])
    return found


def flat(settings: Settings) -> dict[str, Any]:
    """Every setting's value by its name."""
    return {name: getattr(getattr(settings, key.part), name) for name, key in keys(type(settings)).items()}


def as_dict(settings: Settings) -> dict[str, Any]:
    """What a run's ``config.yaml`` holds: its command and every setting but where it is kept.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> saved = as_dict(SftSettings.of(seed=3, out="runs/a"))
    >>> saved["command"], saved["seed"], "out" in saved
    ('sft', 3, False)
    """
    return {"command": settings.command} | {name: x for name, x in flat(settings).items() if name not in _PLACES}


def resolve(kind: type[S], given: Mapping[str, Any]) -> S:
    """The settings in full: what is given, with files by their whole paths, and the defaults for all else.

    Args:
        kind: of settings.
        given: by name.

    Raises:
        ValueError: no such setting, or a value that it does not take, or two that contradict each other.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> resolve(SftSettings, {"learning_rate": float("inf")})
    Traceback (most recent call last):
    ValueError: sft: learning_rate is inf, wanted a finite number.
    >>> resolve(SftSettings, {"seed": 2**32})
    Traceback (most recent call last):
    ValueError: sft: seed is 4294967296, wanted a whole number from 0 to 4294967295.
    """
    given = {name: _listed(_known(kind, name), value) for name, value in given.items()}
    for name, value in given.items():
        key = _known(kind, name)
        with _told_of(kind):
            check_value(key.field, value, key.types)
    # None is no value of what follows from other settings, but says that it is left open.
    given = {name: value for name, value in given.items() if value is not None or _has_default(kind, name)}
    given = {**given, **kind.read(given)}
    given = {**given, **whole_paths(given)}
    chosen, known = kind.defaults(given), keys(kind)
    made = _made(kind, {name: value for name, value in chosen.items() if name in known} | given)
    # The parts are frozen and hold what was resolved; this is for `changed`.
    object.__setattr__(made, _GIVEN, given)
    return made


def _listed(key: Key, value: Any) -> Any:
    """The value; where several texts may be given, one alone is a list of one."""
    of_texts = any(str in typing.get_args(choice) for choice in key.types if typing.get_origin(choice) is tuple)
    return (value,) if of_texts and isinstance(value, str) else value


def _made(kind: type[S], values: Mapping[str, Any]) -> S:
    parts: dict[str, dict[str, Any]] = {key.part: {} for key in keys(kind).values()}
    for name, value in values.items():
        parts[_known(kind, name).part][name] = value
    for name, key in keys(kind).items():
        if key.field.default is dataclasses.MISSING and name not in values:
            raise ValueError(f"{kind.command}: there is no {name}; give one.")
    hints = typing.get_type_hints(kind)
    with _told_of(kind):
        return kind(**{part: hints[part](**fields) for part, fields in parts.items()})


def _has_default(kind: type[Settings], name: str) -> bool:
    return keys(kind)[name].field.default is not dataclasses.MISSING


def _known(kind: type[Settings], name: str) -> Key:
    known = keys(kind)
    if name not in known:
        raise ValueError(f"{kind.command} has no setting {name!r}{did_you_mean_setting(kind.command, name, known)}")
    return known[name]


def did_you_mean_setting(command: str, name: str, known: Iterable[str], written: Callable[[str], str] = repr) -> str:
    """End of a sentence about a setting that a command does not have: the one that was meant, or where all are listed.

    Args:
        command: its name.
        name: that was given.
        known: those that there are.
        written: how the message writes the known one.

    >>> did_you_mean_setting("grpo", "groups", ["batch_size", "group_size"])
    "; did you mean 'batch_size'?"
    >>> did_you_mean_setting("generate", "groups", ["samples"])
    '; rlax-llm generate --help lists them.'
    """
    names = list(known)
    earlier = _EARLIER_NAMES.get(name)
    if earlier in names:
        return f"; did you mean {written(earlier)}?"
    return did_you_mean(name, names, f"; rlax-llm {command} --help lists them.", written)


@contextlib.contextmanager
def _told_of(kind: type[Settings]) -> Iterator[None]:
    """What a part says of a value, with the command in front."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{kind.command}: {error}") from None
