"""Events of an answer in, one line on a terminal out that shows how it goes and is gone in the end.

Contract: the line is drawn over itself a few times a second, erased before anything else is said, and never drawn
where answers are written to the same terminal. Nothing is drawn where stderr is no terminal.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from . import io

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamcli.protocol.exchange import Received

_INTERVAL = 0.1
_ERASE = b"\r\x1b[K"


class Line:
    """A line on stderr that is drawn over itself; as a context it is out of the way of what is written meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = 0.0
        self._shown = False
        self._hidden = False
        self._closed = False

    def draw(self, text: Callable[[], str]) -> None:
        """Show `text`, at most as wide as the terminal, unless the last one is too fresh."""
        now = self._clock()
        if self._closed or self._hidden or now < self._due:
            return
        self._due = now + _INTERVAL
        self._shown = True
        _write(_ERASE + text().encode()[: _width() - 1])

    def __enter__(self) -> None:
        self._hidden = True  # first: a signal's handler may want to draw at any moment
        self._erase()

    def __exit__(self, *exc_info: object) -> None:
        self._hidden = False

    def close(self) -> None:
        """Leave the terminal as if nothing had been drawn, and draw nothing more."""
        self._closed = True
        self._erase()

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            _write(_ERASE)


def _width() -> int:
    try:
        return os.get_terminal_size(io.STDERR).columns or 80
    except OSError:
        return 80


def _write(data: bytes) -> None:
    with contextlib.suppress(OSError):
        os.write(io.STDERR, data)


class Progress:
    """Tokens, rate and time of one answer.

    A token is counted for each delta until the server says how many there were.
    """

    def __init__(self, line: Line, clock: Callable[[], float] = time.monotonic) -> None:
        self._line = line
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._earlier = 0
        self._tokens = 0

    def add(self, received: Received) -> None:
        """One event."""
        event = received.event
        if event is None:
            return
        if event["type"] == "content_block_delta":
            self._first = self._first or self._clock()
            self._tokens += 1
        elif event["type"] == "message_start":
            self._tokens = 0  # those of an attempt that failed are none
        elif event["type"] == "message_stop":
            self._earlier, self._tokens = self._earlier + self._tokens, 0
        elif event["type"] == "message_delta":
            counted = (event.get("usage") or {}).get("output_tokens")
            self._tokens = counted if isinstance(counted, int) else self._tokens

    def draw(self) -> None:
        """Show how it stands."""
        self._line.draw(self._text)

    def close(self) -> None:
        """Show nothing more."""
        self._line.close()

    def _text(self) -> str:
        now = self._clock()
        tokens = self._earlier + self._tokens
        if self._first is None:
            return f"waiting {now - self._start:.1f} s"
        rate = tokens / (now - self._first) if now > self._first else 0
        return f"{tokens} tokens  {rate:.0f}/s  {now - self._start:.1f} s"
