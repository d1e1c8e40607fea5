"""The bytes of a body as they were sent in, the bytes that were meant out: content codings undone.

Contract: gzip and deflate are undone as they come, each piece as far as it goes; what is cut simply ends, because only
message_stop says that an answer is whole. A body that begins as gzip does is gzip, whatever its header says. What is
broken is ProtocolError. No I/O. Source: RFC 9110 section 8.4.1; RFC 1950 to 1952.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from streamcli.errors import malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

# Servers send these for a body that is not coded at all.
_NOT_CODED = frozenset({"", "identity", "none", "utf-8", "utf8"})
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_RAW_DEFLATE = -zlib.MAX_WBITS
_GZIP = b"\x1f\x8b"
_CAN_UNDO = frozenset({"gzip", "x-gzip", "deflate"})


def of(headers: Mapping[str, str]) -> str:
    """The coding that the head of a response names, in lower case; "" where the body is not coded."""
    coding = headers.get("content-encoding", "").strip().lower()
    return "" if coding in _NOT_CODED else coding


def can_undo(coding: str) -> bool:
    """Whether a body of that coding can be read."""
    return not coding or coding in _CAN_UNDO


class Decoding:
    """Undoes the coding of one body; `coding` is what its header names."""

    def __init__(self, coding: str = "") -> None:
        self._coding = coding
        self._undo: zlib._Decompress | None = None
        # What came so far, as long as it is too short to tell what it is; then None.
        self._beginning: bytes | None = b""

    def decode(self, data: bytes) -> bytes:
        """The part of the body that `data` makes whole. Raises ProtocolError."""
        if self._beginning is not None:
            data = self._beginning + data
            if len(data) < len(_GZIP) and (self._coding or _GZIP.startswith(data)):
                self._beginning = data
                return b""
            self._beginning = None
            if self._coding or data.startswith(_GZIP):
                self._undo = zlib.decompressobj(_window_bits(data))
        if self._undo is None:
            return data
        try:
            return self._undo.decompress(data)
        except zlib.error as fault:
            raise malformed(f"its compression is broken: {fault}") from None

    def close(self) -> bytes:
        """What was held back, at the end of the body."""
        held, self._beginning = self._beginning or b"", None
        return held


def _window_bits(data: bytes) -> int:
    """What zlib is told of a body that begins so: "deflate" has a head by the book, and none in practice."""
    is_zlib = data[0] & 0x0F == zlib.DEFLATED and int.from_bytes(data[:2], "big") % 31 == 0
    return _GZIP_OR_ZLIB if is_zlib or data.startswith(_GZIP) else _RAW_DEFLATE
