"""Rows of a table, each with its place: JSON Lines, Parquet, or a Hugging Face data set on disk or on the hub."""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlax_llm.core.names import did_you_mean
from rlax_llm.data.rows import DataError, Row

_CHUNK = 1000  # rows of a Parquet file or data set in memory as Python objects
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_NAMED = {".parquet": ("Parquet", _PARQUET), ".gz": ("gzip", _GZIP)}
_COMMAS = (".csv", ".tsv")
_SHOWN = 24  # bytes of a file, for an error
_HALF = re.compile("[\ud800-\udfff]")
_START = 1024  # bytes within which an array begins
_SAVED = ("state.json", "dataset_dict.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_CONFIGURATIONS = re.compile(r"available configs: \[(.*?)\]")  # in what datasets says where none is named
_FILE = re.compile(r"\.(jsonl?|ndjson|parquet|csv|txt|gz)$")
_EXTRA = "pip install 'rlax-llm[datasets]'"


def read_table(path: str | Path, split: str = "train") -> Iterator[tuple[str, Row]]:
    """Rows with their places, such as ``("pairs.jsonl, line 3", {...})``, read as they are asked for.

    A file is Parquet where it begins as one and JSON Lines otherwise, in UTF-8, perhaps gzipped; blank lines are passed
    over. A file that begins with ``[`` is one JSON array, whose elements are the rows. A directory is what
    ``save_to_disk`` of the package ``datasets`` wrote. Anything else of the form ``owner/name``, or with one of several
    configurations ``owner/name:configuration``, is one of the Hugging Face hub. Lines and rows are counted from 1.

    Args:
        path: file, directory or name.
        split: of a data set that has several; a file has one.

    Raises:
        DataError: naming the file, and the line or row: not readable, not one object per line, without rows, no such
            split; a package that is missing; a hub that cannot be reached.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b'{"prompt": "1+1="}'), file.flush()
    ...     [(where.removeprefix(file.name), row) for where, row in read_table(file.name)]
    [(', line 1', {'prompt': '1+1='})]
    """
    place = Path(path)
    if place.is_dir():
        return _numbered(str(path), _directory(place, split))
    if not place.exists() and _is_hub_name(path):
        return _numbered(str(path), _hub(str(path), split))
    return _file(place)


def check_there(path: str | Path, what: str) -> None:
    """Raise where a table would be a file, and there is none.

    Args:
        path: as ``read_table`` takes it.
        what: the setting that names it.

    Raises:
        DataError: naming the setting, and a file beside it whose name is similar.

    >>> check_there("owner/name", "data")
    >>> check_there("sums.jsonl", "data")
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: data is sums.jsonl, and there is no such file.
    """
    place = Path(path)
    if place.exists() or _is_hub_name(path):
        return
    # By their stems: endings are alike everywhere. Other kinds of files are not what was meant.
    there = place.parent.iterdir() if place.parent.is_dir() else ()
    beside = {one.stem: one.name for one in there if _FILE.search(one.name)}
    hint = did_you_mean(place.stem, beside, written=lambda stem: repr(beside[stem]))
    raise DataError(f"{what} is {path}, and there is no such file{hint}")


def _is_hub_name(path: str | Path) -> bool:
    """Whether a path that is not there is the name of a data set of the hub."""
    return _HUB_NAME.fullmatch(str(path)) is not None and not _FILE.search(str(path))


def check_splits(path: str | Path, split: str) -> None:
    """Raise where a table has no splits, so that another one would be the same rows.

    Args:
        path: as ``read_table`` takes it.
        split: that is wanted beside another.

    Raises:
        DataError: a file, or a saved data set without splits.
    """
    place = Path(path)
    if place.is_file() or (place / _SAVED[0]).is_file():
        raise DataError(
            f"{path}: eval_split is {split!r}, and this table has no splits; give held-out rows as eval_data, or leave "
            "eval_split out."
        )


def list_columns(row: Row) -> str:
    """The columns of a row, for an error.

    >>> list_columns({"prompt": "a", "answer": 1}), list_columns({})
    ('prompt, answer', 'none')
    """
    return ", ".join(map(str, row)) or "none"


def json_kind(value: Any) -> str:
    """A value's type in JSON, with its article.

    >>> [json_kind(value) for value in ("a", 1.5, True, None, [1])]
    ['a string', 'a number', 'a boolean', 'null', 'a list']
    """
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"of type {type(value).__name__}")


def check_characters(where: str, row: Row) -> Row:
    """The row, unless it holds half a character, such as an emoji cut in two, which no tokenizer and no file can take.

    Args:
        where: its place, for the error.
        row: as JSON gave it.

    Raises:
        DataError: naming the place and the column.

    >>> check_characters("line 1", {"prompt": "Hi \\ud83d"})
    Traceback (most recent call last):
    rlax_llm.data.rows.DataError: line 1: column 'prompt' holds half a character (\\ud83d); write it whole or remove it.
    """
    for name, value in row.items():
        if half := _half(value) or _half(name):
            raise DataError(
                f"{where}: column {name!a} holds half a character (\\u{ord(half):x}); write it whole or remove it."
            )
    return row


def _half(value: Any) -> str:
    """A surrogate that is alone, in a string or anywhere inside lists and objects."""
    if isinstance(value, str):
        found = None if value.isascii() else _HALF.search(value)
        return found[0] if found else ""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return next(filter(None, map(_half, value)), "") if isinstance(value, list) else ""


def _numbered(name: str, rows: Iterator[Row]) -> Iterator[tuple[str, Row]]:
    number = 0
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row
    if number == 0:
        raise DataError(f"{name}: the table has no rows; wanted at least one.")


def _file(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError as error:
        raise _unreadable(path, error) from error
    _check_name(path, start)
    if start.startswith(_PARQUET):
        yield from _numbered(str(path), _parquet(path))
    else:
        yield from _json(path, gzip.open if start.startswith(_GZIP) else open)


def _check_name(path: Path, start: bytes) -> None:
    """Raise where a file begins neither as its name says nor as JSON: a web page, a pointer of Git LFS, half a file."""
    if path.suffix.lower() in _COMMAS and start[:1] not in (b"{", b"["):
        raise DataError(
            f"{path}: CSV is not read; write it as .jsonl, .json or .parquet, as with pandas: "
            f'read_csv("{path.name}").to_json("{path.stem}.jsonl", orient="records", lines=True).'
        )
    kind, sign = _NAMED.get(path.suffix.lower(), ("", b""))
    if start.startswith(sign) or start.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        return
    begins = repr(start[:_SHOWN])[1:] if start else "nothing"
    raise DataError(
        f"{path}: named {path.suffix}, and neither {kind} nor JSON (it begins with {begins}); download or write it "
        "again, or give it the name of what it is."
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}).")


def _json(path: Path, opened: Any) -> Iterator[tuple[str, Row]]:
    """Rows of a file of JSON lines, or of one JSON array."""
    try:
        with opened(path, "rb") as file:
            array = file.read(_START).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
            file.seek(0)
            if array:
                yield from _numbered(str(path), _array(path, file.read()))
            else:
                yield from _lines(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: cannot be read as gzip ({_one_line(error)}); compress or download it again."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[str, Row]]:
    empty = True
    for number, line in enumerate(file, start=1):
        where = f"{path}, line {number}"
        text = _decoded(where, line, number)
        if text.strip():
            empty = False
            yield where, _object(where, text)
    if empty:
        raise DataError(f"{path}: the file has no rows; wanted one JSON object per line.")


def _array(path: Path, content: bytes) -> Iterator[Row]:
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}); the file begins with '[', "
            "wanted one array of objects, or one object per line."
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: JSON that Python cannot read ({error}).") from error
    for number, row in enumerate(rows, start=1):
        yield _mapping(f"{path}, row {number}", row)


def _decoded(where: str, line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8.") from error


def _object(where: str, text: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}); wanted one object per line."
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; a number with too many digits
        raise DataError(f"{where}: JSON that Python cannot read ({error}).") from error
    return _mapping(where, row)


def _mapping(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(f'{where}: {json_kind(row)}, wanted an object such as {{"prompt": "..."}}.')
    return row


def _parquet(path: Path) -> Iterator[Row]:
    try:
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    except ImportError as error:
        raise DataError(f"{path}: a Parquet file needs the package pyarrow; {_EXTRA}.") from error
    try:
        with parquet.ParquetFile(path) as file:
            for chunk in file.iter_batches(_CHUNK):
                yield from chunk.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({_one_line(error)}); download or write it again."
        ) from error


def _datasets(name: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"{name}: a data set of the Hugging Face hub, or a directory, needs the package datasets; {_EXTRA}, or "
            "give a JSON Lines file."
        ) from error


def _directory(path: Path, split: str) -> Iterator[Row]:
    if not any((path / name).is_file() for name in _SAVED):
        raise DataError(
            f"{path}: cannot be read (a directory without {' or '.join(_SAVED)}, which save_to_disk writes)."
        )
    datasets = _datasets(str(path))
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a saved data set ({_one_line(error)}).") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            raise DataError(f"{path}: no split {split!r}; the splits are {', '.join(map(str, loaded))}.")
        loaded = loaded[split]
    yield from _dataset_rows(loaded)


def _hub(name: str, split: str) -> Iterator[Row]:
    datasets = _datasets(name)
    try:
        loaded = datasets.load_dataset(*name.split(":"), split=split)
    except Exception as error:  # the hub's own, requests' and fsspec's, none with a common parent
        if configurations := _CONFIGURATIONS.search(str(error)):
            known = configurations[1].replace("'", "")
            raise DataError(
                f"{name}: a data set of several configurations, {known}; name one, as {name}:{known.split(', ')[0]}."
            ) from error
        raise DataError(
            f"{name}: neither a file here nor a data set that the Hugging Face hub gives with the split {split!r} "
            f"({_one_line(error)}); check the name and the connection, or give a file."
        ) from error
    yield from _dataset_rows(loaded)


def _dataset_rows(dataset: Any) -> Iterator[Row]:
    for chunk in dataset.with_format("arrow").iter(_CHUNK):
        yield from chunk.to_pylist()


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
