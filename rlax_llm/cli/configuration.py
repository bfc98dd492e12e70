"""Settings from a file and from flags over it, into the dataclasses of the commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rlax_llm.cli.flags import asks_for_help, flag, read_flags
from rlax_llm.cli.values import converted, is_list, shortened
from rlax_llm.cli.yaml_files import read_mapping
from rlax_llm.commands.descriptions import ADDRESSES, MAY_CHANGE, PROCESSES, may_change
from rlax_llm.commands.places import whole_paths
from rlax_llm.commands.settings import Settings, did_you_mean_setting, flat, keys, resolve
from rlax_llm.host.run_directory import RunDirectory

_C = TypeVar("_C", bound=Settings)

_NOT_IN_FILES = ("config", "resume")


def parse(kind: type[_C], arguments: Sequence[str], description: str) -> _C:
    """The settings that a command line asks for: defaults, then the file of ``--config``, then flags.

    With ``--resume RUN_DIR`` the settings are that run's, and only those of ``MAY_CHANGE`` may differ.

    Args:
        kind: of settings.
        arguments: the words after the command's name.
        description: what ``--help`` begins with.

    Raises:
        ValueError: a flag, or a file's key, or a value is wrong or out of range, or a flag conflicts with the resumed
            run.
        FileNotFoundError: a file or a run is not there.
        SystemExit: after ``--help``, with code 0.
    """
    if asks_for_help(arguments):
        from rlax_llm.cli.help import show

        show(kind, description)
    flags = read_flags(kind, arguments)
    for name in _NOT_IN_FILES:
        if name in flags and (not flags[name].strip() or "\0" in flags[name]):
            raise ValueError(f"{flag(name)} is {flags[name]!r}, wanted a path.")
    if "config" in flags and "resume" in flags:
        raise ValueError("--config and --resume are both given; a resumed run keeps its own settings.")
    if "resume" in flags:
        return _resumed(kind, flags["resume"], flags)
    settings = (read_yaml(kind, flags["config"]) if "config" in flags else {}) | flags
    for name, key in keys(kind).items():
        if key.field.metadata.get("word") and name not in settings:
            several = "one or more" if is_list(key.hint) else "one"
            place = _place_beside(kind, flags)
            raise ValueError(f"{kind.command}: there is no {key.field.metadata['metavar']}; give {several}{place}.")
    return resolve(kind, settings)


def _place_beside(kind: type[Settings], flags: Mapping[str, Any]) -> str:
    """Where a word without a flag has to stand, beside a flag that has taken all words behind it."""
    taking = [flag(name) for name in flags if is_list(keys(kind)[name].hint)]
    return f" before the flags or behind --, since {taking[-1]} takes all words that follow it" if taking else ""


def read_yaml(kind: type[Settings], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML file, checked against the fields of ``kind``.

    Raises:
        ValueError: naming the file and the key, which is unknown (and the nearest known) or of a wrong type.
        FileNotFoundError: there is no such file.
    """
    return checked(kind, read_mapping(path), path)


def checked(kind: type[Settings], content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of a file already read: its ``command``, if it names one, must be the one of ``kind``.

    Raises:
        ValueError: as :func:`read_yaml`.

    >>> from rlax_llm.commands.sft.settings import SftSettings
    >>> checked(SftSettings, {"learning_rate": "1e-3"}, "a.yaml")
    {'learning_rate': 0.001}
    >>> checked(SftSettings, {"learning_rte": 1e-3}, "a.yaml")
    Traceback (most recent call last):
    ValueError: a.yaml: sft has no setting 'learning_rte'; did you mean 'learning_rate'?
    """
    known = {name: key.hint for name, key in keys(kind).items() if name not in _NOT_IN_FILES}
    settings = {}
    for name, value in content.items():
        if name == "command":
            if value != kind.command:
                raise ValueError(f"{path} is of the command {shortened(value)}, not {kind.command!r}.")
        elif name not in known:
            hint = did_you_mean_setting(kind.command, name, known)
            raise ValueError(f"{path}: {kind.command} has no setting {shortened(name)}{hint}")
        else:
            settings[name] = converted(f"{path}: {name}", value, known[name])
    return settings


def _resumed(kind: type[_C], path: str, flags: Mapping[str, Any]) -> _C:
    run = RunDirectory.reopen(path)
    content = read_mapping(run.config_path)
    if "command" not in content:
        raise ValueError(f"{run.config_path} has no line 'command: ...', so it is not what a run wrote; begin anew.")
    saved = flat(resolve(kind, {**checked(kind, content, run.config_path), "out": path, "resume": path}))
    # The same file may be given in other words.
    saved |= whole_paths(saved)
    asked = {**flags, **whole_paths(flags)}
    for name, value in asked.items():
        elsewhere = name in ADDRESSES and None not in (value, saved[name])
        if value != saved[name] and name not in (*MAY_CHANGE, *PROCESSES) and not elsewhere:
            raise ValueError(
                f"{flag(name)} {_in_words(value)} conflicts with the run in {path}, where it is "
                f"{_in_words(saved[name])}; {may_change(saved)}."
            )
    return resolve(kind, saved | asked)


def _in_words(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
