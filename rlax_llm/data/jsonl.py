"""Data sets in JSON Lines: one object a line, with a ``prompt`` and any columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlax_llm.data.rows import DataError, Row, split_rows


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows of a JSON Lines file, read and checked one line at a time.

    ``prompt`` is a string or a list of chat messages, alike in all rows. ``completion``, if there, is a string or a
    single assistant message, whose content is then taken. Blank lines are passed over.

    Args:
        path: file in UTF-8.

    Raises:
        DataError: naming the file and the line: not readable, not an object, no prompt, a prompt or completion of a
            wrong type, or columns that differ from the first row's; also for a file without rows.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"prompt": "1+1=", "answer": 2}'), file.flush()
    ...     list(read_rows(file.name))
    [{'prompt': '1+1=', 'answer': 2}]
    """
    path = Path(path)
    first: Row | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                text = _decoded(where, line, number)
                if not text.strip():
                    continue
                row = _row(where, text)
                first = first or row
                _check_alike(where, first, row)
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if first is None:
        raise DataError(f"{path}: the file has no rows; wanted one JSON object a line.")


def load(path: str | Path, held_out_size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of a JSON Lines file; rows of one prompt are never on both sides.

    Args:
        path: file in UTF-8, see ``read_rows``.
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


def _decoded(where: str, line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8.") from error


def _row(where: str, text: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); wanted one object a line."
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number with too many digits
        raise DataError(f"{where}: JSON that Python cannot read ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f'{where}: {_kind(row)}, wanted an object such as {{"prompt": "..."}}.')
    if "prompt" not in row:
        raise DataError(f"{where}: no column 'prompt'; the columns are {_listed(row)}.")
    _check_prompt(where, row["prompt"])
    if "completion" in row:
        row["completion"] = _completion(where, row["completion"])
    return row


def _check_prompt(where: str, prompt: Any) -> None:
    if not isinstance(prompt, (str, list)):
        raise DataError(f"{where}: the prompt is {_kind(prompt)}, wanted a string or a list of messages.")
    if not prompt:
        raise DataError(f"{where}: the prompt is empty.")
    for index, message in enumerate(prompt if isinstance(prompt, list) else []):
        if not isinstance(message, dict):
            raise DataError(f"{where}: message {index} of the prompt is {_kind(message)}, wanted an object.")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                kind = _kind(message[field]) if field in message else "missing"
                raise DataError(f"{where}: message {index} of the prompt has {field!r} {kind}, wanted a string.")


def _completion(where: str, completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        content = completion[0].get("content")
        if completion[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise DataError(f"{where}: the completion is {_kind(completion)}, wanted a string or one assistant message.")


def _check_alike(where: str, first: Row, row: Row) -> None:
    if row.keys() != first.keys():
        raise DataError(f"{where}: the columns are {_listed(row)}, but the first row's are {_listed(first)}.")
    if isinstance(row["prompt"], str) != isinstance(first["prompt"], str):
        raise DataError(
            f"{where}: the prompt is {_kind(row['prompt'])}, but the first row's is {_kind(first['prompt'])}."
        )


def _listed(row: Row) -> str:
    return ", ".join(row) or "none"


def _kind(value: Any) -> str:
    """A value's type in JSON, with its article."""
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
