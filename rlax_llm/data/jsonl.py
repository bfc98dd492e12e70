"""Data sets in JSON Lines, or any table that ``read_table`` reads: rows with a ``prompt`` and any columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlax_llm.data.messages import check_text
from rlax_llm.data.rows import DataError, Row, split_rows
from rlax_llm.data.tables import kind, listed, read_table


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a JSON Lines file or another table, read and checked one at a time.

    ``prompt`` is a string or a list of chat messages, alike in all rows. ``completion``, if there, is a string or a
    single assistant message, whose content is then taken.

    Args:
        path: as ``read_table`` takes it.

    Raises:
        DataError: naming the file and the line: not readable, not an object, no prompt, a prompt or completion of a
            wrong type, or columns that differ from the first row's; also for a file without rows.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"prompt": "1+1=", "answer": 2}'), file.flush()
    ...     list(read_rows(file.name))
    [{'prompt': '1+1=', 'answer': 2}]
    """
    first: Row | None = None
    for where, row in read_table(path):
        _check(where, row)
        first = first or row
        _check_alike(where, first, row)
        yield row


def load(path: str | Path, held_out_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of a file; rows of one prompt are never on both sides.

    Args:
        path: see ``read_rows``.
        held_out_size: number of held-out rows.
        seed: chooses them.

    Raises:
        DataError: as ``read_rows``; fewer than two different prompts; or nothing left to train on.
    """
    rows = list(read_rows(path))
    if len(rows) < 2:
        raise DataError(f"{path}: the file has 1 row; wanted at least 2, one to train on and one to hold out.")
    keys = [json.dumps(row["prompt"], sort_keys=True) for row in rows]
    return split_rows(str(path), rows, keys, held_out_size, seed)


def _check(where: str, row: Row) -> None:
    if "prompt" not in row:
        raise DataError(f"{where}: no column 'prompt'; the columns are {listed(row)}.")
    check_text(where, "prompt", row["prompt"])
    if "completion" in row:
        row["completion"] = _completion(where, row["completion"])


def _completion(where: str, completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        content = completion[0].get("content")
        if completion[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise DataError(f"{where}: the completion is {kind(completion)}, wanted a string or one assistant message.")


def _check_alike(where: str, first: Row, row: Row) -> None:
    if row.keys() != first.keys():
        raise DataError(f"{where}: the columns are {listed(row)}, but the first row's are {listed(first)}.")
    if isinstance(row["prompt"], str) != isinstance(first["prompt"], str):
        raise DataError(
            f"{where}: the prompt is {kind(row['prompt'])}, but the first row's is {kind(first['prompt'])}."
        )
