"""An error of httpx, httpcore or h11 in, the matching one of ours out.

Contract: nothing of these libraries leaves the storey. A client of our own raises ours already, but for what httpcore
finds wrong with the HTTP itself; one that a caller brought along raises what httpx does.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING

import httpx

from streamcli.errors import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    IncompleteStreamError,
    UnexpectedResponseError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What a proxy says, by a status or as SOCKS says it, where another attempt could end differently.
_PASSING = r"(408|429|5\d\d)\b|Proxy Server could not connect: (?!Connection not allowed)"
# All that an httpx client which is not ours can raise.
HTTPX_ERRORS = (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL)


def from_httpx(fault: Exception, *, in_body: bool = False) -> APIError:
    """The error of ours that one of HTTPX_ERRORS is, before the response's head or `in_body`."""
    if isinstance(fault, httpx.TimeoutException):
        kind = "connect" if isinstance(fault, httpx.ConnectTimeout) else "idle"
        return APITimeoutError(f"the {kind} timeout passed{_words(fault)}", retryable=kind == "connect")
    if isinstance(fault, httpx.InvalidURL):
        return UsageError(f"the request's address is not a URL{_words(fault)}")
    if in_body:
        return IncompleteStreamError(f"the stream broke off{_words(fault)}")
    if isinstance(fault, httpx.ProxyError):
        return rejected_by("the proxy", "the request", str(fault))
    return APIConnectionError(f"no response{_words(fault)}", retryable=_may_pass(fault))


def rejected_by(proxy: str, what: str, words: str) -> APIConnectionError:
    """The error of a proxy that did not do what it was asked; `words` are its own, which begin with its status."""
    return APIConnectionError(f"{proxy} rejected {what}: {words}", retryable=bool(re.match(_PASSING, words)))


def _words(fault: Exception) -> str:
    return f": {fault}" if str(fault) else ""


def _may_pass(fault: BaseException) -> bool:
    """Whether another attempt could end differently: not where TLS fails, or the request itself is wrong."""
    if not isinstance(fault, httpx.NetworkError | httpx.RemoteProtocolError):
        return False
    cause: BaseException | None = fault
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause is None


@contextlib.contextmanager
def errors_as_ours(names: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """For sending through h11 or httpcore on a connection of ours, whose own faults are ours already.

    `names` are those of the proxy and of the server.
    """
    try:
        yield
    except Exception as fault:
        kind = type(fault)
        library, name = kind.__module__.partition(".")[0], kind.__name__
        if library == "socksio":
            raise APIConnectionError(f"{names()[0]} does not speak SOCKS 5: {fault}", retryable=False) from None
        if library not in {"h11", "httpcore"}:
            raise
        if name == "ProxyError":
            proxy, target = names()
            raise rejected_by(proxy, f"the connection to {target}", str(fault)) from None
        if name == "RemoteProtocolError":
            raise UnexpectedResponseError(f"the response is not HTTP: {fault}") from None
        raise UsageError(f"the request cannot be sent as HTTP: {fault}") from None
