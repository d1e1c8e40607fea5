"""As `network`, on asyncio: apart from it so that the synchronous command never imports asyncio.

Contract: that of `network`. A protocol of our own takes the place of asyncio's streams: one task writes and then
reads, so one waiter serves both, and one timer a connection watches for silence, moved only when it fires, because
setting one for every read costs more than the read. So does the memory that asyncio takes anew for every read, 256 KiB
of which a token fills nothing; it is given a buffer to read into.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import threading
from typing import TYPE_CHECKING, Any, cast

import httpcore

from .connection import READ_BYTES, Limits, Peer
from .framing import HeadGate

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    # What `socket.getaddrinfo` says of one: family, kind, protocol, name, address.
    _Address = tuple[Any, ...]


# What a reader that keeps up needs at most.
_FIRST_ROOM = 16 * 1024


class _Wire(asyncio.BufferedProtocol):
    """What the loop tells of one connection: bytes nobody took yet, whether it takes more, its end and the fault."""

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = memoryview(bytearray(_FIRST_ROOM))
        self._filled = 0
        self._ended = False
        self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        # Inside TLS the hint is a demand: of what the last read does not take, asyncio loses the rest.
        if len(self._buffer) - self._filled < sizehint:
            self._enlarge(self._filled + sizehint)
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled >= READ_BYTES:
            self._transport.pause_reading()
        elif self._filled == len(self._buffer):
            self._enlarge(2 * self._filled)
        self._wake()

    def _enlarge(self, size: int) -> None:
        buffer = memoryview(bytearray(size))
        buffer[: self._filled] = self._buffer[: self._filled]
        self._buffer = buffer

    def eof_received(self) -> None:
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self.fault = True, exc
        if self._timer:
            self._timer.cancel()
        self._wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    async def read(self, limit: float | None) -> bytes:
        """What came since the last time, b"" at the end. Raises OSError, or TimeoutError after `limit` seconds."""
        while not self._filled:
            if self.fault:
                raise self.fault
            if self._ended:
                return b""
            await self._awaited(limit)
        data = bytes(self._buffer[: self._filled])
        self._filled = 0
        if len(data) >= READ_BYTES:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes, limit: float | None) -> None:
        """Send `data`. Raises OSError, or TimeoutError where nothing of it went out for `limit` seconds."""
        view = memoryview(data)
        for start in range(0, len(data), READ_BYTES):
            if not self._ended:
                self._transport.write(view[start : start + READ_BYTES])
            while self._full and not self._ended:
                await self._awaited(limit)
            if self._ended:
                raise self.fault or ConnectionResetError("the connection was closed")

    async def start_tls(self, context: ssl.SSLContext, hostname: str | None) -> None:
        """Go on inside TLS. Raises OSError."""
        inner = await self._loop.start_tls(self._transport, self, context, server_hostname=hostname)
        if inner is None:
            raise self.fault or ConnectionResetError("the connection was closed")
        self._transport = inner

    def abort(self) -> None:
        """Close at once, from anywhere, after the loop's end too."""
        if self._loop.is_closed():
            if self._transport.get_extra_info("socket").fileno() >= 0:
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        else:
            self._transport.abort()

    def info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    def _awaited(self, limit: float | None) -> asyncio.Future[None]:
        """What is done when something has changed. Raises TimeoutError, when it is awaited, after `limit` seconds."""
        self._due = math.inf if limit is None else self._loop.time() + limit
        if self._timer is None or self._timer.when() > self._due:
            self._watch()
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look) if self._due < math.inf else None

    def _look(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # whoever waits next sets the timer again
        if self._loop.time() < self._due:
            self._watch()
            return
        waiter, self._waiter = self._waiter, None  # not kept: the error will know the frames it passed
        waiter.set_exception(TimeoutError())


class AsyncConnection(httpcore.AsyncNetworkStream):
    """One connection: `read` is what h11 sees, `receive` what comes after the head."""

    def __init__(self, wire: _Wire, peer: Peer) -> None:
        self._wire = wire
        self._gate = HeadGate()
        self.peer = peer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the loop says how many
        """As httpcore asks for it: never past a blank line."""
        data = await self.receive(timeout)
        if not data and not self.peer.responded:
            raise self.peer.lost()
        return self._gate.admit(data)

    async def receive(self, timeout: float | None) -> bytes:
        """The next bytes of the body, b"" at its end, as one network read gives them."""
        if self._gate.held:
            return self._gate.take()
        try:
            data = await self._wire.read(self.peer.limits.within(timeout))
        except TimeoutError:
            raise self.peer.late("read", timeout) from None
        except OSError as fault:
            raise self.peer.lost(fault) from None
        self.peer.hear(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        try:
            await self._wire.write(buffer, self.peer.limits.within(timeout))
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
        self._wire.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncConnection:
        """The same connection inside TLS, closed where that fails."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.abort)
            try:
                async with asyncio.timeout(self.peer.limits.within(timeout)):
                    await self._wire.start_tls(ssl_context, server_hostname)
            except TimeoutError:
                raise self.peer.late("TLS handshake", timeout) from None
            except OSError as fault:
                raise self.peer.no_tls(server_hostname, fault) from None
            undo.pop_all()
        self.peer.heard = b""  # what was heard so far came from a proxy
        return AsyncConnection(self._wire, self.peer)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the socket."""
        return None if info == "is_readable" else self._wire.info(info)


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
        """Connect to the first address of `host` that answers, each within `timeout` seconds, as the lookup is."""
        peer = Peer(self._prefix, host, port, self._limits)
        try:
            return AsyncConnection(await self._connected(host, port, timeout), peer)
        except TimeoutError:
            raise peer.late("connect", timeout) from None
        except (OSError, UnicodeError) as fault:
            raise peer.unreachable(fault) from None

    async def _connected(self, host: str, port: int, timeout: float | None) -> _Wire:
        async with asyncio.timeout(self._limits.within(timeout)):
            *others, last = await _addresses(host, port)
        for address in others:
            with contextlib.suppress(OSError):
                return await self._wire(address, timeout)
        return await self._wire(last, timeout)

    async def _wire(self, address: _Address, timeout: float | None) -> _Wire:
        # Not `create_connection` with a name: it leaks the socket if the limit passes as the connection is made.
        *kind, _, place = address
        loop = asyncio.get_running_loop()
        connection = socket.socket(*kind)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(self._limits.within(timeout)):
                await loop.sock_connect(connection, place)
        except BaseException:
            connection.close()
            raise
        _, wire = await loop.create_connection(_Wire, sock=connection)
        return wire


async def _addresses(host: str, port: int) -> list[_Address]:
    """The addresses of `host`. Raises OSError or UnicodeError.

    A name is looked up in a thread that nobody waits for: neither a limit nor the end of the loop can stop it.
    """
    with contextlib.suppress(socket.gaierror):
        return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)]
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[_Address]] = loop.create_future()

    def report(addresses: list[_Address], fault: Exception | None) -> None:
        if not answer.done():
            answer.set_exception(fault) if fault else answer.set_result(addresses)

    def look_up() -> None:
        addresses: list[_Address] = []
        fault: Exception | None = None
        try:
            addresses += socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            fault = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(report, addresses, fault)

    threading.Thread(target=look_up, daemon=True).start()
    return await answer
