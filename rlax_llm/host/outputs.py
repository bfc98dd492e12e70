"""Whether what a command is to write could be written: asked before anything is computed for it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rlax_llm.host.run_directory import RunDirectory, writing

_PREFIX = ".rlax-llm-"


def check_directory(path: str | os.PathLike[str], flag: str = "--out") -> None:
    """Raise where a directory cannot be written, or not be made; nothing is left there.

    Args:
        path: of the directory.
        flag: that names it.

    Raises:
        OSError: the path, or a part of it, is a file, cannot be written, or has no room; naming the flag.

    >>> check_directory("/dev/null/runs")
    Traceback (most recent call last):
    OSError: cannot write /dev/null/runs: a part of that path is a file; choose another --out.
    """
    place = Path(path)
    with writing(path, flag):
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(f"{path} is a file; choose another {flag}.")
        there = next(one for one in (place, *place.absolute().parents) if one.exists())
        os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=there))


def check_new_run(path: str | os.PathLike[str]) -> None:
    """Raise where a new run's directory cannot be made, or is one that holds a run or results.

    Args:
        path: of the directory.

    Raises:
        OSError: as ``check_directory``.
        FileExistsError: as ``RunDirectory.create``.
    """
    check_directory(path)
    if Path(path).is_dir():
        RunDirectory(path).check_free()


def check_file(path: str | os.PathLike[str], flag: str = "--out") -> None:
    """Raise where a file cannot be written; what stands there stays, and nothing is left beside it.

    Args:
        path: of the file; through a link it is the one that the link leads to. A device is written as it is.
        flag: that names it.

    Raises:
        OSError: it is a directory, its directory is not there, or cannot be written; naming the flag.

    >>> check_file("/dev", "--write-teacher")
    Traceback (most recent call last):
    IsADirectoryError: /dev is a directory, wanted a file; choose another --write-teacher.
    """
    with writing(path, flag):
        if Path(path).is_dir():
            raise IsADirectoryError(f"{path} is a directory, wanted a file; choose another {flag}.")
        place = Path(path).resolve()
        if place.exists() and not place.is_file():
            with place.open("ab"):
                return
        if not place.parent.exists():
            raise FileNotFoundError(f"{flag} is {path}, and its directory is not there; make it, or choose another.")
        file, beside = tempfile.mkstemp(prefix=_PREFIX, dir=place.parent)
        os.close(file)
        os.unlink(beside)
