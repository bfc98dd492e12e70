"""Settings from a YAML file and from flags over it, into the dataclasses of ``rlax_llm.train.configs``.

tyro reads the flags. It lists nested dataclasses as groups, and the configurations are flat, so for each of them a
nested one is made from its fields' metadata, parsed, and flattened again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from rlax_llm.train.configs import EvalConfig, GenerateConfig, SftConfig
from rlax_llm.train.control_settings import ControlConfig
from rlax_llm.train.group_settings import GrpoConfig
from rlax_llm.train.ppo_settings import PpoConfig
from rlax_llm.train.preference_settings import PreferenceSettings
from rlax_llm.train.run_directory import RunDirectory

Settings = GrpoConfig | SftConfig | GenerateConfig | EvalConfig | ControlConfig | PreferenceSettings | PpoConfig

_C = TypeVar("_C", bound=Settings)

_MAY_CHANGE_ON_RESUME = ("steps", "total_steps")
_NOT_IN_FILES = ("config", "resume")
_GROUPS = ("prompt", "model", "task", "objective", "rollout", "sampling", "network", "training", "run")


def parse(kind: type[_C], arguments: Sequence[str], description: str) -> _C:
    """The settings that a command line asks for: defaults, then the file of ``--config``, then flags.

    With ``--resume RUN_DIR`` the settings are that run's, and only ``--steps`` (``--total-steps``) may differ.

    Args:
        kind: the configuration's class.
        arguments: the words after the command's name.
        description: what ``--help`` begins with.

    Raises:
        ValueError: a file's key or value is wrong, a value is out of range, or a flag conflicts with the resumed run.
        FileNotFoundError: a file or a run is not there.
        SystemExit: after ``--help`` (0), or a flag is wrong and tyro has said so (2).
    """
    config_file, resumed = _value_of("--config", arguments), _value_of("--resume", arguments)
    if config_file and resumed:
        raise ValueError("--config and --resume are both given; a resumed run keeps its own settings.")
    if resumed and "resume" in _names(kind):
        return _resumed(kind, resumed, arguments, description)
    return kind(**_flags_over(kind, read_yaml(kind, config_file) if config_file else {}, arguments, description))


def read_yaml(kind: type[Settings], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML file, checked against the fields of ``kind``.

    Raises:
        ValueError: naming the file and the key, which is unknown (and the nearest known) or of a wrong type.
        FileNotFoundError: there is no such file.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path} (--config).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    return checked(kind, {} if content is None else content, path)


def checked(kind: type[Settings], content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a file already read: its ``command``, if it names one, must be the one of ``kind``.

    Raises:
        ValueError: as :func:`read_yaml`.

    >>> from rlax_llm.train.configs import SftConfig
    >>> checked(SftConfig, {"learning_rate": "1e-3"}, "a.yaml")
    {'learning_rate': 0.001}
    >>> checked(SftConfig, {"learning_rte": 1e-3}, "a.yaml")
    Traceback (most recent call last):
    ValueError: a.yaml: sft has no setting 'learning_rte'; did you mean 'learning_rate'?
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, wanted lines of 'setting: value'.")
    hints = typing.get_type_hints(kind)
    known = [name for name in _names(kind) if name not in _NOT_IN_FILES]
    settings = {}
    for key, value in content.items():
        if key == "command":
            if value != kind.command:
                raise ValueError(f"{path} is of the command {value!r}, not {kind.command!r}.")
        elif key not in known:
            raise ValueError(f"{path}: {kind.command} has no setting {key!r}; {_nearest(str(key), known)}")
        else:
            settings[key] = _converted(f"{path}: {key}", value, hints[key])
    return settings


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."


def _names(kind: type[Settings]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag that has to be known before the others are read; its last, as tyro takes it."""
    value = None
    for word, following in zip(arguments, [*arguments[1:], None]):
        if word == flag and following is not None:
            value = following
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
    return value


def _converted(where: str, value: Any, hint: Any) -> Any:
    # `Literal[…] | None` is a Union of typing's, `int | None` one of types'.
    options = list(typing.get_args(hint)) if typing.get_origin(hint) in (types.UnionType, typing.Union) else [hint]
    if value is None and type(None) in options:
        return None
    wanted = next(option for option in options if option is not type(None))
    if typing.get_origin(wanted) is Literal:
        if value in typing.get_args(wanted):
            return value
        raise ValueError(f"{where} is {value!r}, wanted one of {', '.join(map(str, typing.get_args(wanted)))}.")
    if typing.get_origin(wanted) is tuple:
        if isinstance(value, list) and all(type(item) is int for item in value):
            return tuple(value)
        raise ValueError(f"{where} is {value!r}, wanted a list of whole numbers, such as [64, 64].")
    if wanted is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-5, without a point, as text.
        with contextlib.suppress(ValueError):
            return float(value)
    if type(value) is wanted:
        return value
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise ValueError(f"{where} is {value!r}, wanted {kinds[wanted]}.")


def _resumed(kind: type[_C], path: str, arguments: Sequence[str], description: str) -> _C:
    run = RunDirectory.reopen(path)
    saved = kind(**checked(kind, run.config(), run.config_path), out=path, resume=path)  # pyright: ignore[reportCallIssue]
    settings = _flags_over(kind, dataclasses.asdict(saved), arguments, description)
    for name, value in settings.items():
        was = getattr(saved, name)
        if value != was and name not in _MAY_CHANGE_ON_RESUME:
            changeable = next(_flag(known) for known in _names(kind) if known in _MAY_CHANGE_ON_RESUME)
            raise ValueError(
                f"{_flag(name)} {value} conflicts with the run in {path}, where it is {was}; "
                f"only {changeable} may change."
            )
    return kind(**settings)


def _flags_over(
    kind: type[Settings], settings: Mapping[str, Any], arguments: Sequence[str], description: str
) -> dict[str, Any]:
    """The flags' values where they are given, else those of ``settings``, else the defaults."""
    hints = typing.get_type_hints(kind)
    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(kind):
        entry = _tyro_field(field, hints[field.name], settings)
        groups.setdefault(field.metadata["group"], []).append(entry)
    nested = [(name, _undocumented(name, groups[name])) for name in sorted(groups, key=_GROUPS.index)]
    parsed = tyro.cli(
        _undocumented(kind.__name__, nested),
        prog=f"rlax-llm {kind.command}",
        description=description,
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    return {name: value for group in groups for name, value in vars(getattr(parsed, group)).items()}


def _undocumented(name: str, fields: Sequence[Any]) -> type:
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    # dataclasses writes the signature there, and tyro would print it as help.
    made.__doc__ = ""
    return made


def _tyro_field(field: dataclasses.Field[Any], hint: Any, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    metadata = field.metadata
    default = settings.get(field.name, field.default)
    plain = [option for option in typing.get_args(hint) if option is not type(None)]
    metavar = metadata.get("metavar")
    if metavar is None and isinstance(hint, types.UnionType) and plain != [bool]:
        metavar = plain[0].__name__.upper()
    described = tyro.conf.arg(
        help=metadata["help"],
        metavar=metavar,
        help_behavior_hint=f"(default: {metadata['then']})" if default is None else None,
    )
    if isinstance(default, bool):
        # One flag, which turns it the other way; what is open can be turned both ways.
        hint = tyro.conf.FlagCreatePairsOff[hint]
    if field.default is dataclasses.MISSING:
        hint = tyro.conf.Positional[hint]
    if default is dataclasses.MISSING:
        return field.name, Annotated[hint, described]
    return field.name, Annotated[hint, described], dataclasses.field(default=default)
