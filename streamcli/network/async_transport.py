"""Asynchronous requests out, responses in: what httpx sends through.

Contract: a response's head goes through h11; its body is then read straight off the connection, one network read at a
time, because h11 costs microseconds for each chunk and servers send a chunk for each token. Faults of the network
come out as our errors; nothing is retried, decoded or redirected here. One connection serves one request: a stream is
dropped at message_stop, so there is nothing to keep alive, and httpcore's pool, which takes as long as all the rest of
a request, is asked only for the ways through proxies. What httpx's client does besides is left out for that too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import httpx

from .head_start import trust
from .library_errors import errors_as_ours
from .request import Route, parsed_url
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
        from .async_sending import sent  # noqa: PLC0415 - a replay needs neither httpcore nor h11

        with errors_as_ours(lambda: self._route.names(request)):
            core = await sent(request, self._route)
        body = _AsyncBody(request, core)
        rejection = self._route.rejection(request, core)
        if rejection:
            await body.aclose()
            raise rejection
        return Response(core.status, headers=body.headers, stream=body, extensions=core.extensions)


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
        await self._connection.aclose()


class AsyncOwnClient(httpx.AsyncClient):
    """Sends by way of `transport` and keeps cookies: without what httpx's own does besides, for redirects and hooks."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(transport=transport, timeout=TIMEOUT, trust_env=False)
        self._sends = transport

    def plain_request(
        self, method: str, url: str, *, headers: list[tuple[bytes, bytes]], content: bytes, timeout: httpx.Timeout
    ) -> httpx.Request:
        """As `build_request`, of what is whole."""
        to = parsed_url(url)
        host = [] if b"host" in dict(headers) else [(b"Host", to.netloc)]
        length = [(b"Content-Length", b"%d" % len(content))] if content or method == "POST" else []
        fields = [*host, *headers, *length, (b"Connection", b"keep-alive")]
        body, extensions = httpx.ByteStream(content), {"timeout": timeout.as_dict()}
        return httpx.Request(method, to, headers=fields, stream=body, cookies=self.cookies, extensions=extensions)

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: Any) -> httpx.Response:
        """The response to `request`, its body unread if it is to be a `stream`."""
        response = await self._sends.handle_async_request(request)
        response.request = request
        if "set-cookie" in response.headers:
            self.cookies.extract_cookies(response)
        if not stream:
            await response.aread()
        return response


def own_client(
    *,
    proxy: Proxy | None = None,
    ca_file: str | None = None,
    around: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] = lambda transport: transport,
) -> AsyncOwnClient:
    """A client that sends as this module says, through `proxy` or straight, trusting `ca_file` where one is given.

    `around` may put another transport around ours, as a recorder is.
    """
    return AsyncOwnClient(around(AsyncTransport(proxy=proxy, context=trust(ca_file) if ca_file else None)))
