"""Send a prompt to a Messages endpoint and stream the answer.

The command is `streamcli`; the library is `Client`, `AsyncClient` and the exceptions of `streamcli.errors`. Importing
this package loads nothing but the standard library until one of its names is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.async_client import AsyncClient, AsyncMessageStream
    from .client.client import Client, MessageStream
    from .client.settings import Settings
    from .errors import *
    from .protocol.history import sendable
    from .protocol.records import ContentBlock, Delta, Event, Message, Usage
    from .protocol.sse import Decoder, ServerSentEvent
    from .version import __version__ as __version__

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncMessageStream",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ConflictError",
    "ContentBlock",
    "ContentTooLargeError",
    "Decoder",
    "Delta",
    "Event",
    "GatewayTimeoutError",
    "IncompleteStreamError",
    "InternalServerError",
    "Message",
    "MessageStream",
    "NotFoundError",
    "OutputError",
    "OverloadedError",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitError",
    "RequestTimeoutError",
    "SchemaError",
    "ServerSentEvent",
    "ServiceUnavailableError",
    "Settings",
    "ShapeError",
    "StreamError",
    "StreamcliError",
    "ToolError",
    "UnexpectedResponseError",
    "UnprocessableEntityError",
    "Usage",
    "UsageError",
    "sendable",
]

_HOMES = {
    "client.async_client": ("AsyncClient", "AsyncMessageStream"),
    "client.client": ("Client", "MessageStream"),
    "client.settings": ("Settings",),
    "protocol.history": ("sendable",),
    "protocol.records": ("ContentBlock", "Delta", "Event", "Message", "Usage"),
    "protocol.sse": ("Decoder", "ServerSentEvent"),
    "version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
