"""A connection with TLS, begun before anybody asks for it, while the command is still importing and reading.

Contract: nothing is sent, and TLS begins only when `proceed` says that everything is checked. Who asks in time gets
what is there and waits for what is under way, within the timeout that it has anyway. Who asks too late, or for a
connection that could not be had, has it made anew, so that a fault is told as ever. What nobody asks for ends with the
process, unspoken to.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from .lookup import Lookup, Told

if TYPE_CHECKING:
    import ssl

    from .lookup import Address

# Servers hang up on who says nothing, but none so soon.
_FRESH_SECONDS = 3.0

# What is under way; each is taken once.
_lookups: dict[tuple[str, int], Lookup] = {}
_connections: dict[Address, Begun] = {}
_trusts: dict[str | None, Begun] = {}


def begin(host: str, port: int, ca_file: str | None) -> None:
    """Begin to look up `host`, to connect to its first address, with TLS that trusts `ca_file`; waits for nothing."""
    _lookups[host, port] = _trusts[ca_file] = Begun(host, port, ca_file)


def proceed() -> None:
    """Let TLS begin in what is under way."""
    for begun in _trusts.values():
        begun.may_speak.set()


def lookup(host: str, port: int) -> Lookup:
    """The lookup of `host`, a new one unless one is under way."""
    return _lookups.pop((host, port), None) or Lookup(host, port)


def connection(address: Address, timeout: float | None) -> Begun | None:
    """The connection to `address` that is under way, or None where none can be used. Raises TimeoutError."""
    begun = _connections.pop(address, None)
    return begun if begun and begun.is_there(timeout) else None


def trust(ca_file: str | None = None) -> ssl.SSLContext:
    """The TLS context that trusts `ca_file`, a new one unless one is under way. Raises UsageError as `tls_context`."""
    from .tls import tls_context  # noqa: PLC0415 - a connection begins before ssl is imported

    begun = _trusts.pop(ca_file, None)
    if begun:
        with contextlib.suppress(Exception):  # the second time tells it
            return begun.trusted.result()
    return tls_context(ca_file)


class Begun(Lookup):
    """A lookup whose first address is connected to, with TLS in it that trusts `ca_file`."""

    def __init__(self, host: str, port: int, ca_file: str | None) -> None:
        self.trusted: Told[ssl.SSLContext] = Told()
        self.connected: Told[socket.socket] = Told()
        self.may_speak = threading.Event()
        self._secured: Told[ssl.SSLSocket] = Told()
        self._host = host
        self._connecting: socket.socket | None = None
        self._is_closed = False
        self._since = time.monotonic()
        super().__init__(host, port)
        # To read a file of authorities takes as long as to import a library, and lets others run meanwhile.
        threading.Thread(target=self._begin_tls, args=[ca_file], daemon=True).start()

    def tell(self, value: list[Address] | Exception) -> None:
        """As every lookup is told what was found."""
        if isinstance(value, list):
            with contextlib.suppress(OSError):
                self._connect(value[0])
        super().tell(value)

    def _connect(self, address: Address) -> None:
        family, kind, protocol, _, place = address
        self._connecting = socket.socket(family, kind, protocol)
        self._connecting.setblocking(False)
        self._connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connecting.connect_ex(place)
        _connections[address] = self

    def _begin_tls(self, ca_file: str | None) -> None:
        from .tls import tls_context  # noqa: PLC0415 - a connection begins before ssl is imported

        try:
            context = tls_context(ca_file)
            self.trusted.tell(context)
            self.result()
            connection = self._connected()
            self.connected.tell(connection)
            self._secured.tell(context.wrap_socket(connection, server_hostname=self._host))
        except Exception as fault:
            self.trusted.tell(fault)
            self.connected.tell(ConnectionError())
            self._secured.tell(fault)
            if self._connecting:
                self._connecting.close()
        if self._is_closed:
            self.close()

    def _connected(self) -> socket.socket:
        """The connection once it is there and may be spoken to; raises OSError where nobody is at the other end."""
        connection = self._connecting
        if connection is None:
            raise ConnectionError
        poll = select.poll()
        poll.register(connection, select.POLLIN | select.POLLOUT)
        poll.poll()
        self.may_speak.wait()
        if self._is_closed or poll.poll() != [(connection.fileno(), select.POLLOUT)]:
            raise ConnectionError
        connection.setblocking(True)
        return connection

    def is_there(self, timeout: float | None) -> bool:
        """Whether there is a connection to be used, waited for; closed where there is not. Raises TimeoutError."""
        is_there = False
        try:
            if time.monotonic() - self._since < _FRESH_SECONDS:
                self.may_speak.set()
                self.connected.result(timeout)
                is_there = True
        except ConnectionError:
            pass  # the second time tells it
        finally:
            if not is_there:
                self.close()
        return is_there

    def secured(self, context: ssl.SSLContext, host: str | None, timeout: float | None) -> ssl.SSLSocket:
        """The connection inside TLS of `context` with `host`, waited for. Raises OSError."""
        if (context, host) != (self.trusted.result(), self._host):
            raise ConnectionError("TLS began with another server")
        return self._secured.result(timeout)

    def close(self) -> None:
        """Close the connection, as soon as it is there."""
        self._is_closed = True
        self.may_speak.set()
        with contextlib.suppress(Exception):
            self._secured.result(0).close()
