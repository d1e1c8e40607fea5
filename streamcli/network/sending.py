# Made from async_sending.py by tests/twins.py: edit that one and run `make twins`.
"""One request out and the head of its response in, asynchronously, on a connection of its own.

Contract: a straight request goes over the connection as it is, and h11 reads the head of its response; one through a
proxy is left to httpcore, which costs as much again and is imported only then. h11 is not asked to write what was
checked already, and is told of no body, which it would only look at. Errors of these libraries come out as they are.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

import h11

from .connection import Backend, Connection
from .peer import BrokenWriteError
from .request import PORTS
from .response import Head

if TYPE_CHECKING:
    import httpcore
    import httpx

    from .request import Route

# What h11 has to have seen go out before anything comes in.
_REQUEST = h11.Request(method="POST", target="/", headers=[("host", "")])
# As httpcore has it.
_MAX_HEAD = 100 * 1024
# A body no longer than this goes out together with its head: two writes cost more than a copy.
_SHORT_BODY = 64 * 1024


def sent(request: httpx.Request, route: Route) -> Head | httpcore.Response:
    """Send `request` by `route`; the response's head, once that is there and not an interim one."""
    backend = Backend(*route.backend_options(request))
    try:
        if route.proxy:
            import httpcore  # noqa: PLC0415 - takes a tenth of a straight run

            pool = httpcore.ConnectionPool(network_backend=cast("Any", backend), **route.pool_options(request))
            return pool.handle_request(route.request(request))
        return _responded(_connected(request, route, backend), request)
    except BaseException:
        backend.abort()
        raise


def _connected(request: httpx.Request, route: Route, backend: Backend) -> Connection:
    url, timeout = request.url, request.extensions["timeout"]["connect"]
    host = url.raw_host.decode("ascii")
    context = route.trust() if url.scheme == "https" else None
    connection = backend.connect_tcp(host, url.port or PORTS[url.scheme], timeout)
    return connection.start_tls(context, host, timeout) if context else connection


def _responded(connection: Connection, request: httpx.Request) -> Head:
    timeouts = request.extensions["timeout"]
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    parser.send(_REQUEST)
    first = b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)
    data = b"".join([first, *(b"%b: %b\r\n" % field for field in request.headers.raw), b"\r\n"])
    body = request.read()
    with contextlib.suppress(BrokenWriteError):  # who hangs up may have said why
        if len(body) > _SHORT_BODY:
            connection.write(data, timeouts["write"])
            data = b""
        connection.write(data + body, timeouts["write"])
    while not isinstance(event := parser.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            parser.receive_data(connection.read(_MAX_HEAD, timeouts["read"]))
    said = {"http_version": b"HTTP/" + event.http_version, "reason_phrase": event.reason, "network_stream": connection}
    return Head(event.status_code, event.headers.raw_items(), said)
