"""A process in, an exit status out: signals, standard streams and the last word on stderr.

Contract: the status is the one the manual names, death by a signal included; there is never a traceback. Only what
--help and --version need is imported here, everything else once there is something to do.
Source: streamcli(1), section "EXIT STATUS".
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from streamcli.errors import OutputError, StreamcliError, UsageError
from streamcli.turns.signals import ENDING

from . import args as arguments
from . import io

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

# The first signal ends the run, a second one ends it at once. How many seconds a run then has for what there is left to
# write, above all the last line of --events, whether anybody reads it or not.
_LAST_WORDS = 0.25
# Seconds between two alarms while the run lasts.
_TICK = 0.5


def main() -> NoReturn:
    """The command: never returns."""
    # Arguments, file names and variables are UTF-8, whatever the locale says.
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored from outside, it loses how our programs ended
    # Until there is something to finish, a signal may simply end the process, without Python's traceback.
    _on_ending(signal.SIG_DFL)
    are_open = io.standard_streams()
    leave(_command(sys.argv[1:], are_open))


def _command(argv: list[str], are_open: Sequence[bool]) -> int:
    try:
        asked = arguments.parse(argv)
    except UsageError as error:
        io.Diagnostics(as_json=_wants_json(argv)).fault(error)
        return error.exit_code
    except OSError:  # --help into a full device
        return _unwritten()
    except SystemExit:  # click's answer to a reader that closed the pipe
        die(signal.SIGPIPE)
    if isinstance(asked, int):
        return asked if are_open[io.STDOUT] else _unwritten()
    return _run(asked, are_open, io.Diagnostics(quiet=asked.quiet, as_json=asked.error_format == "json"))


def _run(asked: arguments.Args, are_open: Sequence[bool], diagnostics: io.Diagnostics) -> int:
    from . import resolve  # noqa: PLC0415 - a tenth of what the next line takes

    resolve.begin(asked)
    from .run import run  # noqa: PLC0415 - all that finds out what is wrong

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        # What came together with the signal would count as a second one, or as the alarm.
        _on_ending(lambda *_: None)
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, _LAST_WORDS, _LAST_WORDS)
        signal.raise_signal(signal.SIGALRM)  # has Python call these for all that came
        _on_ending(signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda *_: die(number))
        raise io.Signalled(number)

    _on_ending(end)
    # Python may note a signal just before a read blocks, and then not run its handler until the read returns. The alarm
    # interrupts the read. It also draws what shows the progress.
    signal.signal(signal.SIGALRM, lambda *_: diagnostics.tick())
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        try:
            return run(asked, are_open, diagnostics)
        finally:
            _on_ending(signal.SIG_DFL)  # nothing is left to finish
            signal.setitimer(signal.ITIMER_REAL, 0)
    except StreamcliError as error:
        diagnostics.fault(error)
        return error.exit_code
    except io.Signalled as ending:
        die(ending.number)
    except Exception as fault:
        diagnostics.fault(StreamcliError(f"internal error: {type(fault).__name__}: {fault}; please report it"))
        return StreamcliError.exit_code


def _on_ending(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Set what the ending signals do, except for those that our caller made us ignore, as nohup does."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, action)


def die(number: int) -> NoReturn:
    """End by the signal itself, so that shells and make see what happened."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    leave(128 + number)


def leave(status: int) -> NoReturn:
    """End at once: everything is written, and shutting the interpreter down would take a tenth of a run."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            status = status or 10
    os._exit(status)


def _unwritten() -> int:
    io.Diagnostics().error("cannot write to standard output")
    return OutputError.exit_code


def _wants_json(argv: list[str]) -> bool:
    """Whether errors are to be JSON, as far as that can be seen in arguments that could not be parsed."""
    asked = os.environ.get("STREAMCLI_ERROR_FORMAT")
    for word, following in itertools.pairwise([*argv, ""]):
        if word == "--error-format":
            asked = following
        elif word.startswith("--error-format="):
            asked = word.partition("=")[2]
    return asked == "json"
