"""The call of a tool in; whether the person at the terminal lets it run, out.

Contract: the terminal is /dev/tty, so that every standard stream may be a pipe, and its modes stay as they are. Only
what is typed after the question counts, and only y or yes lets the tool run. A signal ends the question with the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
from typing import TYPE_CHECKING

from streamcli.errors import OutputError, UsageError, reason
from streamcli.output.terminal import Visible

from . import io

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

_TERMINAL = "/dev/tty"
_YES = frozenset({b"y", b"yes"})


def asker(diagnostics: io.Diagnostics, stack: ExitStack) -> Callable[[str, bytes], bool]:
    """A function that asks whether the tool of that name may run with that input, JSON in UTF-8.

    Raises UsageError where there is no terminal. `stack` closes it.
    """
    try:
        terminal = io.Descriptor(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC), _TERMINAL)
    except OSError as fault:
        raise UsageError(f"--confirm needs a terminal, but {_TERMINAL} cannot be opened: {reason(fault)}") from None
    stack.callback(terminal.failed)

    def may_run(name: str, given: bytes) -> bool:
        visible = Visible()
        shown = visible.feed(f"streamcli: run {name}({given.decode().strip()})? [y/N] ") + visible.close()
        with diagnostics.live:
            return _answer(terminal, diagnostics.without_secrets(shown.encode())).strip().lower() in _YES

    return may_run


def _answer(terminal: io.Descriptor, question: bytes) -> bytes:
    """The line that is typed, without its end if that was Ctrl-D; b"" also where the terminal is gone."""

    def say(text: bytes) -> None:
        with contextlib.suppress(OutputError):
            terminal.write(text)

    with contextlib.suppress(termios.error):  # what was typed before was no answer
        termios.tcflush(terminal.fd, termios.TCIFLUSH)
    # After Ctrl-Z the shell has written below it.
    before = signal.signal(signal.SIGCONT, lambda *_: say(question))
    answer = b""
    try:
        say(question)
        with contextlib.suppress(OSError):
            answer = io.read(terminal.fd)
    finally:
        signal.signal(signal.SIGCONT, before)
    if not answer.endswith(b"\n"):
        say(b"\n")
    return answer
