"""A request on its way out: from ours to httpx's, from that to httpcore's, and the route it takes.

Contract: what every byte of it is was decided above; here it only changes its form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamcli.errors import UsageError

from .timeouts import Deadline
from .tls import tls_context

if TYPE_CHECKING:
    import ssl

    import httpcore
    import httpx

    from streamcli.protocol.exchange import Exchange

    from .proxy import Proxy

# Among the extensions of httpx's request, where it carries our deadline.
_DEADLINE = "deadline"


def for_httpx(client: Any, exchange: Exchange) -> httpx.Request:
    """The request of `exchange` as `client`, synchronous or not, sends it. Raises UsageError once that is closed."""
    if client.is_closed:
        raise UsageError("the client is closed")
    method, url, fields, body = exchange.request
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()]
    request: httpx.Request = client.build_request(method, url, headers=headers, content=body, timeout=exchange.timeout)
    request.extensions[_DEADLINE] = Deadline(exchange.total, exchange.deadline)
    return request


def for_httpcore(request: httpx.Request) -> httpcore.Request:
    """`request` as httpcore takes it."""
    import httpcore  # noqa: PLC0415 - a replay needs neither httpcore nor h11

    url = request.url
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(
        request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
    )


class Route:
    """Through `proxy`, or straight; with the trust `context`, or one made as soon as https needs it."""

    def __init__(self, proxy: Proxy | None, context: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        self._context = context

    def pool_options(self, request: httpx.Request) -> dict[str, Any]:
        """What httpcore's pools must be told. Raises UsageError where the trust cannot be had."""
        schemes = {request.url.scheme, self._proxy.scheme if self._proxy else ""}
        if self._context is None and "https" in schemes:
            self._context = tls_context()
        proxy = self._proxy.for_httpcore(self._context) if self._proxy else None
        return {"ssl_context": self._context, "proxy": proxy, "max_keepalive_connections": 0}

    def backend_options(self, request: httpx.Request) -> tuple[Deadline, str]:
        """What our own backends must be told."""
        return request.extensions.get(_DEADLINE, Deadline()), "the proxy " if self._proxy else ""
