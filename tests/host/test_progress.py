"""Progress: the lines of a pipe, the display of a terminal."""

import io
import re

import pytest

from rlax_llm.host.progress import SUPERVISED_COLUMNS, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(io.StringIO):
    """A terminal that was closed, or a full disk."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


def test_what_cannot_be_shown_ends_no_run():
    assert _run(3, 0.1, Gone(OSError(5, "Input/output error"))) == []
    with pytest.raises(BrokenPipeError):
        _run(3, 0.1, Gone(BrokenPipeError()))


def _run(steps, seconds, stream, metrics=lambda step: {"reward": 0.5}, **settings):
    now = [0.0]
    with Progress(steps, "grpo", stream=stream, clock=lambda: now[0], **settings) as progress:
        for step in range(settings.get("first_step", 0) + 1, steps + 1):
            now[0] += seconds
            progress.update(step, metrics(step))
    return stream.getvalue().splitlines()


def test_a_short_run_prints_every_step():
    lines = _run(3, 0.1, io.StringIO())
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


def test_a_long_run_prints_every_two_seconds_and_its_last_step():
    lines = _run(105, 0.25, io.StringIO())
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [*range(1, 105, 8), 105]


def test_a_long_run_that_is_cut_off_prints_where():
    stream = io.StringIO()
    with Progress(100, "grpo", stream=stream, clock=lambda: 0.0) as progress:
        for step in range(1, 5):
            progress.update(step, {})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/100", "4/100"]


def test_a_number_of_a_step_not_printed_is_on_the_next_line():
    lines = _run(30, 0.5, io.StringIO(), lambda step: {"held_out_accuracy": 0.25} if step == 3 else {})
    assert [line.split()[1] for line in lines if "held-out accuracy 0.250" in line] == ["5/30"]


def test_time_left_leaves_out_the_compilation():
    now = [0.0]
    stream = io.StringIO()
    with Progress(10, "sft", SUPERVISED_COLUMNS, stream=stream, clock=lambda: now[0]) as progress:
        for step, seconds in enumerate([100, 1, 1], start=1):
            now[0] += seconds
            progress.update(step, {"loss": 1.0})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sft 1/10  loss 1.0000  elapsed 1:40"
    assert lines[2] == "sft 3/10  loss 1.0000  elapsed 1:42  left 0:07"


def test_a_resumed_run_counts_from_where_it_was():
    lines = _run(12, 1.0, io.StringIO(), first_step=10)
    assert [line.split()[1] for line in lines] == ["11/12", "12/12"]


@pytest.mark.parametrize("value", [None, float("nan"), "text"])
def test_what_is_no_number_is_not_shown(value):
    assert "reward" not in _run(1, 1.0, io.StringIO(), lambda step: {"reward": value})[0]


def test_a_terminal_gets_a_live_display_with_notes_above_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress(4, "grpo", stream=stream) as progress:
        progress.note("a note [with brackets]")
        progress.update(4, {"reward": 0.75, "kl": 0.0123})
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "a note [with brackets]" in text
    assert re.search(r"grpo +4/4 .*elapsed 0:00", text.splitlines()[-2])
    assert text.splitlines()[-1].split("  ")[:2] == ["reward 0.750", "KL 0.0123"]


def test_no_color_and_a_dumb_terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    _run(2, 0.1, stream)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", stream.getvalue())
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    assert len(_run(2, 0.1, stream)) == 2
    assert "\x1b" not in stream.getvalue()
