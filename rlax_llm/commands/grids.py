"""Tables of text that commands print: on a terminal, and in Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from rlax_llm.core.wording import visible


class Grid(NamedTuple):
    """A table of text.

    Attributes:
        title: above it.
        header: of its columns.
        rows: of cells.
        words: which columns hold words, flush left; the others numbers.
        note: a word on the numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    note: str = ""


def on_screen(grid: Grid) -> Table:
    """The table as a terminal shows it.

    Args:
        grid: of text.
    """
    table = Table(title=Text(grid.title, "dim"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.caption, table.caption_justify, table.caption_style = grid.note or None, "left", "dim"
    for index, name in enumerate(grid.header):
        table.add_column(name, justify="left" if index in grid.words else "right", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def in_markdown(grid: Grid) -> str:
    """The table in Markdown.

    Args:
        grid: of text.

    >>> print(in_markdown(Grid("sums", ["task", "prompts"], [["a|b", "3"]])))
    **sums**
    <BLANKLINE>
    | task | prompts |
    |---|---:|
    | a\\|b | 3 |
    """
    lines = [grid.header, *grid.rows]
    written = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    sides = "".join("---|" if index in grid.words else "---:|" for index in range(len(grid.header)))
    return "\n".join([f"**{grid.title}**{grid.note and f' ({grid.note})'}", "", written[0], f"|{sides}", *written[1:]])


def near(name: str) -> str:
    """A name; of a path below the working directory the way from there.

    Args:
        name: of a model, or a path.

    >>> near("smollm2"), near(os.path.abspath("runs/a"))
    ('smollm2', 'runs/a')
    """
    way = os.path.relpath(name) if os.path.isabs(name) else name
    return name if way.startswith("..") else way
