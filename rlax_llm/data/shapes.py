"""Tables in the columns of others: Alpaca's, ShareGPT's, GSM8K's, MATH's; and prompts of conversations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlax_llm.data.rows import DataError, Row, user_message
from rlax_llm.data.sifting import Kept
from rlax_llm.data.tables import json_kind, read_table
from rlax_llm.rewards.golds import answer_text

T = TypeVar("T")

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


class Shape(NamedTuple):
    """Columns that are not the product's own.

    Attributes:
        name: whose they are.
        columns: that a row of it has.
        said: what is made of them, a sentence without its beginning.
        mapped: ``(place, row) → row`` in the product's own; raises a ``DataError`` for a row that cannot be.
        reward: that tells right from wrong among its answers, or None.
    """

    name: str
    columns: tuple[str, ...]
    said: str
    mapped: Callable[[str, Row], Row]
    reward: str | None = None


class Shaped(NamedTuple):
    """A table in the product's columns.

    Attributes:
        rows: with their places, as the table has them.
        shape: whose columns those are, or None for the product's own.
    """

    rows: Iterator[tuple[str, Row]]
    shape: Shape | None

    def own(self, where: str, row: Row) -> Row:
        """A row in the product's own columns; one of another shape as it is.

        Args:
            where: its place.
            row: of the table.

        Raises:
            DataError: naming the row and what of it cannot be read.
        """
        shape = self.shape
        return row if shape is None or not _has(row, shape.columns) else shape.mapped(where, row)


def read_shaped(path: str | Path, split: str = "train", prompts: bool = False) -> Shaped:
    """A table as ``read_table`` reads it, with what its first row says of its columns.

    Args:
        path: of the table.
        split: of a data set that has several.
        prompts: whether a column ``prompt`` is wanted of a conversation too.

    Raises:
        DataError: as ``read_table``.
    """
    rows = read_table(path, split)
    first = next(rows)
    return Shaped(itertools.chain([first], rows), shape_of(first[1], prompts))


def shape_of(row: Row, prompts: bool = False) -> Shape | None:
    """Whose columns a row has; None where they are the product's own, or nobody's.

    Args:
        row: the columns.
        prompts: whether a column ``prompt`` is wanted of a conversation too.

    >>> shape_of({"instruction": "Add.", "input": "1, 1", "output": "2"}).name, shape_of({"prompt": "1+1="})
    ('Alpaca', None)
    """
    if "prompt" in row:
        return None
    if "messages" in row:
        return _MESSAGES if prompts else None
    found = next((shape for shape in _SHAPES if _has(row, shape.columns)), None)
    if found is None or not prompts or found is not _SHARE_GPT:
        return found
    return found._replace(said=f"{found.said}, {_MESSAGES.said}", mapped=_share_gpt_prompt)


def own_reward(path: str | Path, split: str = "train") -> str | None:
    """The reward of a table whose columns say how its answers are written, or None.

    Args:
        path: of the table.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_table``.
    """
    shape = read_shaped(path, split).shape
    return None if shape is None else shape.reward


def shaped(name: str, table: Shaped, kept: Kept[T]) -> Kept[T]:
    """What was kept of a table, with a sentence on its columns where they are not the product's own.

    Args:
        name: of the table.
        table: as it was read.
        kept: of its rows.
    """
    shape = table.shape
    return kept if shape is None else kept.noted(f"{name}: {shape.name}'s columns; {shape.said}")


def _has(row: Row, columns: Sequence[str]) -> bool:
    return all(name in row for name in columns)


def _without(row: Row, *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def _alpaca(where: str, row: Row) -> Row:
    """Prompt of instruction and input; messages where a system text or earlier turns come before."""
    for name in ("instruction", "input"):
        if not isinstance(row.get(name) or "", str):
            raise DataError(f"{where}: the {name} is {json_kind(row[name])}, wanted a string.")
    asked = "\n\n".join(text for text in (row["instruction"], row.get("input")) if text)
    before = _system(row) + _history(where, row.get("history") or [])
    own: Row = {"prompt": [*before, *user_message(asked)] if before else asked}
    if "output" in row:
        own["completion"] = row["output"]
    return own | _without(row, "instruction", "input", "output", "system", "history")


def _system(row: Row) -> list[dict[str, Any]]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _history(where: str, turns: Any) -> list[dict[str, Any]]:
    """Pairs of what was asked and answered before."""
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise DataError(f"{where}: the history is {json_kind(turns)}, wanted a list of pairs, question and answer.")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _share_gpt(where: str, row: Row) -> Row:
    """Messages, or with chosen and rejected a prompt of them."""
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise DataError(f"{where}: conversations is {json_kind(turns)}, wanted a list of turns.")
    messages = [*_system(row), *(_message(where, index, turn) for index, turn in enumerate(turns))]
    rest = _without(row, "conversations", "system")
    if not _has(row, ("chosen", "rejected")):
        return {"messages": messages} | rest
    sides = {name: [_message(where, 0, row[name])] for name in ("chosen", "rejected") if isinstance(row[name], dict)}
    return {"prompt": messages} | rest | sides


def _message(where: str, index: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: turn {index} of the conversation is {json_kind(turn)}, wanted an object.")
    if "role" in turn:
        return dict(turn)
    role = _ROLES.get(str(turn.get("from")))
    if role is None or "value" not in turn:
        raise DataError(
            f"{where}: turn {index} of the conversation is from {turn.get('from')!r}, wanted a 'value' from one of "
            f"{', '.join(_ROLES)}."
        )
    return {"role": role, "content": turn["value"]}


def _conversation_prompt(where: str, row: Row) -> Row:
    """The prompt of a conversation: all before the assistant's last message, which is the completion."""
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages is {json_kind(messages)}, wanted a list of messages.")
    answered = isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"
    prompt = messages[:-1] if answered else messages
    said = {"completion": messages[-1].get("content")} if answered else {}
    return {"prompt": prompt, **said} | _without(row, "messages")


def _share_gpt_prompt(where: str, row: Row) -> Row:
    own = _share_gpt(where, row)
    return own if "prompt" in own else _conversation_prompt(where, own)


def _asked(question: str, solution: str) -> Callable[[str, Row], Row]:
    """A question with its solution, and with its answer where that is a column of its own."""

    def mapped(where: str, row: Row) -> Row:
        answer = row.get("answer", row[solution])
        worked = row[solution] if isinstance(row[solution], str) else answer_text(row[solution])
        own: Row = {"prompt": row[question], "answer": answer}
        if worked is not None:
            own["completion"] = worked
        return own | _without(row, question, "answer")

    return mapped


_MESSAGES = Shape(
    "Messages",
    ("messages",),
    "the prompt is all before the assistant's last message, the completion that message",
    _conversation_prompt,
)
_SHARE_GPT = Shape("ShareGPT", ("conversations",), "conversations are messages of user and assistant", _share_gpt)
_ALPACA = "the prompt is instruction and input with an empty line between"
_SHAPES = (
    _SHARE_GPT,
    Shape("Alpaca", ("instruction", "output"), f"{_ALPACA}, the completion output", _alpaca),
    Shape("Alpaca", ("instruction", "chosen", "rejected"), _ALPACA, _alpaca),
    Shape(
        "MATH",
        ("problem", "solution"),
        "the prompt is the problem, the completion the solution, in whose box the answer is",
        _asked("problem", "solution"),
        "math_answer",
    ),
    Shape("MATH", ("problem", "answer"), "the prompt is the problem", _asked("problem", "answer"), "math_answer"),
    Shape(
        "GSM8K",
        ("question", "answer"),
        "the prompt is the question, the completion the answer, with the right number behind ####",
        _asked("question", "answer"),
        "math_answer",
    ),
)
