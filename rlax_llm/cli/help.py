"""``--help`` of a command, which tyro writes.

tyro lists nested dataclasses as groups; for each part of the settings one is made of its fields' metadata, in which
what follows from other settings may be left open.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import tyro

from rlax_llm.cli.values import is_list
from rlax_llm.commands.settings import keys

_MACHINE = "machine"


def show(kind: type[Any], description: str) -> NoReturn:
    """Print every flag of a command with its help and its default, and leave.

    Args:
        kind: of settings.
        description: what stands first.

    Raises:
        SystemExit: in the end, with code 0.
    """
    groups: dict[str, list[Any]] = {}
    chosen = kind.defaults({})
    for name, key in keys(kind).items():
        groups.setdefault(key.part, []).append(_tyro_field(key.field, key.hint, chosen.get(name)))
    if _MACHINE in groups:
        groups[_MACHINE] = groups.pop(_MACHINE)  # last: few need it
    nested = [(name, _undocumented(name, fields)) for name, fields in groups.items()]
    tyro.cli(
        _undocumented(kind.__name__, nested),
        prog=f"rlax-llm {kind.words()}",
        description=description,
        args=["--help"],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
    )
    raise SystemExit(0)


def _undocumented(name: str, fields: Sequence[Any]) -> type:
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    # dataclasses writes the signature there, and tyro would print it as help.
    made.__doc__ = ""
    return made


def _tyro_field(field: dataclasses.Field[Any], hint: Any, chosen: Any) -> tuple[Any, ...]:
    """A field for tyro.

    Args:
        field: of a part.
        hint: its type.
        chosen: what it is where nothing is given, if that follows from other settings.
    """
    metadata, default = field.metadata, field.default
    metavar = metadata.get("metavar")
    if metadata.get("word"):
        if is_list(hint):
            metavar = f"{metavar} [{metavar} ...]"
        described = tyro.conf.arg(help=metadata["help"], metavar=metavar, help_behavior_hint="(required)")
        return field.name, Annotated[tyro.conf.Positional[hint], described]
    if default is dataclasses.MISSING:
        hint, default = hint | None, None
    plain = [option for option in typing.get_args(hint) if option is not type(None)]
    if metavar is None and isinstance(hint, types.UnionType) and plain != [bool]:
        metavar = plain[0].__name__.upper()
    described = tyro.conf.arg(
        help=metadata["help"],
        metavar=metavar,
        help_behavior_hint=f"(default: {_default(chosen, metadata['then'])})" if default is None else None,
    )
    if isinstance(default, bool):
        # One flag, which turns it the other way; what is open can be turned both ways.
        hint = tyro.conf.FlagCreatePairsOff[hint]
    return field.name, Annotated[hint, described], dataclasses.field(default=default)


def _default(chosen: Any, then: str) -> str:
    """What a setting is that follows from others: in words, and where the words have no number that too."""
    if chosen is None or not then.startswith(("chosen", "tuned")):
        return then
    value = {True: "on", False: "off"}[chosen] if isinstance(chosen, bool) else chosen
    value = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return f"{value}; {then}"
