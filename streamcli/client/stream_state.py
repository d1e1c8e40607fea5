"""What is known of a stream of events, whichever way its bytes are waited for.

Contract: bytes in, events out, each as it is asked for, so that an error in them comes after what came before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamcli.errors import IncompleteStreamError
from streamcli.protocol.message import parsed
from streamcli.protocol.records import Event, Message, events

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from streamcli.protocol.exchange import Exchange


class StreamState:
    """What both streams know: the response's head, and the message so far."""

    def __init__(self, exchange: Exchange, response: httpx.Response) -> None:
        self.exchange = exchange
        self.response = response

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


def events_of(exchange: Exchange, data: bytes) -> Iterator[Event]:
    """The events that `data` completes, each followed by those derived from it. Raises APIError in its turn."""
    for raw, event, is_nothing in exchange.receive(data):
        if event is not None:
            yield from events(event, exchange.accumulator)
        elif raw and not is_nothing:
            yield Event(parsed(raw.event, raw.data))
