"""One call's traffic to JSON Lines and back, as a transport: above it nobody can tell a tape from a network.

Contract: `Recorder` passes everything on and writes down what came, when, and how it ended; `Player` gives it out
again without network, key or TLS. Secrets never reach the tape; the request's body, which holds the prompt, does.

A tape is, for each attempt: {"request": {...}}, then {"t", "status", "headers"}, then a {"t", "data"} for each read
("data64" where it is not UTF-8), then {"t", "end"}: "whole", "closed" where the reader had enough, or the error. `t`
is in seconds since the request. A run that failed ends it with {"exit_code"}, which says what no attempt tells alone.
"""

from __future__ import annotations

import base64
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import httpx

from streamcli import errors
from streamcli.protocol.jsontext import dumps, loads, object_in
from streamcli.protocol.secrets import without_secrets

from .response import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


_TYPES: dict[str, Any] = {
    "t": (int, float),
    "status": int,
    "headers": dict,
    "data": bytes,
    "data64": str,
    "request": dict,
    "exit_code": int,
}
# Of the request on a tape, what messages speak of.
_TOLD = ("model", "max_tokens")
# In a request, what another server takes for a key. Inside a string its quotes would be escaped.
_TOKEN = re.compile(r'("authorization_token"\s*:\s*)"(?:[^"\\]|\\.)*"')


class Recorder(httpx.BaseTransport):
    """Sends through `inner` and gives every line of the tape to `write`, at once."""

    def __init__(self, inner: httpx.BaseTransport, write: Callable[[bytes], None]) -> None:
        self._inner = inner
        self._write = write

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; its response is written down as it is read."""
        body = _TOKEN.sub(r'\1"***"', request.read().decode("utf-8", "replace"))
        headers = without_secrets(request.headers.items())
        line = {"method": request.method, "url": str(request.url), "headers": headers, "body": body}
        self._write(dumps({"request": line}) + b"\n")
        attempt = _Recorded(self._write)
        try:
            response = self._inner.handle_request(request)
        except errors.APIError as error:
            attempt.end(_described(error))
            raise
        except BaseException:  # a signal
            attempt.end("closed")
            raise
        attempt.add(status=response.status_code, headers=without_secrets(response.headers.items()))
        attempt.inner, response.stream = cast("httpx.SyncByteStream", response.stream), attempt
        return response

    def close(self) -> None:
        """Close the transport below."""
        self._inner.close()


class _Recorded(httpx.SyncByteStream):
    """One attempt: its lines, timed, and the body of its response, `inner`, which is written down as it is read."""

    inner: httpx.SyncByteStream

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._start = time.monotonic()
        self._ended = False

    def add(self, **fields: Any) -> None:
        self._write(dumps({"t": round(time.monotonic() - self._start, 4), **fields}) + b"\n")

    def end(self, how: Any) -> None:
        if not self._ended:
            self._ended = True
            self.add(end=how)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self.inner:
                self._add_data(data)
                yield data
        except errors.APIError as error:
            self.end(_described(error))
            raise
        self.end("whole")

    def _add_data(self, data: bytes) -> None:
        try:
            self.add(data=data.decode())
        except UnicodeDecodeError:
            self.add(data64=base64.b64encode(data).decode())

    def close(self) -> None:
        self.end("closed")
        self.inner.close()


def _described(error: errors.APIError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": error.message, "retryable": error.retryable}


class _Attempt(NamedTuple):
    """A request as it was sent, and the lines of what came of it."""

    request: dict[str, Any]
    lines: list[dict[str, Any]]


class Player(httpx.BaseTransport):
    """Answers each request with the tape's next attempt, whatever it asks.

    `lines` are the tape's; `speed` 1 keeps the time between reads, 2 halves it, 0 leaves it out. `request` is the first
    one as it was sent, `exit_code` the status of the run, if the tape has it. Raises UsageError for what is not a tape.
    """

    def __init__(self, lines: Iterable[bytes], *, speed: float = 0) -> None:
        self.exit_code: int | None = None
        self._left = deque[_Attempt]()
        for line in _parsed(lines):
            if "request" in line:
                self._left.append(_Attempt(line["request"], []))
            elif not self._left:
                break
            elif "exit_code" in line:
                self.exit_code = line["exit_code"]
            else:
                self._left[-1].lines.append(line)
        if not self._left:
            raise errors.UsageError("the tape does not begin with a request: it needs to be a file that --record wrote")
        self.request = self._left[0].request
        self._current = _Attempt({}, [])
        self._speed = speed
        self._start = 0.0

    def handle_request(self, request: httpx.Request) -> httpx.Response:  # noqa: ARG002 - the tape decides
        """The next response of the tape, or the error that took its place."""
        self._start = time.monotonic()
        self._current = self._left.popleft() if self._left else _Attempt({}, [])
        lines = [*self._current.lines, {}]  # a tape that was torn off has no end
        head = lines.pop(0)
        self._wait(head)
        if "status" not in head:
            raise _error(head.get("end"), errors.APIConnectionError, "the tape ends before this response")
        return Response(head["status"], headers=_headers(head), stream=_Played(self._reads(lines)))

    @property
    def repeats(self) -> bool:
        """Whether the tape goes on with the same request: what it is playing failed, and nothing of it counts."""
        following = self._left[0].request if self._left else {}
        return bool(self._left) and all(following.get(key) == self._current.request.get(key) for key in ("url", "body"))

    def following_model(self) -> str | None:
        """The model that the tape goes on with where it asks another one the same, else None."""
        if not self._left:
            return None
        before, after = body_of(self._current.request), body_of(self._left[0].request)
        is_same = {**before, "model": after.get("model")} == after
        return str(after.get("model")) if is_same and before != after else None

    def following(self) -> list[dict[str, Any]] | None:
        """Of the request that the tape goes on with, the blocks of its last message; None where the tape ends."""
        if not self._left:
            return None
        match body_of(self._left[0].request):
            case {"messages": [*_, {"content": [*blocks]}]}:
                return [block for block in blocks if isinstance(block, dict)]
        return []

    def _reads(self, lines: Iterable[dict[str, Any]]) -> Iterator[bytes]:
        for line in lines:
            self._wait(line)
            if "data" in line:
                yield line["data"]
            elif line.get("end") == "whole":
                return
            else:
                raise _error(line.get("end"), errors.IncompleteStreamError, "the tape ends in the middle of the stream")

    def _wait(self, line: dict[str, Any]) -> None:
        if self._speed:
            time.sleep(max(0.0, self._start + line.get("t", 0) / self._speed - time.monotonic()))


class TapeTurns:
    """Stands in for a ToolLoop where a tape is replayed: what follows an answer there, and the results sent with it."""

    def __init__(self, player: Player) -> None:
        asked = body_of(player.request)
        self.body: dict[str, Any] = {"messages": [], **{key: asked[key] for key in _TOLD if key in asked}}
        self.added: list[dict[str, Any]] = []
        self.player = player
        self._results: list[dict[str, Any]] = []

    def answered(self, message: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The calls of `message` that the tape has results of, none after a pause, or None where it is the last."""
        blocks = self.player.following()
        if blocks is None:
            return None
        self._results = [block for block in blocks if block.get("type") == "tool_result"]
        responded = [block.get("tool_use_id") for block in self._results]
        return [block for block in message["content"] if block.get("id") in responded]

    def fall_back(self) -> str | None:
        """The model that the tape asks the same next, or None."""
        return self.player.following_model()

    def results(self, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:  # noqa: ARG002 - as whoever runs tools
        """What the tools said when the tape was made."""
        return self._results

    def add(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Nothing is to be sent."""


def body_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request on a tape; none where its body is not a JSON object."""
    return object_in(str(request.get("body")).encode()) or {}


def _headers(head: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """In bytes: as text, httpx would take none beyond ASCII."""
    headers = head.get("headers", {}).items()
    return [(name.encode(), value.encode()) for name, value in headers if isinstance(value, str)]


class _Played(httpx.SyncByteStream):
    def __init__(self, reads: Iterator[bytes]) -> None:
        self._reads = reads

    def __iter__(self) -> Iterator[bytes]:
        return self._reads


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(lines, 1):
        try:
            line = loads(text)
            if "data64" in line:
                line["data"] = base64.b64decode(line["data64"], validate=True)
            elif "data" in line:
                line["data"] = line["data"].encode()
        except (ValueError, TypeError, AttributeError):
            line = None
        if not isinstance(line, dict) or not all(isinstance(line[key], _TYPES[key]) for key in _TYPES if key in line):
            raise errors.UsageError(f"line {number} of the tape is not one that --record writes")
        yield line


def _error(end: Any, usual: type[errors.APIError], message: str) -> errors.APIError:
    """The error that a tape's end line describes, of its own class where that is one of ours."""
    if not isinstance(end, dict):
        return usual(message)
    cls = getattr(errors, str(end.get("error")), usual)
    known = isinstance(cls, type) and issubclass(cls, errors.APIError) and not issubclass(cls, errors.APIStatusError)
    error: errors.APIError = (cls if known else usual)(str(end.get("message", message)))
    if isinstance(error, errors.APIConnectionError):
        error.retryable = bool(end.get("retryable"))
    return error
