"""A response that is not a stream in, the JSON object that it holds out, or the error that it is.

Contract: whatever the body holds, the error is one of ours, and says in one line what the server says; secrets are
hidden before anything is cut. No I/O. Source: streamcli(7), section "Error responses".
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    IncompleteStreamError,
    ProtocolError,
    UnexpectedResponseError,
    excerpt,
    status_error,
)

from . import coding
from .body import MAX_BODY, kind_of
from .jsontext import dumps, object_in, value_in
from .message import OF_CHAT_COMPLETIONS
from .retry import MAX_WAIT, retry_after
from .secrets import hidden, hidden_text
from .sse import Decoder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# A body is undone in pieces of this size, because each may become a thousand times as long.
_PIECE = 16 * 1024
_MARKUP = re.compile(r"\s*<[A-Za-z!?]")
# Of a page, which may be cut anywhere, what is not for reading.
_UNREAD = re.compile(
    r"<!(?=--).*?(?:-->|\Z)|<(script|style|template)\b.*?(?:</\1\b[^>]*>?|\Z)", re.DOTALL | re.IGNORECASE
)
_TITLE = re.compile(r"<title\b[^<>]*>([^<]*)", re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>?")
# What a gateway says of whoever is behind it, often without a word.
_OF_GATEWAYS = frozenset({502, 504})


def json_object(status: int, headers: Mapping[str, str], body: bytes) -> dict[str, Any] | None:
    """The JSON object in a response, or None for an error and for any other. Raises UnexpectedResponseError."""
    plain = _plain(body, headers)
    if len(plain) > MAX_BODY:
        raise UnexpectedResponseError(f"the response is longer than {MAX_BODY >> 20} MiB")
    value = object_in(plain)
    return value if status == 200 and value is not None and value.get("type") != "error" else None


def error_of(
    url: str, status: int, headers: Mapping[str, str], body: bytes, *, wanted: str, secrets: Collection[str]
) -> APIError:
    """The error that a response to a request for `url` is where something else was `wanted`.

    `body` may be only its beginning. The id of the request is the caller's to add, but for one in the body.
    """
    body = hidden(_plain(body, headers), secrets)
    value = (status >= 400 and _error_event(body)) or value_in(body, body.decode("utf-8", "replace"))
    is_error = isinstance(value, dict) and value.get("type") == "error"
    if status == 407:
        return APIConnectionError("a proxy on the way wants a user and a password: status 407", retryable=False)
    if 300 <= status < 400:
        place = hidden_text(headers.get("location", "nowhere"), secrets)
        return APIStatusError(
            f"a redirect to {excerpt(place)} is not followed: if that is the right server, make it the base URL",
            status_code=status,
            headers=headers,
        )
    if status >= 400 or is_error:
        reason = value if isinstance(value, dict) and "error" in value else shown(body)
        error = status_error(None if status < 400 else status, reason, headers=headers)
        if status in _OF_GATEWAYS and not body.strip():
            error.message = f"{_gateway(url, headers)} gave no reason"
        if status == 404:
            error.message += f"; asked {url}"
        error.retry_after = asked = retry_after(headers, time.time())
        if asked is not None and asked > MAX_WAIT:
            error.message += f"; the server says to wait {asked:.0f} s"
        return error
    if status == 204 or not body:
        return IncompleteStreamError("the response is empty")
    return UnexpectedResponseError(_what_it_is(value, headers, wanted))


def _error_event(body: bytes) -> dict[str, Any] | None:
    """The first object with an error in a body that is an event stream, or None."""
    events = Decoder().feed(body + b"\n\n") if kind_of(body) == "events" else []
    return next((value for event in events if "error" in (value := object_in(event.data) or {})), None)


def shown(body: bytes) -> str:
    """What a reader is shown of a body: its beginning, on one line, and no markup."""
    text = body.decode("utf-8", "replace")
    return excerpt(words(text) or text)


def words(text: str) -> str:
    """What a reader sees of `text`, where that is a page for browsers: no markup, and a title only once."""
    if not _MARKUP.match(text):
        return text
    page = _UNREAD.sub(" ", text)
    title, said = _line(" ".join(_TITLE.findall(page)[-1:])), _line(_TAG.sub(" ", page))
    repeated = said.removeprefix(title).strip()
    return repeated if title and repeated.startswith(title) else said


def _line(text: str) -> str:
    from html import unescape  # noqa: PLC0415 - few responses are pages, and it takes its time to import

    return " ".join(unescape(text).split())


def _plain(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A body, or its beginning, its coding undone as far as that goes; little more than MAX_BODY of it."""
    coded = coding.of(headers)
    made = coding.Decoding(coded if coding.can_undo(coded) else "")
    plain = bytearray()
    with contextlib.suppress(ProtocolError):
        for start in range(0, len(body), _PIECE):
            plain += made.decode(body[start : start + _PIECE])
            if len(plain) > MAX_BODY:
                break
        return bytes(plain) + made.close() or body
    return body


def _what_it_is(value: Any, headers: Mapping[str, str], wanted: str) -> str:
    """What a response is that is not what was wanted: a JSON value or text."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        return OF_CHAT_COMPLETIONS
    coded = coding.of(headers)
    if not coding.can_undo(coded):
        return f"the response is in the coding {excerpt(coded)}, which was not asked for and cannot be read"
    kind = excerpt(headers.get("content-type") or "data without a content type")
    text = value.encode() if isinstance(value, str) else dumps(value)
    return f"the response is not {wanted} but {kind}: {shown(text)}"


def _gateway(url: str, headers: Mapping[str, str]) -> str:
    """Who responds where something behind it does not: its address, and what it says it is."""
    kind = headers.get("server") or headers.get("via")
    return f"the gateway at {urlsplit(url).netloc}{f' ({excerpt(kind)})' if kind else ''}"
