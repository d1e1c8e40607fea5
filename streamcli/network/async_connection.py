"""Asynchronous connections: connect, TLS, write, read, each within its timeout and the deadline.

Contract: the request is sent and the response's head is read through these, by httpcore too, whose interface they have;
`receive` then reads the body. Every fault comes out as one of our errors and names the peer, but for a failed write:
who sends goes on to read what the server said before it hung up.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from .async_wire import AsyncWire, addresses, connect
from .framing import HeadGate
from .peer import TO_PROXIES, BrokenWriteError, Peer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from .timeouts import Deadline


class AsyncConnection:
    """One connection: `read` is what h11 sees, `receive` what comes after the head."""

    def __init__(self, wire: AsyncWire, peer: Peer, broken_write: type[Exception]) -> None:
        self._wire = wire
        self._broken_write = broken_write
        self._gate = HeadGate()
        # What is waited for: a response, or the word of a proxy that the way is open.
        self._step = "read"
        self.peer = peer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - a wire has its own size
        """As httpcore asks for it: never past a blank line."""
        data = await self.receive(timeout)
        if not data and not self.peer.responded:
            raise self.peer.lost()
        return self._gate.admit(data)

    async def receive(self, timeout: float | None) -> bytes:
        """The next bytes of the body, b"" at its end, as one network read gives them."""
        if self._gate.held:
            return self._gate.take()
        if self._step == "tunnel":  # httpcore names another timeout, or none
            timeout = self.peer.connect_timeout
        try:
            data = await self._wire.read(self.peer.deadline.within(timeout))
        except TimeoutError:
            raise self.peer.late(self._step, timeout) from None
        except OSError as fault:
            raise self.peer.lost(fault) from None
        self.peer.hear(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        if buffer:
            self._step = "tunnel" if buffer.startswith(TO_PROXIES) else "read"
            self.peer.heard = b""  # what came before was no response to this
        try:
            await self._wire.write(buffer, self.peer.deadline.within(timeout))
        except TimeoutError:
            raise self.peer.late("write", timeout) from None
        except OSError as fault:  # what was said before the connection broke is still to be read
            raise self._broken_write(str(fault)) from None

    async def aclose(self) -> None:
        """Close at once."""
        await self._wire.aclose()

    def abort(self) -> None:
        """Close at once, from anywhere; for finalizers, which cannot wait."""
        self._wire.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncConnection:
        """The same connection inside TLS, closed where that fails."""
        hostname = server_hostname.strip("[]") if server_hostname else None
        self.peer.begin_tls(hostname)
        try:
            await self._shake_hands(ssl_context, hostname, timeout)
        except BaseException:
            self.abort()  # httpcore forgets it
            raise
        return AsyncConnection(self._wire, self.peer, self._broken_write)

    async def _shake_hands(self, context: ssl.SSLContext, hostname: str | None, timeout: float | None) -> None:
        try:
            await self._wire.start_tls(context, hostname, self.peer.deadline.within(timeout))
        except TimeoutError:
            raise self.peer.late("TLS handshake", timeout) from None
        except OSError as fault:
            raise self.peer.no_tls(fault) from None

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the socket."""
        return self._wire.info(info)


class AsyncBackend:
    """Opens the connection of one request.

    `peer_prefix` goes before the peer's name: "the proxy ", where it is one. `broken_write` is the error of a write
    that failed, which httpcore wants to be its own.
    """

    def __init__(
        self, deadline: Deadline, peer_prefix: str = "", broken_write: type[Exception] = BrokenWriteError
    ) -> None:
        self._deadline = deadline
        self._prefix = peer_prefix
        self._broken_write = broken_write
        self._wire: AsyncWire | None = None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's signature
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> AsyncConnection:
        """Connect to the first address of `host` that accepts, each within `timeout` seconds, as the lookup is."""
        peer = Peer(self._prefix, host, port, self._deadline, timeout)
        try:
            self._wire = await self._connected(host, port, timeout)
        except TimeoutError:
            raise peer.late("connect", timeout) from None
        except (OSError, UnicodeError) as fault:
            raise peer.unreachable(fault) from None
        return AsyncConnection(self._wire, peer, self._broken_write)

    def abort(self) -> None:
        """Close what was opened, at once."""
        if self._wire:
            self._wire.abort()

    async def _connected(self, host: str, port: int, timeout: float | None) -> AsyncWire:
        *others, last = await addresses(host, port, self._deadline.within(timeout))
        for address in others:
            with contextlib.suppress(OSError):
                return await connect(address, self._deadline.within(timeout))
        return await connect(last, self._deadline.within(timeout))
