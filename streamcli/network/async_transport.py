"""Asynchronous requests out, responses in: what httpx sends through.

Contract: a response's head goes through h11; its body is then read straight off the connection, one network read at a
time, because h11 costs microseconds for each chunk and servers send a chunk for each token. Faults of the network
come out as our errors; nothing is retried, decoded or redirected here. One connection serves one request: a stream is
dropped at message_stop, so there is nothing to keep alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import httpx

from .head_start import trust
from .library_errors import httpcore_errors_as_ours
from .request import Route
from .response import BodyState, Response
from .timeouts import TIMEOUT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from .proxy import Proxy


class AsyncTransport(httpx.AsyncBaseTransport):
    """Opens one connection for each request, through `proxy` or straight; `context` is the trust, if it is made yet."""

    def __init__(self, *, proxy: Proxy | None = None, context: ssl.SSLContext | None = None) -> None:
        self._route = Route(proxy, context)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the response's body is unread."""
        import httpcore  # noqa: PLC0415 - a replay needs neither httpcore nor h11

        from .async_connection import AsyncBackend  # noqa: PLC0415

        backend = AsyncBackend(*self._route.backend_options(request))
        pool = httpcore.AsyncConnectionPool(network_backend=backend, **self._route.pool_options(request))
        try:
            with httpcore_errors_as_ours(*self._route.names(request)):
                core = await pool.handle_async_request(self._route.request(request))
        except BaseException:
            backend.abort()  # cancelled at the wrong moment, httpcore forgets the connection
            raise
        rejection = self._route.rejection(request, core)
        if rejection:
            await core.aclose()
            raise rejection
        body = _AsyncBody(request, core)
        return Response(core.status, headers=core.headers, stream=body, extensions=core.extensions)


class _AsyncBody(BodyState, httpx.AsyncByteStream):
    """The body of one response, a piece for each network read; a fault comes after what came before it."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            body = self._decoded(await self._connection.receive(self._idle_timeout))
            if body:
                return body
        if self._failed:
            raise self._error()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Drop the connection."""
        await self._response.aclose()


def own_client(
    *,
    proxy: Proxy | None = None,
    ca_file: str | None = None,
    around: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] = lambda transport: transport,
) -> httpx.AsyncClient:
    """A client that sends as this module says, through `proxy` or straight, trusting `ca_file` where one is given.

    `around` may put another transport around ours, as a recorder is.
    """
    transport = AsyncTransport(proxy=proxy, context=trust(ca_file) if ca_file else None)
    return httpx.AsyncClient(transport=around(transport), timeout=TIMEOUT, trust_env=False)
