"""The signals that end a run, and how to hold them back while something must not be left half done.

Contract: Python runs a signal's handler between any two steps of the main thread, and ours raise an exception there.
Inside `signals_held` none does: what is made there is also noted there. Threads that know nothing of this would take
the signals instead, so they are started inside `signals_held` too, and inherit that.
"""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# With SIGALRM, whose handler ends the process a moment after one of them.
_HELD = (*ENDING, signal.SIGALRM)


@contextlib.contextmanager
def signals_held() -> Iterator[set[signal.Signals]]:
    """Have the signals wait until this is left, where their handlers run and may raise.

    Nothing that may block belongs inside. Gives the signals that were held before, which is what a program that is
    started inside has to be given as its own mask.
    """
    before = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)  # runs the handlers of what came until now, so it may raise
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
