"""What is seen of a file: its columns, lengths, and rows whose tokens are colored by what is learned from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich.text import Text

from rlax_llm.commands.data.uses import Encoded, PromptTokens, Side, sides
from rlax_llm.commands.grids import Grid
from rlax_llm.core.wording import counted, visible
from rlax_llm.data.encoding import StepwiseTokens
from rlax_llm.data.rows import Row
from rlax_llm.data.tables import json_kind
from rlax_llm.models.tokenizer import Tokenizer

_TOKENS = 400  # of a row that are shown
_SHOWN = 48  # characters of a value
_RED = ("red", "bold red")
_LEARNED: dict[str, tuple[str, str]] = {"rejected": _RED, "undesirable": _RED, "wrong step": _RED}
_GREEN = ("green", "bold green")
_READ = ("dim", "dim")
_PASSED = ("yellow", "yellow")
LEGEND = "Dim is read, green learned from (red: learned to avoid), by turns bold, a token each; yellow is passed over."
PLAIN_LEGEND = "⟦…⟧ is learned from; what stands before and between is read."


def columns_grid(path: str, rows: Sequence[Row], everything: bool) -> Grid:
    """A line for each column: what it holds, in how many rows, and the first value.

    Args:
        path: of the file.
        rows: its first ones.
        everything: whether those are all.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = []
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        kinds = " or ".join(dict.fromkeys(json_kind(value) for value in values)) or "null"
        lines.append([str(name), kinds, f"{len(values) / len(rows):.0%}", _value(values[0]) if values else ""])
    shown = counted(len(rows), "row")
    return Grid(
        f"{path}: {shown if everything else f'the first {shown}'}",
        ["column", "holds", "filled", "first"],
        lines,
        (0, 1, 3),
    )


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def lengths_grid(rows: Sequence[Encoded]) -> Grid:
    """Tokens of prompts and of completions.

    Args:
        rows: encoded, before limits.
    """
    lengths: dict[str, list[int]] = {"prompt": [len(row.prompt) for row in rows]}
    for row in rows:
        for side in sides(row):
            lengths.setdefault(side.name, []).append(len(side.ids))
            if side.learned is not None:
                lengths.setdefault(f"{side.name}, learned", []).append(sum(side.learned))
    lines = [[name, *(f"{number:,.0f}" for number in _spread(values))] for name, values in lengths.items()]
    return Grid("Tokens of a row", ["", "least", "half", "19 of 20", "most", "in all"], lines)


def _spread(values: Sequence[int]) -> list[float]:
    counted = np.array(values)
    return [
        counted.min(),
        np.median(counted),
        np.quantile(counted, 0.95, method="higher"),
        counted.max(),
        counted.sum(),
    ]


def longest(rows: Iterable[Encoded]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest completion.

    Args:
        rows: encoded.
    """
    pairs = [(len(row.prompt), _longest_of(row)) for row in rows]
    return max(prompt for prompt, _ in pairs), max(completion for _, completion in pairs)


def _longest_of(row: Encoded) -> int:
    """Tokens of a row's longest completion, which steps are parts of."""
    lengths = [len(side.ids) for side in sides(row)]
    return sum(lengths) if isinstance(row, StepwiseTokens) else max(lengths, default=0)


def colored(tokenizer: Tokenizer, row: Encoded, in_color: bool) -> list[Text]:
    """A row's text, token by token, as a terminal shows it: what the model reads, then each completion.

    Args:
        tokenizer: the model's.
        row: encoded.
        in_color: whether colors are seen; else what is learned from stands in brackets.
    """
    prompt = Text()
    _add(prompt, pieces(tokenizer, row.prompt), [_READ] * len(row.prompt))
    if isinstance(row, PromptTokens):
        columns = ", ".join(f"{name}: {_value(value)}" for name, value in row.columns.items() if name != "completion")
        return [prompt, Text(visible(f"for the reward: {columns or 'no column'}"), style="cyan")]
    found = sides(row)
    if len(found) == 1 and not isinstance(row, StepwiseTokens):
        return [_side(prompt, tokenizer, row, found[0], in_color)]
    named = [Text(f"{side.name}: ", style="cyan") for side in found]
    return [prompt, *(_side(name, tokenizer, row, side, in_color) for name, side in zip(named, found, strict=True))]


def _side(text: Text, tokenizer: Tokenizer, row: Encoded, side: Side, in_color: bool) -> Text:
    whole = pieces(tokenizer, [*row.prompt, *side.ids])[len(row.prompt) :]
    learned = [True] * len(side.ids) if side.learned is None else list(side.learned)
    if in_color:
        styles = _LEARNED.get(side.name, _GREEN)
        _add(text, whole, [styles if one else _PASSED for one in learned])
        return text
    for before, one, piece in zip([False, *learned], learned, whole, strict=False):
        text.append(("⟦" if one and not before else "⟧" if before and not one else "") + piece)
    text.append("⟧" if learned[: len(whole)][-1:] == [True] else "")
    return text


def _add(text: Text, whole: Sequence[str], styles: Sequence[tuple[str, str]]) -> None:
    for index, (piece, style) in enumerate(zip(whole, styles, strict=False)):
        text.append(piece, style=style[index % 2])


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character of several tokens stands at its last one. Line ends are seen.

    Args:
        tokenizer: the model's.
        ids: of a text; of a long one the first are taken.

    >>> pieces(Tokenizer.characters("1+="), [2, 3, 2])
    ['1', '+', '1']
    """
    found, done = [], ""
    for end in range(1, min(len(ids), _TOKENS) + 1):
        text = tokenizer.decode(ids[:end], skip_special=False)
        whole = not text.endswith("\ufffd")
        found.append(visible(text[len(done) :]).replace("\n", "⏎\n") if whole else "")
        done = text if whole else done
    if len(ids) > _TOKENS:
        found.append(f" … {len(ids) - _TOKENS:,} more tokens")
    return found
