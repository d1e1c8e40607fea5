"""Events of an answer in, the bytes of one output form out.

Contract: a form is given each event as it is accumulated (`add`), hands over what there is to write after each
network read (`take`), and says its last when the message is complete (`finish`) or failed (`fail`). Nothing is
written here, and nothing is kept that the form does not need.
"""

from __future__ import annotations

import codecs
import time
from typing import TYPE_CHECKING, Any

from .errors import APIError, APIStatusError, StreamcliError
from .jsontext import dumps, loads
from .message import parsed, text_of
from .terminal import Visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .exchange import Exchange, Received


class Form:
    """An output form; this one writes nothing."""

    def __init__(self) -> None:
        self.pending: list[bytes] = []

    def begin(self, exchange: Exchange) -> None:
        """An answer begins, perhaps after one that failed before anything was written."""
        self.exchange = exchange
        self.pending.clear()

    def read(self, data: bytes) -> None:
        """The bytes of one network read, before their events."""

    def add(self, received: Received) -> None:
        """One event, just accumulated."""

    def take(self) -> bytes:
        """What there is to write now."""
        data = b"".join(self.pending)
        self.pending.clear()
        return data

    def finish(self) -> None:
        """The message is complete."""

    def fail(self, error: StreamcliError) -> None:
        """The run ends with `error`."""


class Text(Form):
    """The text of all text blocks, as sent."""

    def add(self, received: Received) -> None:
        """Text, if the event has any."""
        if received.event is not None:
            self.pending.append(text_of(received.event).encode())


class Events(Form):
    """Each event's data as sent, one a line; the last line says how it ended."""

    def add(self, received: Received) -> None:
        """The event's line."""
        self.pending.append(_event_line(received))

    def fail(self, error: StreamcliError) -> None:
        """The last line."""
        self.pending.append(dumps(error_event(error)) + b"\n")


def _event_line(received: Received) -> bytes:
    data = received.raw.data
    if received.event is None and not _is_object(data):  # unknown or a ping
        data = dumps(parsed(received.raw.event, data))
    return data.replace(b"\n", b" ") + b"\n"


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(loads(data), dict)
    except ValueError:
        return False


def error_event(error: StreamcliError) -> dict[str, Any]:
    """The error as an `error` event: the server's own, or one whose type begins `streamcli.` (design.md section 2)."""
    if isinstance(error, APIStatusError) and isinstance(error.body, dict) and isinstance(error.body.get("error"), dict):
        return {**error.body, "type": "error"}
    kind = (error.type if isinstance(error, APIError) else None) or f"streamcli.{error.code}"
    event: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    if isinstance(error, APIError) and error.request_id:
        event["request_id"] = error.request_id
    return event


class Raw(Form):
    """The stream's bytes."""

    def read(self, data: bytes) -> None:
        """They are written as they came."""
        self.pending.append(data)


class Snapshots(Form):
    """The message so far after every event that builds it, one JSON a line."""

    def add(self, received: Received) -> None:
        """The message as of this event."""
        if received.event is not None:
            self.pending.append(dumps(self.exchange.accumulator.snapshot()) + b"\n")


class Final(Form):
    """The final message as JSON, on one line."""

    def finish(self) -> None:
        """The message."""
        self.pending.append(dumps(self.exchange.accumulator.snapshot()) + b"\n")


class OnTerminal(Form):
    """Any form as a terminal may show it: control characters visible, the last line ended."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form = form
        self._visible = Visible()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def begin(self, exchange: Exchange) -> None:
        """Forget what was waiting."""
        super().begin(exchange)
        self._form.begin(exchange)
        self._visible = Visible()
        self._decoder.reset()

    def read(self, data: bytes) -> None:
        """The bytes of one network read, before their events."""
        self._form.read(data)

    def add(self, received: Received) -> None:
        """One event, just accumulated."""
        self._form.add(received)

    def take(self) -> bytes:
        """What there is to show now; a character that was cut waits for its end."""
        self._show(self._form.take())
        return super().take()

    def finish(self) -> None:
        """End the line."""
        self._form.finish()
        self._end()

    def fail(self, error: StreamcliError) -> None:
        """End the line, however the run does."""
        self._form.fail(error)
        self._end()

    def _show(self, data: bytes, *, final: bool = False) -> None:
        self.pending.append(self._visible.feed(self._decoder.decode(data, final)).encode())

    def _end(self) -> None:
        self._show(self._form.take(), final=True)
        self.pending.append(self._visible.close().encode())
        if not self._visible.at_line_start:
            self.pending.append(b"\n")


class Timing:
    """When the answer's parts came, in seconds since the request began."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self.first_token: float | None = None
        self.end: float | None = None

    def seen(self, received: Received) -> None:
        """Mark the first delta."""
        if received.event is not None and received.event.get("type") == "content_block_delta":
            self.first_token = self._clock() - self._start

    def stop(self) -> None:
        """Mark the end."""
        self.end = self._clock() - self._start


def facts(exchange: Exchange, timing: Timing) -> dict[str, Any]:
    """The final message's facts: what it is, its usage, how long it took in seconds.

    `output_tokens_per_second` is over the whole duration. What is not known is left out.
    """
    message = exchange.accumulator.snapshot() or {}
    usage = exchange.accumulator.usage
    tokens, duration = usage.get("output_tokens"), timing.end
    rate = tokens / duration if isinstance(tokens, int) and duration else None
    named = {
        "id": message.get("id"),
        "model": message.get("model"),
        "stop_reason": message.get("stop_reason"),
        "request_id": exchange.request_id,
    }
    known = {
        **named,
        **{name: counter for name, counter in usage.items() if name not in named},
        "time_to_first_token": _rounded(timing.first_token),
        "duration": _rounded(duration),
        "output_tokens_per_second": _rounded(rate),
    }
    return {key: value for key, value in known.items() if value is not None}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def fact_lines(known: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Facts as key and text; a counter inside a counter gets a dotted key."""
    for key, value in known.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", text) for inner, text in fact_lines(value))
        elif value is not None:
            yield key, value if isinstance(value, str) else dumps(value).decode()


class Summary(Form):
    """The final message's facts, `key: value` a line."""

    def __init__(self, timing: Timing) -> None:
        super().__init__()
        self._timing = timing

    def finish(self) -> None:
        """The facts; whatever a server puts into a name or a value, each stays on its line."""
        for key, text in fact_lines(facts(self.exchange, self._timing)):
            self.pending.append(f"{'_'.join(key.split())}: {' '.join(text.split())}\n".encode())
