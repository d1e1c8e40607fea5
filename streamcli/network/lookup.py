"""A host's name in, its addresses out, without anybody having to wait for them.

Contract: the C library, while it waits for a name server, obeys neither a timeout nor a signal, nor does it end with
an event loop. So names are looked up in a thread that nobody waits for; whoever asks is told, or stops listening.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    # What `socket.getaddrinfo` says of one: family, kind, protocol, name, and the address itself.
    Address = tuple[Any, ...]
    Found = list[Address] | OSError | UnicodeError


def look_up(host: str, port: int, report: Callable[[Found], object]) -> None:
    """Give `report` the addresses of `host`, or the fault: at once for an address, from another thread for a name."""
    with contextlib.suppress(socket.gaierror):
        report(_addresses(host, port, socket.AI_NUMERICHOST))
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
