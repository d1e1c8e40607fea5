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

import httpcore

from . import head_start
from .framing import is_rejection

if TYPE_CHECKING:
    from .lookup import Address

_READ_BYTES = 64 * 1024
# Nothing can be sent or read just now.
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Each is raised from the system's own fault.
_CORE_FAULTS = (httpcore.TimeoutException, httpcore.NetworkError)


class Wire:
    """One connection, on a stream of httpcore's, which also puts TLS inside TLS."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._process = os.getpid()
        # What came while the request was still being sent.
        self._early = b""

    def read(self, timeout: float | None) -> bytes:
        """The next bytes, b"" at the end."""
        if self._early:
            early, self._early = self._early, b""
            return early
        try:
            return self._stream.read(_READ_BYTES, timeout)
        except httpcore.TimeoutException as fault:
            return self._overdue(fault)
        except _CORE_FAULTS as fault:
            raise _system_fault(fault) from fault

    def _overdue(self, fault: Exception) -> bytes:
        """What came while this process was stopped: only the time went by, and the socket was not looked at."""
        try:
            return self._stream.read(_READ_BYTES, 0)
        except _CORE_FAULTS:
            raise _system_fault(fault) from fault

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send `data`; TimeoutError where none of it went out for `timeout` seconds.

        ConnectionAbortedError where the peer has responded that it will not have it.
        """
        connection: socket.socket = self._stream.get_extra_info("socket")
        if isinstance(self._stream.get_extra_info("ssl_object"), ssl.SSLObject):  # TLS inside TLS is httpcore's
            try:
                self._stream.write(data, timeout)
            except _CORE_FAULTS as fault:
                raise _system_fault(fault) from fault
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
        try:
            self._stream = self._stream.start_tls(context, hostname, timeout)
        except _CORE_FAULTS as fault:
            raise _system_fault(fault) from fault

    def close(self) -> None:
        """Close at once."""
        self.abort()

    def abort(self) -> None:
        """Close at once, from any thread; one that waits in `read` wakes up."""
        with contextlib.suppress(OSError):  # not connected any more
            if self._process == os.getpid():  # in a forked child the connection is still the parent's
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def info(self, name: str) -> Any:
        """What httpcore wants to know of the socket."""
        return self._stream.get_extra_info(name)


def _wait(connection: socket.socket, timeout: float | None) -> None:
    """Until something can be sent or has come."""
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN | select.POLLOUT)
    except ValueError:
        raise ConnectionResetError("the connection was closed") from None  # by another thread
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError


class _Stream(httpcore.NetworkStream):
    """A connection that had a head start, as httpcore has its own; a wire writes past it."""

    def __init__(self, begun: head_start.Begun) -> None:
        self._begun = begun
        self._connection = begun.connected.result()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._connection.settimeout(timeout)
            return self._connection.recv(max_bytes)
        except OSError as fault:
            raise _core_fault(fault) from fault

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._connection = self._begun.secured(ssl_context, server_hostname, timeout)
        except OSError as fault:
            raise _core_fault(fault) from fault
        return self

    def close(self) -> None:
        self._begun.close()

    def get_extra_info(self, info: str) -> Any:
        is_secure = isinstance(self._connection, ssl.SSLSocket)
        return self._connection if info == "socket" or (info == "ssl_object" and is_secure) else None


def _core_fault(fault: OSError) -> Exception:
    kind = httpcore.TimeoutException if isinstance(fault, TimeoutError) else httpcore.NetworkError
    return kind(str(fault))


def _system_fault(fault: Exception) -> OSError:
    return TimeoutError() if isinstance(fault, httpcore.TimeoutException) else OSError(str(fault))


def addresses(host: str, port: int, timeout: float | None) -> list[Address]:
    """The addresses of `host`, in the order in which they are to be tried."""
    return head_start.lookup(host, port).result(timeout)


def connect(address: Address, timeout: float | None) -> Wire:
    """A connection to `address`."""
    begun = head_start.connection(address, timeout)
    if begun:
        return Wire(_Stream(begun))
    host, port, *_ = address[-1]
    try:
        return Wire(httpcore.SyncBackend().connect_tcp(host, port, timeout))
    except _CORE_FAULTS as fault:
        raise _system_fault(fault) from fault
