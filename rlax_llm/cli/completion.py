"""``rlax-llm completion SHELL``: what a shell reads to complete commands, flags and their choices."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

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
    "tcsh": "rlax-llm completion tcsh > ~/.rlax-llm.tcsh, and source it in ~/.tcshrc",
}


def completion(words: Sequence[str], found: Mapping[str, Command], others: Mapping[str, str]) -> str:
    """The script of a shell, or how to ask for one.

    Args:
        words: the words after ``completion``.
        found: the commands with flags, by name.
        others: summaries of the commands without, by name.

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
    return shtab.complete(_parser(found, others), shell=words[0])


def _parser(found: Mapping[str, Command], others: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line as argparse would describe it; ``parse`` reads it, this one is only looked at."""
    parser = argparse.ArgumentParser(prog="rlax-llm")
    below = parser.add_subparsers()
    for name, summary in others.items():
        below.add_parser(name, help=summary)
    for name, command in found.items():
        own = below.add_parser(name, help=command.summary, description=command.summary)
        for setting, key in keys(command.settings).items():
            _add(own, setting, key)
    return parser


def _add(parser: argparse.ArgumentParser, name: str, key: Key) -> None:
    if key.field.metadata.get("word"):
        added = parser.add_argument(name, nargs="+" if is_list(key.hint) else None)
        if "DIR" in (key.field.metadata.get("metavar") or ""):
            added.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        return
    told = key.field.metadata["help"].replace("%", "%%")
    if key.types == (bool,):
        for written in _switches(name, key):
            parser.add_argument(written, action="store_true", help=told)
        return
    choices = [kind for kind in key.types if isinstance(kind, str)]
    added = parser.add_argument(flag(name), choices=choices or None, help=told)
    place = key.field.metadata.get("metavar") or ""
    if "DIR" in place or "FILE" in place or place in ("DATA", "MODEL"):
        added.complete = shtab.FILE  # type: ignore[attr-defined]


def _switches(name: str, key: Key) -> Iterator[str]:
    """The ways of a switch that change something: of one that is left open, both."""
    if key.field.default is not True:
        yield flag(name)
    if key.field.default is not False:
        yield flag(f"no_{name}")
