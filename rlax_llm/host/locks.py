"""Locks that end with their process, however it ends: the kernel keeps them with an open file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]  # not on Windows


def locked(descriptor: int) -> bool:
    """Whether an open file or directory is locked now, by this descriptor; where there are no locks, it counts as such.

    Args:
        descriptor: of an open file; the lock ends when it is closed, at the latest with the process.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


class Lock:
    """A file that exists while it is locked, and says by which process.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lock"
    >>> first, second = Lock(path), Lock(path)
    >>> first.take() is None, second.take() == os.getpid()
    (True, True)
    >>> first.release()
    >>> second.take() is None, second.release(), path.exists()
    (True, None, False)
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None

    def take(self) -> int | None:
        """Take it, or say which process has it (0 where it has not said so yet)."""
        while True:
            file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (held as long as the lock)
            if not locked(file.fileno()):
                file.seek(0)
                holder = file.read(20).strip()
                file.close()
                return int(holder) if holder.isdigit() else 0
            if self._is_there(file):
                break
            file.close()  # its holder removed it in between: another process may have made a new one
        with contextlib.suppress(OSError):  # a full disk: it is locked all the same
            file.truncate(0)
            file.write(str(os.getpid()).encode())
        self._file = file
        return None

    def _is_there(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove and unlock it; nothing where it is not ours."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
            self._file.close()
            self._file = None
