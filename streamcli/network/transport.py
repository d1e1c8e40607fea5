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
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

import httpx

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
    UsageError,
)
from streamcli.protocol.exchange import MAX_ERROR_BODY
from streamcli.protocol.request import readable_on_the_way

from .framing import Framing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping

    import httpcore

    from streamcli.protocol.exchange import Exchange
    from streamcli.protocol.request import Endpoint

    from .connection import Limits

CONNECT_TIMEOUT = 5.0
# Bytes of any kind count, pings included; the API pings every few seconds.
IDLE_TIMEOUT = 90.0
TIMEOUT = httpx.Timeout(IDLE_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None)
# An answer that is no stream has no pings, and comes when all of it is thought out (streamcli(7), section "Timeouts").
WHOLE_TIMEOUT = httpx.Timeout(600.0, connect=CONNECT_TIMEOUT, pool=None)
# A refusal's status is known already; its body gets this long to say why (streamcli(7), section "Error responses").
ERROR_BODY_TIMEOUT = 5.0

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
            usable = parts.scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0 and parts.netloc.isascii()
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{self.source} names no http, https or socks5 proxy")
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise UsageError(f"{self.source} names a SOCKS proxy, which needs the package socksio")
        return Proxy(url, self.source)

    @property
    def scheme(self) -> str:
        """How it is spoken to."""
        return urlsplit(self.url).scheme

    def for_httpcore(self, context: ssl.SSLContext | None) -> httpcore.Proxy:
        """As httpcore takes it: the address, user and password apart, and the trust if it is spoken to by https."""
        import httpcore  # noqa: PLC0415

        parts = urlsplit(self.url)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        auth = (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")) if parts.username else None
        return httpcore.Proxy(address, auth=auth, ssl_context=context if parts.scheme == "https" else None)


def environment_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for `url`, or None.

    Lower-case names win over upper-case ones, a scheme's own variable over ALL_PROXY; NO_PROXY exempts hosts. Raises
    UsageError, naming the variable, for one that cannot be used (streamcli(7), section "Proxies").
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


def proxy_for(endpoint: Endpoint, *, named: str | None = None, allow_http: bool = False) -> Proxy | None:
    """The proxy to go through to `endpoint`: `named` with --proxy, or the environment's.

    Raises UsageError for one that cannot be used, and for one on another machine that would be handed a key in clear,
    which only `allow_http` lets pass.
    """
    url = endpoint.base_url
    proxy = Proxy(named, "--proxy").checked() if named else environment_proxy(url, os.environ)
    if proxy and endpoint.has_credential and not allow_http and readable_on_the_way(url, proxy.url):
        host = urlsplit(proxy.url).hostname
        raise UsageError(f"{proxy.source} takes plain http to {host}: the key would be readable there; see NO_PROXY")
    return proxy


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
        schemes = {request.url.scheme, self._proxy.scheme if self._proxy else ""}
        if self._context is None and "https" in schemes:
            self._context = tls_context()
        proxy = self._proxy.for_httpcore(self._context) if self._proxy else None
        return {"ssl_context": self._context, "proxy": proxy, "max_keepalive_connections": 0}

    def _peer(self, request: httpx.Request) -> tuple[Limits, str]:
        from .connection import Limits  # noqa: PLC0415

        return Limits(*request.extensions.get("limits", ())), "the proxy " if self._proxy else ""


class Transport(_TransportState, httpx.BaseTransport):
    """Opens one connection for each request."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the answer's body is unread."""
        import httpcore  # noqa: PLC0415 - a replay needs neither httpcore nor h11

        from .connection import Backend  # noqa: PLC0415

        pool = httpcore.ConnectionPool(network_backend=Backend(*self._peer(request)), **self._options(request))
        with _core_mapped():
            answer = pool.handle_request(_core_request(request))
        return _response(answer, _Body(request, answer))


class _BodyState:
    """What both bodies know: the connection, the framing, how long a silence may last, how it ended."""

    def __init__(self, request: httpx.Request, answer: httpcore.Response) -> None:
        self._answer = answer
        self._connection = answer.extensions["network_stream"]
        self._connection.peer.responded = True
        self._framing = Framing(answer.status, httpx.Headers(answer.headers))
        self._ended = self._framing.done
        self._fault: APIError | None = None
        self._idle: float | None = request.extensions["timeout"].get("read")

    def _decoded(self, data: bytes) -> bytes:
        body = self._framing.decode(data)
        if self._framing.broken:
            self._fault = ProtocolError(f"the stream is malformed: {self._framing.broken}")
        elif not data and self._framing.missing():
            self._fault = self._connection.peer.lost()
        self._ended = self._framing.done or not data or self._fault is not None
        return body

    def _end(self) -> APIError | None:
        # Not kept: an error knows the frames it passed, and by them the stream that a finalizer waits for.
        fault, self._fault = self._fault, None
        return fault


class _Body(_BodyState, httpx.SyncByteStream):
    """The body of one answer, a piece for each network read; a fault comes after what came before it."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._ended:
            body = self._decoded(self._connection.receive(self._idle))
            if body:
                return body
        raise self._end() or StopIteration

    def close(self) -> None:
        """Drop the connection."""
        self._answer.close()


class AsyncTransport(_TransportState, httpx.AsyncBaseTransport):
    """As `Transport`, on the running event loop."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; the answer's body is unread."""
        import httpcore  # noqa: PLC0415

        from .async_connection import AsyncBackend  # noqa: PLC0415

        pool = httpcore.AsyncConnectionPool(
            network_backend=AsyncBackend(*self._peer(request)), **self._options(request)
        )
        with _core_mapped():
            answer = await pool.handle_async_request(_core_request(request))
        return _response(answer, _AsyncBody(request, answer))


class _AsyncBody(_BodyState, httpx.AsyncByteStream):
    """The body of one answer, a piece for each network read; a fault comes after what came before it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._ended:
            body = self._decoded(await self._connection.receive(self._idle))
            if body:
                return body
        raise self._end() or StopAsyncIteration

    async def aclose(self) -> None:
        """Drop the connection."""
        await self._answer.aclose()


class _Response(httpx.Response):
    """An answer that httpx takes for no redirect: even where it follows none it would choke on a bad Location."""

    has_redirect_location = False


def _response(answer: httpcore.Response, body: _Body | _AsyncBody) -> httpx.Response:
    return _Response(answer.status, headers=answer.headers, stream=body, extensions=answer.extensions)


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
        raise UnexpectedResponseError(f"the answer is no HTTP: {fault}") from None
    except httpcore.LocalProtocolError as fault:
        raise UsageError(f"the request cannot be sent as HTTP: {fault}") from None


# What an httpx client that is not ours raises.
FOREIGN = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)


def our_error(fault: Exception, *, in_body: bool = False) -> APIError:
    """The error of ours that one of FOREIGN is, by where it strikes."""
    if isinstance(fault, httpx.TimeoutException):
        kind = "connect" if isinstance(fault, httpx.ConnectTimeout) else "idle"
        return APITimeoutError(f"the {kind} limit passed{_words(fault)}", retryable=kind == "connect")
    if isinstance(fault, httpx.InvalidURL):
        return UsageError(f"the request's address is no URL{_words(fault)}")
    if in_body:
        return IncompleteStreamError(f"the stream broke off{_words(fault)}")
    who = "the proxy refused" if isinstance(fault, httpx.ProxyError) else "no answer"
    return APIConnectionError(f"{who}{_words(fault)}", retryable=_may_pass(fault))


def _words(fault: Exception) -> str:
    return f": {fault}" if str(fault) else ""


def _may_pass(fault: BaseException) -> bool:
    """Whether another attempt could end differently: not where TLS fails, or the request itself is wrong."""
    if not isinstance(fault, httpx.NetworkError | httpx.RemoteProtocolError):
        return False
    cause: BaseException | None = fault
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause is None


def own_client(
    *,
    proxy: Proxy | None = None,
    ca_file: str | None = None,
    around: Callable[[httpx.BaseTransport], httpx.BaseTransport] = lambda transport: transport,
) -> httpx.Client:
    """A client that sends as this module says, through `proxy` or straight.

    `around` may put another transport around ours, as a recorder is.
    """
    transport = Transport(proxy=proxy, context=tls_context(ca_file) if ca_file else None)
    return httpx.Client(transport=around(transport), timeout=TIMEOUT, trust_env=False)


def async_own_client(*, proxy: Proxy | None = None, ca_file: str | None = None) -> httpx.AsyncClient:
    """As `own_client`, for the event loop."""
    transport = AsyncTransport(proxy=proxy, context=tls_context(ca_file) if ca_file else None)
    return httpx.AsyncClient(transport=transport, timeout=TIMEOUT, trust_env=False)


def outgoing(client: Any, exchange: Exchange) -> httpx.Request:
    """The request of `exchange` as `client`, of either colour, sends it."""
    if client.is_closed:
        raise UsageError("the client is closed")
    method, url, fields, body = exchange.request
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()]
    request: httpx.Request = client.build_request(method, url, headers=headers, content=body, timeout=exchange.timeout)
    request.extensions["limits"] = (exchange.total, exchange.deadline)
    return request


def abandon(response: httpx.Response) -> None:
    """Drop the connection of an answer nobody will read any more; for finalizers, so it never waits."""
    connection = response.extensions.get("network_stream")
    if connection is not None and hasattr(connection, "abort"):
        connection.abort()


def _hurry(response: httpx.Response) -> float:
    """Leave the rest of an answer only REFUSAL_TIMEOUT; returns when that will have passed."""
    connection = response.extensions.get("network_stream")
    peer = getattr(connection, "peer", None)
    if peer is not None:  # else the client is not our own
        peer.limits = peer.limits.at_most(ERROR_BODY_TIMEOUT)
    return time.monotonic() + ERROR_BODY_TIMEOUT


class Pieces:
    """An answer's body as it comes; faults in it are ours.

    Taken from the stream itself: `iter_raw` refuses the body of an answer made whole, as httpx.MockTransport makes it.
    No generator of ours goes around it, because asyncio closes all generators at once when it ends.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._stream = cast("Generator[bytes, None, None]", iter(cast("httpx.SyncByteStream", response.stream)))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        try:
            for data in self._stream:
                return data
        except FOREIGN as fault:
            raise our_error(fault, in_body=True) from fault
        raise StopIteration

    def close(self) -> None:
        """Drop the connection, from another thread or task too."""
        self._response.close()
        with contextlib.suppress(RuntimeError, ValueError):  # another one waits in it, and learns it there
            self._stream.close()


class AsyncPieces:
    """As `Pieces`, for the event loop."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._stream = cast("AsyncGenerator[bytes, None]", aiter(cast("httpx.AsyncByteStream", response.stream)))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            async for data in self._stream:
                return data
        except FOREIGN as fault:
            raise our_error(fault, in_body=True) from fault
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Drop the connection, from another thread or task too."""
        await self._response.aclose()
        with contextlib.suppress(RuntimeError, ValueError):  # another one waits in it, and learns it there
            await self._stream.aclose()


def whole_body(response: httpx.Response) -> bytes:
    """All of an answer's body; of a refusal's, what `refusal_body` says."""
    if response.status_code != 200:
        return error_body(response)
    with contextlib.closing(Pieces(response)) as pieces:
        return b"".join([data for data in pieces])  # noqa: C416 - as its twin


async def async_whole_body(response: httpx.Response) -> bytes:
    """As `whole_body`, for the event loop."""
    if response.status_code != 200:
        return await async_error_body(response)
    async with contextlib.aclosing(AsyncPieces(response)) as pieces:
        return b"".join([data async for data in pieces])


def error_body(response: httpx.Response) -> bytes:
    """What of a refusal's body comes soon and is not too long; a fault in it does not hide the status."""
    body = b""
    until = _hurry(response)
    with contextlib.suppress(APIError), contextlib.closing(Pieces(response)) as pieces:
        for data in pieces:
            body += data
            if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                break
    return body[:MAX_ERROR_BODY]


async def async_error_body(response: httpx.Response) -> bytes:
    """As `refusal_body`, for the event loop."""
    body = b""
    until = _hurry(response)
    with contextlib.suppress(APIError):
        async with contextlib.aclosing(AsyncPieces(response)) as pieces:
            async for data in pieces:
                body += data
                if len(body) > MAX_ERROR_BODY or time.monotonic() > until:
                    break
    return body[:MAX_ERROR_BODY]


def sleep(seconds: float) -> None:
    """Wait before another attempt; a name of its own so that tests can replace it."""
    time.sleep(seconds)


async def async_sleep(seconds: float) -> None:
    """As `sleep`, for the event loop."""
    import asyncio  # noqa: PLC0415 - the synchronous half must not pay for it

    await asyncio.sleep(seconds)
