"""Which proxy a request goes through, by option or environment, and what makes one unusable.

Contract: what cannot be used is a UsageError that names where the proxy came from; nothing is sent to find that out.
"""

from __future__ import annotations

import importlib.util
import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from streamcli.errors import UsageError
from streamcli.protocol.request import Endpoint, is_loopback, readable_on_the_way
from streamcli.protocol.secrets import secrets_of

from .lookup import address

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import httpcore


# The schemes of proxies and the ports they have without one in the URL.
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
# An entry of NO_PROXY: a host or a block, or one in brackets, and perhaps a port.
_ENTRY = r"(?:\[(?P<address>[^]]+)\]|(?P<name>[^:]+))(?::(?P<port>\d+))?|(?P<other>.+)"


class Proxy(NamedTuple):
    """A proxy and where it was named, for messages."""

    url: str
    source: str

    def checked(self) -> Proxy:
        """The same proxy with its scheme. Raises UsageError, naming the source, where it cannot be one."""
        url = self.url if "://" in self.url else f"http://{self.url}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in _PORTS and parts.hostname and parts.port != 0 and parts.netloc.isascii()
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{self.source} is not the URL of an http, https or socks5 proxy")
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            from .packages import installing  # noqa: PLC0415 - few lack it

            raise UsageError(f"{self.source} names a SOCKS proxy, which needs socksio: {installing(['socksio'])}")
        return Proxy(url, self.source)

    @property
    def name(self) -> str:
        """What messages call it."""
        parts = urlsplit(self.url)
        return f"the proxy {address(parts.hostname or '', parts.port or _PORTS[parts.scheme])}"

    @property
    def scheme(self) -> str:
        """How it is spoken to."""
        return urlsplit(self.url).scheme

    @property
    def speaks_http(self) -> bool:
        """Whether it is an HTTP proxy, and not one of SOCKS."""
        return not self.scheme.startswith("socks")

    @property
    def secrets(self) -> list[str]:
        """What it is told and might say back: the password, and the header that holds it."""
        import base64  # noqa: PLC0415 - few proxies have a password

        user, password = self._auth or (b"", b"")
        return list(secrets_of([("proxy-authorization", f"Basic {base64.b64encode(user + b':' + password).decode()}")]))

    @property
    def _auth(self) -> tuple[bytes, bytes] | None:
        parts = urlsplit(self.url)
        return (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")) if parts.username else None

    def for_httpcore(self, context: ssl.SSLContext | None) -> httpcore.Proxy:
        """As httpcore takes it: the address, user and password apart, and the trust if it is spoken to by https."""
        import httpcore  # noqa: PLC0415

        parts = urlsplit(self.url)
        url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return httpcore.Proxy(url, auth=self._auth, ssl_context=context if parts.scheme == "https" else None)


def environment_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for `url`, or None; loopback has none, for another machine has another.

    Lower-case names win over upper-case ones, a scheme's own variable over ALL_PROXY; NO_PROXY exempts hosts. Raises
    UsageError, naming the variable, for one that cannot be used.
    """
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if is_loopback(url) or is_exempt(url, exempt):
        return None
    for name in (f"{urlsplit(url).scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            named = environment.get(variable, "").strip()
            if named:
                return Proxy(named, variable).checked()
    return None


def is_exempt(url: str, no_proxy: str) -> bool:
    """Whether NO_PROXY, of this value, exempts the host of `url`.

    As curl reads it: names with all that is below them, addresses and blocks of them, with commas or blanks between
    them, or "*" alone. Beyond curl, an entry may be in brackets and end with a port, which is then that of `url`.
    """
    if no_proxy == "*":
        return True
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme)
    found = (re.fullmatch(_ENTRY, entry) for entry in re.split(r"[ \t,]+", no_proxy.lower()))
    entries = [entry for entry in found if entry and entry["port"] in {None, str(port)}]
    return any(_covers(entry["address"] or entry["name"] or entry["other"], host) for entry in entries)


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of NO_PROXY is `host`, a block that holds it, or a name above it."""
    import ipaddress  # noqa: PLC0415 - few have a NO_PROXY

    try:
        asked = ipaddress.ip_address(host)
    except ValueError:
        name, suffix = host.removesuffix("."), entry.removesuffix(".").removeprefix(".")
        return bool(suffix) and f".{name}".endswith(f".{suffix}")
    try:
        return asked in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False


def proxy_for(endpoint: Endpoint, *, named: str | None = None, allow_http: bool = False) -> Proxy | None:
    """The proxy to go through to `endpoint`: `named` with --proxy, or the environment's.

    Raises UsageError for one that cannot be used, and for one on another machine that would be handed a key in clear,
    which only `allow_http` lets pass.
    """
    url = endpoint.base_url
    proxy = Proxy(named, "--proxy").checked() if named else environment_proxy(url, os.environ)
    if proxy and endpoint.has_credential and not allow_http and readable_on_the_way(url, proxy.url):
        host = urlsplit(proxy.url).hostname
        raise UsageError(f"{proxy.source} uses plain http to {host}, where the key could be read; see NO_PROXY")
    return proxy
