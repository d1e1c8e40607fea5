"""What a client is told, by keyword or environment, and what it knows from that, whichever way it waits.

Contract: a key or an address that cannot be used is a UsageError; nothing is sent to find that out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import httpx

from streamcli.errors import APIError, UsageError
from streamcli.network.proxy import Proxy, proxy_for
from streamcli.network.timeouts import TIMEOUT, WHOLE_TIMEOUT
from streamcli.protocol.exchange import Exchange
from streamcli.protocol.request import DEFAULT_BASE_URL, Endpoint, credential, custom_headers
from streamcli.protocol.retry import MAX_RETRIES
from streamcli.protocol.userinput import variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Timeout = float | httpx.Timeout | None


# As much as the options of the command take; the system's own timers end at 2^31 milliseconds.
_MOST_SECONDS = 1_000_000
# Settings that are only passed on to each call.
_OF_EXCHANGES = frozenset({"keep_text", "strict", "max_event_bytes"})

Call = TypeVar("Call", bound=Exchange)


class Settings(TypedDict, total=False):
    """The keywords of both clients.

    `api_key`, `auth_token` and `base_url` come from ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN and ANTHROPIC_BASE_URL if
    they are not given. `timeout` is in seconds, for connecting and for the silence between two reads: None means no
    limit, and the default is 5 and 90, or 600 where a response comes whole. `total_timeout` bounds a whole call.
    `max_retries` further attempts are made while nothing was received, and `on_retry` is told the error and the seconds
    to wait before each. `allow_http` lets a key go out in clear. `endpoint` replaces key, address, headers and version.
    With `keep_text` false the message keeps its text only while that is short, for streams that are only passed on.
    An event of more than `max_event_bytes`, 64 MiB if not given, is a ProtocolError, and with `strict` so is the first
    deviation of a stream (streamcli(7), section "DEVIATIONS"). `secrets` are hidden in errors, as the key always is.
    """

    api_key: str | None
    auth_token: str | None
    base_url: str | None
    timeout: Timeout
    total_timeout: float | None
    max_retries: int
    default_headers: Mapping[str, str] | None
    api_version: str | None
    allow_http: bool
    endpoint: Endpoint | None
    on_retry: Callable[[APIError, float], None] | None
    keep_text: bool
    strict: bool
    max_event_bytes: int
    secrets: Iterable[str]


class ClientState:
    """What both clients know: where requests go, with which credential, how long and how often."""

    def __init__(self, settings: Settings) -> None:
        self.endpoint = settings.get("endpoint") or endpoint_of(settings)
        given = checked_timeout(settings["timeout"]) if "timeout" in settings else None
        self.timeout = given or TIMEOUT
        self.whole_timeout = given or WHOLE_TIMEOUT
        self.total_timeout = _seconds(settings.get("total_timeout"), "total_timeout")
        self.max_retries = settings.get("max_retries", MAX_RETRIES)
        self.on_retry = settings.get("on_retry")
        self._allow_http = settings.get("allow_http", False)
        self._of_exchanges: dict[str, Any] = {name: value for name, value in settings.items() if name in _OF_EXCHANGES}
        self._secrets = list(settings.get("secrets", ()))

    def _proxy(self) -> Proxy | None:
        proxy = proxy_for(self.endpoint, allow_http=self._allow_http)
        self._secrets += proxy.secrets if proxy else []
        return proxy

    def _exchange(
        self,
        kind: type[Call],
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout: Timeout = None,
        comes_whole: bool = False,
        **options: Any,
    ) -> Call:
        """The call of that kind; a response that `comes_whole` takes as long as all that it holds."""
        usual = self.whole_timeout if comes_whole else self.timeout
        return kind(
            self.endpoint.request(method, path, body, **options),
            timeout=usual if timeout is None else checked_timeout(timeout),
            max_retries=self.max_retries,
            total=self.total_timeout,
            secrets=self._secrets,
            **self._of_exchanges,
        )

    def _next_attempt(self, exchange: Exchange, error: APIError) -> float:
        wait = exchange.failed(error)
        if self.on_retry:
            self.on_retry(error, wait)
        return wait


def checked_timeout(timeout: Timeout) -> httpx.Timeout:
    """`timeout` as httpx has it. Raises UsageError unless each of its parts is None or a number of seconds."""
    try:
        made = httpx.Timeout(timeout)
    except (TypeError, ValueError, IndexError) as fault:
        raise UsageError(f"timeout is not a number of seconds: {fault}") from None
    for value in made.as_dict().values():
        _seconds(value, "timeout")
    return made


def _seconds(value: Any, name: str) -> float | None:
    if value is None or (isinstance(value, int | float) and 0 < value <= _MOST_SECONDS):  # which NaN is not
        return value
    raise UsageError(f"{name} needs a number of seconds above 0 and at most {_MOST_SECONDS}, or None for no timeout")


def endpoint_of(settings: Settings) -> Endpoint:
    """Where requests go, as the settings and the environment say. Raises UsageError for what cannot be used."""
    key, token = settings.get("api_key"), settings.get("auth_token")
    scheme, source = ("bearer", "auth_token") if token and not key else ("", "api_key")
    secret = credential(os.environ, key=key or token, source=source, scheme=scheme)
    headers = (*custom_headers(os.environ), *(settings.get("default_headers") or {}).items())
    given, ambient = settings.get("base_url"), variable(os.environ, "ANTHROPIC_BASE_URL")
    endpoint = Endpoint(given or ambient or DEFAULT_BASE_URL, secret, settings.get("api_version"), headers)
    allow_http = settings.get("allow_http", False)
    return endpoint.checked("base_url" if given else "ANTHROPIC_BASE_URL", allow_http=allow_http)
