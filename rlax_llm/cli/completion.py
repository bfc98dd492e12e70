"""``rlax-llm completion SHELL``: what a shell reads to complete commands, flags and their choices."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import shtab

from rlax_llm.cli.flags import flag
from rlax_llm.cli.values import is_list
from rlax_llm.commands.settings import Key, keys
from rlax_llm.commands.table import Command
from rlax_llm.core.names import did_you_mean

SUMMARY = "print a shell's completion of commands and flags"
SHELLS = tuple(shtab.SUPPORTED_SHELLS)

_HOW = {
    "bash": 'eval "$(rlax-llm completion bash)", in ~/.bashrc',
    "zsh": 'rlax-llm completion zsh > "${fpath[1]}/_rlax-llm"',
    "fish": "rlax-llm completion fish > ~/.config/fish/completions/rlax-llm.fish",
    "tcsh": "rlax-llm completion tcsh > ~/.rlax-llm.tcsh, and source it in ~/.tcshrc",
}


def completion(
    words: Sequence[str], found: Mapping[str, Command], planned: Mapping[str, Command], plan: str = "plan a run"
) -> str:
    """The script of a shell, or how to ask for one.

    Args:
        words: the words after ``completion``.
        found: the commands, by name.
        planned: the commands of ``plan``, by name.
        plan: its summary.

    Raises:
        ValueError: a shell that is unknown, or more than one.
    """
    if not words or words[0] in ("-h", "--help"):
        return "\n".join(["usage: rlax-llm completion SHELL", "", *(f"  {name}: {how}" for name, how in _HOW.items())])
    if words[0] not in SHELLS:
        hint = did_you_mean(words[0], SHELLS, f"; there are {', '.join(SHELLS)}.")
        raise ValueError(f"completion: {words[0]!r} is no shell{hint}")
    if len(words) > 1:
        raise ValueError(f"completion: got {' '.join(words)}, wanted one shell.")
    return shtab.complete(_parser(found, planned, plan), shell=words[0])


def _parser(found: Mapping[str, Command], planned: Mapping[str, Command], plan: str) -> argparse.ArgumentParser:
    """The command line as argparse would describe it; ``parse`` reads it, this one is only looked at."""
    parser = argparse.ArgumentParser(prog="rlax-llm")
    below = parser.add_subparsers()
    below.add_parser("completion", help=SUMMARY).add_argument("shell", choices=SHELLS)
    for name, command in found.items():
        _describe(below, name, command)
    below_plan = below.add_parser("plan", help=plan).add_subparsers()
    for name, command in planned.items():
        _describe(below_plan, name, command)
    return parser


def _describe(below: Any, name: str, command: Command) -> None:
    own = below.add_parser(name, help=command.summary, description=command.summary)
    for setting, key in keys(command.settings).items():
        _add(own, setting, key)


def _add(parser: argparse.ArgumentParser, name: str, key: Key) -> None:
    place = key.field.metadata.get("metavar") or ""
    if key.field.metadata.get("word"):
        added: Any = parser.add_argument(name, nargs="+" if is_list(key.hint) else None)
        if place in _PLACES:
            added.complete = _PLACES[place]
        return
    told = key.field.metadata["help"].replace("%", "%%")
    if key.types == (bool,):
        for written in _switches(name, key):
            parser.add_argument(written, action="store_true", help=told)
        return
    values = key.field.metadata.get("values", ())
    choices = [*(kind for kind in key.types if isinstance(kind, str)), *values]
    added = parser.add_argument(flag(name), choices=choices or None, help=told)
    if place in _PLACES:
        added.complete = _with_values(values, _PLACES[place])


_PLACES: dict[str, Any] = {
    **dict.fromkeys(
        ("FILE", "FILE.jsonl", "FILE.yaml", "FILE.html", "DATA", "MODEL", "MODEL_OR_DIR", "REWARD"), shtab.FILE
    ),
    **dict.fromkeys(("DIR", "RUN_DIR"), shtab.DIRECTORY),
}
"""By the word that stands for a value, how a shell completes it where it is a path."""


def _with_values(values: Sequence[str], paths: Mapping[str, str]) -> Mapping[str, Any]:
    """Paths, and in bash some words too, which shtab has no form for."""
    if not values:
        return paths
    words = " ".join(values)
    name = "_rlax_llm_" + re.sub(r"\W", "_", words)
    function = f'{name}() {{ compgen -W \'{words}\' -- "$1"; {paths["bash"]} "$1"; }}'
    return {**paths, "bash": name, "preamble": {"bash": function}}


def _switches(name: str, key: Key) -> Iterator[str]:
    """The ways of a switch that change something: of one that is left open, both."""
    if key.field.default is not True:
        yield flag(name)
    if key.field.default is not False:
        yield flag(f"no_{name}")
