"""Text that may repeat a secret in, the same text with the secret hidden out.

Contract: a secret is hidden where it stands whole, and in short texts each piece of it that is long enough to be of
use, because whoever says it back may have cut it. It is hidden before anything is cut here: an excerpt holds no
beginning of one. No I/O. Source: SECURITY.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

HIDDEN = b"***"
# So much of a key is no longer a word that anybody might say.
_PIECE = 12
_SHORTEST = 6
_LONGEST_WORD = 24
_WORDS = re.compile(r"[A-Za-z]+(?:[-_. ][A-Za-z]+)*")
# Looking for pieces takes a while: a message is short, the text of an answer is not.
_SHORT = 64 * 1024


def worth_hiding(secret: str) -> bool:
    """Whether a key is one: servers that want any key are given a word, and answers may hold that."""
    if len(secret) < _SHORTEST:
        return False
    return len(secret) >= _LONGEST_WORD or secret.startswith("sk-") or not _WORDS.fullmatch(secret)


def hidden(data: bytes, secrets: Collection[str]) -> bytes:
    """`data` without the `secrets`; one may be the beginning of another."""
    for secret in sorted(secrets, key=len, reverse=True):
        raw = secret.encode()
        data = data.replace(raw, HIDDEN)
        if len(raw) > _PIECE and len(data) <= _SHORT:
            data = _without_pieces(data, raw)
    return data


def hidden_text(text: str, secrets: Collection[str]) -> str:
    """As `hidden`, of text."""
    if not any(
        secret[at : at + _PIECE] in text for secret in secrets for at in range(max(1, len(secret) - _PIECE + 1))
    ):
        return text
    return hidden(text.encode("utf-8", "surrogatepass"), secrets).decode("utf-8", "surrogatepass")


def _without_pieces(data: bytes, secret: bytes) -> bytes:
    parts, at = [], 0
    for start in range(len(secret) - _PIECE + 1):
        if secret[start : start + _PIECE] in data:
            break
    else:
        return data
    while at < len(data):
        size = _piece_at(data, at, secret)
        parts.append(HIDDEN if size else data[at : at + 1])
        at += size or 1
    return b"".join(parts)


def _piece_at(data: bytes, at: int, secret: bytes) -> int:
    """How long the piece of the secret is that begins at a place; 0 where it is too short to be one."""
    size = _PIECE
    if data[at : at + size] not in secret or at + size > len(data):
        return 0
    while at + size < len(data) and data[at : at + size + 1] in secret:
        size += 1
    return size
