"""The options of the connection in, a client of the library out: every request of the command goes through one.

Contract: a proxy or a certificate that cannot be used is UsageError here, before an output is opened or a byte is
sent. There is nothing to close: a connection ends with its response.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import httpx

from streamcli.client.client import Client
from streamcli.network.proxy import Proxy, proxy_for
from streamcli.network.tape import Player, Recorder
from streamcli.network.tls import tls_context
from streamcli.network.transport import own_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamcli.client.async_client import AsyncClient
    from streamcli.client.settings import Settings
    from streamcli.errors import APIError
    from streamcli.protocol.request import Endpoint

    from . import io
    from .args import Args


def client(
    args: Args,
    endpoint: Endpoint,
    diagnostics: io.Diagnostics,
    *,
    keep_text: bool = True,
    player: Player | None = None,
    record: Callable[[bytes], None] | None = None,
) -> Client:
    """The client for one request after the other; it says when it retries.

    `player` answers instead of the network, and its tape says how often; `record` is given each line of a tape of what
    goes over the network.
    """

    def recorded(transport: httpx.BaseTransport) -> httpx.BaseTransport:
        return Recorder(transport, record) if record else transport

    def said(error: APIError, wait: float) -> None:
        if player and not player.repeats:
            raise error
        diagnostics.note(f"retrying in {wait:.1f} s after: {error}")

    proxy = None if player else _proxy(args, endpoint)
    if player:
        http = httpx.Client(transport=player, trust_env=False)
    else:
        http = own_client(proxy=proxy, ca_file=args.ca_file, around=recorded)
    diagnostics.secrets.update(proxy.secrets if proxy else ())  # of the tape too
    settings: Settings = {
        **_settings(args, endpoint, proxy),
        "max_retries": sys.maxsize if player else args.retries,
        "keep_text": keep_text,
        "on_retry": said,
    }
    return Client(http_client=http, **settings)


def async_client(args: Args, endpoint: Endpoint) -> AsyncClient:
    """The client for many requests at once, whose user retries them.

    All share one TLS context, made here: making one costs as much as ten requests.
    """
    from streamcli.client.async_client import AsyncClient  # noqa: PLC0415 - asyncio costs more than the rest
    from streamcli.network.async_transport import AsyncOwnClient, AsyncTransport  # noqa: PLC0415

    proxy = _proxy(args, endpoint)
    secure = endpoint.base_url.startswith("https:") or (proxy is not None and proxy.scheme == "https")
    http = AsyncOwnClient(AsyncTransport(proxy=proxy, context=tls_context(args.ca_file) if secure else None))
    settings: Settings = {**_settings(args, endpoint, proxy), "max_retries": 0}
    return AsyncClient(http_client=http, **settings)


def _settings(args: Args, endpoint: Endpoint, proxy: Proxy | None) -> Settings:
    return {
        "endpoint": endpoint,
        "timeout": httpx.Timeout(args.idle_timeout or None, connect=args.connect_timeout or None, pool=None),
        "total_timeout": args.timeout or None,
        "strict": args.strict,
        "max_event_bytes": args.max_event_bytes or sys.maxsize,
        "secrets": proxy.secrets if proxy else (),
    }


def _proxy(args: Args, endpoint: Endpoint) -> Proxy | None:
    return None if args.local is not None else proxy_for(endpoint, named=args.proxy, allow_http=args.allow_http)
