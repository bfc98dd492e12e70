"""Data sets in JSON Lines, or any table that ``read_table`` reads: rows with a ``prompt`` and any columns."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from rlax_llm.core.names import did_you_mean
from rlax_llm.data.messages import check_text
from rlax_llm.data.rows import DataError, Row
from rlax_llm.data.shapes import read_shaped, shaped
from rlax_llm.data.sifting import Kept, Tables, keep_commonest, of_each, sift
from rlax_llm.data.tables import check_characters, json_kind, list_columns


def read_rows(path: Tables, split: str = "train") -> Kept[Row]:
    """Rows of a JSON Lines file or another table, or of several, that can be used, and what was left out.

    ``prompt`` is a string or a list of chat messages. ``completion``, if there, is a string or a single assistant
    message, whose content is then taken. Columns of another shape (``data.shapes``) are read as these. Left out are
    rows without a prompt, with a prompt or completion of a wrong type, and those whose columns, or whose prompt's type,
    are not those of most rows.

    Args:
        path: as ``read_table`` takes it, or several in order.
        split: of a data set that has several.

    Raises:
        DataError: as ``read_table``; no row can be used.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"prompt": "1+1=", "answer": 2}'), file.flush()
    ...     list(read_rows(file.name))
    [{'prompt': '1+1=', 'answer': 2}]
    """
    kept = of_each(path, partial(_rows, split))
    return keep_commonest(keep_commonest(kept, frozenset, _other_columns), _prompt_kind, _other_prompt)


def _rows(split: str, path: Path | str) -> Kept[Row]:
    table = read_shaped(path, split, prompts=True)
    return shaped(str(path), table, sift(str(path), table.rows, lambda where, row: _row(where, table.own(where, row))))


def prompt_key(row: Row) -> str:
    """What makes two rows the same problem.

    Args:
        row: with a ``prompt``.

    >>> prompt_key({"prompt": "1+1=", "answer": 2})
    '"1+1="'
    """
    return json.dumps(row["prompt"], sort_keys=True)


def _row(where: str, row: Row) -> Row:
    if "prompt" not in row:
        raise DataError(
            f"{where}: no column 'prompt'; the columns are {list_columns(row)}{did_you_mean('prompt', row)}"
        )
    check_text(where, "prompt", check_characters(where, row)["prompt"])
    if "completion" in row:
        row["completion"] = _completion(where, row["completion"])
    return row


def _completion(where: str, completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        content = completion[0].get("content")
        if completion[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise DataError(f"{where}: the completion is {json_kind(completion)}, wanted a string or one assistant message.")


def _other_columns(row: Row, usual: Row) -> str:
    return f"the columns are {list_columns(row)}, but most rows' are {list_columns(usual)}."


def _prompt_kind(row: Row) -> bool:
    return isinstance(row["prompt"], str)


def _other_prompt(row: Row, usual: Row) -> str:
    return f"the prompt is {json_kind(row['prompt'])}, but most rows' is {json_kind(usual['prompt'])}."
