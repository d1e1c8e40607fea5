"""One logical call as a machine without I/O: what to send, what a response means, what its body brings, how it ends.

Contract: the driver opens, reads, sleeps and closes; every decision is made here. `accepted` says of each response
whether a stream begins, `error_response` what one without a stream means, and `failed` how long to wait before another
attempt, or it raises what is final. Then each piece goes through `body`, and `receive` hands out its events one by one,
so that the message so far is never ahead of the caller; `end` raises unless message_stop came. Errors carry the request
id and the message so far.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
)

from . import coding
from .body import Body, events_of
from .message import Accumulator, parsed
from .records import Event, Message, events
from .retry import MAX_RETRIES, delay
from .secrets import hidden, hide_in_error, secrets_of
from .sse import MAX_EVENT_BYTES, Decoder, ServerSentEvent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .deviations import Reader
    from .request import Request

_EVENT_STREAM = "text/event-stream"
# Statuses with which servers send what was asked for.
_READ = frozenset({200, 201, 203})


class Received(NamedTuple):
    """An event as it came, and parsed where it builds the message (else None).

    Where an event deviated, what it stands for may be several events, of which only the first has `raw`, or nothing.
    """

    raw: ServerSentEvent | None
    event: dict[str, Any] | None
    is_nothing: bool = False


# A named tuple's own constructor takes three times as long.
_new = tuple.__new__


def request_id_in(headers: Mapping[str, str]) -> str | None:
    """The server's id for a request, by the name that it gives it."""
    return headers.get("request-id") or headers.get("x-request-id")


class Exchange:
    """One request, its attempts, and the stream or body that comes back.

    An attempt goes from `accepted` through `receive` to `end`. Where one of them raises, `failed` says whether the next
    attempt begins. All that is remembered of one response is made in `_begin`.

    `deadline` is a time of `time.monotonic`, or None; `total` is how many seconds it allows, for the message. `timeout`
    is for the driver's single reads; it is only kept here.
    """

    # What a response should be, and how it ends where it was closed before its end, for messages.
    _wanted = "an event stream"
    _closed_early = "the stream was closed before message_stop"

    def __init__(
        self,
        request: Request,
        *,
        timeout: Any = None,
        max_retries: int = MAX_RETRIES,
        total: float | None = None,
        keep_text: bool = True,
        strict: bool = False,
        max_event_bytes: int = MAX_EVENT_BYTES,
        secrets: Iterable[str] = (),
    ) -> None:
        self.request = request
        self.timeout = timeout
        self.attempt = 0
        self.total = total
        self.deadline = None if total is None else time.monotonic() + total
        self.request_id: str | None = None
        self._max_retries = max_retries
        self._keep_text = keep_text
        self._strict = strict
        self._max_event_bytes = max_event_bytes
        self._more_secrets = [*secrets]
        self._begin()

    @property
    def _secrets(self) -> list[str]:
        """What no error may say; looked for only where there is one."""
        return [*secrets_of(self.request.headers.items()), *self._more_secrets]

    def _begin(self, coded: str = "", *, may_be_whole: bool = False) -> None:
        """What a response brings, from its bytes to its message: nothing so far."""
        self.body = Body(coded, self._max_event_bytes, may_be_whole=may_be_whole)
        self._decoder = Decoder(self._max_event_bytes)
        self.accumulator = Accumulator(keep_text=self._keep_text)
        # Takes the accumulator over once an event broke the rules.
        self._reader: Reader | None = None

    def failed(self, error: APIError) -> float:
        """The attempt ended with `error`. Returns the seconds to wait, or raises the error that is final."""
        error.request_id = error.request_id or self.request_id
        self.request_id = None  # the next attempt gets one of its own
        hide_in_error(error, self._secrets)
        chance = random.random()  # noqa: S311 - it only spreads waits
        wait = delay(error, self.attempt, max_retries=self._max_retries, chance=chance, now=time.time())
        if wait is None:
            raise error
        if self.deadline is not None and time.monotonic() + wait > self.deadline:
            raise APITimeoutError(
                f"the total timeout of {self.total:g} s would pass before another attempt after: {error}",
                retryable=False,
                request_id=error.request_id,
            ) from error
        self.attempt += 1
        return wait

    def accepted(self, status: int, headers: Mapping[str, str]) -> bool | None:
        """Whether the body is to be received, by what the response says of it; None where `body.look` has to tell."""
        self.request_id = request_id_in(headers)
        coded = coding.of(headers)
        can_be_read = status == 200 and not coded if self._strict else status in _READ and coding.can_undo(coded)
        self._begin(coded if can_be_read else "", may_be_whole=not self._strict)
        if can_be_read and headers.get("content-type", "").partition(";")[0].strip().lower() == _EVENT_STREAM:
            return True
        return None if can_be_read and not self._strict else False

    def json_object(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The JSON object in a response that is not a stream. Raises the error that it is otherwise."""
        from .responses import json_object  # noqa: PLC0415 - a stream needs none of it

        value = json_object(status, headers, body)
        if value is None:
            raise self.error_response(status, headers, body, wanted="a JSON object")
        return value

    def error_response(self, status: int, headers: Mapping[str, str], body: bytes, *, wanted: str = "") -> APIError:
        """The error that a response without a stream is; `body` is its first MAX_ERROR_BODY bytes at most."""
        from .responses import error_of  # noqa: PLC0415 - few calls fail

        self.request_id = request_id_in(headers)
        error = error_of(self.request.url, status, headers, body, wanted=wanted or self._wanted, secrets=self._secrets)
        error.request_id = self.request_id or error.request_id
        return error

    def receive(self, data: bytes) -> Iterator[Received]:  # noqa: C901 - nothing is called for an event that need not be
        """The events that `data` completes, each accumulated as it is handed out; none after message_stop.

        Raises ProtocolError, or the error that an `error` event is, after the events before it.
        """
        accumulator = self.accumulator
        receive = accumulator.receive
        try:
            if self.body.message:
                yield from self._receive_whole(data, self.body.message)
                return
            came = self._decoder.feed(data)
            if came:
                self.body.has_events = True
            for raw in came:
                if self._reader:
                    yield from self._read_on(raw)
                else:
                    try:
                        event = receive(raw.event, raw.data)
                    except ProtocolError as breach:
                        if self._strict:
                            breach.retryable = False
                            raise
                        yield from self._read_on(raw)
                    else:
                        yield _new(Received, (raw, event, False))
                if accumulator.complete:
                    return
        except APIError as error:
            if isinstance(error, APIStatusError):
                error.data = raw.data
            raise self.explained(error) from None

    def records(self, data: bytes) -> Iterator[Event]:
        """As `receive`, for the library's users: each event that means something, followed by those derived from it."""
        for raw, event, is_nothing in self.receive(data):
            if event is not None:
                yield from events(event, self.accumulator)
            elif raw and not is_nothing:
                yield Event(parsed(raw.event, raw.data))

    def _receive_whole(self, data: bytes, message: dict[str, Any]) -> Iterator[Received]:
        """The events of a message that came whole, as those of a stream."""
        taken = filter(self.accumulator.take, events_of(message))
        yield Received(ServerSentEvent("message", data), next(taken))
        yield from (Received(None, event) for event in taken)

    def _read_on(self, raw: ServerSentEvent) -> Iterator[Received]:
        """What an event means in a stream that deviates, from the first that does."""
        if self._reader is None:
            from .deviations import Reader  # noqa: PLC0415 - few streams deviate

            self._reader = Reader(self.accumulator)
        counts = self._reader.counts
        known = counts.total()
        meant = self._reader.read(raw.event, raw.data)
        first = next(meant, None)
        yield Received(raw, first, is_nothing=first is None and counts.total() > known)
        yield from (Received(None, event) for event in meant)

    @property
    def deviations(self) -> dict[str, int]:
        """How often the stream deviated from the documented one, by kind; streamcli(7), section "DEVIATIONS"."""
        return dict(self._reader.counts) if self._reader else {}

    def deviation_lines(self) -> list[str]:
        """A line for each kind: where it came first, and how often."""
        return self._reader.lines() if self._reader else []

    def check_time(self) -> None:
        """Raise APITimeoutError once the total timeout has passed; for drivers whose reads do not know it."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise APITimeoutError(f"the total timeout of {self.total:g} s passed", retryable=False)

    @property
    def complete(self) -> bool:
        """Whether message_stop came: nothing more need be read."""
        return self.accumulator.complete

    def end(self) -> None:
        """The body ended. Raises IncompleteStreamError, or UnexpectedResponseError, unless the message is complete."""
        if self.complete:
            return
        try:
            self._decoder.close()
        except APIError as error:
            raise self.explained(error) from None
        if not self.body.has_events and self.body.kind not in {"", "events"}:
            from .responses import shown  # noqa: PLC0415 - few calls fail

            what = shown(hidden(self.body.beginning, self._secrets))
            raise self.explained(UnexpectedResponseError(f"there is no event in the response, which begins: {what}"))
        reason = self.accumulator.stop_reason
        after = f", after stop reason {reason}" if reason else ""
        raise self.explained(IncompleteStreamError(f"the stream ended before message_stop{after}"))

    def closed_early(self) -> APIError:
        """The error of reading on in what was closed."""
        return self.explained(IncompleteStreamError(self._closed_early))

    def explained(self, error: APIError) -> APIError:
        """`error` with the request id and the message so far."""
        error.request_id = error.request_id or self.request_id
        error.partial = self.snapshot()
        hide_in_error(error, self._secrets)
        return error

    def snapshot(self) -> Message | None:
        """The message so far, or None before message_start."""
        fields = self.accumulator.snapshot()
        return None if fields is None else Message(fields)
