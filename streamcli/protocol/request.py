"""What the caller wants in, one HTTP request out: method, URL, headers, body.

Contract: everything that makes a request impossible is UsageError here, before anything is sent, and no message shows a
key. No I/O; the environment is a parameter.
Source: streamcli(7), section "REQUEST".
"""

from __future__ import annotations

import functools
import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from streamcli.errors import UsageError
from streamcli.version import __version__

from .userinput import key_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_BASE_URL = "https://api.anthropic.com"
DEFAULT_MODEL = "claude-sonnet-5-5"
# What Anthropic's models may write, thinking included, and what fits into the window of a small server's.
ANTHROPIC_MAX_TOKENS, DEFAULT_MAX_TOKENS = 32000, 8192

API_VERSION = "2026-10-21"
# The version above rejects a request that has one of these, even at its default.
SAMPLING_API_VERSION = "2023-06-01"
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
# The headers that say how a request is sent, and not what it asks.
_OURS = frozenset({"connection", "content-encoding", "content-length", "expect", "keep-alive", "proxy-connection"})
_OURS |= {"te", "trailer", "transfer-encoding", "upgrade"}
# What people copy along with a base URL.
_AFTER_BASE = re.compile(r"(/+v1(/+messages)?)?/*$")
_LOOPBACK = re.compile(r"localhost|[a-z0-9.-]+\.localhost|127(\.\d{1,3}){3}|::1", re.IGNORECASE)


class Credential(NamedTuple):
    """A secret and the header it goes out in: "x-api-key" or "bearer"."""

    scheme: str
    secret: str

    def __repr__(self) -> str:
        return f"Credential({self.scheme!r}, '***')"

    @property
    def header(self) -> tuple[str, str]:
        """Name and value of the header."""
        return ("x-api-key", self.secret) if self.scheme == "x-api-key" else ("authorization", f"Bearer {self.secret}")


class Request(NamedTuple):
    """One HTTP request, ready to send. Header names are lower case."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Request({self.method!r}, {self.url!r})"  # the headers hold the key


class Endpoint(NamedTuple):
    """A server that speaks the Messages API, and how to address it.

    `headers` go out with every request and replace ours of the same name; without `api_version` the body decides.
    `key_hint` is what to do where a key is missing.
    """

    base_url: str
    credential: Credential | None
    api_version: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    key_hint: str = "pass api_key, or set ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN"

    @property
    def has_credential(self) -> bool:
        """Whether a key goes out with every request, as the credential or in one of the headers."""
        named = any(name.lower() in {"x-api-key", "authorization"} for name, _ in self.headers)
        return named or self.credential is not None

    def checked(self, source: str, *, allow_http: bool) -> Endpoint:
        """The same with its base URL as `checked_base_url` has it. Raises UsageError, which names its `source`."""
        url = checked_base_url(self.base_url, source=source, has_credential=self.has_credential, allow_http=allow_http)
        return self._replace(base_url=url)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        betas: Iterable[str] = (),
        headers: Iterable[tuple[str, str]] = (),
    ) -> Request:
        """The request for `path`, relative to the base URL or absolute on the same host.

        Raises UsageError for another host, a body that cannot be written as JSON, a header that cannot be sent, and
        for a host that is not loopback if there is no credential.
        """
        url = path if "://" in path else self.base_url + path
        if urlsplit(url)[:2] != urlsplit(self.base_url)[:2]:
            raise UsageError(f"{url} is not on {self.base_url}, and the key goes nowhere else")
        if not self.has_credential and not is_loopback(url):
            raise UsageError(f"no API key: {self.key_hint}")
        fields = {
            "accept": "application/json",
            "accept-encoding": "identity",  # if a compressed body is cut, nothing tells
            "user-agent": f"streamcli/{__version__}",
            "anthropic-version": self.api_version or version_for(body),
        }
        if body is not None:
            fields["content-type"] = "application/json"
        if self.credential:
            name, value = self.credential.header
            fields[name] = value
        joined = ",".join(dict.fromkeys(betas))
        if joined:
            fields["anthropic-beta"] = joined
        for name, value in (*self.headers, *headers):
            fields[name.lower()] = value.strip(" \t")
        for name, value in fields.items():
            _check_header(name, value)
        return Request(method, url, fields, b"" if body is None else _json(body))


def version_for(body: Mapping[str, Any] | None) -> str:
    """The `anthropic-version` that a request with this body needs."""
    return SAMPLING_API_VERSION if body and not _SAMPLING.isdisjoint(body) else API_VERSION


def _json(body: Mapping[str, Any]) -> bytes:
    from .jsontext import dumps  # noqa: PLC0415 - a connection begins before orjson is imported

    try:
        data = dumps(body)
    except ValueError as exc:
        raise UsageError(f"the request cannot be written as JSON: {exc}") from None
    if b"null" in data and _holds_no_number(body):
        raise UsageError("the request cannot be written as JSON: it holds a number that is infinite or NaN")
    return data


def _holds_no_number(body: Any) -> bool:
    """Whether `body` holds a float that JSON cannot express, which would be written as null."""
    waiting = [body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return True
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return False


def credential(
    environment: Mapping[str, str], *, key: str | None = None, source: str = "the api_key argument", scheme: str = ""
) -> Credential | None:
    """The credential to send, or None.

    An explicit `key` wins, then ANTHROPIC_API_KEY as `x-api-key`, then ANTHROPIC_AUTH_TOKEN as a Bearer token; `scheme`
    overrides how it goes out. A key is read as people keep one (userinput.key_in), and an empty one does not count.
    Raises UsageError, which does not show the key, for one that no header can carry.
    """
    candidates = [
        (key, source, "x-api-key"),
        (environment.get("ANTHROPIC_API_KEY"), "ANTHROPIC_API_KEY", "x-api-key"),
        (environment.get("ANTHROPIC_AUTH_TOKEN"), "ANTHROPIC_AUTH_TOKEN", "bearer"),
    ]
    for raw, name, own_scheme in candidates:
        secret, said = key_in(raw or "")
        if not secret:
            continue
        wrong = re.search(r"[^\x20-\x7e]", secret)
        if wrong:
            place = f"character {wrong.start() + 1} is {_what(wrong[0])}"
            raise UsageError(f"the key from {name} holds a character that no header can carry: {place}")
        return Credential(scheme or said or own_scheme, secret)
    return None


def _what(character: str) -> str:
    """What is wrong with a character, without showing it."""
    return {"\n": "a line end", "\r": "a line end", "\0": "a NUL, as in UTF-16"}.get(
        character, "a control character" if character.isascii() else "not ASCII"
    )


def checked_base_url(url: str, *, source: str, has_credential: bool, allow_http: bool) -> str:
    """`url` without its final slash; `/v1` and `/v1/messages`, which come after it, are left out too.

    Raises UsageError if it is not an http(s) URL, or if a key could be read on the way and `allow_http` is not given.
    """
    if re.search(r"[\x00-\x20\x7f-\x9f\\]", url):
        raise UsageError(f"{source} holds a blank, a backslash or a control character")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise UsageError(f"{source} is not a URL: {exc}") from None
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise UsageError(f"{source} needs the form http://host[:port] or https://host[:port]")
    if parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"{source} must not have a user, query or fragment")
    if has_credential and not allow_http and readable_on_the_way(url):
        raise UsageError(f"{source} uses plain http to {host}, so the key could be read on the way: use https")
    return url.removesuffix(parts.path) + _AFTER_BASE.sub("", parts.path)


def readable_on_the_way(url: str, proxy_url: str | None = None) -> bool:
    """Whether others could read a credential that is sent to `url`, by way of a proxy or straight."""
    return urlsplit(url).scheme == "http" and not is_loopback(proxy_url or url)


def is_loopback(url: str) -> bool:
    """Whether the URL's host names this machine; no name is looked up."""
    return bool(_LOOPBACK.fullmatch(urlsplit(url).hostname or ""))


def is_anthropic_s(url: str) -> bool:
    """Whether the URL's host is Anthropic's own, and not that of another server or of a gateway."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return f".{host.removesuffix('.')}".endswith(".anthropic.com")


def parsed_header(line: str, *, source: str) -> tuple[str, str]:
    """The name and the value of `Name: value`. Raises UsageError, not showing the value, if it cannot be sent."""
    name, colon, value = line.partition(":")
    if not colon:
        raise UsageError(f"{source} needs the form 'Name: value'")
    field = (name.strip(), value.strip())
    _check_header(*field)
    return field


def custom_headers(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The headers of ANTHROPIC_CUSTOM_HEADERS, one a line; lines without a colon are ignored."""
    lines = environment.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines()
    return tuple(parsed_header(line, source="ANTHROPIC_CUSTOM_HEADERS") for line in lines if ":" in line)


@functools.lru_cache(maxsize=64)  # all requests have the same ones
def _check_header(name: str, value: str) -> None:
    if name.lower() in _OURS:
        raise UsageError(f"header {name} cannot be set: it says how the request is sent")
    if not _FIELD_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a header name")
    if not _FIELD_VALUE.fullmatch(value):
        raise UsageError(f"the value of header {name} holds a character that no header can carry")
