"""Directories written whole or not at all, and JSON read with errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def existing_directory(directory: str | Path) -> Path:
    """The path of a directory that exists.

    Raises:
        FileNotFoundError: it does not.
    """
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"{directory} is not a directory, wanted a Hugging Face model; check the path.")
    return Path(directory)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object.
    """
    if not path.is_file():
        inner = path.parent / "model"  # where a run writes it
        do = f"give {inner}" if (inner / path.name).is_file() else "download or export the model again"
        raise FileNotFoundError(f"{path.parent} has no {path.name}; {do}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download or export the model again.") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a JSON object but a {type(raw).__name__}; download or export the model again.")
    return raw


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write an object as indented JSON."""
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def replace_directory(directory: Path, needed_bytes: int, owned: Callable[[str], bool]) -> Iterator[Path]:
    """A new directory to write in, which takes the place of ``directory`` when the block ends without an error.

    Until then ``directory`` is untouched; after an error, or an interrupt, it still is, and nothing is left behind. A
    process that is killed leaves its ``.name-….partial`` next to it, which the next one to write ``directory`` sweeps;
    killed in the instant between the two renames of a replacement, also the old directory, whole, as ``.name-….old``,
    which is swept once there is a new one.

    Args:
        directory: what to create or replace; its parents are created.
        needed_bytes: what will be written, bytes; checked against the free space first.
        owned: whether a file name of an existing ``directory`` may be replaced with it.

    Raises:
        FileExistsError: ``directory`` is a file, or holds something that is not ``owned``.
        OSError: the disk is full, or not writable.
    """
    target = directory.resolve()
    _check_owned(target, owned)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise _disk_full(target, f"{free:,} bytes are free, {needed_bytes:,} are needed")
    with stage_directory(target) as staging:
        try:
            yield staging
            _finish(staging)
            _move(staging, target)
        except Exception as error:
            if _is_full(error):
                raise _disk_full(target, "it filled up while writing") from error
            raise


@contextmanager
def stage_directory(target: Path) -> Iterator[Path]:
    """A new directory next to ``target``, which goes when the block ends unless it was renamed.

    It is locked for the block, and the lock ends with the process. So a directory without a lock was left by a
    process that was killed, and is removed first; one that another process is still writing stays.

    Args:
        target: whose name it bears, as ``.name-….partial``; its parent exists.

    Raises:
        OSError: the disk is full, or not writable.
    """
    for left in sorted(target.parent.glob(f".{glob.escape(target.name)}-*.partial")):
        _sweep(left)
    staging, lock = _locked(target)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _locked(target: Path) -> tuple[Path, int]:
    while True:
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".partial"))
        lock = os.open(staging, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: then nobody sweeps either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if staging.is_dir():  # another process may have swept it before it was locked
            return staging, lock
        os.close(lock)


def _sweep(left: Path) -> None:
    with contextlib.suppress(OSError):  # it is being written, is gone, or is another user's
        lock = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
        finally:
            os.close(lock)


def _check_owned(target: Path, owned: Callable[[str], bool]) -> None:
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file, wanted a directory; remove it or choose another path.")
    foreign = sorted(file.name for file in target.iterdir() if not owned(file.name)) if target.exists() else []
    if foreign:
        raise FileExistsError(
            f"{target} holds {foreign[0]}, which is no part of a model and would be lost; "
            "choose a new or an empty directory."
        )


def _finish(staging: Path) -> None:
    """Put the bytes on the disk before the name points at them, with the permissions of any other new file."""
    umask = os.umask(0)
    os.umask(umask)
    # mkdtemp and safetensors make theirs private to the user.
    staging.chmod(0o777 & ~umask)
    for file in staging.iterdir():
        file.chmod(0o666 & ~umask)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _move(staging: Path, target: Path) -> None:
    if target.exists():
        _replace(staging, target)
    else:
        staging.rename(target)
    for old in target.parent.glob(f".{glob.escape(target.name)}-*.old"):
        shutil.rmtree(old, ignore_errors=True)


def _replace(staging: Path, target: Path) -> None:
    # Two renames, because a directory that is not empty cannot be renamed over; the old one is put back on failure.
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".old"))
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise


def _is_full(error: BaseException) -> bool:
    # safetensors reports a full disk as an error of its own, with the system's number in the text.
    return getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC})" in str(error)


def _disk_full(target: Path, what: str) -> OSError:
    return OSError(
        errno.ENOSPC, f"No room on the disk for {target}: {what}; nothing was changed there; free some space."
    )
