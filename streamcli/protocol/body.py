"""The bytes of a response's body in; its decoded bytes and its kind out: an event stream, a whole message, neither.

Contract: a body that says it is an event stream is one until its end shows that it was a whole message; any other is
looked at before anything of it is used. The events of a whole message give that message again, and nothing else. What
is neither is left to whoever says what is wrong with it. No I/O.
Source: streamcli(7), section "Deviations of HTTP".
"""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, Literal

from . import coding
from .jsontext import loads_exact, object_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    # "": too short to tell.
    Kind = Literal["", "events", "object", "other"]

# How much of an error response's body is worth reading (streamcli(7), section "Error responses").
MAX_ERROR_BODY = 64 * 1024
# How long a response may be that is read whole, its coding undone.
MAX_BODY = 64 << 20
# What is enough to tell the kind of a body, and to show it.
_SHOWN = 4096
_FIELDS = (b"event", b"data", b"id", b"retry")
# What a message says only when it has come to its end.
_OF_THE_END = frozenset({"stop_reason", "stop_sequence", "stop_details"})


class Body:
    """The body of one response; `coded` is the coding that its head names. A whole message has at most `max_bytes`.

    Where its head does not say what it is, `look` takes each piece until that is known, and they are the `beginning`.
    Then `decoded` takes each, and None at the end. `may_be_whole` says that a body which calls itself an event stream
    may turn out to be a message there.
    """

    def __init__(self, coded: str, max_bytes: int, *, may_be_whole: bool) -> None:
        self._coding = coding.Decoding(coded)
        self._max = max_bytes
        self._may_be_whole = may_be_whole
        # Whether an event came, so that nothing need be kept any more.
        self.has_events = False
        # The message, once it is known that the body is one and not an event stream.
        self.message: dict[str, Any] | None = None
        # What no event came of: all of what may be a message, of anything else the beginning.
        self._kept = bytearray()

    def look(self, data: bytes | None) -> bool | None:
        """Whether a body that goes on with `data`, None at its end, is read; None if unknown. Raises ProtocolError."""
        self._kept += self._coding.close() if data is None else self._coding.decode(data)
        kind = self.kind
        if kind in {"", "object"} and data is not None and len(self._kept) <= self._max:
            return None
        self.message = message_in(self.beginning) if kind == "object" else None
        return kind == "events" or self.message is not None

    def decoded(self, data: bytes | None) -> bytes:
        """The bytes that the next piece stands for; None came at the end. Raises ProtocolError.

        Where the body was a whole message after all, all of it comes out at the end once more, and `message` is set.
        """
        came = self._coding.close() if data is None else self._coding.decode(data)
        if not self.has_events and (len(self._kept) < _SHOWN or (self._may_be_whole and self._kept.startswith(b"{"))):
            self._kept += came
        if data is not None or came or not self._may_be_whole or self.message:
            return came
        self.message = message_in(self.beginning)
        return self.beginning if self.message else b""

    @property
    def beginning(self) -> bytes:
        """What was looked at, or at least the first bytes that came before any event."""
        return bytes(self._kept)

    @property
    def kind(self) -> Kind:
        """What the body is by its beginning."""
        return kind_of(bytes(self._kept[:_SHOWN]))


def kind_of(beginning: bytes) -> Kind:
    """The kind of a body with this beginning, which may be cut."""
    first = beginning.removeprefix(BOM_UTF8).lstrip()
    if not first or BOM_UTF8.startswith(first):
        return ""
    if first.startswith(b"{"):
        return "object"
    name = first.replace(b"\r", b"\n").partition(b"\n")[0].partition(b":")[0]
    if name == first:
        return "" if any(field.startswith(name) for field in _FIELDS) else "other"
    return "events" if not name or name in _FIELDS else "other"


def message_in(body: bytes) -> dict[str, Any] | None:
    """The message that is the whole body, or None."""
    value = object_in(body.removeprefix(BOM_UTF8), loads_exact) or {}
    return value if value.get("type") == "message" and isinstance(value.get("content"), list) else None


def events_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events that build `message`."""
    start = {key: None if key in _OF_THE_END else value for key, value in message.items()}
    yield {"type": "message_start", "message": {**start, "content": []}}
    for index, block in enumerate(message["content"]):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {key: message[key] for key in message if key in _OF_THE_END}}
    yield {"type": "message_stop"}
