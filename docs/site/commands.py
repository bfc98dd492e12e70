"""A page of every command and its flags, made from the settings themselves."""

from __future__ import annotations

import dataclasses
import textwrap
import typing

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from rlax_llm.commands.settings import Key, keys
from rlax_llm.commands.table import Command, commands

HEAD = """# Commands

Every flag, from the settings that `rlax-llm COMMAND --help` reads. `--config FILE.yaml` takes the same names with `_`.
`rlax-llm plan COMMAND` takes those of `COMMAND`, and [says what they need](../scaling.md#plan-before-a-run).
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    text = "\n".join([HEAD, *(line for command in commands().values() for line in _section(command))])
    files.append(File.generated(config, "reference/commands.md", content=text))
    return files


def _section(command: Command) -> list[str]:
    settings = command.settings
    said, _, examples = command.description.partition("Examples:\n")
    lines = [f"## {settings.words()}", "", said.strip(), ""]
    lines += ["```text", textwrap.dedent(examples).rstrip(), "```", ""] if examples else []
    parts: dict[str, list[Key]] = {}
    for key in keys(settings).values():
        parts.setdefault(key.part, []).append(key)
    for part, found in parts.items():
        lines += [f"**{part.capitalize()}**", "", "| flag | default | |", "|---|---|---|"]
        lines += [_row(key) for key in found]
        lines += [""]
    return lines


def _row(key: Key) -> str:
    field = key.field
    flag = field.name.upper() if field.metadata.get("word") else f"--{field.name.replace('_', '-')}"
    cells = (f"`{flag}{_value(key)}`", _default(field), str(field.metadata["help"]))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _value(key: Key) -> str:
    """What stands for the flag's value."""
    metavar = key.field.metadata.get("metavar")
    kinds = [kind for kind in key.types if kind is not type(None)]
    choices = [str(kind) for kind in kinds if not isinstance(kind, type) and typing.get_origin(kind) is None]
    if key.field.metadata.get("word") or bool in kinds:
        return ""
    return f" {metavar or ','.join(choices) or getattr(kinds[0], '__name__', 'value').upper()}"


def _default(field: dataclasses.Field) -> str:
    open_ended = field.default is None or field.default is dataclasses.MISSING
    if open_ended:
        return str(field.metadata.get("then") or "needed")
    return {True: "on", False: "off"}.get(field.default) if isinstance(field.default, bool) else f"`{field.default}`"
