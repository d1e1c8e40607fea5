"""The body of an asynchronous response: piece by piece, whole, or as much as an error response needs.

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
    from collections.abc import AsyncGenerator

    import httpx


class AsyncPieces:
    """A body as it comes.

    Taken from the stream itself: `aiter_raw` rejects the body of a response made whole, as httpx.MockTransport makes
    it. No generator of ours goes around it, because asyncio closes all generators at once when it ends.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        stream = cast("httpx.AsyncByteStream", response.stream)
        self._stream = cast("AsyncGenerator[bytes, None]", aiter(stream))

    async def read(self) -> bytes | None:
        """The next piece, None at the end."""
        try:
            return await anext(self._stream)
        except StopAsyncIteration:
            return None
        except HTTPX_ERRORS as fault:
            raise from_httpx(fault, in_body=True) from fault

    async def aclose(self) -> None:
        """Drop the connection, from another thread or task too."""
        await self.response.aclose()
        with contextlib.suppress(RuntimeError, ValueError):  # another one waits in it, and learns it there
            await self._stream.aclose()


async def whole_body(response: httpx.Response) -> bytes:
    """All of a response's body; of an error response's, what `error_body` says. Raises APIError, also over MAX_BODY."""
    if response.status_code != 200:
        return await error_body(AsyncPieces(response))
    body = bytearray()
    async with contextlib.aclosing(AsyncPieces(response)) as pieces:
        while (data := await pieces.read()) is not None:
            body += data
            if len(body) > MAX_BODY:
                raise UnexpectedResponseError(f"the response is longer than {MAX_BODY >> 20} MiB")
    return bytes(body)


async def error_body(pieces: AsyncPieces, body: bytes = b"") -> bytes:
    """What of an error response's body comes soon and is not too long; a fault in it does not hide the status.

    `body` is what was read of `pieces` already.
    """
    until = hasten(pieces.response)
    with contextlib.suppress(APIError):
        async with contextlib.aclosing(pieces):
            while (data := await pieces.read()) is not None:
                body += data
                if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                    break
    return body[:MAX_ERROR_BODY]
