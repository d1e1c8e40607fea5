"""The bytes of one TCP connection, for threads: look up, connect, TLS, write, read, each within a timeout of seconds.

Contract: as `async_wire`, of whose work blocking calls leave nothing. Every fault is an OSError, and that of a step
that took too long a TimeoutError; a name that cannot be one is a UnicodeError.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from typing import TYPE_CHECKING, Any

from . import head_start
from .framing import is_rejection

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from .lookup import Address

    T = TypeVar("T")

_READ_BYTES = 64 * 1024
# Nothing can be sent or read just now.
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """One connection, which may have had a head start."""

    def __init__(self, connection: socket.socket, begun: head_start.Begun | None = None) -> None:
        self._connection: socket.socket | _TLSInTLS = connection
        self._begun = begun
        self._process = os.getpid()
        # What came while the request was still being sent.
        self._early = b""

    def read(self, timeout: float | None) -> bytes:
        """The next bytes, b"" at the end."""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            self._connection.settimeout(timeout)
            return self._connection.recv(_READ_BYTES)
        except TimeoutError:
            return self._overdue()

    def _overdue(self) -> bytes:
        """What came while this process was stopped: only the time went by, and the socket was not looked at."""
        try:
            self._connection.settimeout(0)
            return self._connection.recv(_READ_BYTES)
        except _WAITS:
            raise TimeoutError from None

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send `data`; TimeoutError where none of it went out for `timeout` seconds.

        ConnectionAbortedError where the peer has responded that it will not have it.
        """
        connection = self._connection
        if isinstance(connection, _TLSInTLS):
            connection.settimeout(timeout)
            connection.sendall(data)
            return
        connection.settimeout(0)
        view = memoryview(data)
        while view:
            try:
                view = view[connection.send(view[:_READ_BYTES]) :]
            except _WAITS:
                _wait(connection, timeout)
                self._hear(connection)

    def _hear(self, connection: socket.socket) -> None:
        """Take what came while there was more to send."""
        with contextlib.suppress(*_WAITS):
            came = connection.recv(_READ_BYTES)
            self._early += came
            if not came or is_rejection(self._early) or len(self._early) > _READ_BYTES:
                raise ConnectionAbortedError("the request was rejected before it was read")

    def start_tls(self, context: ssl.SSLContext, hostname: str | None, timeout: float | None) -> None:
        """Go on inside TLS."""
        connection = self._connection
        if self._begun:
            self._connection = self._begun.secured(context, hostname, timeout)
            return
        connection.settimeout(timeout)
        if isinstance(connection, ssl.SSLSocket):
            self._connection = _TLSInTLS(connection, context, hostname)
        elif isinstance(connection, socket.socket):
            self._connection = context.wrap_socket(connection, server_hostname=hostname)

    def close(self) -> None:
        """Close at once."""
        self.abort()

    def abort(self) -> None:
        """Close at once, from any thread; one that waits in `read` wakes up."""
        with contextlib.suppress(OSError):  # not connected any more
            if self._process == os.getpid():  # in a forked child the connection is still the parent's
                self._connection.shutdown(socket.SHUT_RDWR)
        (self._begun or self._connection).close()

    def info(self, name: str) -> Any:
        """What httpcore wants to know of the connection."""
        connection = self._connection
        is_secure = type(connection) is not socket.socket
        return connection if name == "socket" or (name == "ssl_object" and is_secure) else None


class _TLSInTLS:
    """A connection to a server by https, through a proxy that is spoken to by https itself."""

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, hostname: str | None) -> None:
        self._outer = outer
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = context.wrap_bio(self._came, self._goes, server_hostname=hostname)
        self._through(self._inner.do_handshake)
        self.settimeout, self.shutdown, self.close = outer.settimeout, outer.shutdown, outer.close
        self.selected_alpn_protocol = self._inner.selected_alpn_protocol

    def recv(self, most: int) -> bytes:
        with contextlib.suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return self._through(lambda: self._inner.read(most))
        return b""

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._through(lambda: self._inner.write(view[:_READ_BYTES])) :]  # noqa: B023

    def _through(self, step: Callable[[], T]) -> T:
        """What the inner TLS makes of a step, with what that needs from the other end."""
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._pass_on()
                self._came.write(data) if (data := self._outer.recv(_READ_BYTES)) else self._came.write_eof()
            else:
                self._pass_on()
                return done

    def _pass_on(self) -> None:
        if self._goes.pending:
            self._outer.sendall(self._goes.read())


def _wait(connection: socket.socket, timeout: float | None) -> None:
    """Until something can be sent or has come."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN | select.POLLOUT)
    except ValueError:
        raise ConnectionResetError("the connection was closed") from None  # by another thread
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError


def addresses(host: str, port: int, timeout: float | None) -> list[Address]:
    """The addresses of `host`, in the order in which they are to be tried."""
    return head_start.lookup(host, port).result(timeout)


def connect(address: Address, timeout: float | None) -> Wire:
    """A connection to `address`."""
    begun = head_start.connection(address, timeout)
    if begun:
        return Wire(begun.connected.result(), begun)
    family, kind, protocol, _, place = address
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return Wire(connection)
