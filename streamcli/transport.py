"""Requests out, answers in: the only module, its sibling `tape` excepted, that knows httpx.

Contract: an answer's head goes through h11; its body is then read straight off the connection, one network read at a
time, because h11 costs microseconds for each chunk and servers send a chunk for each token. Faults of the network
come out as our errors; nothing is retried, decoded or redirected here. One connection serves one request: a stream is
dropped at message_stop, so there is nothing to keep alive.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

import httpx

from .errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedAnswerError,
    UsageError,
)
from .exchange import MAX_ERROR_BODY
from .framing import Framing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    import httpcore

    from .exchange import Exchange
    from .network import Limits

CONNECT_TIMEOUT = 5.0
# Bytes of any kind count, pings included; the API pings every few seconds.
IDLE_TIMEOUT = 90.0
TIMEOUT = httpx.Timeout(IDLE_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None)
# A refusal's status is known already; its body gets this long to say why (faults.md row 44).
REFUSAL_TIMEOUT = 5.0

_PROXY_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


class Proxy(NamedTuple):
    """A proxy and where it was named, for messages."""

    url: str
    source: str

    def checked(self) -> Proxy:
        """The same proxy with its scheme. Raises UsageError, naming the source, where it cannot be one."""
        url = self.url if "://" in self.url else f"http://{self.url}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{self.source} names no http, https or socks5 proxy")
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise UsageError(f"{self.source} names a SOCKS proxy, which needs the package socksio")
        return Proxy(url, self.source)

    def for_httpcore(self) -> httpcore.Proxy:
        """As httpcore takes it: the address, and user and password apart."""
        import httpcore  # noqa: PLC0415

        parts = urlsplit(self.url)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        return httpcore.Proxy(address, auth=auth)


def environment_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for `url`, or None.

    Lower-case names win over upper-case ones, a scheme's own variable over ALL_PROXY; NO_PROXY exempts hosts. Raises
    UsageError, naming the variable, for one that cannot be used (faults.md row 49).
    """
    host = urlsplit(url).hostname or ""
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if exempt and proxy_bypass_environment(host, {"no": exempt}):
        return None
    for name in (f"{urlsplit(url).scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if environment.get(variable):
                return Proxy(environment[variable], variable).checked()
    return None


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """The trust that https stands on: `ca_file`, or SSL_CERT_FILE, SSL_CERT_DIR, or the certifi bundle.

    Raises UsageError, naming the variable or option, for a file that cannot be read.
    """
    if os.environ.get("SSL_CERT_DIR") and not os.path.isdir(os.environ["SSL_CERT_DIR"]):
        raise UsageError("SSL_CERT_DIR names no directory")
    try:
        return ssl.create_default_context(cafile=ca_file) if ca_file else httpx.create_ssl_context()
    except (OSError, ssl.SSLError) as fault:
        source = next((name for name in ("SSL_CERT_FILE", "SSLKEYLOGFILE") if os.environ.get(name)), "the CA bundle")
        reason = getattr(fault, "strerror", None) or str(fault)
        raise UsageError(f"{'--ca-file' if ca_file else source} cannot be used: {reason}") from None


class _TransportState:
    """What both transports know: `proxy`, or None, and the trust `context`, made at the first https request if None."""

    def __init__(self, *, proxy: Proxy | None = None, context: ssl.SSLContext | None = None) -> None:
        self._proxy = proxy
        self._context = context

    def _options(self, request: httpx.Request) -> dict[str, Any]:
        if self._context is None and request.url.scheme == "https":
            self._context = tls_context()
        proxy = self._proxy.for_httpcore() if self._proxy else None
        return {"ssl_context": self._context, "proxy": proxy, "max_keepalive_connections": 0}

    def _peer(self, request: httpx.Request) -> tuple[Limits, str]:
        from .network import Limits  # noqa: PLC0415

        return Limits(*request.extensions.get("limits", ())), "the proxy " if self._proxy else ""


class Transport(_TransportState, httpx.BaseTransport):
    """Opens one connection for each request."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the answer's body is unread."""
        import httpcore  # noqa: PLC0415 - a replay needs neither httpcore nor h11

        from .network import Backend  # noqa: PLC0415

        pool = httpcore.ConnectionPool(network_backend=Backend(*self._peer(request)), **self._options(request))
        with _core_mapped():
            answer = pool.handle_request(_core_request(request))
        return _response(answer, _Body(request, answer))


class _BodyState:
    """What both bodies know: the connection, the framing, how long a silence may last."""

    def __init__(self, request: httpx.Request, answer: httpcore.Response) -> None:
        self._answer = answer
        self._connection = answer.extensions["network_stream"]
        self._connection.peer.answered = True
        self._framing = Framing(answer.status, httpx.Headers(answer.headers))
        idle: float | None = request.extensions["timeout"].get("read")
        self._patience = idle if answer.status == 200 else min(REFUSAL_TIMEOUT, idle or REFUSAL_TIMEOUT)

    def _check(self, data: bytes) -> None:
        if self._framing.broken:
            raise ProtocolError(f"the stream is malformed: {self._framing.broken}")
        if not data and self._framing.missing():
            fault: APIError = self._connection.peer.lost()
            raise fault


class _Body(_BodyState, httpx.SyncByteStream):
    """The body of one answer, a piece for each network read."""

    def __iter__(self) -> Iterator[bytes]:
        data = b"-"
        while data and not self._framing.done:
            data = self._connection.receive(self._patience)
            body = self._framing.decode(data)
            if body:
                yield body
            self._check(data)

    def close(self) -> None:
        """Drop the connection."""
        self._answer.close()


class AsyncTransport(_TransportState, httpx.AsyncBaseTransport):
    """As `Transport`, on the running event loop."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the answer's body is unread."""
        import httpcore  # noqa: PLC0415

        from .asyncnetwork import AsyncBackend  # noqa: PLC0415

        pool = httpcore.AsyncConnectionPool(
            network_backend=AsyncBackend(*self._peer(request)), **self._options(request)
        )
        with _core_mapped():
            answer = await pool.handle_async_request(_core_request(request))
        return _response(answer, _AsyncBody(request, answer))


class _AsyncBody(_BodyState, httpx.AsyncByteStream):
    """The body of one answer, a piece for each network read."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        data = b"-"
        while data and not self._framing.done:
            data = await self._connection.receive(self._patience)
            body = self._framing.decode(data)
            if body:
                yield body
            self._check(data)

    async def aclose(self) -> None:
        """Drop the connection."""
        await self._answer.aclose()


def _response(answer: httpcore.Response, body: _Body | _AsyncBody) -> httpx.Response:
    return httpx.Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)


def _core_request(request: httpx.Request) -> httpcore.Request:
    import httpcore  # noqa: PLC0415

    url = request.url
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(
        request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
    )


@contextlib.contextmanager
def _core_mapped() -> Iterator[None]:
    import httpcore  # noqa: PLC0415

    try:
        yield
    except httpcore.ProxyError as fault:
        raise APIConnectionError(f"the proxy refused: {fault}", retryable=False) from None
    except httpcore.RemoteProtocolError as fault:
        raise UnexpectedAnswerError(f"the answer is no HTTP: {fault}") from None


@contextlib.contextmanager
def mapped(*, in_body: bool = False) -> Iterator[None]:
    """Turns the exceptions of an httpx client that is not ours into our errors, by where they strike."""
    try:
        yield
    except httpx.TimeoutException as fault:
        kind = "connect" if isinstance(fault, httpx.ConnectTimeout) else "idle"
        raise APITimeoutError(f"the {kind} limit passed: {fault}", retryable=kind == "connect") from fault
    except (httpx.TransportError, httpx.StreamError) as fault:
        if in_body:
            raise IncompleteStreamError(f"the stream broke off: {fault}") from fault
        raise APIConnectionError(f"no answer: {fault}") from fault
    except httpx.InvalidURL as fault:
        raise UsageError(f"the request's address is no URL: {fault}") from fault


def own_client(
    base_url: str, *, proxy: Proxy | None = None, ca_file: str | None = None, direct: bool = False
) -> httpx.Client:
    """A client that sends as this module says.

    Where no `proxy` is given the environment's is used, or none where `direct` is set.
    """
    transport = Transport() if direct else Transport(**_route(base_url, proxy, ca_file))
    return httpx.Client(transport=transport, timeout=TIMEOUT, trust_env=False)


def async_own_client(base_url: str, *, proxy: Proxy | None = None, ca_file: str | None = None) -> httpx.AsyncClient:
    """As `own_client`, for the event loop."""
    transport = AsyncTransport(**_route(base_url, proxy, ca_file))
    return httpx.AsyncClient(transport=transport, timeout=TIMEOUT, trust_env=False)


def _route(base_url: str, proxy: Proxy | None, ca_file: str | None) -> dict[str, Any]:
    chosen = proxy or environment_proxy(base_url, os.environ)
    return {"proxy": chosen, "context": tls_context(ca_file) if ca_file else None}


def outgoing(client: Any, exchange: Exchange, timeout: httpx.Timeout) -> httpx.Request:
    """The request of `exchange` as `client`, of either colour, sends it."""
    if client.is_closed:
        raise UsageError("the client is closed")
    method, url, headers, body = exchange.request
    request: httpx.Request = client.build_request(method, url, headers=headers, content=body, timeout=timeout)
    request.extensions["limits"] = (exchange.total, exchange.deadline)
    return request


def abandon(response: httpx.Response) -> None:
    """Drop the connection of an answer nobody will read any more; for finalizers, so it never waits."""
    connection = response.extensions.get("network_stream")
    if connection is not None and hasattr(connection, "abort"):
        connection.abort()


def whole_body(response: httpx.Response) -> bytes:
    """All of an answer's body."""
    with mapped(in_body=True):
        return b"".join(response.iter_raw())


async def async_whole_body(response: httpx.Response) -> bytes:
    """As `whole_body`, for the event loop."""
    with mapped(in_body=True):
        return b"".join([data async for data in response.aiter_raw()])


def refusal_body(response: httpx.Response) -> bytes:
    """What of a refusal's body comes soon and is not too long; a fault in it does not hide the status."""
    body = b""
    until = time.monotonic() + REFUSAL_TIMEOUT
    with contextlib.suppress(APIError, httpx.HTTPError, httpx.StreamError):
        for data in response.iter_raw():
            body += data
            if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                break
    response.close()
    return body[:MAX_ERROR_BODY]


async def async_refusal_body(response: httpx.Response) -> bytes:
    """As `refusal_body`, for the event loop."""
    body = b""
    until = time.monotonic() + REFUSAL_TIMEOUT
    with contextlib.suppress(APIError, httpx.HTTPError, httpx.StreamError):
        async for data in response.aiter_raw():
            body += data
            if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                break
    await response.aclose()
    return body[:MAX_ERROR_BODY]


def sleep(seconds: float) -> None:
    """Wait before another attempt; a name of its own so that tests can replace it."""
    time.sleep(seconds)


async def async_sleep(seconds: float) -> None:
    """As `sleep`, for the event loop."""
    import asyncio  # noqa: PLC0415 - the synchronous half must not pay for it

    await asyncio.sleep(seconds)
