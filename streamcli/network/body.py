# Made from async_body.py by tests/twins.py: edit that one and run `make twins`.
"""The body of a synchronous response: piece by piece, whole, or as much as an error response needs.

Contract: every fault in it is one of our errors, also where the client is not our own.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, cast

from streamcli.errors import APIError, UnexpectedResponseError
from streamcli.protocol.body import MAX_BODY, MAX_ERROR_BODY

from .library_errors import HTTPX_ERRORS, from_httpx
from .response import hasten

if TYPE_CHECKING:
    from collections.abc import Generator

    import httpx


class Pieces:
    """A body as it comes.

    Taken from the stream itself: `iter_raw` rejects the body of a response made whole, as httpx.MockTransport makes
    it. No generator of ours goes around it, because asyncio closes all generators at once when it ends.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        stream = cast("httpx.SyncByteStream", response.stream)
        self._stream = cast("Generator[bytes, None, None]", iter(stream))

    def read(self) -> bytes | None:
        """The next piece, None at the end."""
        try:
            return next(self._stream)
        except StopIteration:
            return None
        except HTTPX_ERRORS as fault:
            raise from_httpx(fault, in_body=True) from fault

    def close(self) -> None:
        """Drop the connection, from another thread or task too."""
        self.response.close()
        with contextlib.suppress(RuntimeError, ValueError):  # another one waits in it, and learns it there
            self._stream.close()


def whole_body(response: httpx.Response) -> bytes:
    """All of a response's body; of an error response's, what `error_body` says. Raises APIError, also over MAX_BODY."""
    if response.status_code != 200:
        return error_body(Pieces(response))
    body = bytearray()
    with contextlib.closing(Pieces(response)) as pieces:
        while (data := pieces.read()) is not None:
            body += data
            if len(body) > MAX_BODY:
                raise UnexpectedResponseError(f"the response is longer than {MAX_BODY >> 20} MiB")
    return bytes(body)


def error_body(pieces: Pieces, body: bytes = b"") -> bytes:
    """What of an error response's body comes soon and is not too long; a fault in it does not hide the status.

    `body` is what was read of `pieces` already.
    """
    until = hasten(pieces.response)
    with contextlib.suppress(APIError):
        with contextlib.closing(pieces):
            while (data := pieces.read()) is not None:
                body += data
                if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                    break
    return body[:MAX_ERROR_BODY]
