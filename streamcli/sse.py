"""Bytes of an event stream in, events out: the WHATWG rules to the letter, and nothing of what the events mean.

Contract: `feed` takes bytes cut anywhere and returns the events that are whole; the cuts never change the events.
A line ends at LF, CR or CRLF, and a CR ends it at once. An event that no blank line ended is dropped at the end.
Work is linear in the bytes. An event larger than the cap is a ProtocolError, after which the decoder stays dead.
No I/O; bad UTF-8 is no error. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html section 9.2.6.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import ProtocolError

# The largest honest event is a tool result of some MB; the cap only has to stop a line that never ends.
MAX_EVENT_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
_COLON = ord(":")
# The smallest limit that int() can be given (sys.set_int_max_str_digits); a time of more digits is no time.
_MAX_RETRY_DIGITS = 640

# The one shape that servers send, many times over: an optional name and one line of data, LF only. Possessive, so
# that a text of another shape is left after one look. Everything else is taken line by line.
_PLAIN_EVENTS = re.compile(rb"(?:(?:event: ?+.*+\n)?+data: ?+.*+\n\n)*+")
_PLAIN_EVENT = re.compile(rb"(?:event: ?+(.*+)\n)?+data: ?+(.*+)\n\n")


class ServerSentEvent(NamedTuple):
    """One event: its name ("message" if it had none), its data as sent, the last event ID, its own `retry` in ms."""

    event: str
    data: bytes
    id: str = ""
    retry: int | None = None

    @property
    def text(self) -> str:
        """`data` as text, bad UTF-8 replaced by U+FFFD."""
        return _text(self.data)


class Decoder:
    """The decoder of one event stream.

    `last_event_id` is the ID as of the last blank line, `reconnection_time` the last valid `retry` in milliseconds.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id = ""
        self.reconnection_time: int | None = None
        self._max = max_event_bytes
        self._overflowed = False
        self._names = _Names()
        # A CR that ends one read may be half of a CRLF: the LF that opens the next read then ends no line.
        self._skip_line_feed = False
        # The unfinished last line, in pieces: joining them at every read would make a long line quadratic.
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._first_line = True
        self._id = ""
        self._begin_event()

    def _begin_event(self) -> None:
        self._between_events = True
        self._event = b""
        self._data: list[bytes] = []
        self._data_size = 0
        self._retry: int | None = None

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes, in order.

        Raises ProtocolError once an event exceeds the cap. Events that were whole before it are returned first; the
        error then comes with the next call of `feed` or `close`.
        """
        if self._overflowed:
            raise self._too_large()
        if self._skip_line_feed and data:
            self._skip_line_feed = False
            data = data.removeprefix(b"\n")
        events: list[ServerSentEvent] = []
        if b"\r" in data or len(data) > self._max:
            self._take_lines(data, events)
        else:
            self._take_events(data, events)
        if self._overflowed and not events:
            raise self._too_large()
        return events

    def close(self) -> None:
        """Say that the stream ended: what is unfinished is dropped.

        Raises ProtocolError if an event exceeded the cap.
        """
        if self._overflowed:
            raise self._too_large()
        self._pieces.clear()
        self._begin_event()

    def _too_large(self) -> ProtocolError:
        return ProtocolError(f"an event of the stream is larger than {self._max} bytes")

    def _take_events(self, data: bytes, events: list[ServerSentEvent]) -> None:
        position = 0
        while position < len(data) and not self._overflowed:
            if self._between_events:
                match = _PLAIN_EVENTS.match(data, position)
                if match and match.end() > position:
                    names, last_id, new = self._names, self.last_event_id, tuple.__new__
                    events += [
                        new(ServerSentEvent, (names[name], value, last_id, None))
                        for name, value in _PLAIN_EVENT.findall(data, position, match.end())
                    ]
                    position = match.end()
                    self._first_line = False
            blank = data.find(b"\n\n", position)
            end = blank + 2 if blank >= 0 else len(data)
            self._take_lines(data[position:end], events)
            position = end

    def _take_lines(self, data: bytes, events: list[ServerSentEvent]) -> None:
        if not data:
            return
        self._skip_line_feed = data.endswith(b"\r")
        lines = data.splitlines()
        unfinished = lines.pop() if data[-1] not in b"\r\n" else b""
        if lines and self._pieces:
            self._pieces.append(lines[0])
            lines[0] = b"".join(self._pieces)
            self._pieces.clear()
            self._pieces_size = 0
        for line in lines:
            self._take_line(line, events)
            if self._overflowed:
                return
        if unfinished:
            self._take_piece(unfinished)

    def _take_piece(self, piece: bytes) -> None:
        self._between_events = False
        if self._pieces and self._pieces[0][0] == _COLON:
            return  # of a comment nothing need be kept but that it is one
        self._pieces.append(piece)
        self._pieces_size += len(piece)
        self._check_size(self._pieces[0], self._pieces_size)

    def _take_line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        self._check_size(line, len(line))
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        self._between_events = False
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value)
                self._data_size += len(line)
            case b"event":
                self._event = value
            case b"id" if b"\0" not in value:
                self._id = _text(value)
            case b"retry" if value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
                self._retry = self.reconnection_time = int(value)

    def _check_size(self, line_start: bytes, line_size: int) -> None:
        if self._data_size + line_size > self._max and line_start[0] != _COLON:
            self._overflowed = True

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            data = b"\n".join(self._data)
            events.append(ServerSentEvent(self._names[self._event], data, self._id, self._retry))
        self._begin_event()


class _Names(dict[bytes, str]):
    """Names as text, each decoded once; bounded, because a server may invent names for ever."""

    def __missing__(self, raw: bytes) -> str:
        if len(self) > 64:
            self.clear()
        name = self[raw] = _text(raw) or "message"
        return name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
