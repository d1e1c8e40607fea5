"""Headers and texts that may hold a secret in, the same with the secret hidden out.

Contract: a secret is hidden where it stands whole, and in short texts each piece of it that is long enough to be of
use, because whoever says it back may have cut it. It is hidden before anything is cut here: an excerpt holds no
beginning of one. No I/O. Source: SECURITY.md.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, AnyStr

from streamcli.errors import APIError, APIStatusError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


HIDDEN = b"***"
# The words of a header's name, between - and _, that say that its value is a secret. A name may only sound like one:
# x-portkey-config, x-max-tokens, x-author.
_NAME = re.compile(
    r"(api|app|access|auth|client|license|master|private|secret|service|session|subscription)?keys?"
    r"|\w*(token|secret|password|passwd|passphrase|cookie)|credentials?|jwt|[ox]?auth(orization|entication)?",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(bearer|basic|token) +", re.IGNORECASE)
# A value may say so itself, as a whole or in JSON.
_VALUE = re.compile(rf"{_SCHEME.pattern}|.*(\bsk-\w|\w*(key|token|secret|password)\"\s*:)", re.IGNORECASE)
# So much of a key is no longer a word that anybody might say.
_PIECE = 12
_SHORTEST = 6
_LONGEST_WORD = 24
_WORDS = re.compile(r"[A-Za-z]+(?:[-_. ][A-Za-z]+)*")
# Looking for pieces takes a while: a message is short, the text of an answer is not.
_SHORT = 64 * 1024


def worth_hiding(secret: str) -> bool:
    """Whether a key is a secret: servers that accept any key are given a word, which answers may hold."""
    if len(secret) < _SHORTEST:
        return False
    return len(secret) >= _LONGEST_WORD or secret.startswith("sk-") or not _WORDS.fullmatch(secret)


def is_secret(name: str, value: str = "") -> bool:
    """Whether a header of this name and value holds a secret, or may."""
    return any(map(_NAME.fullmatch, re.split(r"[^A-Za-z0-9]+", name))) or bool(_VALUE.match(value))


def without_secrets(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers for showing and keeping: those that hold a secret hold "***" instead."""
    return {name: HIDDEN.decode() if is_secret(name, value) else value for name, value in headers}


def secrets_of(headers: Iterable[tuple[str, str]]) -> Iterator[str]:
    """What is secret in headers and worth hiding: a value without its scheme, and a password that it encodes."""
    for name, value in headers:
        if not is_secret(name, value):
            continue
        scheme, secret = split_scheme(value)
        for each in (secret, _password(secret) if scheme.lower().startswith("basic") else ""):
            if worth_hiding(each):
                yield each


def split_scheme(value: str) -> tuple[str, str]:
    """The scheme before a secret, with the blank after it, and the secret: `Bearer x` is ("Bearer ", "x")."""
    match = _SCHEME.match(value)
    return (match[0], value[match.end() :].strip()) if match else ("", value)


def _password(basic: str) -> str:
    import base64  # noqa: PLC0415 - rarely used

    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


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
    if not any(piece in text for secret in secrets for piece in _pieces(secret)):
        return text
    return hidden(text.encode("utf-8", "surrogatepass"), secrets).decode("utf-8", "surrogatepass")


def hide_in_error(error: APIError, secrets: Collection[str]) -> None:
    """Take out of an error, before it is seen, what went out in secret: a server may repeat it."""
    error.message = hidden_text(error.message, secrets)
    error.args = (error.message,)
    if isinstance(error, APIStatusError):
        shown = {name: hidden_text(value, secrets) for name, value in error.headers.items()}
        error.headers = error.headers if shown == dict(error.headers.items()) else shown
        error.data = error.data and hidden(error.data, secrets)
        error.body, error.details = _hidden_in(error.body, secrets), _hidden_in(error.details, secrets)


def _hidden_in(value: Any, secrets: Collection[str]) -> Any:
    if isinstance(value, str):
        return hidden_text(value, secrets)
    from .jsontext import dumps, loads  # noqa: PLC0415 - nothing that starts quickly needs orjson

    text = dumps(value)  # it was parsed, so it can be written
    shown = hidden(text, secrets)
    return value if shown == text else loads(shown)


def _pieces(secret: AnyStr) -> Iterator[AnyStr]:
    """The shortest pieces of a secret that are hidden; the whole of one that is shorter."""
    return (secret[at : at + _PIECE] for at in range(max(1, len(secret) - _PIECE + 1)))


def _without_pieces(data: bytes, secret: bytes) -> bytes:
    if not any(piece in data for piece in _pieces(secret)):
        return data
    parts, at = [], 0
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
