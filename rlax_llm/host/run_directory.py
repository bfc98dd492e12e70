"""The directory of a run: its settings, what it measured, what it wrote, in files that survive a crash.

``config.yaml``, ``metrics.jsonl``, ``completions.jsonl``, ``rollouts.jsonl``, ``tokens.jsonl``, ``curves.png``,
``summary.json``, and the directories ``checkpoints/`` and ``model/``.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlax_llm.host.locks import Lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DETAILS = ("rollouts", "tokens")
"""Files of records of some steps, besides metrics and completions."""
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_SHOWN = 200  # characters of a name or of another's message


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], flag: str = "--out") -> Iterator[None]:
    """Turn the operating system's errors while ``path`` is written into one sentence that says what to do.

    Args:
        path: of a file or a directory.
        flag: that names it on the command line.

    Raises:
        OSError: of the same ``errno``, naming ``path``.

    >>> with writing("runs/a/metrics.jsonl"):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    OSError: no space left on the disk while writing runs/a/metrics.jsonl; what was written before is intact: free some
    space and go on with --resume.
    """
    try:
        yield
    except OSError as error:
        sentence = _sentence(error, path, flag)
        if sentence is None:
            raise
        failure = OSError(sentence)
        failure.errno = error.errno
        raise failure from error


class RunDirectory:
    """The files of one run; made with :meth:`create` or, to go on with a run, :meth:`reopen`.

    Attributes:
        path: of the directory.
        stopped_by: number of the signal that asked the run to end, or None.

    >>> import tempfile
    >>> run = RunDirectory.create(tempfile.mkdtemp() + "/run", {"command": "grpo", "seed": 0})
    >>> run.log_metrics(1, {"reward": 0.5, "kl": float("nan")})
    >>> run.metrics()
    [{'step': 1, 'reward': 0.5, 'kl': None}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.stopped_by: int | None = None
        self._lock = Lock(self.path / ".lock")

    @classmethod
    def create(cls, path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunDirectory:
        """Make the directory, with its parents, hold it, and write ``config.yaml``.

        A run that ended before its first step, and so left nothing but how it began, gives way to the new one.

        Raises:
            FileExistsError: there is a run in it already.
            NotADirectoryError: ``path`` is a file.
            RuntimeError: another process is writing it.
        """
        run = cls(path)
        with writing(run.config_path):
            if run.path.exists() and not run.path.is_dir():
                raise NotADirectoryError(f"{path} is a file; choose another --out.")
            run.path.mkdir(parents=True, exist_ok=True)
        run.hold()
        try:
            run.check_free()
        except FileExistsError:
            run.release()
            raise
        with writing(run.config_path):
            for left in run._written():
                left.unlink(missing_ok=True)
            text = yaml.safe_dump(plain(config, _as_it_is), sort_keys=False, allow_unicode=True)
            write_at_once(run.config_path, text)
        return run

    def check_free(self) -> None:
        """Raise where a new run would take the place of another.

        Raises:
            FileExistsError: there is a run in the directory, or what an evaluation has measured.
        """
        if self._has_steps():
            place = shlex.quote(str(self.path))
            raise FileExistsError(
                f"{self.path} already holds a run; choose another --out, or go on with it: --resume {place}"
            )
        if self._finished():
            raise FileExistsError(f"{self.path} already holds results (summary.json); choose another --out.")

    def _written(self) -> tuple[Path, ...]:
        """What a run writes before its first step ends, or at an end before it."""
        settings = (self.config_path, self.path / "config.json")
        results = (self.metrics_path, self.completions_path, self.curves_path, self.summary_path)
        return *settings, *results, self.tracking_path, *map(self.details_path, DETAILS)

    def _has_steps(self) -> bool:
        """Whether there is anything of a run but its beginning."""
        if not (self.config_path.exists() or self.metrics_path.exists()):
            return False
        if self.checkpoints_path.is_dir() and any(entry.name.isdecimal() for entry in self.checkpoints_path.iterdir()):
            return True
        # The beginning is measured at step 0; a warm start's steps have numbers below it. What is damaged is a run.
        try:
            return any(row["step"] != 0 for row in self.metrics())
        except ValueError:
            return True

    def _finished(self) -> bool:
        """Whether something without steps, such as an evaluation, has ended here and left its results."""
        if not self.summary_path.is_file():
            return False
        try:
            return json.loads(self.summary_path.read_text(encoding="utf-8")).get("finished") is True
        except (ValueError, AttributeError):
            return True  # what is damaged is someone's

    def hold(self) -> None:
        """Keep other processes from writing here, until :meth:`release` or the end of this one, however it ends.

        Raises:
            RuntimeError: another one is writing; it is named.
        """
        with writing(self.path):
            holder = self._lock.take()
        if holder is not None:
            raise RuntimeError(
                f"{self.path} is being written by {f'process {holder}' if holder else 'another process'}; wait for its "
                "end, or choose another --out."
            )

    def release(self) -> None:
        """Let other processes write here."""
        self._lock.release()

    def holder(self) -> str:
        """What the process that writes here has left as its sign; empty where none does."""
        lock = self.path / ".lock"
        return lock.read_text(encoding="utf-8") if lock.is_file() else ""

    def abandon(self) -> None:
        """Remove what a run that failed before it had begun has written, and the directory if nothing else is there."""
        for path in self._written():
            path.unlink(missing_ok=True)
        self.release()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """The run that is in ``path``; nothing is changed.

        Raises:
            FileNotFoundError: there is none.
        """
        run = cls(path)
        if not run.config_path.is_file():
            reason = "holds no run (no config.yaml in it)" if run.path.is_dir() else "is not a directory"
            inside = run.path.is_dir() and next(run.path.glob("*/config.yaml"), None)
            give = f"one of the runs in it, as {inside.parent}" if inside else "the directory that an earlier run wrote"
            raise FileNotFoundError(f"{path} {reason}; give {give}.")
        return run

    @property
    def config_path(self) -> Path:
        """The settings the run was made with."""
        return self.path / "config.yaml"

    @property
    def metrics_path(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def completions_path(self) -> Path:
        """One JSON object a sampled completion."""
        return self.path / "completions.jsonl"

    def details_path(self, name: str) -> Path:
        """Records of some steps, one JSON object a line.

        Args:
            name: one of ``DETAILS``.
        """
        return self.path / f"{name}.jsonl"

    @property
    def curves_path(self) -> Path:
        """The figure of the metrics."""
        return self.path / "curves.png"

    @property
    def summary_path(self) -> Path:
        """What came out in the end."""
        return self.path / "summary.json"

    @property
    def tracking_path(self) -> Path:
        """Which run of each tracker is this one."""
        return self.path / "tracking.json"

    @property
    def model_path(self) -> Path:
        """Where the trained model goes, as a Hugging Face directory."""
        return self.path / "model"

    @property
    def checkpoints_path(self) -> Path:
        """Where the states to resume from go."""
        return self.path / "checkpoints"

    def config(self) -> dict[str, Any]:
        """The settings in ``config.yaml``.

        Raises:
            ValueError: it is damaged.
        """
        return _mapping(self.config_path, yaml.safe_load)

    def summary(self) -> dict[str, Any]:
        """What came out in the end; empty where the end was not reached.

        Raises:
            ValueError: ``summary.json`` is damaged.
        """
        return _mapping(self.summary_path, json.loads) if self.summary_path.is_file() else {}

    def log_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``: numbers, arrays of one, lists, text; NaN and infinity become null.

        Raises:
            OSError: the disk is full; the lines before are intact.
        """
        _append(self.metrics_path, [{"step": int(step), **metrics}])

    def log_completions(self, completions: Sequence[Mapping[str, Any]]) -> None:
        """Append records, each with the ``step`` it was sampled at, to ``completions.jsonl``.

        Raises:
            ValueError: a record has no ``step``.
            OSError: the disk is full; the lines before are intact.
        """
        if any("step" not in record for record in completions):
            raise ValueError("log_completions: a record has no 'step'; give each the step it was sampled at.")
        _append(self.completions_path, completions)

    def log_details(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records, each with its ``step``.

        Args:
            name: of their file, one of ``DETAILS``.
            records: to be kept.

        Raises:
            OSError: the disk is full.
        """
        _append(self.details_path(name), records)

    def details(self, name: str) -> list[dict[str, Any]]:
        """All rows of a file of ``DETAILS``, read like :meth:`metrics`."""
        return [row for _, row in _lines(self.details_path(name))]

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of ``metrics.jsonl``; a last line that a crash left half written is passed over."""
        return [row for _, row in _lines(self.metrics_path)]

    def completions(self, most: int | None = None) -> list[dict[str, Any]]:
        """Rows of ``completions.jsonl``, read like :meth:`metrics`.

        Args:
            most: bytes from the end of the file that are read; None reads all.
        """
        return [row for _, row in _lines(self.completions_path, most)]

    def truncate_to(self, step: int, completions_step: int | None = None) -> None:
        """Drop the metrics and completions of later steps, so that a resumed run writes what an unbroken one would.

        Args:
            step: the last to keep.
            completions_step: the last to keep completions of, if not that.
        """
        last = step if completions_step is None else completions_step
        details = [(self.details_path(name), last) for name in DETAILS]
        for path, most in ((self.metrics_path, step), (self.completions_path, last), *details):
            if path.exists():
                kept = b"".join(line for line, row in _lines(path) if row["step"] <= most)
                if kept != path.read_bytes():
                    with writing(path):
                        write_at_once(path, kept.decode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all.

        Raises:
            OSError: the disk is full; an earlier summary is intact.
        """
        with writing(self.summary_path):
            write_at_once(self.summary_path, json.dumps(plain(summary), indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file of text, whole or not at all.

        Args:
            name: of the file.
            text: that it holds.

        Raises:
            OSError: the disk is full.
        """
        with writing(self.path / name):
            write_at_once(self.path / name, text)


@contextlib.contextmanager
def understanding(path: Path) -> Iterator[None]:
    """Turn errors on the records of a file, where they are not as they should be, into one sentence.

    Args:
        path: of the file.

    Raises:
        ValueError: naming it.

    >>> with understanding(Path("runs/a/rollouts.jsonl")):
    ...     {}["rewards"]
    Traceback (most recent call last):
    ValueError: runs/a/rollouts.jsonl holds records of another form than this version writes (KeyError: 'rewards'); move
    it away to do without it.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"{path} holds records of another form than this version writes ({type(error).__name__}: "
            f"{_first_line(error)}); move it away to do without it."
        ) from error


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file that holds values by name."""
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); mend or delete it.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no values by name, so it is not what a run wrote; mend or delete it.")
    return found


def _sentence(error: OSError, path: str | os.PathLike[str], flag: str) -> str | None:
    if error.errno in DISK_FULL:
        further = "and go on with --resume" if flag == "--out" else f"or choose another {flag}"
        return (
            f"no space left on the disk while writing {path}; what was written before is intact: free some space "
            f"{further}."
        )
    if error.errno in _REFUSED:
        return f"no permission to write {path}; choose another {flag}."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"cannot write {path}: a part of that path is a file; choose another {flag}."
    if error.errno is not None and error.strerror:
        return f"cannot write {str(path)[:_SHOWN]}: {error.strerror.lower()}; choose another {flag}."
    return None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).split("\n")), "")[:_SHOWN] or type(error).__name__


def _append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    # Half of a surrogate pair has no UTF-8; as JSON's escape it is only characters.
    data = text.encode("utf-8", "backslashreplace")
    with writing(path), open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            _write_all(file, data)
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def write_at_once(path: Path, text: str) -> None:
    """Write beside ``path`` and rename, so that a crash leaves the old file or the new one and never a half.

    A device or a pipe (``/dev/null``, ``/dev/stdout``) takes the text as it comes: nothing may take its place. Through
    a link the file that it leads to is written.

    Args:
        path: of the file.
        text: all of it.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb", buffering=0) as device:
            _write_all(device, text.encode())
        return
    target = path.resolve()
    beside = target.with_name(target.name + ".part")
    try:
        with open(beside, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Unbuffered, so that a full disk shows here and not at the closing; such a write may be a short one."""
    while data:
        data = data[file.write(data) :]


def _lines(path: Path, most: int | None = None) -> list[tuple[bytes, dict[str, Any]]]:
    """Whole lines and what they hold; of the last ``most`` bytes, where that is not None."""
    if not path.exists():
        return []
    content = path.read_bytes() if most is None else _end(path, most)
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            # NaN and Infinity, which other programs write, are what null is here.
            row = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({_first_line(error)}); mend or delete that line."
            ) from error
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"{path}, line {number} has no whole number 'step'; mend or delete that line.")
        rows.append((line, row))
    return rows


def _end(path: Path, most: int) -> bytes:
    """The lines that lie whole in the last ``most`` bytes of a file."""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - most - 1, 0))
        if file.tell():
            file.readline()  # what is left of a line, or the end of one
        return file.read()


def _null(value: float) -> None:
    """JSON has no infinity and no NaN."""
    del value


def _as_it_is(value: float) -> float:
    """YAML has both."""
    return value


def plain(value: Any, not_finite: Callable[[float], float | None] = _null) -> Any:
    """The value with only what JSON has; ``.tolist()`` is what numpy's and JAX's arrays share."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, not_finite) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, not_finite) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), not_finite)
    if isinstance(value, float) and not math.isfinite(value):
        return not_finite(value)
    return value
