"""Bytes of an event stream in, events out: the WHATWG rules to the letter, and nothing about what the events mean.

Contract: `feed` takes bytes cut anywhere and returns the events that are whole; the cuts never change the events. A
line ends at LF, CR or CRLF, and a CR ends it at once. An event that no blank line ended is dropped at the end. Work is
linear in the bytes. An event larger than the cap is a ProtocolError, and the decoder takes nothing more. Bad UTF-8 is
not an error. No I/O. The rules: https://html.spec.whatwg.org/multipage/server-sent-events.html section 9.2.6.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from itertools import repeat
from typing import NamedTuple

from streamcli.errors import ProtocolError

# The largest real event is a tool result of some MB; the cap only has to stop a line that never ends.
MAX_EVENT_BYTES = 64 * 1024 * 1024
# As many lines are made one, because each takes far more memory than its bytes.
_MANY_LINES = 4096

_COLON = ord(":")
# The smallest limit that int() can be given (sys.set_int_max_str_digits); a time of more digits is not one.
_MAX_RETRY_DIGITS = 640

# What servers usually send, again and again: an optional name and one line of data, with an ID anywhere around them; or
# else whatever stands before the next blank line. Repeats of a character are possessive, so that one look is enough for
# a text of another shape. Groups are not: Pythons before 3.11.5 match those wrongly, and `(?:a|)` is quicker than
# `(?:a)?`. An empty ID is left to the lines.
_ID = rb"(?:id: ?+([^\0\n]++)\n|)"
_EVENT = re.compile(_ID + rb"(?:event: ?+(.*+)\n|)" + _ID + rb"data: ?+(.*+)\n" + _ID + rb"\n|((?:.++\n)*\n)")
_HEAD = re.compile(rb"(?:event: ?+(.*+)\n|)data: ")
_ID_LINE = re.compile(rb"^id: ", re.MULTILINE)
_LONE_CR = re.compile(rb"\r(?!\n)")
# In fewer bytes it does not pay to look for a run of equal events.
_SHORTEST_RUN = 2048


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


# A named tuple's own constructor takes three times as long.
_new = tuple.__new__


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
        # What came so far, as long as it may be the beginning of a BOM; then None.
        self._start: bytes | None = b""
        # A CR that ends one read may be half of a CRLF: the LF that opens the next read then ends no line.
        self._skip_line_feed = False
        # The unfinished last line, in pieces: joining them at every read would make a long line quadratic.
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._id = ""
        self._begin_event()

    def _begin_event(self) -> None:
        self._between_events = True
        self._event = b""
        self._data: list[bytes] = []
        self._data_size = 0
        self._joined = 0  # how many of them are several lines by now
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
        if self._start is not None:
            data = self._after_bom(self._start + data)
        if b"\r" in data:
            self._skip_line_feed = data.endswith(b"\r")
            if _LONE_CR.search(data):
                data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            data = data.replace(b"\r", b"")  # takes a sixth of what to replace pairs does
        events: list[ServerSentEvent] = []
        if len(data) > self._max:
            self._take_lines(data, events)
        else:
            self._take_events(data, events)
        if self._overflowed and not events:
            raise self._too_large()
        return events

    def _after_bom(self, start: bytes) -> bytes:
        is_cut = len(start) < len(BOM_UTF8) and BOM_UTF8.startswith(start)
        self._start = start if is_cut else None
        return b"" if is_cut else start.removeprefix(BOM_UTF8)

    def close(self) -> None:
        """The stream ended: what is unfinished is dropped. Raises ProtocolError if an event exceeded the cap."""
        if self._overflowed:
            raise self._too_large()
        self._pieces.clear()
        self._begin_event()

    def _too_large(self) -> ProtocolError:
        what = f"an event of the stream is larger than {self._max} bytes, the limit of max-event-bytes"
        return ProtocolError(what, retryable=False)

    def _take_events(self, data: bytes, events: list[ServerSentEvent]) -> None:
        start = 0
        if not self._between_events:
            blank = data.find(b"\n\n")
            start = blank + 2 if blank >= 0 else len(data)
            self._take_lines(data[:start], events)
        blank = data.rfind(b"\n\n", start)
        if blank >= 0 and not self._overflowed:
            whole, start = data[start : blank + 2], blank + 2
            if len(whole) < _SHORTEST_RUN or not self._take_run(whole, events):
                self._take_each(whole, events)
        if start < len(data) and not self._overflowed:
            self._take_lines(data[start:], events)

    def _take_run(self, data: bytes, events: list[ServerSentEvent]) -> bool:
        """Take all events at once, if they have the same name, one line of data each, and no ID or each one.

        Returns whether they were so. This is what a server sends that is faster than we are.
        """
        ids, data = _ids_apart(data)
        head = _HEAD.match(data)
        if not head:
            return False
        values = data[head.end() : -2].split(b"\n\n" + head[0])
        if data.count(b"\n") != len(values) * (head[0].count(b"\n") + 2) or len(ids) not in (0, len(values)):
            return False
        if ids:
            self._id = self.last_event_id = ids[-1]
        rows = zip(repeat(self._names[head[1] or b""]), values, ids or repeat(self._id), repeat(None))
        events += map(_new, repeat(ServerSentEvent), rows)
        return True

    def _take_each(self, data: bytes, events: list[ServerSentEvent]) -> None:
        names = self._names
        for before, name, between, value, after, odd in _EVENT.findall(data):
            if odd:
                self._take_lines(odd, events)
                if self._overflowed:
                    return
            else:
                event_id = after or between or before
                if event_id:
                    self._id = _text(event_id)
                events.append(_new(ServerSentEvent, (names[name], value, self._id, None)))
        self.last_event_id = self._id

    def _take_lines(self, data: bytes, events: list[ServerSentEvent]) -> None:
        *lines, unfinished = data.split(b"\n")
        if lines and self._pieces:
            lines[0] = b"".join([*self._pieces, lines[0]])
            self._pieces.clear()
            self._pieces_size = 0
        for line in lines:
            if self._data_size + len(line) > self._max and line[0] != _COLON:
                self._overflowed = True
                return
            if line[:6] == b"data: ":
                self._data.append(line[6:])
                self._data_size += len(line)
            elif line:
                self._take_field(line)
            else:
                self._dispatch(events)
        if len(self._data) - self._joined > _MANY_LINES:
            self._data[self._joined :] = [b"\n".join(self._data[self._joined :])]
            self._joined += 1
        if lines:
            self._between_events = not lines[-1]
        if unfinished:
            self._take_piece(unfinished)

    def _take_piece(self, piece: bytes) -> None:
        self._between_events = False
        if self._pieces and self._pieces[0][0] == _COLON:
            return  # of a comment nothing need be kept but that it is one
        self._pieces.append(piece)
        self._pieces_size += len(piece)
        self._overflowed = self._data_size + self._pieces_size > self._max and self._pieces[0][0] != _COLON

    def _take_field(self, line: bytes) -> None:
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

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        self.last_event_id = self._id
        if self._data:
            data = b"\n".join(self._data)
            events.append(_new(ServerSentEvent, (self._names[self._event], data, self._id, self._retry)))
        self._begin_event()


def _ids_apart(data: bytes) -> tuple[list[str], bytes]:
    """The IDs of events that have one each, on the same line, and the events without them; else none, and `data`."""
    end = data.find(b"\n\n")
    first = _ID_LINE.search(data, 0, end)
    if not first or b"\0" in data:
        return [], data
    lines = data.split(b"\n")
    places = slice(data.count(b"\n", 0, first.start()), -1, data.count(b"\n", 0, end) + 2)
    raw = lines[places]
    _, *ids = _text(b"\n".join([b"", *raw])).split("\nid: ")
    if len(ids) != len(raw):
        return [], data
    del lines[places]
    return ids, b"\n".join(lines)


class _Names(dict[bytes, str]):
    """Names as text, each decoded once; bounded, because a server may invent names for ever."""

    def __missing__(self, raw: bytes) -> str:
        if len(self) > 64:
            self.clear()
        name = self[raw] = _text(raw) or "message"
        return name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
