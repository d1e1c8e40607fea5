"""An error and what was asked in; what the user can do about it out, for the end of the error's line.

Contract: only what is likely to help; "" where nothing is known. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamcli.errors import APIStatusError
from streamcli.protocol.request import DEFAULT_BASE_URL, DEFAULT_MODEL, is_loopback

if TYPE_CHECKING:
    from streamcli.errors import StreamcliError
    from streamcli.protocol.request import Endpoint

_NO_KEY = "no key was sent: set ANTHROPIC_API_KEY, or ANTHROPIC_AUTH_TOKEN if the server wants a Bearer token"
_BEARER = "the key was sent as x-api-key: if the server wants a Bearer token, use --auth bearer"
_NOT_RUNNING = "is the server running, and is that its port?"
_MODEL = f"{DEFAULT_MODEL} is only the default: choose another model with -m; --models lists what the server has"


def advice(error: StreamcliError, endpoint: Endpoint, model: Any = None) -> str:
    """What goes with an error of `endpoint`, which was asked for `model`.

    Other servers than Anthropic's have other models, and some have only the one header that a key goes out in. One on
    this machine that refuses a connection is most likely not running.
    """
    refused = f"cannot connect to {urlsplit(endpoint.base_url).netloc}: connection refused"
    if refused in error.message and is_loopback(endpoint.base_url):
        return _NOT_RUNNING
    if not isinstance(error, APIStatusError) or endpoint.base_url == DEFAULT_BASE_URL:
        return ""
    if error.status_code == 401 and not endpoint.has_credential:
        return _NO_KEY
    scheme = endpoint.credential.scheme if endpoint.credential else ""
    if error.status_code == 401 and scheme == "x-api-key" not in error.message:
        return _BEARER
    is_about_model = error.status_code == 404 or DEFAULT_MODEL in error.message
    return _MODEL if model == DEFAULT_MODEL and is_about_model else ""
