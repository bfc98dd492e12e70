"""How a run's directory is closed: after signals, errors, errors of the closing itself, and before it has begun."""

import os
import signal

import pytest

from rlax_llm.host.closing import closing
from rlax_llm.host.interrupts import Interrupted
from rlax_llm.host.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("hangups")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def run(tmp_path):
    made = RunDirectory.create(tmp_path / "run", {"command": "sft"})
    made.log_metrics(1, {})
    return made


def free(run):
    """Whether another may write there."""
    run = RunDirectory.reopen(run.path)
    run.hold()
    run.release()
    return True


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_files_are_written_lets_them_be_written(run, number):
    written = []

    def finish(failed):
        signal.raise_signal(number)
        written.append(failed)

    before = signal.getsignal(number)
    with closing(run, True, finish):
        pass
    assert written == [None] and run.stopped_by == number and free(run) and signal.getsignal(number) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_writing(run, number):
    def finish(failed):
        signal.raise_signal(number)
        pytest.fail("it goes on")

    with pytest.raises(Interrupted) as caught, closing(run, True, finish) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop()
    assert caught.value.number == number and free(run)


@pytest.mark.parametrize("error", [ValueError("no luck"), SystemExit(0)])
def test_an_error_has_everything_written_and_is_raised(run, error, capsys):
    written = []

    def finish(failed):
        written.append(failed)
        raise OSError("no room")

    with pytest.raises(type(error)), closing(run, True, finish):
        raise error
    assert written == [str(error)] and free(run)
    assert capsys.readouterr().err == "warning: no room\n"


def test_an_error_of_the_writing_is_raised(run):
    def finish(failed):
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), closing(run, True, finish):
        pass
    assert free(run)


@pytest.mark.parametrize("new", [True, False])
def test_what_fails_before_anything_was_measured_leaves_nothing_in_the_way(tmp_path, new):
    """A run that is gone on with stays as it was."""
    run, written = RunDirectory.create(tmp_path / "run", {"command": "sft"}), []
    with pytest.raises(ValueError), closing(run, new, written.append):
        raise ValueError("no luck")
    assert run.path.exists() != new and len(written) != new
    if not new:
        assert os.listdir(run.path) == ["config.yaml"]
