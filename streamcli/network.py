"""Connections under httpcore, sync and async: connect, TLS, write, read, each within its limits.

Contract: httpcore sends the request and parses the head through these; `receive` then reads the body past it. Every
fault comes out as one of our errors and names the peer; only a failed write is left to httpcore, which goes on to
read what the server said before it hung up. The total limit holds everywhere, so endless interim answers and slow
drips end too.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import httpcore

from .errors import APIConnectionError, APIError, APITimeoutError, IncompleteStreamError
from .framing import HeadGate

if TYPE_CHECKING:
    from collections.abc import Iterable

READ_BYTES = 64 * 1024


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

    def passed(self) -> APITimeoutError:
        """The error of the total limit."""
        return APITimeoutError(f"the total limit of {self.total:g} s passed", retryable=False)

    def spent(self) -> bool:
        """Whether the total limit is what ran out."""
        return self.deadline is not None and time.monotonic() >= self.deadline


class Peer:
    """Whom a connection talks to, for messages, and how far it got."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.heard = False
        self.answered = False

    def late(self, doing: str, timeout: float | None) -> APITimeoutError:
        if self.limits.spent():
            return self.limits.passed()
        connecting = doing in {"connect", "TLS handshake"}
        kind = "connect" if connecting else "idle"
        what = f"no connection to {self.name}" if connecting else f"nothing came from {self.name}"
        if doing == "write":
            what = f"{self.name} took nothing"
        return APITimeoutError(f"{what} within the {kind} limit of {timeout:g} s", retryable=connecting)

    def unreachable(self, fault: BaseException) -> APIConnectionError:
        return APIConnectionError(f"cannot connect to {self.name}: {_reason(fault)}")

    def no_tls(self, fault: BaseException) -> APIConnectionError:
        return APIConnectionError(f"no TLS with {self.name}: {_reason(fault)}", retryable=False)

    def lost(self, fault: BaseException | None = None) -> APIError:
        how = _reason(fault) if fault else "the connection was closed"
        if self.answered:
            return IncompleteStreamError(f"{self.name} broke off in mid-stream: {how}")
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
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror[0].lower() + fault.strerror[1:]
    return str(fault) or type(fault).__name__


class Connection(httpcore.NetworkStream):
    """One connection: `read` is what h11 sees, `receive` what comes after the head."""

    def __init__(self, inner: httpcore.NetworkStream, peer: Peer) -> None:
        self._inner = inner
        self._gate = HeadGate()
        self.peer = peer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As httpcore asks for it: never past a blank line."""
        data = self._gate.take() or self._read(max_bytes, timeout)
        if not data and not self.peer.answered:
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
        self.peer.heard = self.peer.heard or bool(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        try:
            self._inner.write(buffer, self.peer.limits.within(timeout))
        except httpcore.WriteTimeout:
            raise self.peer.late("write", timeout) from None

    def close(self) -> None:
        """Close at once."""
        self._inner.close()

    def abort(self) -> None:
        """As `close`, from anywhere: the asynchronous twin has this for finalizers, which cannot wait."""
        self.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Connection:
        """The same connection inside TLS."""
        try:
            inner = self._inner.start_tls(ssl_context, server_hostname, self.peer.limits.within(timeout))
        except httpcore.ConnectTimeout:
            raise self.peer.late("TLS handshake", timeout) from None
        except (httpcore.ConnectError, OSError) as fault:
            raise self.peer.no_tls(fault) from None
        self.peer.heard = False  # what was heard so far came from a proxy
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
        """Connect to the first address of `host` that answers, each within `timeout` seconds."""
        peer = Peer(f"{self._prefix}{host}:{port}", self._limits)
        try:
            inner = self._tcp.connect_tcp(host, port, self._limits.within(timeout), local_address, socket_options)
        except httpcore.ConnectTimeout:
            raise peer.late("connect", timeout) from None
        except (httpcore.ConnectError, OSError, UnicodeError) as fault:
            raise peer.unreachable(fault) from None
        return Connection(inner, peer)
