"""As `network`, on asyncio streams: apart from it so that the synchronous command never imports asyncio.

Contract: that of `network`. One timer a connection watches for silence and is moved only when it fires, because
setting one for every read costs more than the read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpcore

from .framing import HeadGate
from .network import READ_BYTES, Limits, Peer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

# The older address family gets this long before the other is tried beside it (RFC 8305).
_HAPPY_EYEBALLS = 0.25


class AsyncConnection(httpcore.AsyncNetworkStream):
    """One connection: `read` is what h11 sees, `receive` what comes after the head."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        self._reader = reader
        self._writer = writer
        self._gate = HeadGate()
        self.peer = peer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore asks for it: never past a blank line."""
        data = self._gate.take() or await self._read(max_bytes, timeout)
        if not data and not self.peer.answered:
            raise self.peer.lost()
        return self._gate.admit(data)

    async def receive(self, timeout: float | None) -> bytes:
        """The next bytes of the body, b"" at its end, as one network read gives them."""
        return self._gate.take() or await self._read(READ_BYTES, timeout)

    async def _read(self, max_bytes: int, timeout: float | None) -> bytes:
        limit = self.peer.limits.within(timeout)
        try:
            async with asyncio.timeout(limit):
                data = await self._reader.read(max_bytes)
        except TimeoutError:
            raise self.peer.late("read", timeout) from None
        except OSError as fault:
            raise self.peer.lost(fault) from None
        self.peer.heard = self.peer.heard or bool(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        self._writer.write(buffer)
        try:
            async with asyncio.timeout(self.peer.limits.within(timeout)):
                await self._writer.drain()
        except TimeoutError:
            raise self.peer.late("write", timeout) from None
        except OSError as fault:  # httpcore goes on to read what was said before the connection broke
            raise httpcore.WriteError(str(fault)) from None

    async def aclose(self) -> None:
        """Close at once."""
        self.abort()
        await asyncio.sleep(0)  # the transport closes its socket in the next turn of the loop

    def abort(self) -> None:
        """As `aclose`, from anywhere, a finalizer after the loop's end included."""
        if not self._writer.transport.is_closing() and self._writer.transport.get_extra_info("socket") is not None:
            self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncConnection:
        """The same connection inside TLS."""
        try:
            async with asyncio.timeout(self.peer.limits.within(timeout)):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            raise self.peer.late("TLS handshake", timeout) from None
        except OSError as fault:
            raise self.peer.no_tls(fault) from None
        self.peer.heard = False  # what was heard so far came from a proxy
        return AsyncConnection(self._reader, self._writer, self.peer)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the socket."""
        return None if info == "is_readable" else self._writer.get_extra_info(info)


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Opens the connection of one request. `peer_prefix` goes before the peer's name: "the proxy ", where it is one."""

    def __init__(self, limits: Limits, peer_prefix: str = "") -> None:
        self._limits = limits
        self._prefix = peer_prefix

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> AsyncConnection:
        """Connect to the address of `host` that answers first, within `timeout` seconds."""
        peer = Peer(f"{self._prefix}{host}:{port}", self._limits)
        try:
            async with asyncio.timeout(self._limits.within(timeout)):
                reader, writer = await asyncio.open_connection(host, port, happy_eyeballs_delay=_HAPPY_EYEBALLS)
        except TimeoutError:
            raise peer.late("connect", timeout) from None
        except (OSError, UnicodeError) as fault:
            raise peer.unreachable(fault) from None
        return AsyncConnection(reader, writer, peer)
