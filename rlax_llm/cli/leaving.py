"""How a command ends: exit codes, one line for what went wrong, and Ctrl-C at any time."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from rlax_llm.host.failures import RunFailed, sentence
from rlax_llm.host.interrupts import handling

TRACEBACK_VARIABLE = "RLAX_LLM_TRACEBACK"
_TOLD = (ValueError, OSError, RuntimeError, ImportError)
_PIPE_CLOSED = 141


def guarded(action: Callable[[], int]) -> int:
    """Do it, and turn what goes wrong into one line and an exit code.

    Args:
        action: gives its own exit code.

    Returns:
        0; 1 where the training failed; 2 for a mistake; 128 and the number of the signal that ended it (130 after
        Ctrl-C); 141 where the reader of a pipe has gone.
    """
    _open_streams()
    try:
        with _no_interrupt_is_lost():
            code = action()
            # Here and not at exit, where a reader that has gone could no longer be caught.
            _flush(code)
            return code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt as interrupt:
        _complain("interrupted")
        return 128 + getattr(interrupt, "number", signal.SIGINT)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone: nothing is wrong.
        _write_to_nowhere()
        return _PIPE_CLOSED
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        _complain(f"error: {_one_line(error)}")
        return 1 if isinstance(error, RunFailed) else 2


def _open_streams() -> None:
    """Give each stream a place, and let each take any text.

    Where a stream was closed (``>&-``), write to nowhere: else the next file that is opened would take its place. A
    character that an encoding lacks (ASCII's of a bare server, half a surrogate pair) is written as its escape, and so
    is a byte that it cannot read.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush(code: int) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _write_to_nowhere()
        if not code:
            raise  # what was asked for was not written


def _write_to_nowhere() -> None:
    """Python flushes once more at exit, and it must not fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that was closed
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Leave on a Ctrl-C that came in a callback (of the garbage collector, say), from which no exception gets out."""
    earlier = sys.unraisablehook

    def hook(found: Any) -> None:
        if isinstance(found.exc_value, KeyboardInterrupt):
            _leave(getattr(found.exc_value, "number", signal.SIGINT))
        earlier(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = earlier


@contextlib.contextmanager
def leaving_at_once(*numbers: signal.Signals) -> Iterator[None]:
    """Leave on a signal without an exception, for where nothing is being written.

    An import of JAX may swallow an exception, and its own handler of SIGTERM prints the addresses of functions.

    Args:
        numbers: of the signals; none is Ctrl-C's.
    """
    with handling(numbers or (signal.SIGINT,), _on_signal):
        yield


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    _leave(number)


def _leave(number: int) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _one_line(error: Exception) -> str:
    where = f"{TRACEBACK_VARIABLE}=1 shows where"
    if not isinstance(error, _TOLD) or isinstance(error, RecursionError):
        kind, text = type(error).__name__, sentence(error)
        return f"unforeseen: {kind if text == kind else f'{kind}: {text}'} ({where})"
    if isinstance(error, OSError) and error.strerror and error.filename and not isinstance(error.filename, int):
        text = f"{error.strerror}: {error.filename}"
    else:
        text = sentence(error)
    frames = list(traceback.walk_tb(error.__traceback__))
    # Our own errors say what to do. Others were not foreseen: where they come from is half of what they say.
    ours = bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith("rlax_llm")
    return text if ours else f"{text} ({type(error).__name__}; {where})"
