"""The bytes of one TCP connection on asyncio: look up, connect, TLS, write, read, each within a timeout of seconds.

Contract: every fault is an OSError, and that of a step that took too long a TimeoutError; a name that cannot be one is
a UnicodeError. A protocol of our own takes the place of asyncio's streams: one task writes and then reads, so one
waiter serves both, and one timer a connection watches for silence, moved only when it fires, because setting one for
every read costs more than the read. So does the memory that asyncio takes anew for every read, 256 KiB of which a token
fills nothing; it is given a buffer to read into.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from typing import TYPE_CHECKING, Any, cast

from .framing import is_rejection
from .lookup import at_once, look_up

if TYPE_CHECKING:
    import ssl

    from .lookup import Address, Found

# A reader that keeps up needs no more room than this.
_FIRST_ROOM = 16 * 1024
# With as much unread the sender has to wait. As much is written at a time.
READ_BYTES = 64 * 1024
# For so many seconds the addresses of a name are good for others who ask: hundreds of prompts at once would be more
# than many a name server takes.
_FRESH_SECONDS = 10.0

_lookups: dict[tuple[asyncio.AbstractEventLoop, str, int], _Lookup] = {}


class AsyncWire(asyncio.BufferedProtocol):
    """One connection: what the loop tells of it, kept until one task asks; only one at a time may wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._transport: asyncio.Transport
        # What came and was not read yet is the first `_filled` bytes of the buffer.
        self._buffer = memoryview(bytearray(_FIRST_ROOM))
        self._filled = 0
        self._ended = False
        self._fault: Exception | None = None
        # Whether what was written waits in asyncio's buffer, which takes no more.
        self._full = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop at the beginning."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the loop for room to read into."""
        # Inside TLS the hint is a demand: of what the last read does not take, asyncio loses the rest.
        if len(self._buffer) - self._filled < sizehint:
            self._enlarge(self._filled + sizehint)
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop when `nbytes` were read into that room."""
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
        """Called by the loop when the peer will send no more."""
        self._ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is closed."""
        self._ended, self._fault = True, exc
        if self._timer:
            self._timer.cancel()
        self._wake()

    def pause_writing(self) -> None:
        """Called by the loop when the peer takes less than is written."""
        self._full = True

    def resume_writing(self) -> None:
        """Called by the loop when the peer has taken most of it."""
        self._full = False
        self._wake()

    async def read(self, timeout: float | None) -> bytes:
        """What came since the last time, b"" at the end."""
        while not self._filled:
            if self._fault:
                raise self._fault
            if self._ended:
                return b""
            await self._change(timeout)
        data = bytes(self._buffer[: self._filled])
        self._filled = 0
        if len(data) >= READ_BYTES:
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Send `data`; TimeoutError where none of it went out for `timeout` seconds.

        ConnectionAbortedError where the peer has responded that it will not have it.
        """
        view = memoryview(data)
        for start in range(0, len(data), READ_BYTES):
            if not self._ended:
                self._transport.write(view[start : start + READ_BYTES])
            while self._full and not (self._ended or self._is_rejected()):
                await self._change(timeout)
            if self._ended:
                raise self._fault or ConnectionResetError("the connection was closed")
            if self._is_rejected():
                raise ConnectionAbortedError("the request was rejected before it was read")

    def _is_rejected(self) -> bool:
        return self._filled > 0 and is_rejection(bytes(self._buffer[: self._filled]))

    async def start_tls(self, context: ssl.SSLContext, hostname: str | None, timeout: float | None) -> None:
        """Go on inside TLS."""
        async with asyncio.timeout(timeout):
            inner = await self._loop.start_tls(self._transport, self, context, server_hostname=hostname)
        if inner is None:
            raise self._fault or ConnectionResetError("the connection was closed")
        self._transport = inner

    async def aclose(self) -> None:
        """Close at once."""
        was_closing = self._transport.is_closing()
        self.abort()
        if not was_closing:
            await asyncio.sleep(0)  # the transport closes its socket in the next turn of the loop

    def abort(self) -> None:
        """Close at once, from anywhere: a finalizer, which cannot wait, and that after the loop's end too."""
        if self._process != os.getpid():
            return  # in a forked child the connection and the loop's selector are still the parent's
        if self._loop.is_closed():
            with contextlib.suppress(OSError):  # closed, or the peer has gone
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        else:
            with contextlib.suppress(AttributeError):  # TLS in TLS that is closed already, with Python 3.11.2
                self._transport.abort()

    def info(self, name: str) -> Any:
        """What httpcore wants to know of the socket."""
        return self._transport.get_extra_info(name)

    def _change(self, timeout: float | None) -> asyncio.Future[None]:
        """Done when the loop has told something; fails with TimeoutError after `timeout` seconds."""
        self._due = math.inf if timeout is None else self._loop.time() + timeout
        if self._timer is None or self._timer.when() > self._due:
            self._watch()
        self._waiter = self._loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _watch(self) -> None:
        """Set the timer to when whoever waits will have waited too long."""
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look) if self._due < math.inf else None

    def _look(self) -> None:
        """The timer fires: whoever it was set for may have been served, and another one may wait since."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return  # whoever waits next sets the timer again
        if self._loop.time() < self._due:
            self._watch()
            return
        # Where this process was stopped, only the time went by: the loop has to look at the socket first.
        self._loop.call_soon(self._loop.call_soon, self._give_up, self._waiter)

    def _give_up(self, overdue: asyncio.Future[None]) -> None:
        if self._waiter is not overdue or overdue.done():
            return
        waiter, self._waiter = self._waiter, None  # not kept: the error will know the frames it passed
        waiter.set_exception(TimeoutError())


async def addresses(host: str, port: int, timeout: float | None) -> list[Address]:
    """The addresses of `host`, in the order in which they are to be tried."""
    address = at_once(host, port)
    if address:
        return address
    place = asyncio.get_running_loop(), host, port
    lookup = _lookups.get(place)
    if lookup is None or not lookup.is_fresh():
        for stale in [known for known, other in [*_lookups.items()] if not other.is_fresh()]:
            _lookups.pop(stale, None)
        lookup = _lookups[place] = _Lookup(host, port)
    async with asyncio.timeout(timeout):
        found = await asyncio.shield(lookup.found)
    if isinstance(found, Exception):
        raise type(found)(*found.args)  # one of its own for each who asked: an error knows the frames it passed
    return found


class _Lookup:
    """The addresses of a name, which another thread finds out, or why there are none."""

    def __init__(self, host: str, port: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.found: asyncio.Future[Found] = self._loop.create_future()
        look_up(host, port, self._report)

    def is_fresh(self) -> bool:
        """Whether it is good for one more who asks."""
        failed = self.found.done() and isinstance(self.found.result(), Exception)
        is_old = self._loop.is_closed() or self._loop.time() - self._since >= _FRESH_SECONDS
        return not (failed or is_old)

    def _report(self, found: Found) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.found.set_result, found)


async def connect(address: Address, timeout: float | None) -> AsyncWire:
    """A connection to `address`."""
    # Not `create_connection` with a name: it leaks the socket if the timeout passes as the connection is made.
    family, kind, protocol, _, place = address
    loop = asyncio.get_running_loop()
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        async with asyncio.timeout(timeout):
            await loop.sock_connect(connection, place)
        _, wire = await loop.create_connection(AsyncWire, sock=connection)
    except BaseException:
        connection.close()
        raise
    return wire
