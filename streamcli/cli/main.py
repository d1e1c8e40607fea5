"""A process in, an exit status out: signals, descriptors and the last word on stderr.

Contract: the status tells how it went, death by signal included; no traceback leaves. What --help and --version need
is imported here, everything else when it is known that there is something to do.
Source: streamcli(1), section "EXIT STATUS".
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click
from click.core import ParameterSource

from streamcli.errors import OutputError, StreamcliError, UsageError
from streamcli.turns.signals import ENDING

from . import args as arguments
from . import io

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# The first signal ends the run, another one ends it at once. In between, so many seconds are left for what there is to
# say, the last line of --events above all, read or not.
_LAST_WORDS = 0.05
_TICK = 0.5


def main() -> NoReturn:
    """The command: never returns."""
    # Words, file names and variables are UTF-8, whatever the locale says.
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored from outside, it loses how our programs ended
    # Until there is something to finish, a signal may simply end the process, without Python's traceback.
    _on_ending(signal.SIG_DFL)
    streams = io.StandardStreams()
    leave(_command(sys.argv[1:], streams))


def _command(argv: list[str], streams: io.StandardStreams) -> int:
    try:
        asked = arguments.parse(argv)
    except click.ClickException as fault:
        io.Diagnostics(as_json=_wants_json(argv)).fault(UsageError(_plain(fault)))
        return UsageError.exit_code
    except OSError:  # --help into a full device
        return _unwritten()
    except SystemExit:  # what click makes of a reader that is gone
        die(signal.SIGPIPE)
    if isinstance(asked, int):
        return asked if streams.open[io.STDOUT] else _unwritten()
    return _run(asked, streams, io.Diagnostics(quiet=asked.quiet, as_json=asked.error_format == "json"))


def _run(asked: arguments.Args, streams: io.StandardStreams, diagnostics: io.Diagnostics) -> int:
    from .run import run  # noqa: PLC0415 - httpx and all that stands on it

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        _on_ending(signal.SIG_DFL)
        signal.signal(signal.SIGALRM, lambda *_: die(number))
        signal.setitimer(signal.ITIMER_REAL, _LAST_WORDS)
        raise io.Signalled(number)

    _on_ending(end)
    # A signal that comes just before a read blocks is noted but not acted on until the read returns; this ends it.
    signal.signal(signal.SIGALRM, lambda *_: diagnostics.tick())
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        try:
            return run(asked, streams, diagnostics)
        finally:
            _on_ending(signal.SIG_DFL)  # nothing is left to finish
            signal.setitimer(signal.ITIMER_REAL, 0)
    except StreamcliError as error:
        diagnostics.fault(error)
        return error.exit_code
    except io.Signalled as ending:
        die(ending.number)
    except io.ReaderClosedPipe:
        die(signal.SIGPIPE)
    except Exception as fault:
        diagnostics.fault(StreamcliError(f"internal error: {type(fault).__name__}: {fault}; please report it"))
        return StreamcliError.exit_code


def _on_ending(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """What the signals that end a run do, but for those that the caller ignores, as nohup does."""
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
    """End at once: everything is written, and taking the interpreter apart costs a tenth of a run."""
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
    """Whether errors are to be said as JSON, as far as words tell that could not be understood."""
    said: list[str] = re.findall(r"^--error-format[=\n](.*)$", "\n".join(argv), re.MULTILINE)
    return (said[-1] if said else os.environ.get("STREAMCLI_ERROR_FORMAT")) == "json"


def _plain(fault: click.ClickException) -> str:
    message = fault.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    if isinstance(fault, click.NoSuchOption):
        message += "; words that begin with a dash go after --"
    elif isinstance(fault, click.BadParameter) and fault.ctx and fault.param and fault.param.name:
        name = fault.param.name
        if fault.ctx.get_parameter_source(name) is ParameterSource.ENVIRONMENT:
            return f"in STREAMCLI_{name.upper()}: {message}"
    return message
