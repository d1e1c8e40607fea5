"""A connection and its trust, under way before anybody asks for them: while the command still imports and reads.

Contract: nothing is sent and no handshake begins here. Who asks in time gets what is there and waits for what is under
way, within the timeout that it has anyway. Who asks too late, or for what failed, has it done anew, so that a fault is
told as ever. What nobody asks for ends with the process, unspoken to.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from .lookup import Lookup
from .tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from .lookup import Address, Found

# Servers hang up on who says nothing, but none so soon.
_FRESH_SECONDS = 3.0

# What is under way; each is taken once.
_lookups: dict[tuple[str, int], Lookup] = {}
_connections: dict[Address, tuple[socket.socket, float]] = {}
_trusts: dict[str | None, Callable[[], ssl.SSLContext | None]] = {}


def begin(host: str, port: int, ca_file: str | None) -> None:
    """Begin to look up `host`, to connect to its first address, to make the trust in `ca_file`; waits for nothing."""
    _lookups[host, port] = _Connecting(host, port)
    made: list[ssl.SSLContext] = []

    def make() -> None:
        with contextlib.suppress(Exception):  # the second time tells it
            made.append(tls_context(ca_file))

    def wait() -> ssl.SSLContext | None:
        thread.join()
        return next(iter(made), None)

    # To read a file of authorities takes as long as to import a library, and lets others run meanwhile.
    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    _trusts[ca_file] = wait


def lookup(host: str, port: int) -> Lookup:
    """The lookup of `host`, a new one unless one is under way."""
    return _lookups.pop((host, port), None) or Lookup(host, port)


def connection(address: Address, timeout: float | None) -> socket.socket | None:
    """The connection to `address` that is under way, or None where there is none or it cannot be used.

    Raises TimeoutError where it is not there within `timeout` seconds.
    """
    begun, since = _connections.pop(address, (None, 0.0))
    if begun is None:
        return None
    is_fresh = time.monotonic() - since < _FRESH_SECONDS
    events = _events(begun, timeout) if is_fresh else select.POLLHUP
    if events == select.POLLOUT:
        return begun
    begun.close()
    if not events:
        raise TimeoutError
    return None


def _events(connection: socket.socket, timeout: float | None) -> int:
    """What became of a connection: POLLOUT alone where it was made and the server has not hung up, 0 if nothing yet."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLOUT)
    return sum(events for _, events in poll.poll(None if timeout is None else timeout * 1000))


def trust(ca_file: str | None = None) -> ssl.SSLContext:
    """The TLS context that trusts `ca_file`, a new one unless one is under way. Raises UsageError as `tls_context`."""
    begun = _trusts.pop(ca_file, None)
    return (begun and begun()) or tls_context(ca_file)


class _Connecting(Lookup):
    """A lookup that connects to the first address that it finds."""

    def _report(self, found: Found) -> None:
        if isinstance(found, list):
            with contextlib.suppress(OSError):
                self._connect(found[0])
        super()._report(found)

    def _connect(self, address: Address) -> None:
        family, kind, protocol, _, place = address
        begun = socket.socket(family, kind, protocol)
        begun.setblocking(False)
        begun.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun.connect_ex(place)
        _connections[address] = begun, time.monotonic()
