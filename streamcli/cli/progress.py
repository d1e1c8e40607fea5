"""Events of an answer in; a line on a terminal out, which shows the progress and is removed at the end.

Contract: the line is drawn over itself a few times a second and erased before anything else is written to the terminal.
It is only for a standard error that is a terminal to which no answer is written.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import TYPE_CHECKING, Any

from streamcli.output.price import total

from . import io

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamcli.output.meter import Meter
    from streamcli.protocol.exchange import Received

_INTERVAL = 0.1
_ERASE = b"\r\x1b[K"


class Line:
    """A line on stderr that is drawn over itself; inside it as a context it makes way for what is written there."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = 0.0
        self._shown = False
        self._hidden = False

    def draw(self, text: Callable[[], str]) -> None:
        """Show `text`, cut to the terminal's width, unless a line was shown a moment ago."""
        now = self._clock()
        if self._hidden or now < self._due:
            return
        self._due = now + _INTERVAL
        self._shown = True
        _write(_ERASE + text().encode()[: _width() - 1])

    def __enter__(self) -> None:
        self._hidden = True  # first, because a signal's handler may draw at any moment
        self._erase()

    def __exit__(self, *exc_info: object) -> None:
        self._hidden = False

    def close(self) -> None:
        """Leave the terminal as if nothing had been drawn, and draw nothing more."""
        self._due = math.inf
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
    """Tokens, rate, time and cost of one answer.

    A token is counted for each delta until the server says how many there were.
    """

    def __init__(self, meter: Meter) -> None:
        self.line = Line()
        self._meter = meter
        self._spent: float | None = 0.0
        self._usage: dict[str, Any] = {}
        self._model: Any = None
        self._earlier = 0
        self._tokens = 0

    def add(self, received: Received) -> None:
        """Count one event."""
        event = received.event
        if event is None:
            return
        if event["type"] == "content_block_delta":
            self._tokens += 1
        elif event["type"] == "message_start":
            self._tokens = 0  # those of a failed attempt do not count
            message = event.get("message") or {}
            self._usage, self._model = dict(message.get("usage") or {}), message.get("model")
        elif event["type"] == "message_stop":
            self._spent, self._usage = self._cost(), {}
            self._earlier, self._tokens = self._earlier + self._tokens, 0
        elif event["type"] == "message_delta":
            usage = {name: count for name, count in (event.get("usage") or {}).items() if count is not None}
            self._usage.update(usage)
            counted = usage.get("output_tokens")
            self._tokens = counted if isinstance(counted, int) else self._tokens

    def draw(self) -> None:
        """Show how far the answer is."""
        self.line.draw(self._text)

    def _cost(self) -> float | None:
        if not self._usage:
            return self._spent
        return total(self._spent, self._meter.price({**self._usage, "output_tokens": self._tokens}, self._model))

    def _text(self) -> str:
        first, now = self._meter.first_token, self._meter.elapsed()
        if first is None:
            return f"waiting {now:.1f} s"
        tokens = self._earlier + self._tokens
        rate = tokens / (now - first) if now > first else 0
        cost = self._cost()
        return f"{tokens} tokens  {rate:.0f}/s  {now:.1f} s" + (f"  cost {cost:.4g}" if cost else "")
