"""A process in, an exit status out: signals, descriptors and the last word on stderr.

Contract: the status is the one of design.md section 2, death by signal included; no traceback leaves. What --help and
--version need is imported here, everything else when it is known that there is something to do.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from . import args as arguments
from . import io

if TYPE_CHECKING:
    from types import FrameType

# Each ends the run when it comes first; when it comes again, at once.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> NoReturn:
    """The command: never returns."""
    # Until there is something to finish, a signal may simply end the process, without Python's traceback.
    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    world = io.World()
    leave(_command(sys.argv[1:], world))


def _command(argv: list[str], world: io.World) -> int:
    try:
        asked = arguments.parse(argv)
    except click.ClickException as fault:
        io.Voice().error(_plain(fault))
        return 2
    except OSError:  # --help into a closed or full descriptor
        io.Voice().error("cannot write to standard output")
        return 10
    if isinstance(asked, int):
        return asked
    return _run(asked, world, io.Voice(quiet=asked.quiet, as_json=asked.error_format == "json"))


def _run(asked: arguments.Args, world: io.World, voice: io.Voice) -> int:
    from streamcli.errors import StreamcliError  # noqa: PLC0415

    from .run import Signalled, run  # noqa: PLC0415 - httpx and all that stands on it

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Signalled(number)

    for number in _ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        return run(asked, world, voice)
    except StreamcliError as error:
        voice.fault(error)
        return error.exit_code
    except Signalled as ending:
        die(ending.number)
    except io.ReaderGone:
        die(signal.SIGPIPE)
    except Exception as fault:
        voice.error(f"internal error: {type(fault).__name__}: {fault}; please report it")
        return 1


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


def _plain(fault: click.ClickException) -> str:
    message = fault.format_message().rstrip(".")
    hint = "; words that begin with a dash go after --" if isinstance(fault, click.NoSuchOption) else ""
    return message[:1].lower() + message[1:] + hint
