"""One logical call as a machine without I/O: what to send, what a response means, what its body brings, how it ends.

Contract: the driver opens, reads, sleeps and closes; every decision is made here. `accepted` says whether a stream
begins, `error_response` what a response without one means, and `failed` how long to wait before another attempt, or it
raises what is final. Then `receive` hands out events one by one, so that the message so far is never ahead of the
caller, and `end` raises unless message_stop came. Errors carry the request id and the message so far.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
    status_error,
)

from . import coding
from .body import Body, events_of
from .jsontext import dumps, loads
from .message import OF_CHAT_COMPLETIONS, Accumulator
from .records import Message
from .retry import MAX_RETRIES, MAX_WAIT, delay, retry_after
from .secrets import hidden, hidden_text, secrets_of
from .sse import MAX_EVENT_BYTES, Decoder, ServerSentEvent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .deviations import Reader
    from .request import Request

# How much of an error response's body is worth reading (streamcli(7), section "Error responses").
MAX_ERROR_BODY = 64 * 1024
# How long a response may be that is read whole, its coding undone.
MAX_BODY = 64 << 20
# A body is undone in pieces of this size, because each may become a thousand times as long.
_PIECE = 16 * 1024
_EXCERPT = 120
_EVENT_STREAM = "text/event-stream"
# What a gateway says of whoever is behind it, often without a word.
_OF_GATEWAYS = frozenset({502, 504})
_OK = frozenset({200})
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

    `deadline` is a time of `time.monotonic`, or None; `total` is how many seconds it allows, for the message. `timeout`
    is for the driver's single reads; it is only kept here.
    """

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
        self._secrets = list(secrets_of(request.headers.items()))
        self._begin()

    def _begin(self, coded: str = "") -> None:
        self._body = Body(coded, self._max_event_bytes)
        self._is_begun = False  # whether an event has come
        self.accumulator = Accumulator(keep_text=self._keep_text)
        self._decoder = Decoder(self._max_event_bytes)
        # Reads on once something deviated.
        self._reader: Reader | None = None

    def failed(self, error: APIError) -> float:
        """The attempt ended with `error`. Returns the seconds to wait, or raises the error that is final."""
        error.request_id = error.request_id or self.request_id
        self.request_id = None  # the next attempt gets one of its own
        self._hide_secrets(error)
        wait = delay(
            error,
            self.attempt,
            max_retries=self._max_retries,
            chance=random.random(),  # noqa: S311 - it only spreads waits
            now=time.time(),
        )
        if wait is None:
            raise error
        if self.deadline is not None and time.monotonic() + wait > self.deadline:
            raise APITimeoutError(
                f"the total timeout of {self.total:g} s would pass while waiting for another attempt after: {error}",
                retryable=False,
                request_id=error.request_id,
            ) from error
        self.attempt += 1
        return wait

    def accepted(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the response is an event stream by what it says of itself; if so, `receive` may begin."""
        self.request_id = request_id_in(headers)
        coded = coding.of(headers)
        readable = not coded if self._strict else coding.can_undo(coded)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status not in self._statuses() or kind != _EVENT_STREAM or not readable:
            return False
        self._begin(coded)
        return True

    def may_be_read(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the response may be read by what it begins with, though it does not say that it is an event stream.

        If so, `look` tells.
        """
        coded = coding.of(headers)
        self._begin(coded if coding.can_undo(coded) else "")
        return not self._strict and status in self._statuses() and coding.can_undo(coded)

    def look(self, data: bytes | None) -> bool | None:
        """Whether a body that goes on with `data`, None at its end, can be read; None while that cannot be told.

        What was looked at is in `looked_at`, to be given to `receive` first. Raises ProtocolError.
        """
        return self._body.look(data)

    @property
    def looked_at(self) -> bytes:
        """What was read of the body by `look`, its coding undone."""
        return self._body.looked_at

    def decoded(self, data: bytes | None) -> bytes:
        """What to give to `receive` for the bytes of the body that came, None at its end. Raises ProtocolError."""
        if data is None and self._strict:
            return b""
        return self._body.decoded(data)

    def _statuses(self) -> frozenset[int]:
        return _OK if self._strict else _READ

    def json_object(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The JSON object in a response that is not a stream. Raises the error that it is otherwise."""
        self.request_id = request_id_in(headers)
        plain = _plain(body, headers)
        if len(plain) > MAX_BODY:
            raise UnexpectedResponseError(f"the response is longer than {MAX_BODY >> 20} MiB")
        value = _json_or_text(plain)
        if status != 200 or not isinstance(value, dict) or value.get("type") == "error":
            raise self.error_response(status, headers, body, wanted="a JSON object")
        return value

    def error_response(
        self, status: int, headers: Mapping[str, str], body: bytes, *, wanted: str = "an event stream"
    ) -> APIError:
        """The error that a response without a stream is; `body` is its first MAX_ERROR_BODY bytes at most."""
        self.request_id = request_id_in(headers)
        body = hidden(_plain(body, headers), self._secrets)  # before anything of it is cut
        value = _json_or_text(body)
        is_error = isinstance(value, dict) and value.get("type") == "error"
        if status == 407:
            return APIConnectionError("a proxy on the way rejected the request: 407", retryable=False)
        if 300 <= status < 400:
            place = hidden_text(headers.get("location", "nowhere"), self._secrets)
            message = f"a redirect to {_excerpt(place)} is not followed"
            return APIStatusError(message, status_code=status, headers=headers, request_id=self.request_id)
        if status >= 400 or is_error:
            has_reason = isinstance(value, dict) and "error" in value
            reason = value if has_reason else _seen(body.decode("utf-8", "replace"))
            error = status_error(None if status < 400 else status, reason, headers=headers, request_id=self.request_id)
            if status in _OF_GATEWAYS and not body.strip():
                error.message = f"{_gateway(self.request.url, headers)} gave no reason"
            if status == 404:
                error.message += f"; asked {self.request.url}"
            error.retry_after = asked = retry_after(headers, time.time())
            if asked is not None and asked > MAX_WAIT:
                error.message += f"; the server asks to wait {asked:.0f} s"
            return error
        if status == 204 or not body:
            return IncompleteStreamError("the response is empty", request_id=self.request_id)
        return UnexpectedResponseError(_what_it_is(value, headers, wanted), request_id=self.request_id)

    def receive(self, data: bytes) -> Iterator[Received]:  # noqa: C901 - nothing is called for an event that need not be
        """The events that `data` completes, each accumulated as it is handed out; none after message_stop.

        Raises ProtocolError, or the error that an `error` event is, after the events before it.
        """
        if not self._is_begun:
            if self._body.message:
                yield from self._received_whole(data, self._body.message)
                return
            self._body.keep(data)
        accumulator = self.accumulator
        receive = accumulator.receive
        try:
            for raw in self._decoder.feed(data):
                self._is_begun = True
                if self._reader:
                    yield from self._read_on(raw)
                else:
                    try:
                        event = receive(raw.event, raw.data)
                    except ProtocolError as breach:
                        if self._strict:
                            breach.retryable = False
                            raise
                        self._reader = _reader(accumulator)
                        yield from self._read_on(raw)
                    else:
                        yield _new(Received, (raw, event, False))
                if accumulator.complete:
                    return
        except APIError as error:
            if isinstance(error, APIStatusError):
                error.data = raw.data
            raise self.explained(error) from None

    def _received_whole(self, data: bytes, message: dict[str, Any]) -> Iterator[Received]:
        """The events of a message that came whole, as those of a stream."""
        source: ServerSentEvent | None = ServerSentEvent("message", data)
        for event in events_of(message):
            try:
                self.accumulator.take(event)
            except APIError as error:
                raise self.explained(error) from None
            yield Received(source, event)
            source = None

    @property
    def came_whole(self) -> bool:
        """Whether the message came whole, and not as a stream."""
        return self._body.message is not None

    def _read_on(self, raw: ServerSentEvent) -> Iterator[Received]:
        """What an event means in a stream that deviates."""
        assert self._reader  # noqa: S101 - the caller's
        known = self._reader.deviations.total
        source: ServerSentEvent | None = raw
        for event in self._reader.read(raw.event, raw.data):
            yield Received(source, event)
            source = None
        if source:
            yield Received(raw, None, is_nothing=self._reader.deviations.total > known)

    @property
    def deviations(self) -> dict[str, int]:
        """How often the stream deviated from the documented one, by kind; streamcli(7), section "DEVIATIONS"."""
        return self._reader.deviations.counts if self._reader else {}

    def deviation_lines(self) -> list[str]:
        """A line for each kind: where it came first, and how often."""
        return self._reader.deviations.lines() if self._reader else []

    def check_time(self) -> None:
        """Raise APITimeoutError once the total timeout has passed; for drivers whose reads do not know it."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise APITimeoutError(f"the total timeout of {self.total:g} s passed", retryable=False)

    @property
    def complete(self) -> bool:
        """Whether message_stop came: nothing more need be read."""
        return self.accumulator.complete

    def end(self) -> None:
        """The body ended. Raises IncompleteStreamError unless the message is complete.

        UnexpectedResponseError where the body did not even begin as an event stream does.
        """
        if self.complete:
            return
        try:
            self._decoder.close()
        except APIError as error:
            raise self.explained(error) from None
        if not self._is_begun and self._body.is_no_event_stream():
            what = _seen(hidden(self._body.beginning, self._secrets).decode("utf-8", "replace"))
            raise self.explained(UnexpectedResponseError(f"there is no event in the response, which begins: {what}"))
        reason = self.accumulator.stop_reason
        after = f", after stop reason {reason}" if reason else ""
        raise self.explained(IncompleteStreamError(f"the stream ended before message_stop{after}"))

    def explained(self, error: APIError) -> APIError:
        """`error` with the request id and the message so far."""
        error.request_id = error.request_id or self.request_id
        error.partial = self.snapshot()
        self._hide_secrets(error)
        return error

    def _hide_secrets(self, error: APIError) -> None:
        """Take out of an error, before it is seen, what went out in secret: a server may say it back."""
        error.message = hidden_text(error.message, self._secrets)
        error.args = (error.message,)
        if isinstance(error, APIStatusError):
            shown = {name: hidden_text(value, self._secrets) for name, value in error.headers.items()}
            error.headers = error.headers if shown == dict(error.headers.items()) else shown
            error.data = error.data and hidden(error.data, self._secrets)
            error.body, error.details = self._without_secrets(error.body), self._without_secrets(error.details)

    def _without_secrets(self, value: Any) -> Any:
        if isinstance(value, str):
            return hidden_text(value, self._secrets)
        try:
            text = dumps(value)
        except ValueError:
            return value
        shown = hidden(text, self._secrets)
        return value if shown == text else loads(shown)

    def snapshot(self) -> Message | None:
        """The message so far, or None before message_start."""
        fields = self.accumulator.snapshot()
        return None if fields is None else Message(fields)


def _reader(accumulator: Accumulator) -> Reader:
    from .deviations import Deviations, Reader  # noqa: PLC0415 - few streams deviate

    return Reader(accumulator, Deviations())


def _plain(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A body, or its beginning, its coding undone as far as that goes; little more than MAX_BODY of it."""
    coded = coding.of(headers)
    made = coding.Body(coded if coding.can_undo(coded) else "")
    plain = bytearray()
    with contextlib.suppress(ProtocolError):
        for start in range(0, len(body), _PIECE):
            plain += made.decode(body[start : start + _PIECE])
            if len(plain) > MAX_BODY:
                break
        return bytes(plain) + made.close() or body
    return body


def _what_it_is(value: Any, headers: Mapping[str, str], wanted: str) -> str:
    """What a response is that is not what was wanted: a JSON value or text."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return OF_CHAT_COMPLETIONS
    coded = coding.of(headers)
    if not coding.can_undo(coded):
        return f"the response is in the coding {_excerpt(coded)}, which was not asked for and cannot be read"
    kind = _excerpt(headers.get("content-type") or "of no content type")
    text = value if isinstance(value, str) else dumps(value).decode()
    return f"the response is not {wanted} but {kind}: {_seen(text)}"


def _gateway(url: str, headers: Mapping[str, str]) -> str:
    """Who responds where something behind it does not: its address, and what it says it is."""
    kind = headers.get("server") or headers.get("via")
    return f"the gateway at {urlsplit(url).netloc}{f' ({_excerpt(kind)})' if kind else ''}"


def _json_or_text(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _excerpt(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _EXCERPT else line[:_EXCERPT] + "…"


def _seen(body: str) -> str:
    from .pages import words  # noqa: PLC0415 - few responses are pages, and html takes its time to import

    return _excerpt(words(body))
