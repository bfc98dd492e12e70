"""How a command ends: its exit code and its line."""

import io
import os
import signal
import sys
import types

import pytest

from rlax_llm.cli import compilation_cache, leaving
from rlax_llm.cli.main import main
from rlax_llm.host import progress
from rlax_llm.host.failures import RunFailed
from rlax_llm.host.interrupts import Interrupted, interruptible


@pytest.fixture
def run(monkeypatch):
    """``run(f)`` has ``f`` in place of what the command sft does, and gives its exit code."""
    fake = types.ModuleType("rlax_llm.commands.sft.run")
    monkeypatch.setitem(sys.modules, "rlax_llm.commands.sft.run", fake)
    monkeypatch.setattr(compilation_cache, "turn_on", lambda: None)
    monkeypatch.delenv("RLAX_LLM_TRACEBACK", raising=False)

    def done(function):
        monkeypatch.setattr(fake, "run_sft", function, raising=False)
        return main(["sft"])

    return done


class Mute(ValueError):
    def __str__(self):
        raise RuntimeError


UNFORESEEN = (TypeError, AttributeError, IndexError, OverflowError, AssertionError, StopIteration, ZeroDivisionError)


@pytest.mark.parametrize(
    ("outcome", "code", "told"),
    [
        (types.SimpleNamespace(stopped_by=None), 0, ""),
        (types.SimpleNamespace(stopped_by=2), 130, ""),
        (types.SimpleNamespace(stopped_by=15), 143, ""),
        (types.SimpleNamespace(stopped_by=1), 129, ""),
        (None, 0, ""),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(15), 143, "interrupted"),
        (RunFailed("grpo: the loss of step 2 is not finite."), 1, "error: grpo: the loss of step 2 is not finite."),
        (SystemExit(0), 2, "error: sft: something called sys.exit(0)."),
        (KeyError("x"), 2, "error: unforeseen: KeyError: 'x' (RLAX_LLM_TRACEBACK=1 shows where)"),
        (MemoryError(), 2, "error: unforeseen: MemoryError (RLAX_LLM_TRACEBACK=1 shows where)"),
        (RecursionError("too deep"), 2, "error: unforeseen: RecursionError: too deep (RLAX_LLM_TRACEBACK=1"),
        (Mute(), 2, "error: Mute, which cannot be printed (Mute; "),
        (ValueError("x" * 5000), 2, f"error: {'x' * 600} … (5,000 characters) (ValueError; "),
        *((kind("odd"), 2, f"error: unforeseen: {kind.__name__}: odd (") for kind in UNFORESEEN),
    ],
)
def test_an_end_has_its_code_and_its_line(run, capsys, outcome, code, told):
    def end(config):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert run(end) == code
    shown = capsys.readouterr().err
    assert shown.startswith(told) and shown.count("\n") == bool(told)


def test_an_interrupt_that_a_callback_swallows_ends_the_program(run, monkeypatch):
    """As the garbage collector's callbacks do, of which JAX has one."""
    left = []
    monkeypatch.setattr(leaving, "_leave", left.append)

    class Rubbish:
        def __del__(self):
            raise KeyboardInterrupt

    def rubbish(config):
        Rubbish()

    def before(found):
        """No warning of pytest's."""

    monkeypatch.setattr(sys, "unraisablehook", before)
    assert run(rubbish) == 0
    assert left == [2] and sys.unraisablehook is before
    with leaving.leaving_at_once():
        signal.raise_signal(signal.SIGINT)
    assert left == [2, 2]


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_step_ends_at_once_unless_it_is_ignored(run, monkeypatch, number):
    """A model is being read; under nohup SIGHUP is ignored from the beginning."""
    left = []
    monkeypatch.setattr(leaving, "_leave", left.append)

    def reading(config):
        signal.raise_signal(number)

    assert run(reading) == 0 and left == [number]
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert run(reading) == 0 and left == [number]
        with interruptible(left.append) as stop:
            signal.raise_signal(number)
            assert not stop()
    finally:
        signal.signal(number, before)
    assert left == [number]


def test_closed_streams_are_written_to_nowhere(run, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert run(lambda config: print("unseen")) == 0
    assert sys.stdout.name == os.devnull


def test_what_an_encoding_lacks_is_its_escape(run, monkeypatch):
    shown, read = io.BytesIO(), io.BytesIO("é\n".encode())
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(read, "ascii"))
    assert run(lambda config: print("✗ \ud83d", input())) == 0
    assert shown.getvalue() == b"\\u2717 \\ud83d \\xc3\\xa9\n"


def test_a_table_for_a_reader_that_has_gone_ends_as_a_line_does(run, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(lambda config: progress.show("a table")) == 141
