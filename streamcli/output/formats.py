"""Events of an answer in, the bytes of one output format out.

Contract: a format is given each event as it is accumulated (`add`), hands over what there is to write after each
network read (`take`), and ends when the message is complete (`finish`) or failed (`fail`). If tools are run, another
message follows (`turn`). Nothing is written here, and nothing is kept that the format does not need.
Source: streamcli(5), section "OUTPUT FORMATS".
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from streamcli.errors import APIStatusError, StreamcliError, UnexpectedResponseError
from streamcli.protocol.jsontext import dumps, object_in
from streamcli.protocol.message import parsed, text_of

from .meter import Meter, summary, summary_lines
from .prose import last_fenced_block, pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamcli.protocol.exchange import Exchange, Received
    from streamcli.protocol.sse import ServerSentEvent


class Format:
    """An output format; this one writes nothing. `is_text`: a person reads it, and not only programs."""

    is_text = False

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
        """What there is to write now, or b"" if that is all."""
        data = b"".join(self.pending)
        self.pending.clear()
        return data

    def turn(self, *, tools: bool) -> None:
        """The message is complete and another one follows, after tools were run or by itself."""

    def results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """The tool results, as they go out with the next request."""

    def finish(self) -> None:
        """The message is complete."""

    def fail(self, error: StreamcliError) -> None:
        """The run ends with `error`."""


class Text(Format):
    """The text of all text blocks, as sent; before tools are run, the line is ended."""

    is_text = True

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []
        self._last = "\n"

    def begin(self, exchange: Exchange) -> None:
        """An answer begins."""
        super().begin(exchange)
        self._texts.clear()

    def add(self, received: Received) -> None:
        """Text, if the event has any."""
        if received.event is not None:
            self._texts.append(text_of(received.event))

    def turn(self, *, tools: bool) -> None:
        """End the line, unless the model only paused."""
        if tools and ("".join(self._texts) or self._last)[-1] != "\n":
            self._texts.append("\n")

    def take(self) -> bytes:
        """The text since the last time."""
        return self._text().encode()

    def _text(self) -> str:
        text = "".join(self._texts)
        self._texts.clear()
        self._last = text[-1:] or self._last
        return text


class SmoothText(Text):
    """As `Text`, but in pieces: each `take` hands over a whole sentence, or `most` characters."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._held = ""
        self._whole = deque[str]()

    def begin(self, exchange: Exchange) -> None:
        """An answer begins; what was held of one that failed is dropped."""
        super().begin(exchange)
        self._held = ""
        self._whole.clear()

    def take(self) -> bytes:
        """The next piece."""
        if self._texts:
            self._cut()
        return self._whole.popleft().encode() if self._whole else b""

    def turn(self, *, tools: bool) -> None:
        """Hold nothing over to the next message."""
        super().turn(tools=tools)
        self._release()

    def finish(self) -> None:
        """Hold nothing more."""
        self._release()

    def fail(self, error: StreamcliError) -> None:  # noqa: ARG002 - every format is given the error
        """Hold nothing more."""
        self._release()

    def _cut(self) -> None:
        found, self._held = pieces(self._held + self._text(), self._most)
        self._whole += found

    def _release(self) -> None:
        self._cut()
        self._whole += [self._held] if self._held else []
        self._held = ""


class Extract(Text):
    """Of the text, only the last fenced block; nothing if there is none, or if it is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self._before = ""

    def take(self) -> bytes:
        """Nothing until the message is complete."""
        return Format.take(self)

    def finish(self) -> None:
        """The block."""
        self.pending.append((last_fenced_block(self._before + self._text()) or "").encode())

    def turn(self, *, tools: bool) -> None:
        """Forget the text before a tool call; the text before a pause counts."""
        text = self._before + self._text()
        self._before = "" if tools else text


class Thinking(Format):
    """The model's thinking, each block on lines of its own."""

    is_text = True

    def __init__(self) -> None:
        super().__init__()
        self._at_line_start = True

    def add(self, received: Received) -> None:
        """A piece of thinking, or its end."""
        event = received.event or {}
        if event.get("type") == "content_block_delta" and event["delta"].get("type") == "thinking_delta":
            self._say(event["delta"]["thinking"])
        elif event.get("type") == "content_block_start" and event["content_block"]["type"] == "thinking":
            self._say(event["content_block"].get("thinking") or "")
        elif event.get("type") == "content_block_stop":
            self._end()

    def fail(self, error: StreamcliError) -> None:  # noqa: ARG002 - every format is given the error
        """End the line."""
        self._end()

    def _say(self, text: str) -> None:
        if text:
            self.pending.append(text.encode())
            self._at_line_start = text.endswith("\n")

    def _end(self) -> None:
        if not self._at_line_start:
            self.pending.append(b"\n")
        self._at_line_start = True


# How the data of nearly all events begins.
_TYPED = b'{"type":'


class Events(Format):
    """Each event's data as sent, one a line; the last line says how it ended."""

    def add(self, received: Received) -> None:
        """The event's line, or the lines of events that were joined."""
        if received.raw:
            self.pending.append(_event_line(received.raw, received.event))

    def results(self, results: Sequence[Mapping[str, Any]]) -> None:
        """A line for each tool result; the API has no event for them."""
        self.pending += [dumps({**result, "type": "streamcli.tool_result"}) + b"\n" for result in results]

    def fail(self, error: StreamcliError) -> None:
        """The last line."""
        data = error.data if isinstance(error, APIStatusError) else None
        self.pending.append(_object_line("error", data or b"") or dumps(error_event(error)) + b"\n")


def _event_line(raw: ServerSentEvent, event: Mapping[str, Any] | None) -> bytes:
    if event is not None and raw.data.startswith(_TYPED) and raw.data.find(b"\n") < 0:
        return raw.data + b"\n"
    lines = [_object_line(raw.event, line) for line in raw.data.split(b"\n")]
    if len(lines) > 1 and all(lines):  # events that were joined
        return b"".join(filter(None, lines))
    return _object_line(raw.event, raw.data) or dumps(event or parsed(raw.event, raw.data)) + b"\n"


def _object_line(name: str, data: bytes) -> bytes | None:
    """Data that is one object as it was sent, on one line and with a type; None for any other."""
    value = object_in(data)
    if value is None:
        return None
    line = data.replace(b"\n", b" ") + b"\n"
    if "type" in value:
        return line
    return b'{"type":' + dumps(name) + (b"," if value else b"") + line.lstrip().removeprefix(b"{")


def error_event(error: StreamcliError) -> dict[str, Any]:
    """The error as an `error` event: the server's own, or one whose type begins with `streamcli.`."""
    if isinstance(error, APIStatusError) and isinstance(error.body, dict) and isinstance(error.body.get("error"), dict):
        return {**error.body, "type": "error"}
    kind = error.type or f"streamcli.{error.code}"
    event: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": error.message}}
    if error.request_id:
        event["request_id"] = error.request_id
    return event


class RawStream(Format):
    """The stream's bytes."""

    def read(self, data: bytes) -> None:
        """Pass them on as they came. Raises UnexpectedResponseError where they are not a stream after all."""
        if self.exchange.body.message:
            what = "the response is a whole message, and --sse shows only event streams"
            raise self.exchange.explained(UnexpectedResponseError(what))
        self.pending.append(data)


class Snapshots(Format):
    """The message so far after every event that builds it, one JSON a line."""

    def add(self, received: Received) -> None:
        """The message as of this event."""
        if received.event is not None:
            self.pending.append(dumps(self.exchange.accumulator.snapshot()) + b"\n")


class FinalMessage(Format):
    """The final message as JSON, on one line."""

    def finish(self) -> None:
        """The message."""
        self.pending.append(dumps(self.exchange.accumulator.snapshot()) + b"\n")


class Summary(Format):
    """The summary of the final message, a `key: value` a line."""

    is_text = True

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def finish(self) -> None:
        """Its fields; whatever a server puts into a name or a value, each stays on its line."""
        for key, text in summary_lines(summary(self.exchange, self._meter)):
            self.pending.append(f"{'_'.join(key.split())}: {' '.join(text.split())}\n".encode())
