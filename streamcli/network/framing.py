"""Bytes after the request in: first a response's head, cut off exactly at its end, then the body's own bytes out.

Contract: `HeadGate` lets an HTTP parser see no byte past a blank line, so that what follows the head can be read by
other means. `Framing` finds the body in the bytes after it, as strictly as h11 does. Both take bytes cut anywhere and
work in time linear in them. No I/O. Source: RFC 9112 sections 6 and 7.1.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# The status line of a response that is an error, perhaps after interim ones.
_REJECTION = re.compile(rb"(?:^|\n)HTTP/1\.[01] [45]\d\d")
_END_OF_HEAD = re.compile(rb"\n\r?\n")
# The head of a chunk with the CRLF before it that ends the last chunk: size, extension or blanks, CRLF. h11 lets an
# extension hold anything but LF, and blanks stand only where there is none.
_CHUNK_HEAD = re.compile(rb"\r\n([0-9A-Fa-f]{1,20})(?:;[^\n]*?|[ \t]*)\r\n")
_CHUNK_HEAD_BEGUN = re.compile(rb"\r?|\r\n(?:[0-9A-Fa-f]{0,20}|[0-9A-Fa-f]{1,20}(?:;[^\n]*|[ \t]*\r?))")
_TRAILERS = re.compile(
    rb"(?:(?!content-length:|transfer-encoding:)[!#$%&'*+.^_`|~0-9a-z-]+:[^\0\r\n\f\v]*\r?\n"
    rb"(?:[ \t][^\0\r\n\f\v]*\r?\n)*)*",
    re.IGNORECASE,
)
# As much as h11 keeps of a line that does not end.
_MAX_HEAD = 16 * 1024


def is_rejection(heard: bytes) -> bool:
    """Whether a response that begins so, while the request is still being sent, is an error: more need not be sent."""
    return bool(_REJECTION.search(heard))


class HeadGate:
    """Divides what was read at each blank line: `admit` returns the part up to it, `held` keeps the rest."""

    def __init__(self) -> None:
        self.held = b""
        self._seen = b""

    def admit(self, data: bytes) -> bytes:
        """The part of `data` up to and with the first blank line; all of it where there is none."""
        end = _END_OF_HEAD.search(self._seen + data)
        if end is None:
            self._seen = (self._seen + data)[-2:]
            return data
        cut = end.end() - len(self._seen)
        self._seen = b""
        self.held = data[cut:]
        return data[:cut]

    def take(self) -> bytes:
        """What is held; it is held no longer."""
        held, self.held = self.held, b""
        return held


class Framing:
    """The body of one response: chunked, so many bytes, or all there is.

    `done` says that the body is whole, `broken` what was wrong with its framing, or "".
    """

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        self.broken = ""
        self._chunked = "transfer-encoding" in headers
        length = None if self._chunked else headers.get("content-length")
        if status in {204, 304}:
            self._chunked, length = False, "0"
        self._left = None if length is None else int(length.partition(",")[0])
        self.done = self._left == 0
        self._in_chunk = 0
        self._in_trailers = False
        # As if a chunk had just ended, so that every chunk's head has the same form.
        self._head = b"\r\n"

    def decode(self, data: bytes) -> bytes:
        """The part of `data` that is body. After `done` or `broken` there is none."""
        if self.done or self.broken:
            return b""
        if self._chunked:
            return self._join_chunks(data)
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            self.done = self._left == 0
        return data

    def missing(self) -> str:
        """What a connection that ends here leaves out, or ""."""
        if self._chunked and not self.done:
            return "before the last chunk"
        return f"{self._left} bytes early" if self._left else ""

    def _join_chunks(self, data: bytes) -> bytes:
        data = self._head + data
        end = self._in_chunk
        parts = [data[:end]]
        while not self._in_trailers and (head := _CHUNK_HEAD.match(data, end)):
            start = head.end()
            end = min(start + int(head[1], 16), sys.maxsize)  # no string has places beyond
            parts.append(data[start:end])
            if end == start:
                self._in_trailers = True
                end -= 1  # so that a blank line is found, whether or not trailers come before it
        self._in_chunk = max(0, end - len(data))
        self._head = data[end:]
        if self._head not in {b"", b"\r\n"}:  # as nearly all reads leave it
            self._check_head()
        return b"".join(parts)

    def _check_head(self) -> None:
        """Look at what is not body: the head of a chunk that has not come whole, or what follows the last one."""
        if self._in_trailers:
            end = _END_OF_HEAD.search(self._head)
            self.done = end is not None and bool(_TRAILERS.fullmatch(self._head, 1, end.start() + 1))
            good = self.done or end is None
        else:
            good = bool(self._in_chunk or _CHUNK_HEAD_BEGUN.fullmatch(self._head))
        if not good or (len(self._head) > _MAX_HEAD and not self.done):
            self.broken = f"{'the trailers begin' if self._in_trailers else 'a chunk begins'} with {self._head[:20]!r}"
