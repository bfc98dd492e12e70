"""Some completions as a table: what a person looks at to see whether a reward means what it should."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rlax_llm.core.wording import visible


def completions_table(records: Sequence[Mapping[str, Any]], title: str, most: int = 4) -> Table:
    """The first ``most`` records of a rollout, one a line, cut to the screen's width.

    Args:
        records: of ``completions.jsonl``.
        title: above the table.
        most: lines.

    >>> from rich.console import Console
    >>> row = {"prompt": "1+2=", "completion": "3\\nor 4", "reward": 1.0, "length": 5, "truncated": True}
    >>> Console(width=50, color_system=None).print(completions_table([row], "step 1"))  # doctest: +NORMALIZE_WHITESPACE
                          step 1
    <BLANKLINE>
     prompt      completion           reward   tokens
     ────────────────────────────────────────────────
     1+2=        3⏎or 4                1.000       5+
    <BLANKLINE>
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_style="dim", expand=True, pad_edge=False)
    table.add_column("prompt", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("completion", no_wrap=True, overflow="ellipsis", ratio=2)
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    for row in records[:most]:
        said = row.get("transcript", row["completion"])
        tokens = f"{row['length']}{'+' if row['truncated'] else ''}"
        table.add_row(_line(_asked(row["prompt"])), _line(said), _score(row["reward"]), tokens)
    return table


def _score(reward: float) -> str:
    """A number, or a dash where nothing was scored."""
    return "–" if math.isnan(reward) else f"{reward:.3f}"


def _asked(prompt: Any) -> str:
    """Text, or the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""


def _line(text: str) -> Text:
    # As text and not as markup: a completion may hold brackets.
    return Text(visible(text.strip()).replace("\n", "⏎"))
