"""What is known of a response, whichever way its bytes are waited for.

Contract: the body's own bytes are found in those that follow the head, and a body that ends too early or breaks the
framing has its fault, after all that came before it. No I/O beyond dropping a connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx

from streamcli.errors import APIError, malformed

from .framing import Framing
from .timeouts import ERROR_BODY_TIMEOUT

if TYPE_CHECKING:
    import httpcore


class Head(NamedTuple):
    """The head of a response, by the names that httpcore has for its parts."""

    status: int
    headers: list[tuple[bytes, bytes]]
    extensions: dict[str, Any]


class Response(httpx.Response):
    """One that httpx never takes for a redirect: even where it follows none it would choke on a bad Location."""

    has_redirect_location = False


class BodyState:
    """How far the body of `response` has come, and how it ended."""

    def __init__(self, request: httpx.Request, response: Head | httpcore.Response) -> None:
        self.headers = httpx.Headers(response.headers)
        self._connection = response.extensions["network_stream"]
        self._connection.peer.responded = True
        self._framing = Framing(response.status, self.headers)
        self._ended = self._framing.done
        self._failed = False
        self._idle_timeout: float | None = request.extensions["timeout"].get("read")

    def _decoded(self, data: bytes) -> bytes:
        """The bytes of the body in `data`, which is b"" at the connection's end."""
        body = self._framing.decode(data)
        self._failed = bool(self._framing.broken or (not data and self._framing.missing()))
        self._ended = self._framing.done or self._failed or not data
        return body

    def _error(self) -> APIError:
        """What is wrong with the body; made only when it is raised."""
        # An error knows the frames it passed, so one that was kept would keep the stream, which is then never dropped.
        if self._framing.broken:
            return malformed(self._framing.broken)
        error: APIError = self._connection.peer.lost()
        return error


def drop(response: httpx.Response) -> None:
    """Close the connection of a response nobody will read any more; for finalizers, so it never waits."""
    connection = response.extensions.get("network_stream")
    if connection is not None and hasattr(connection, "abort"):  # else the client is not our own
        connection.abort()


def hasten(response: httpx.Response) -> float:
    """Leave the rest of an error response only ERROR_BODY_TIMEOUT; returns when that will have passed."""
    connection = response.extensions.get("network_stream")
    peer = getattr(connection, "peer", None)
    if peer is not None:  # else the client is not our own
        peer.deadline = peer.deadline.at_most(ERROR_BODY_TIMEOUT)
    return time.monotonic() + ERROR_BODY_TIMEOUT
