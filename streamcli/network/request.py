"""A request on its way out: from ours to httpx's, from that to httpcore's, and the route it takes.

Contract: every byte of it was decided above; only its form changes here.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import httpx

from streamcli.errors import APIError, UsageError

from .head_start import trust
from .library_errors import rejected_by
from .lookup import address
from .peer import BrokenWriteError
from .timeouts import Deadline

if TYPE_CHECKING:
    import ssl

    import httpcore

    from streamcli.protocol.exchange import Exchange

    from .proxy import Proxy
    from .response import Head

PORTS = {"http": 80, "https": 443}
_AUTHENTICATION_REQUIRED = 407
# Squid has it in every error response of its own.
_SQUID_ERROR = b"x-squid-error"
# Among the extensions of httpx's request, where it carries our deadline.
_DEADLINE = "deadline"


def for_httpx(client: Any, exchange: Exchange) -> httpx.Request:
    """The request of `exchange` as `client`, synchronous or not, sends it. Raises UsageError once that is closed."""
    if client.is_closed:
        raise UsageError("the client is closed")
    method, url, fields, body = exchange.request
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in fields.items()]
    build = getattr(client, "plain_request", client.build_request)  # which clients of our own have
    request: httpx.Request = build(method, url, headers=headers, content=body, timeout=exchange.timeout)
    request.extensions[_DEADLINE] = Deadline(exchange.total, exchange.deadline)
    return request


@functools.lru_cache(maxsize=16)
def parsed_url(url: str) -> httpx.URL:
    """`url` as httpx has it, which takes as long as all the rest of a request to it."""
    return httpx.URL(url)


class Route:
    """Through `proxy`, or straight; with the trust `context`, or one made as soon as https needs it."""

    def __init__(self, proxy: Proxy | None, context: ssl.SSLContext | None) -> None:
        self.proxy = proxy
        self._context = context

    def request(self, request: httpx.Request) -> httpcore.Request:
        """`request` as httpcore takes it."""
        import httpcore  # noqa: PLC0415

        url = request.url
        # An HTTP proxy is told the host as httpcore has it, which puts no brackets around an address.
        is_told = self.proxy and self.proxy.speaks_http and b":" in url.raw_host
        host = b"[%b]" % url.raw_host if is_told else url.raw_host
        target = httpcore.URL(scheme=url.raw_scheme, host=host, port=url.port, target=url.raw_path)
        return httpcore.Request(
            request.method, target, headers=request.headers.raw, content=request.stream, extensions=request.extensions
        )

    def names(self, request: httpx.Request) -> tuple[str, str]:
        """The proxy, and the address that it is to reach, for messages."""
        url = request.url
        target = address(url.host, url.port or PORTS[url.scheme])
        return self.proxy.name if self.proxy else "", target

    def rejection(self, request: httpx.Request, response: Head | httpcore.Response) -> APIError | None:
        """The error of a response that is the proxy's own and not the server's, or None.

        Only plain http shows a proxy what it passes on; a tunnel that it rejects is httpcore's to tell.
        """
        if self.proxy is None or not self.proxy.speaks_http or request.url.scheme != "http":
            return None
        said = {name.lower(): value for name, value in response.headers}
        reason = said.get(_SQUID_ERROR, b"")
        if response.status != _AUTHENTICATION_REQUIRED and not reason:
            return None
        words = [b"%d" % response.status, response.extensions.get("reason_phrase", b""), reason]
        proxy, target = self.names(request)
        text = b" ".join(filter(None, words)).decode("ascii", "replace")
        return rejected_by(proxy, f"the request to {target}", text)

    def trust(self) -> ssl.SSLContext:
        """What TLS stands on. Raises UsageError where it cannot be had."""
        if self._context is None:
            self._context = trust()
        return self._context

    def pool_options(self, request: httpx.Request) -> dict[str, Any]:
        """What httpcore's pools must be told. Raises UsageError where the trust cannot be had."""
        schemes = {request.url.scheme, self.proxy.scheme if self.proxy else ""}
        context = self.trust() if "https" in schemes else None
        proxy = self.proxy.for_httpcore(context) if self.proxy else None
        return {"ssl_context": context, "proxy": proxy, "max_keepalive_connections": 0}

    def backend_options(self, request: httpx.Request) -> tuple[Deadline, str, type[Exception]]:
        """What our own backends must be told."""
        deadline = request.extensions.get(_DEADLINE, Deadline())
        if not self.proxy:
            return deadline, "", BrokenWriteError
        import httpcore  # noqa: PLC0415 - takes a tenth of a straight run

        return deadline, "the proxy ", httpcore.WriteError
