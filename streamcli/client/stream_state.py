"""What is known of a stream of events, or of results, whichever way its bytes are waited for.

Contract: bytes in, events or results out, each as it is asked for, so that an error in them comes after what came
before it. A stream that nobody holds any more drops its connection.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from streamcli.errors import APIError, IncompleteStreamError, ProtocolError
from streamcli.network.response import drop
from streamcli.protocol.body import MAX_BODY
from streamcli.protocol.jsontext import loads_exact, object_in
from streamcli.protocol.message import parsed
from streamcli.protocol.records import Event, Message, Record, events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from streamcli.protocol.exchange import Exchange

_EXCERPT = 80


class StreamState:
    """What both streams know: the response's head, and the message so far."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self.exchange = exchange
        self._begin(response)

    def _begin(self, response: httpx.Response) -> None:
        self.response = response
        self._closed = False
        # Of the last read, what was not handed out yet.
        self._ready: Iterator[Event] = iter(())
        weakref.finalize(self, drop, response).atexit = False

    def _check_open(self) -> None:
        if self._closed and not self.exchange.complete:
            raise closed_early(self.exchange)

    @property
    def request_id(self) -> str | None:
        """The server's id for this call, from the `request-id` header."""
        return self.exchange.request_id

    @property
    def deviations(self) -> dict[str, int]:
        """How often the stream deviated from the documented one so far, by kind; empty where it did not."""
        return self.exchange.deviations

    @property
    def current_message_snapshot(self) -> Message:
        """The message as of the event handed out last; it does not change afterwards.

        Raises IncompleteStreamError before message_start.
        """
        snapshot = self.exchange.snapshot()
        if snapshot is None:
            raise self.exchange.explained(IncompleteStreamError("no message has started yet"))
        return snapshot


def closed_early(exchange: Exchange) -> APIError:
    """The error of reading on in a stream that was closed."""
    return exchange.explained(IncompleteStreamError("the stream was closed before message_stop"))


def events_of(exchange: Exchange, data: bytes) -> Iterator[Event]:
    """The events that `data` completes, each followed by those derived from it. Raises APIError in its turn."""
    for raw, event, is_nothing in exchange.receive(data):
        if event is not None:
            yield from events(event, exchange.accumulator)
        elif raw and not is_nothing:
            yield Event(parsed(raw.event, raw.data))


class ResultsState:
    """What both readers of results know: a line that came in part, and the results that were not handed out yet."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self._exchange = exchange
        # The last line as far as it came, joined only when it is whole, so that the time is linear in its length.
        self._parts: list[bytes] = []
        self._held = 0
        self._ready: Iterator[bytes] = iter(())
        self._over = False
        # Whether the end was told, or the error in its place.
        self._told = False
        self._closed = False
        weakref.finalize(self, drop, response).atexit = False

    def _check_open(self) -> None:
        if self._closed and not self._told:
            raise self._exchange.explained(IncompleteStreamError("the results were closed before their end"))

    def _receive(self, data: bytes, *, is_last: bool) -> None:
        """Take the next piece of the body; the end of the last one is that of the last line too."""
        if is_last:
            self._over = True
            data += b"\n"
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._ready = filter(bytes.strip, lines)
            self._parts, self._held = [], 0
        self._parts.append(rest)
        self._held += len(rest)
        if self._held > MAX_BODY:
            raise ProtocolError(f"a line of the results is longer than {MAX_BODY >> 20} MiB")

    def _result(self, line: bytes) -> Record:
        value = object_in(line, loads_exact)
        if value is None:
            fault = ProtocolError(f"a line of the results is not a JSON object: {line[:_EXCERPT]!r}")
            raise self._exchange.explained(fault)
        return Record(value)
