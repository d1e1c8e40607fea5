"""streamcli.turns.signals: real signals, at a thousand moments, wait for the end and are not lost."""

import contextlib
import signal
import subprocess
import sys
import threading

import pytest

from streamcli.turns.signals import ENDING, signals_held


class Ended(BaseException):
    """What the handlers here raise."""


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """The ending signals that were heard, each of which raises."""
    numbers = []

    def end(number, _frame):
        numbers.append(number)
        raise Ended

    before = {number: signal.signal(number, end) for number in ENDING}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def raise_held(number, heard):
    with signals_held():
        signal.raise_signal(number)
        assert heard == []


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_for_the_end_and_raises_there(heard, number):
    with pytest.raises(Ended):
        raise_held(number, heard)
    assert heard == [number]


def test_a_signal_is_not_lost_where_something_else_goes_wrong_too(heard):
    with pytest.raises(Ended) as caught:
        raise_held(signal.SIGTERM, heard=None)
    assert isinstance(caught.value.__context__, AssertionError)
    assert heard == [signal.SIGTERM]


def test_what_was_held_before_stays_held_and_is_told(heard):
    with contextlib.suppress(Ended), signals_held():
        with signals_held() as before:
            pass
        assert set(ENDING) < before
        raise_held(signal.SIGINT, heard)
        assert heard == []
    assert heard == [signal.SIGINT]


def test_a_thread_that_is_started_inside_takes_no_signal_later_either(heard):
    masks = []
    thread = threading.Thread(target=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    with signals_held():
        thread.start()
    thread.join()
    assert masks == [{*ENDING, signal.SIGALRM}]


def test_at_whatever_moment_a_signal_comes_it_is_held_inside_and_not_outside():
    """In a process of its own, because here the alarm is taken."""
    script = """
import signal
from streamcli.turns.signals import signals_held

heard = 0

def end(number, frame):
    global heard
    heard += 1
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, end)
for step in range(1, 1001):
    inside = False
    try:
        signal.setitimer(signal.ITIMER_REAL, step * 1e-6)
        while True:
            with signals_held():
                inside = True
                list(range(10))
                inside = False
    except KeyboardInterrupt:
        assert not inside
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
assert heard == 1000
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
