"""The beginning of a body in, what it is out; and a whole message in, the events out that would have built it.

Contract: nothing is invented: the events of a whole message give that message again, and nothing else. What is neither
an event stream nor an object is left to whoever says what is wrong with it. No I/O.
Source: streamcli(7), section "Deviations of HTTP".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .jsontext import loads_exact

if TYPE_CHECKING:
    from collections.abc import Iterator

# "": too short to tell.
Kind = Literal["", "events", "object", "other"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = (b"event", b"data", b"id", b"retry")
# What a message says only when it has come to its end.
_OF_THE_END = frozenset({"stop_reason", "stop_sequence", "stop_details"})


def kind_of(beginning: bytes) -> Kind:
    """What a body is that begins so, perhaps cut."""
    first = beginning.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not first or _BYTE_ORDER_MARK.startswith(first):
        return ""
    if first.startswith(b"{"):
        return "object"
    name = first.replace(b"\r", b"\n").partition(b"\n")[0].partition(b":")[0]
    if name == first:
        return "" if any(field.startswith(name) for field in _FIELDS) else "other"
    return "events" if not name or name in _FIELDS else "other"


def message_in(body: bytes) -> dict[str, Any] | None:
    """The message that is the whole body, or None."""
    try:
        value = loads_exact(body.removeprefix(_BYTE_ORDER_MARK))
    except ValueError:
        return None
    is_message = isinstance(value, dict) and value.get("type") == "message" and isinstance(value.get("content"), list)
    return value if is_message else None


def events_of(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events that build `message`."""
    start = {key: None if key in _OF_THE_END else value for key, value in message.items()}
    yield {"type": "message_start", "message": {**start, "content": []}}
    for index, block in enumerate(message["content"]):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {key: message[key] for key in message if key in _OF_THE_END}}
    yield {"type": "message_stop"}
