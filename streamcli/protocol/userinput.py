"""Bytes that a user wrote in, text or a JSON value out, or an error that names the source and the place.

Contract: input is UTF-8, nothing of it is replaced or rounded, and a byte order mark at its start is left out.
UsageError is the only exception. No I/O.
"""

from __future__ import annotations

from typing import Any

from streamcli.errors import UsageError, reason

from .jsontext import loads_exact

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def decoded(data: bytes, source: str) -> str:
    """The text that `data` is; messages call it `source`."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as fault:
        raise UsageError(f"{source} is not UTF-8: byte {fault.start + 1} is {data[fault.start]:#04x}") from None


def json_value(data: bytes, source: str, *, hint: str = "") -> Any:
    """The value of the JSON text `data`; `hint` ends the message about what is not JSON."""
    decoded(data, source)
    try:
        return loads_exact(data.removeprefix(BYTE_ORDER_MARK))
    except ValueError as fault:
        why = reason(fault)
        if b"\n" not in data.strip():  # `data` may be one line of a file, and not its first
            why = why.replace(": line 1 column", " at column")
        raise UsageError(f"{source} is not JSON: {why}{hint}") from None
