"""One logical call as a machine without I/O: what to send, what a response means, what its body brings, how it ends.

Contract: the driver opens, reads, sleeps and closes; every decision is made here. `accepted` says whether a stream
begins, `error_response` what a response without one means, and `failed` how long to wait before another attempt, or it
raises what is final. Then `receive` hands out events one by one, so that the message so far is never ahead of the
caller, and `end` raises unless message_stop came. Errors carry the request id and the message so far.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    IncompleteStreamError,
    UnexpectedResponseError,
    status_error,
)

from .jsontext import loads
from .message import Accumulator
from .records import Message
from .request import is_secret
from .retry import MAX_RETRIES, MAX_WAIT, delay, retry_after
from .sse import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .request import Request
    from .sse import ServerSentEvent

# How much of an error response's body is worth reading.
MAX_ERROR_BODY = 64 * 1024
_EXCERPT = 120
# Anything shorter is not a secret but part of many words.
_SHORTEST_SECRET = 6


class Received(NamedTuple):
    """An event as it came, and parsed if it builds the message (otherwise None)."""

    raw: ServerSentEvent
    event: dict[str, Any] | None


# A named tuple's own constructor takes three times as long.
_new = tuple.__new__


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
    ) -> None:
        self.request = request
        self.timeout = timeout
        self.attempt = 0
        self.total = total
        self.deadline = None if total is None else time.monotonic() + total
        self.request_id: str | None = None
        self.accumulator = Accumulator()
        self._max_retries = max_retries
        self._keep_text = keep_text
        self._decoder = Decoder()

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
                f"the total limit of {self.total:g} s would pass while waiting for another attempt after: {error}",
                retryable=False,
                request_id=error.request_id,
            ) from error
        self.attempt += 1
        return wait

    def accepted(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether the response is an event stream; if so, `receive` may begin."""
        self.request_id = headers.get("request-id")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status != 200 or kind != "text/event-stream" or _coding(headers):
            return False
        self.accumulator = Accumulator(keep_text=self._keep_text)
        self._decoder = Decoder()
        return True

    def json_object(self, status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """The JSON object in a response that is not a stream. Raises the error that it is otherwise."""
        self.request_id = headers.get("request-id")
        value = _json_or_text(body)
        if status != 200 or not isinstance(value, dict) or value.get("type") == "error":
            raise self.error_response(status, headers, body, wanted="JSON object")
        return value

    def error_response(
        self, status: int, headers: Mapping[str, str], body: bytes, *, wanted: str = "event stream"
    ) -> APIError:
        """The error that a response without a stream is; `body` is its first MAX_ERROR_BODY bytes at most."""
        self.request_id = headers.get("request-id")
        value = _json_or_text(body)
        is_error = isinstance(value, dict) and value.get("type") == "error"
        if status == 407:
            return APIConnectionError("the proxy refused: 407 proxy authentication required", retryable=False)
        if 300 <= status < 400:
            place = headers.get("location", "nowhere")
            message = f"a redirect to {_excerpt(place)} is not followed"
            return APIStatusError(message, status_code=status, headers=headers, request_id=self.request_id)
        if status >= 400 or is_error:
            has_reason = isinstance(value, dict) and "error" in value
            reason = value if has_reason else _excerpt(body.decode("utf-8", "replace"))
            error = status_error(None if status < 400 else status, reason, headers=headers, request_id=self.request_id)
            error.retry_after = asked = retry_after(headers, time.time())
            if asked is not None and asked > MAX_WAIT:
                error.message += f"; the server asks to wait {asked:.0f} s"
            return error
        if status == 204 or not body:
            return IncompleteStreamError("the response is empty", request_id=self.request_id)
        kind = headers.get("content-type") or "of no content type"
        coding = f" in coding {_excerpt(_coding(headers))}" if _coding(headers) else ""
        text = "" if coding else f": {_excerpt(body.decode('utf-8', 'replace'))}"
        article = "an" if wanted[0] in "aeiou" else "a"
        message = f"the response is not {article} {wanted} but {_excerpt(kind)}{coding}{text}"
        return UnexpectedResponseError(message, request_id=self.request_id)

    def receive(self, data: bytes) -> Iterator[Received]:
        """The events that `data` completes, each accumulated as it is handed out; none after message_stop.

        Raises ProtocolError, or the error that an `error` event is, after the events before it.
        """
        accumulator = self.accumulator
        receive = accumulator.receive
        try:
            for raw in self._decoder.feed(data):
                yield _new(Received, (raw, receive(raw.event, raw.data)))
                if accumulator.complete:
                    return
        except APIError as error:
            raise self.explained(error) from None

    def check_time(self) -> None:
        """Raise APITimeoutError once the total limit has passed; for drivers whose reads do not know it."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise APITimeoutError(f"the total limit of {self.total:g} s passed", retryable=False)

    @property
    def complete(self) -> bool:
        """Whether message_stop came: nothing more need be read."""
        return self.accumulator.complete

    def end(self, cause: str = "the stream ended before message_stop") -> None:
        """The body ended. Raises IncompleteStreamError unless the message is complete."""
        if self.complete:
            return
        try:
            self._decoder.close()
        except APIError as error:
            raise self.explained(error) from None
        raise self.explained(IncompleteStreamError(cause))

    def explained(self, error: APIError) -> APIError:
        """`error` with the request id and the message so far."""
        error.request_id = error.request_id or self.request_id
        error.partial = self.snapshot()
        self._hide_secrets(error)
        return error

    def _hide_secrets(self, error: APIError) -> None:
        """Hide in the message what went out in secret: a server may send it back."""
        for name, value in self.request.headers.items():
            secret = value.removeprefix("Bearer ")
            if is_secret(name) and len(secret) >= _SHORTEST_SECRET:
                error.message = error.message.replace(secret, "***")
        error.args = (error.message,)

    def snapshot(self) -> Message | None:
        """The message so far, or None before message_start."""
        fields = self.accumulator.snapshot()
        return None if fields is None else Message(fields)


def _coding(headers: Mapping[str, str]) -> str:
    coding = headers.get("content-encoding", "").strip().lower()
    return "" if coding == "identity" else coding


def _json_or_text(body: bytes) -> Any:
    try:
        return loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _excerpt(text: Any) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _EXCERPT else line[:_EXCERPT] + "…"
