"""A host's name in, its addresses out, without anybody having to wait for them.

Contract: the C library, while it waits for a name server, obeys neither a timeout nor a signal, nor does it end with
an event loop. So names are looked up in a thread that nobody waits for; whoever asks is told, or stops listening.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    # What `socket.getaddrinfo` says of one: family, kind, protocol, name, and the address itself.
    Address = tuple[Any, ...]
    Found = list[Address] | OSError | UnicodeError

T = TypeVar("T")


class Told(Generic[T]):
    """What another thread finds out: told once, waited for by whoever wants to know."""

    def __init__(self) -> None:
        self._is_told = threading.Event()
        self._value: T | Exception

    def tell(self, value: T | Exception) -> None:
        """Let `value` be known, or that it cannot be had, unless something was told before."""
        if not self._is_told.is_set():
            self._value = value
            self._is_told.set()

    def result(self, timeout: float | None = None) -> T:
        """What was told; raises the fault, or TimeoutError after `timeout` seconds."""
        if not self._is_told.wait(timeout):
            raise TimeoutError
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class Lookup(Told[list["Address"]]):
    """The addresses of `host`, being looked up from now on."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        look_up(host, port, self.tell)


@functools.lru_cache(maxsize=64)
def at_once(host: str, port: int) -> list[Address]:
    """The address that `host` is itself; none where it is a name."""
    with contextlib.suppress(socket.gaierror):
        return _addresses(host, port, socket.AI_NUMERICHOST)
    return []


def look_up(host: str, port: int, report: Callable[[Found], object]) -> None:
    """Give `report` the addresses of `host`, or the fault: at once for an address, from another thread for a name."""
    address = at_once(host, port)
    if address:
        report(address)
        return

    def find() -> None:
        try:
            found: Found = _addresses(host, port)
        except (OSError, UnicodeError) as fault:
            found = fault
        report(found)

    threading.Thread(target=find, daemon=True).start()


def _addresses(host: str, port: int, flags: int = 0) -> list[Address]:
    return [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)]


def address(host: str, port: int) -> str:
    """Host and port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
