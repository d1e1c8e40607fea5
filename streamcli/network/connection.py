"""Connections under httpcore, sync and async: connect, TLS, write, read, each within its limits.

Contract: httpcore sends the request and parses the head through these; `receive` then reads the body past it. Every
fault comes out as one of our errors and names the peer; only a failed write is left to httpcore, which goes on to
read what the server said before it hung up. The total limit holds everywhere, so endless interim answers and slow
drips end too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import httpcore

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    IncompleteStreamError,
    UnexpectedResponseError,
)

from .framing import HeadGate

if TYPE_CHECKING:
    from collections.abc import Iterable

READ_BYTES = 64 * 1024
_HTTP = b"HTTP/"


class Limits(NamedTuple):
    """`deadline` on the clock of `time.monotonic` and the `total` it came from, in seconds; None for none."""

    total: float | None = None
    deadline: float | None = None

    def within(self, timeout: float | None) -> float | None:
        """`timeout`, or the shorter time that is left of the total. Raises APITimeoutError where none is."""
        if self.deadline is None:
            return timeout
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left if timeout is None else min(timeout, left)

    def at_most(self, seconds: float) -> Limits:
        """The same, or `seconds` from now if that is sooner."""
        deadline = time.monotonic() + seconds
        return self if self.deadline is not None and self.deadline <= deadline else Limits(seconds, deadline)

    def passed(self) -> APITimeoutError:
        """The error of the total limit."""
        return APITimeoutError(f"the total limit of {self.total:g} s passed", retryable=False)

    def spent(self) -> bool:
        """Whether the total limit is what ran out; a timer may fire a little early."""
        return self.deadline is not None and time.monotonic() >= self.deadline - 0.001


class Peer:
    """Whom a connection talks to, for messages, and how far it got."""

    def __init__(self, prefix: str, host: str, port: int, limits: Limits) -> None:
        self.name = f"{prefix}[{host}]:{port}" if ":" in host else f"{prefix}{host}:{port}"
        self.limits = limits
        # The first bytes of its answer; an HTTP answer begins with exactly these.
        self.heard = b""
        self.responded = False

    def hear(self, data: bytes) -> None:
        """Remember how its answer begins."""
        if len(self.heard) < len(_HTTP):
            self.heard = (self.heard + data)[: len(_HTTP)]

    def late(self, doing: str, timeout: float | None) -> APITimeoutError:
        """The error of a step that took too long: "connect", "TLS handshake", "read" or "write"."""
        if self.limits.spent():
            return self.limits.passed()
        what, kind = {
            "connect": (f"no connection to {self.name}", "connect"),
            "TLS handshake": (f"no TLS with {self.name}", "connect"),
            "read": (f"nothing came from {self.name}", "idle"),
            "write": (f"{self.name} took nothing", "idle"),
        }[doing]
        # The system's own patience with a silent peer may end where no limit was set.
        limit = (
            f"within the {kind} limit of {timeout:g} s" if timeout is not None else "for as long as the system waits"
        )
        return APITimeoutError(f"{what} {limit}", retryable=kind == "connect")

    def unreachable(self, fault: BaseException) -> APIConnectionError:
        """The error of a connection that was not made."""
        return APIConnectionError(f"cannot connect to {self.name}: {_reason(fault)}")

    def no_tls(self, host: str | None, fault: BaseException) -> APIConnectionError:
        """The error of a handshake that failed, with `host` where that is behind a proxy."""
        whom = self.name if host is None or host in self.name else f"{host} through {self.name}"
        return APIConnectionError(f"no TLS with {whom}: {_reason(fault)}", retryable=False)

    def lost(self, fault: BaseException | None = None) -> APIError:
        """The error of a connection that ended too early, by how far the answer was."""
        how = _reason(fault) if fault else "the connection was closed"
        if self.responded:
            return IncompleteStreamError(f"{self.name} broke off in mid-stream: {how}")
        if not _HTTP.startswith(self.heard):
            return UnexpectedResponseError(f"{self.name} answers no HTTP but {self.heard!r}")
        when = "in the middle of its answer's head" if self.heard else "before answering"
        return APIConnectionError(f"{self.name} broke off {when}: {how}", retryable=not self.heard)


def _reason(fault: BaseException) -> str:
    """The words of the deepest cause: httpcore, asyncio and ssl each wrap the one below."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    if isinstance(fault, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {fault.verify_message}"
    if isinstance(fault, ssl.SSLError):
        return (fault.reason or str(fault)).lower().replace("_", " ")
    words = str(fault) or type(fault).__name__
    if isinstance(fault, OSError):
        words = _system_words(fault) or words
    return words[0].lower() + words[1:]


def _system_words(fault: OSError) -> str | None:
    """The system's words, which asyncio replaces by its own; those of a name lookup have numbers of their own."""
    of_lookup = isinstance(fault, socket.gaierror)
    return os.strerror(fault.errno) if fault.errno and not of_lookup else fault.strerror


class Connection(httpcore.NetworkStream):
    """One connection: `read` is what h11 sees, `receive` what comes after the head."""

    def __init__(self, inner: httpcore.NetworkStream, peer: Peer) -> None:
        self._inner = inner
        self._gate = HeadGate()
        self.peer = peer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore asks for it: never past a blank line."""
        data = self._gate.take() or self._read(max_bytes, timeout)
        if not data and not self.peer.responded:
            raise self.peer.lost()
        return self._gate.admit(data)

    def receive(self, timeout: float | None) -> bytes:
        """The next bytes of the body, b"" at its end, as one network read gives them."""
        return self._gate.take() or self._read(READ_BYTES, timeout)

    def _read(self, max_bytes: int, timeout: float | None) -> bytes:
        try:
            data = self._inner.read(max_bytes, self.peer.limits.within(timeout))
        except httpcore.ReadTimeout:
            raise self.peer.late("read", timeout) from None
        except httpcore.ReadError as fault:
            raise self.peer.lost(fault) from None
        self.peer.hear(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        try:
            self._inner.write(buffer, self.peer.limits.within(timeout))
        except httpcore.WriteTimeout:
            raise self.peer.late("write", timeout) from None

    def close(self) -> None:
        """Close at once, which also wakes a thread that waits in `receive`."""
        with contextlib.suppress(OSError):  # not connected any more
            self._inner.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._inner.close()

    def abort(self) -> None:
        """As `close`, from anywhere: the asynchronous twin has this for finalizers, which cannot wait."""
        self.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Connection:
        """The same connection inside TLS, closed where that fails."""
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            try:
                inner = self._inner.start_tls(ssl_context, server_hostname, self.peer.limits.within(timeout))
            except httpcore.ConnectTimeout:
                raise self.peer.late("TLS handshake", timeout) from None
            except (httpcore.ConnectError, OSError) as fault:
                raise self.peer.no_tls(server_hostname, fault) from None
            undo.pop_all()
        self.peer.heard = b""  # what was heard so far came from a proxy
        return Connection(inner, self.peer)

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the socket."""
        return self._inner.get_extra_info(info)


class Backend(httpcore.NetworkBackend):
    """Opens the connection of one request. `peer_prefix` goes before the peer's name: "the proxy ", where it is one."""

    def __init__(self, limits: Limits, peer_prefix: str = "") -> None:
        self._limits = limits
        self._prefix = peer_prefix
        self._tcp = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> Connection:
        """Connect to the first address of `host` that answers, each within `timeout` seconds, as the lookup is."""
        peer = Peer(self._prefix, host, port, self._limits)
        try:
            inner = self._connected(host, port, timeout, local_address, socket_options)
        except (httpcore.ConnectTimeout, TimeoutError):
            raise peer.late("connect", timeout) from None
        except (httpcore.ConnectError, OSError, UnicodeError) as fault:
            raise peer.unreachable(fault) from None
        return Connection(inner, peer)

    def _connected(self, host: str, port: int, timeout: float | None, *options: Any) -> httpcore.NetworkStream:
        *others, last = _addresses(host, port, self._limits.within(timeout))
        for address in others:
            with contextlib.suppress(httpcore.ConnectTimeout, httpcore.ConnectError):
                return self._tcp.connect_tcp(address, port, self._limits.within(timeout), *options)
        return self._tcp.connect_tcp(last, port, self._limits.within(timeout), *options)


def _addresses(host: str, port: int, limit: float | None) -> list[str]:
    """The addresses of `host`. Raises OSError or UnicodeError, TimeoutError after `limit` seconds.

    A name is looked up in a thread of its own: the C library, while it waits for a name server, obeys neither a limit
    nor a signal.
    """

    def look_up(flags: int = 0) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        return [str(address[0]) for *_, address in found]

    with contextlib.suppress(socket.gaierror):
        return look_up(socket.AI_NUMERICHOST)
    answers: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def report() -> None:
        try:
            answers.put(look_up())
        except (OSError, UnicodeError) as fault:
            answers.put(fault)

    threading.Thread(target=report, daemon=True).start()
    try:
        answer = answers.get(timeout=limit)
    except Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer
