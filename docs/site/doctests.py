"""The doctests at the end of docstrings are examples: what mkdocstrings shows as code."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts the examples of each docstring into a section of their own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Indent the examples under a title."""
        if obj.docstring is not None:
            obj.docstring.value = with_section(obj.docstring.value)


def with_section(text: str) -> str:
    """A docstring whose examples, from the first line with ``>>>`` on, stand in a section."""
    found = re.search(r"^>>> ", text, re.M)
    if not found:
        return text
    return text[: found.start()] + "Examples:\n" + textwrap.indent(text[found.start() :], "    ")
