"""What a teacher said of completions, in a Parquet file: its likeliest tokens at each, and whose ids these are."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlax_llm.data.rows import DataError
from rlax_llm.models.tokenizer import Tokenizer

_KEY = b"rlax_llm.teacher"


class TeacherRow(NamedTuple):
    """One completion behind its prompt, and what the teacher said at each of its n tokens.

    Attributes:
        prompt: token ids.
        completion: n token ids.
        ids: ``[n, K]`` int32.
        log_probs: ``[n, K + 1]`` float32, nats; the last is that of all other tokens.
    """

    prompt: list[int]
    completion: list[int]
    ids: np.ndarray
    log_probs: np.ndarray


class Said(NamedTuple):
    """What holds for all rows of a file.

    Attributes:
        fingerprint: of the tokenizer.
        k: tokens at each place.
        temperature: that log-probabilities are at.
    """

    fingerprint: str
    k: int
    temperature: float


def fingerprint(tokenizer: Tokenizer) -> str:
    """A digest of a vocabulary: equal where every token has one id.

    Args:
        tokenizer: of a model.

    >>> fingerprint(Tokenizer.characters("ab")) == fingerprint(Tokenizer.characters("ba"))
    False
    """
    listed = json.dumps(sorted(tokenizer.vocabulary().items()), ensure_ascii=True)
    return hashlib.sha256(listed.encode()).hexdigest()


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise DataError(
            f"{path}: a Parquet file needs the package pyarrow; pip install 'rlax-llm[datasets]'."
        ) from error
    return arrow, parquet


def write_teacher_rows(path: str | Path, said: Said, batches: Iterable[Sequence[TeacherRow]]) -> int:
    """Write rows as they come, and give back their number; the file is there once it is whole.

    What was written of one that was not ended stays beside it, under its name with ``.unfinished``.

    Args:
        path: of the file.
        said: what holds for all rows.
        batches: rows.

    Raises:
        DataError: without pyarrow.
        OSError: the file cannot be written.
    """
    path = Path(path)
    arrow, parquet = _arrow(path)
    kinds = {"prompt": arrow.int32(), "completion": arrow.int32(), "ids": arrow.int32(), "log_probs": arrow.float32()}
    schema = arrow.schema([(name, arrow.list_(kind)) for name, kind in kinds.items()])
    schema = schema.with_metadata({_KEY: json.dumps(said._asdict()).encode()})
    target, count = path.resolve(), 0  # through a link the file that it leads to
    unfinished = target.with_name(f"{target.name}.unfinished")
    with parquet.ParquetWriter(unfinished, schema) as file:
        for rows in batches:
            columns = {name: [np.ravel(getattr(row, name)).tolist() for row in rows] for name in kinds}
            file.write_table(arrow.table(columns, schema))
            count += len(rows)
    unfinished.replace(target)
    return count


def read_teacher_rows(path: str | Path, tokenizer: Tokenizer) -> tuple[Said, list[TeacherRow]]:
    """What ``write_teacher_rows`` wrote.

    Args:
        path: of the file.
        tokenizer: of the student, whose ids the teacher's must be.

    Raises:
        DataError: no such file, another kind of file, or another tokenizer.
    """
    path = Path(path)
    arrow, parquet = _arrow(path)
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a teacher's Parquet file ({told}); write it again.") from error
    described = (table.schema.metadata or {}).get(_KEY)
    if described is None:
        raise DataError(f"{path}: is no teacher's file; make one with rlax-llm distill --write-teacher {path.name}.")
    said = Said(**json.loads(described))
    if said.fingerprint != fingerprint(tokenizer):
        raise DataError(
            f"{path}: the teacher that wrote it has another vocabulary than the student; give a student with its "
            "tokenizer, or write the file with another teacher."
        )
    return said, [_row(said, row) for row in table.to_pylist()]


def _row(said: Said, row: dict[str, Any]) -> TeacherRow:
    count = len(row["completion"])
    ids = np.asarray(row["ids"], np.int32).reshape(count, said.k)
    log_probs = np.asarray(row["log_probs"], np.float32).reshape(count, said.k + 1)
    return TeacherRow(row["prompt"], row["completion"], ids, log_probs)
