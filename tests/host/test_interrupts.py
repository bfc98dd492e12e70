"""Interrupts: the first signal asks, the second raises, and what was there before comes back."""

import signal
import threading

import pytest

from rlax_llm.host.interrupts import interruptible

pytestmark = pytest.mark.usefixtures("hangups")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_the_second_raises(number):
    told = []
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt), interruptible(told.append) as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop() and stop.number == number
        assert told == ["Interrupted: finishing this step; press Ctrl-C again to stop at once."]
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_by_default_the_user_is_told_on_stderr(capsys):
    with interruptible():
        signal.raise_signal(signal.SIGINT)
    assert "press Ctrl-C again" in capsys.readouterr().err


def test_another_thread_runs_uninterruptible():
    seen = []

    def work():
        with interruptible() as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
