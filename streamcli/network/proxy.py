"""Which proxy a request goes through, by option or environment, and what makes one unusable.

Contract: what cannot be used is a UsageError that names where the proxy came from; nothing is sent to find that out.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from streamcli.errors import UsageError
from streamcli.protocol.request import holds_credential, is_loopback

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import httpcore

    from streamcli.protocol.request import Endpoint

_SCHEMES = frozenset({"http", "https", "socks5", "socks5h"})


class Proxy(NamedTuple):
    """A proxy and where it was named, for messages."""

    url: str
    source: str

    def checked(self) -> Proxy:
        """The same proxy with its scheme. Raises UsageError, naming the source, where it cannot be one."""
        url = self.url if "://" in self.url else f"http://{self.url}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme in _SCHEMES and parts.hostname and parts.port != 0 and parts.netloc.isascii()
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"{self.source} is not the URL of an http, https or socks5 proxy")
        if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise UsageError(f"{self.source} names a SOCKS proxy, which needs the package socksio")
        return Proxy(url, self.source)

    @property
    def scheme(self) -> str:
        """How it is spoken to."""
        return urlsplit(self.url).scheme

    def for_httpcore(self, context: ssl.SSLContext | None) -> httpcore.Proxy:
        """As httpcore takes it: the address, user and password apart, and the trust if it is spoken to by https."""
        import httpcore  # noqa: PLC0415

        parts = urlsplit(self.url)
        address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        auth = (unquote_to_bytes(parts.username), unquote_to_bytes(parts.password or "")) if parts.username else None
        return httpcore.Proxy(address, auth=auth, ssl_context=context if parts.scheme == "https" else None)


def environment_proxy(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for `url`, or None.

    Lower-case names win over upper-case ones, a scheme's own variable over ALL_PROXY; NO_PROXY exempts hosts. Raises
    UsageError, naming the variable, for one that cannot be used.
    """
    host = urlsplit(url).hostname or ""
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if exempt and proxy_bypass_environment(host, {"no": exempt}):
        return None
    for name in (f"{urlsplit(url).scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if environment.get(variable):
                return Proxy(environment[variable], variable).checked()
    return None


def proxy_for(endpoint: Endpoint, *, named: str | None = None, allow_http: bool = False) -> Proxy | None:
    """The proxy to go through to `endpoint`: `named` with --proxy, or the environment's.

    Raises UsageError for one that cannot be used, and for one on another machine that would be handed a key in clear,
    which only `allow_http` lets pass.
    """
    url = endpoint.base_url
    proxy = Proxy(named, "--proxy").checked() if named else environment_proxy(url, os.environ)
    in_clear = urlsplit(url).scheme == "http" and (endpoint.credential or holds_credential(endpoint.headers))
    if proxy and in_clear and not allow_http and not is_loopback(proxy.url):
        host = urlsplit(proxy.url).hostname
        raise UsageError(f"{proxy.source} takes plain http to {host}: the key would be readable there; see NO_PROXY")
    return proxy
