"""Whom a connection talks to and how far it got, and the error that follows from that for each of its faults.

Contract: every error names the peer, says what was being done, and whether another attempt could end differently.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    IncompleteStreamError,
    UnexpectedResponseError,
)

from .lookup import address

if TYPE_CHECKING:
    from .timeouts import Deadline

# An HTTP response begins with exactly these.
_HTTP = b"HTTP/"
# What is said to a proxy before the way through it is open: HTTP's CONNECT, and the messages of SOCKS.
TO_PROXIES = (b"CONNECT ", b"\x05", b"\x01")
# Of OpenSSL's codes, those of a certificate that is good, but for who made it.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
# For each step that can take too long, what to say of it, and which timeout it had.
_LATE = {
    "connect": ("cannot connect to {}", "connect"),
    "TLS handshake": ("the TLS handshake with {} did not end", "connect"),
    "tunnel": ("{} opened no connection to the server", "connect"),
    "read": ("nothing came from {}", "idle"),
    "write": ("{} accepted no data", "idle"),
}


class BrokenWriteError(Exception):
    """Not all was sent; the peer may have said why."""


class Peer:
    """The peer at `host` and `port`; `prefix` goes before its name: "the proxy ", where it is one."""

    def __init__(
        self, prefix: str, host: str, port: int, deadline: Deadline, connect_timeout: float | None = None
    ) -> None:
        self.name = prefix + address(host, port)
        self.host = host
        self.deadline = deadline
        self.connect_timeout = connect_timeout
        # The first bytes that came from it.
        self.heard = b""
        self.responded = False

    def hear(self, data: bytes) -> None:
        """Remember how its response begins."""
        if len(self.heard) < len(_HTTP):
            self.heard = (self.heard + data)[: len(_HTTP)]

    def late(self, step: str, timeout: float | None) -> APITimeoutError:
        """The error of a step that took too long: a key of _LATE."""
        if self.deadline.passed():
            return self.deadline.error()
        what, kind = _LATE[step]
        which = f"the {kind} timeout of {timeout:g} s" if timeout is not None else "the system's own timeout"
        return APITimeoutError(f"{what.format(self.name)} within {which}", retryable=kind == "connect")

    def unreachable(self, fault: BaseException) -> APIConnectionError:
        """The error of a connection that was not made."""
        return APIConnectionError(f"cannot connect to {self.name}: {_reason(fault)}")

    def begin_tls(self, host: str | None) -> None:
        """From now on the peer is `host`, which may be one behind a proxy, inside TLS."""
        self.heard = b""
        if host not in {None, self.host}:
            self.host, self.name = str(host), f"{host} through {self.name}"

    def no_tls(self, fault: BaseException) -> APIConnectionError:
        """The error of a handshake that failed."""
        return APIConnectionError(f"the TLS handshake with {self.name} failed: {_reason(fault)}", retryable=False)

    def lost(self, fault: BaseException | None = None) -> APIError:
        """The error of a connection that ended too early, by how far the response was."""
        how = _reason(fault) if fault else "the connection was closed"
        if self.responded:
            return IncompleteStreamError(f"{self.name} broke off in mid-stream: {how}")
        if not _HTTP.startswith(self.heard):
            return UnexpectedResponseError(f"{self.name} does not speak HTTP: its response begins with {self.heard!r}")
        when = "in the middle of the response's head" if self.heard else "before responding"
        return APIConnectionError(f"{self.name} broke off {when}: {how}")


def _reason(fault: BaseException) -> str:
    """The words of the deepest cause: httpcore, asyncio and ssl each wrap the one below."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    if isinstance(fault, ssl.SSLCertVerificationError):
        hint = (
            "; to trust another one, use --ca-file or SSL_CERT_FILE" if fault.verify_code in _UNKNOWN_AUTHORITY else ""
        )
        return f"certificate verify failed: {fault.verify_message}{hint}"
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
