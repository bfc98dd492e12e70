"""``--help`` of a command, which tyro writes.

tyro lists nested dataclasses as groups, and the configurations are flat, so for each of them a nested one is made from
its fields' metadata.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import tyro

_GROUPS = ("prompt", "model", "task", "objective", "rollout", "sampling", "network", "training", "run")


def show(kind: type[Any], description: str) -> NoReturn:
    """Print every flag of a configuration's class with its help and its default, and leave.

    Args:
        kind: the class, with its ``command``.
        description: what stands first.

    Raises:
        SystemExit: in the end, with code 0.
    """
    hints = typing.get_type_hints(kind)
    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(kind):
        groups.setdefault(field.metadata["group"], []).append(_tyro_field(field, hints[field.name]))
    nested = [(name, _undocumented(name, groups[name])) for name in sorted(groups, key=_GROUPS.index)]
    tyro.cli(
        _undocumented(kind.__name__, nested),
        prog=f"rlax-llm {kind.command}",
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


def _tyro_field(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, ...]:
    metadata = field.metadata
    default = field.default
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
